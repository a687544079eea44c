"""Small pieces of reStructuredText."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import indent

import tomli_w


def title(text: str, underline: str = "=") -> str:
    """A heading."""
    return f"{text}\n{underline * len(text)}\n"


def code(text: str, language: str) -> str:
    """A block of code."""
    return f".. code-block:: {language}\n\n{indent(text.rstrip(), '   ')}\n"


def directive(name: str, argument: str = "", *options: str, body: str = "") -> str:
    """A directive with its options and its body."""
    head = f".. {name}:: {argument}".rstrip()
    lines = [head, *(f"   {option}" for option in options)]
    return "\n".join(lines) + "\n" + (f"\n{indent(body.rstrip(), '   ')}\n" if body else "")


def toctree(entries: Iterable[str], *options: str) -> str:
    """A table of contents."""
    return directive("toctree", "", *options, body="\n".join(entries))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], widths: str = "auto") -> str:
    """A list-table, whose cells may hold any markup."""
    out = [f".. list-table::\n   :header-rows: 1\n   :widths: {widths}\n"]
    for row in (head, *rows):
        for n, cell in enumerate(row):
            text = indent(cell.strip() or "\\", "       ").lstrip()
            out.append(f"   {'* -' if n == 0 else '  -'} {text}")
    return "\n".join(out) + "\n"


def escape(text: str) -> str:
    """Text in which nothing but roles and code is markup."""
    return text.replace("*", r"\*").replace("|", r"\|")


def toml_line(key: str, value: object) -> str:
    """``key = value`` on one line."""
    return f"{key} = {toml_value(value)}"


def toml_value(value: object) -> str:
    """A value as TOML writes it, on one line."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, Path):
        value = str(value)
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip()
