"""Recipe templates: every key with its meaning and default, generated from the tables and methods."""

from __future__ import annotations

import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import annotated_types

from atlasseg import methods
from atlasseg.recipe import SECTIONS, Step

__all__ = ["format_template"]

WIDTH = 100
"""Maximum length of a comment line."""

APART = (
    "localisation",
    "selection",
    "propagation",
    "fusion",
    "refinement",
    "regions",
    "refiner",
    "training",
    "augmentation",
)
"""Tables of ``atlasseg run`` and ``train`` that a recipe of ``atlasseg tissue`` does not have."""

SWITCHES = ("regions", "tissue")
"""Tables that take effect by their presence."""

PLACES = {("data", "atlases"): ["my_atlases"], ("data", "targets"): ["my_scans"], ("data", "out"): "out"}
"""Examples of paths."""


def format_template(
    given: Mapping[str, Any],
    *,
    title: str,
    brief: bool = False,
    remarks: Sequence[str] = (),
    reasons: Mapping[str, str] | None = None,
) -> str:
    """Format a commented recipe: the given keys, and all other keys as comments with their defaults.

    A comment ``# key = value`` becomes part of the recipe if its ``# `` is removed. Parameters of methods are written
    as dotted keys, ``joint.beta``, so they need no separate table.

    Parameters
    ----------
    given : mapping
        Tables of a recipe. With a table ``tissue`` the result is a recipe for ``atlasseg tissue``.
    title : str
        First line of the comment at the top.
    brief : bool
        Leave out tables without given keys, except the most common ones, and methods that are not used.
    remarks : sequence of str
        Further lines of the comment at the top; they are not wrapped if they are aligned as a table.
    reasons : mapping of str to str, optional
        Reason of the given keys of a table, by its name.

    Returns
    -------
    str
        Text of the recipe in TOML.
    """
    lines = [
        *_comment(title),
        *(line for remark in remarks for line in ([f"#   {remark}"] if "  " in remark else _comment(remark))),
        "#",
        *_comment(
            "Lines such as '# key = value' are defaults or examples: remove the '# ' to change one. Relative paths "
            "start from the folder of this file. 'atlasseg methods' lists the methods, and "
            "'atlasseg run FILE --dry-run' checks the recipe."
        ),
    ]
    unused = APART if "tissue" in given else ("tissue",)
    for section, kind in SECTIONS.items():
        common = section in ("data", "registration", "fusion", "output", "tissue")
        if section not in unused and (not brief or common or section in given):
            why = (reasons or {}).get(section, "")
            lines += ["", "", *_section(section, kind, given.get(section, {}), brief, section in given, why)]
    return "\n".join(lines) + "\n"


def _section(
    section: str, kind: type, given: Mapping[str, Any], brief: bool, is_given: bool, reason: str = ""
) -> Iterator[str]:
    """Format the lines of one table."""
    document = inspect.getdoc(kind) or ""
    meanings = methods.described_parameters(document)
    hints = typing.get_type_hints(kind, include_extras=True)
    yield from _comment(document.partition("\n\n")[0])
    if reason:
        yield from _comment(reason)
    if section in SWITCHES and not is_given:
        yield from _comment(f"Remove the '# ' before [{section}] too: the table takes effect by its presence.")
        yield f"# [{section}]"
    else:
        yield f"[{section}]"
    for each in fields(kind):
        yield ""
        yield from _key(section, each, hints[each.name], meanings.get(each.name, ""), given)
    if section in methods.STAGES:
        used = _used(given)
        for name in methods.names(section):
            if not brief or name in used:
                yield from _method(section, name, given.get(name, {}), name in used)


