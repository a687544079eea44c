"""A page for every command of ``atlasseg``, from its help."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
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
        "# Commands\n\n`atlasseg COMMAND --help` shows these pages in the terminal. `atlasseg --install-completion` "
        "adds tab completion to your shell.\n\n| command | purpose |\n|---|---|\n"
        + "\n".join(rows)
        + "\n\n| exit status | meaning |\n|---|---|\n| 0 | all done |\n"
        "| 1 | some targets failed; each is named with the reason |\n"
        "| 2 | the command line, the recipe or an input is wrong |\n| 130 | interrupted |\n"
        f"\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"
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
    default = getattr(parameter.default, "value", parameter.default)  # of an enumeration
    shown = isinstance(default, (str, int, float)) and default != "" and default is not False
    if shown and "[default:" not in text:
        text += f" [default: {parameter.opts[0].removeprefix('--') if default is True else default}]"
    text = text.replace("[default: ", "\\[default: ")
    return f"`{head}`\n: {text or 'see above'}\n"


def _value(parameter: Any) -> str:
    kind = parameter.type_descriptor.annotation
    choices = kind if isinstance(kind, type) and issubclass(kind, Enum) else ()
    return parameter.metavar or "|".join(choice.value for choice in choices) or str(parameter.name).upper()


def _metavar(parameter: Any) -> str:
    name = _value(parameter)
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _spelling(parameter: Any) -> str:
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {_value(parameter)}"


def _first(text: str | None) -> str:
    """First paragraph, on one line."""
    return " ".join((text or "").partition("\n\n")[0].split()).replace("|", "\\|")


def _help(text: str | None) -> str:
    return (text or "").replace("\f", "").strip() + "\n"
