"""A page for every table of a recipe: each key with its type, default, allowed values, meaning and an example."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
import types
import typing
from pathlib import Path
from typing import Any

import annotated_types

from atlasseg import methods, recipe

from . import rst

EXAMPLES = Path(__file__).parent / "recipe_examples.toml"
NAMES = {
    int: "integer",
    float: "number",
    bool: "`true` or `false`",
    str: "string",
    Path: "path",
    recipe.Step: "method name",
}


def pages() -> dict[Path, str]:
    """Every page by its path."""
    examples = tomllib.loads(EXAMPLES.read_text("utf-8"))
    made = {Path("recipe/index.rst"): overview()}
    for title, kind in recipe.SECTIONS.items():
        made[Path(f"recipe/{title}.rst")] = table_page(title, kind, examples.get(title, {}))
    return made


def overview() -> str:
    """The page that lists the tables."""
    rows = [(f":doc:`[{title}] <{title}>`", summary(kind)) for title, kind in recipe.SECTIONS.items()]
    text = (
        "A recipe is a TOML file. It has one table for each stage. The table ``[fusion]`` with its method must be "
        "given. All other tables and keys may be left out; the default is then used. These pages list all keys. Any "
        "key can also be set on the command line: "
        "``--set registration.drop_failed=false``.\n"
    )
    tree = rst.toctree(recipe.SECTIONS, ":hidden:")
    return "\n".join([rst.title("Recipe reference"), text, rst.table(("table", "purpose"), rows), tree])


def table_page(title: str, kind: type, example: dict[str, Any]) -> str:
    """The page of one table."""
    hints = typing.get_type_hints(kind, include_extras=True)
    meanings = methods.described_parameters(inspect.getdoc(kind) or "")
    parts = [f".. _recipe-{title}:\n", rst.title(f"[{title}]"), prose(kind) + "\n"]
    if title in methods.STAGES:
        parts.append(
            f"The parameters of a method go into a table of its own, ``[{title}.METHOD]``: see "
            f":doc:`the methods of {title} </generated/methods/{title}/index>`.\n"
        )
    rows = [
        (f":ref:`{f.name} <recipe-{title}-{f.name}>`", described_type(hints[f.name]), default(f))
        for f in dataclasses.fields(kind)
    ]
    parts.append(rst.table(("key", "type", "default"), rows))
    for f in dataclasses.fields(kind):
        parts += [
            f".. _recipe-{title}-{f.name}:\n",
            rst.title(f.name, "-"),
            meanings.get(f.name, "") + "\n",
            f":type: {described_type(hints[f.name])}",
            f":default: {default(f)}",
        ]
        allowed = allowed_values(hints[f.name])
        if hints[f.name] in (recipe.Step, recipe.Step | None, tuple[recipe.Step, ...]):
            allowed = ", ".join(f":doc:`{n} </generated/methods/{title}/{n}>`" for n in methods.names(title))
        if allowed:
            parts.append(f":allowed: {allowed}")
        parts.append("")
        if f.name in example:
            parts.append(rst.code(f"[{title}]\n{rst.toml_line(f.name, example[f.name])}", "toml"))
    return "\n".join(parts)


def summary(kind: type) -> str:
    """First sentence of the docstring."""
    return (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")


def prose(kind: type) -> str:
    """The docstring without its sections."""
    return re.split(r"(?m)^\w[\w ]*\n-{3,}$", inspect.getdoc(kind) or "")[0].strip()


def default(f: dataclasses.Field[Any]) -> str:
    """The default as TOML writes it."""
    if f.default is dataclasses.MISSING:
        return "must be given"
    if f.default is None:
        return "unset"
    return f"``{rst.toml_value(f.default)}``"


def described_type(hint: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return described_type(arguments[0])
    if origin is typing.Literal:
        return "string" if all(isinstance(value, str) for value in arguments) else "one of the values below"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(described_type(a) for a in arguments if a is not type(None)))
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"list of {count}{plural(described_type(arguments[0]))}"
    return NAMES.get(hint, f"`{getattr(hint, '__name__', hint)}`")


def plural(text: str) -> str:
    """Several of a type in words."""
    return re.sub(r"\b(integer|number|string|path|name)\b", r"\1s", text)


def allowed_values(hint: Any) -> str:
    """The literals or limits of a type; empty where every value is allowed."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"``{rst.toml_value(value)}``" for value in arguments)
    if origin is typing.Annotated:
        names = [name for mark in arguments[1:] if isinstance(mark, methods.OneOf) for name in mark.known]
        return ", ".join(f"``{name}``" for name in names) or " and ".join(filter(None, map(limit, arguments[1:])))
    parts = [allowed_values(a) for a in arguments if a not in (type(None), Ellipsis)]
    return ", or ".join(dict.fromkeys(filter(None, parts)))


def limit(constraint: object) -> str:
    """One limit in words."""
    signs = {
        annotated_types.Ge: ("ge", "at least"),
        annotated_types.Gt: ("gt", "above"),
        annotated_types.Le: ("le", "at most"),
        annotated_types.Lt: ("lt", "below"),
    }
    for kind, (attribute, words) in signs.items():
        if isinstance(constraint, kind):
            return f"{words} {getattr(constraint, attribute)}"
    return ""