def _key(section: str, each: Field[Any], hint: Any, meaning: str, given: Mapping[str, Any]) -> Iterator[str]:
    """Format a key with its meaning."""
    default = [] if each.default == () else each.default
    note = ""
    if each.name in given:
        line = f"{each.name} = {_toml(given[each.name])}"
    elif (section, each.name) in PLACES:
        line = f"# {each.name} = {_toml(PLACES[section, each.name])}"
        note = "Not set."
    elif default is None or default is MISSING:
        line = f"# {each.name} = {_toml(example(hint, section))}"
        note = "Not set by default." if default is None else "Required."
    else:
        line = f"# {each.name} = {_toml(default)}"
    yield from _comment(_sentences(meaning, hint, note))
    yield line


def _method(stage: str, name: str, given: Mapping[str, Any], is_used: bool) -> Iterator[str]:
    """Format the parameters of a method."""
    method = methods.get(stage, name)
    yield ""
    yield from _comment(f"{'Used' if is_used else 'Method'}: {name}. {method.summary}")
    for parameter in method.parameters:
        default, note = parameter.default, ""
        key = f"{name}.{parameter.name}"
        if parameter.name in given:
            line = f"{key} = {_toml(given[parameter.name])}"
        elif parameter.required or default is None:
            line = f"# {key} = {_toml(example(parameter.annotation, stage))}"
            note = "Required by this method." if parameter.required else "Not set by default."
        else:
            line = f"# {key} = {_toml(default)}"
        yield from _comment(_sentences(parameter.description, parameter.annotation, note), 4)
        yield line


def _sentences(meaning: str, hint: Any, note: str) -> str:
    """Join the meaning of a key, its allowed names if the meaning does not list them, and a note."""
    choice = allowed(hint)
    choices = f"One of: {', '.join(choice)}." if not all(name in meaning for name in choice) else ""
    return " ".join(filter(None, (meaning, choices, note)))


def _used(given: Mapping[str, Any]) -> list[str]:
    chosen = given.get("steps", given.get("method", []))
    return [chosen] if isinstance(chosen, str) else list(chosen)


def _comment(text: str, indent: int = 2) -> list[str]:
    """Format a text as comment lines, without documentation markup."""
    plain = re.sub(r":\w+:`([^`]*)`", r"\1", text).replace("``", "'").replace("`", "'").replace("**", "")
    plain = re.sub(r"\s+", " ", plain).strip()
    head = "#" + " " * (indent - 1)
    return textwrap.wrap(plain, WIDTH, initial_indent=head, subsequent_indent=head, break_on_hyphens=False)


def _toml(value: Any) -> str:
    """Format a value as TOML on one line."""
    import tomli_w

    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, Path):
        value = str(value)
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip()


def example(hint: Any, stage: str = "") -> Any:
    """Make an example value of a type; of a number with a limit, the smallest value.

    Examples
    --------
    >>> example(int | None)
    1
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _least(example(arguments[0], stage), arguments[1:])
    if origin in (typing.Union, types.UnionType):
        return example(next(a for a in arguments if a is not type(None)), stage)
    if origin is typing.Literal:
        return arguments[0]
    if origin is tuple:
        return [example(a, stage) for a in arguments if a is not Ellipsis]
    if hint is Step:
        return next(m.name for m in methods.list_methods(stage) if not any(p.required for p in m.parameters))
    return {bool: False, int: 1, float: 1.0, str: "name", Path: "path"}[hint]


def _least(value: Any, constraints: tuple[Any, ...]) -> Any:
    """Smallest value that the constraints allow, or a small one."""
    limits = {type(constraint): constraint for constraint in constraints}
    if annotated_types.Ge in limits:
        return limits[annotated_types.Ge].ge
    below = limits.get(annotated_types.Lt) or limits.get(annotated_types.Le)
    highest = getattr(below, "lt", getattr(below, "le", value))
    return min(value, highest / 2) if highest is not value else value


def allowed(hint: Any) -> tuple[str, ...]:
    """Names that a type allows; empty if it is not a choice of names."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return tuple(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return next(filter(None, map(allowed, arguments)), ())
    return ()
