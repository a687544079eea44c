"""A page for every command of ``atlasseg``, from its help."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from atlasseg.cli import app

HIDDEN = {"help", "install_completion", "show_completion"}


def pages() -> dict[Path, str]:
    """Every page by its path."""
    commands = dict(_walk(typer.main.get_command(app), ()))
    made = {Path("commands/index.md"): overview(commands)}
    for words, command in commands.items():
        made[Path(f"commands/{'_'.join(words)}.md")] = command_page(words, command)
    return made


def _walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it."""
    if words:
        yield words, command
    for name, child in getattr(command, "commands", {}).items():
        yield from _walk(child, (*words, name))


def overview(commands: dict[tuple[str, ...], Any]) -> str:
    """The page that lists the commands."""
    rows = [
        f"| [`atlasseg {' '.join(words)}`]({'_'.join(words)}.md) | {_first(c.help)} |" for words, c in commands.items()
    ]
    names = "\n".join("_".join(words) for words in commands)
    return (
        "# Commands\n\nEverything can be done in a terminal. `atlasseg COMMAND --help` shows these pages there, and "
        "`atlasseg --install-completion` teaches your shell the commands.\n\n| command | purpose |\n|---|---|\n"
        + "\n".join(rows)
        + "\n\nExit status: 0 all done; 1 some targets failed, each named with its reason; 2 the request itself was "
        f"wrong; 130 interrupted.\n\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"
    )


def command_page(words: tuple[str, ...], command: Any) -> str:
    """The page of one command."""
    shown = [p for p in command.params if p.name not in HIDDEN and not getattr(p, "hidden", False)]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    options = [p for p in shown if p.param_type_name == "option"]
    usage = " ".join(["atlasseg", *words, *(_metavar(p) for p in arguments), *(["[OPTIONS]"] if options else [])])
    parts = [f"# atlasseg {' '.join(words)}\n", f"```text\n{usage}\n```\n", _help(command.help), ""]
    children = getattr(command, "commands", {})
    if children:
        parts += ["## Commands\n", "| command | purpose |", "|---|---|"]
        parts += [f"| [`{name}`]({'_'.join((*words, name))}.md) | {_first(c.help)} |" for name, c in children.items()]
    if arguments:
        parts += ["## Arguments\n", *(_entry(_metavar(p), p) for p in arguments)]
    if options:
        parts += ["## Options\n", *(_entry(_spelling(p), p) for p in options)]
    return "\n".join(parts) + "\n"


def _entry(head: str, parameter: Any) -> str:
    """One argument or option as a definition."""
    text = " ".join((getattr(parameter, "help", None) or "").split())
    default = parameter.default
    if default not in (None, False, (), []) and not callable(default) and getattr(parameter, "show_default", True):
        text += f" Default: `{default}`."
    return f"`{head}`\n: {text or 'see above'}\n"


def _metavar(parameter: Any) -> str:
    name = parameter.metavar or str(parameter.name).upper()
    return name if parameter.required else f"[{name}]"


def _spelling(parameter: Any) -> str:
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {parameter.metavar or str(parameter.name).upper()}"


def _first(text: str | None) -> str:
    """First paragraph, on one line."""
    return " ".join((text or "").partition("\n\n")[0].split()).replace("|", "\\|")


def _help(text: str | None) -> str:
    return (text or "").replace("\f", "").strip() + "\n"
