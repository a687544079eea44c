"""Tables on the terminal, fitted to its width, with names never cut."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

LONG_TEXT = 32
"""Columns with cells longer than this many characters may be wrapped between words."""

ANY_WIDTH = 100_000
"""Width larger than any table."""


def print_table(
    frame: pd.DataFrame, *, title: str = "", stream: TextIO | None = None, width: int | None = None
) -> None:
    """Print a data frame, with numbers to four digits and right-aligned.

    On a terminal, headers are wrapped if the columns are too wide together. If that is not enough, each row becomes a
    block of lines. Elsewhere the columns are aligned by spaces, at any width.

    Parameters
    ----------
    frame : DataFrame
    title : str
        Line above the table.
    stream : file, optional
        Default: standard output.
    width : int, optional
        Width in characters. Default: that of the terminal.
    """
    stream = stream or sys.stdout
    if not stream.isatty():
        stream.write(format_table(frame, title=title))
        return
    from rich.console import Console

    console = Console(file=stream, width=width, highlight=False)
    for tall in (False, True):
        table = _table(frame, title, tall=tall)
        if console.measure(table, options=console.options.update(max_width=ANY_WIDTH)).minimum <= console.width:
            console.print(table)
            return
    _print_blocks(console, frame, title)


def format_cells(frame: pd.DataFrame) -> list[list[str]]:
    """Format each cell, row by row."""
    return [
        ["" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value) for value in row]
        for row in frame.itertuples(index=False)
    ]


def format_table(frame: pd.DataFrame, *, title: str = "") -> str:
    """Format the table in plain characters, columns aligned and two spaces apart."""
    head = [str(column) for column in frame.columns]
    rows = [head, *format_cells(frame)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = _are_numbers(frame)
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*([title] if title else []), *lines]) + "\n"


def _are_numbers(frame: pd.DataFrame) -> list[bool]:
    import pandas as pd

    return [pd.api.types.is_numeric_dtype(frame[column]) for column in frame.columns]


def _table(frame: pd.DataFrame, title: str, *, tall: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        header_style="bold",
        box=None if tall else box.HEAVY_HEAD,
        pad_edge=not tall,
        padding=(0, 1),
        collapse_padding=tall,
    )
    rows = format_cells(frame)
    for n, (column, is_number) in enumerate(zip(frame.columns, _are_numbers(frame), strict=True)):
        head = str(column).replace(" ", "\n") if tall else str(column)
        prose = not is_number and any(len(row[n]) > LONG_TEXT and " " in row[n] for row in rows)
        longest = max((len(word) for row in rows for word in row[n].split()), default=0)
        table.add_column(
            Text(head),
            justify="right" if is_number else "left",
            no_wrap=not prose,
            overflow="fold",
            min_width=longest if prose else None,
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _print_blocks(console: Console, frame: pd.DataFrame, title: str) -> None:
    """Print each row as a block: the first cell, and below it the others with their column names."""
    from rich.text import Text

    if title:
        console.print(Text(title, style="italic"), soft_wrap=True)
    head = [str(column) for column in frame.columns]
    wide = max(map(len, head))
    for row in format_cells(frame):
        for n, (name, cell) in enumerate(zip(head, row, strict=True)):
            line = f"  {name:{wide}}  {cell}" if n else f"{name:{wide + 2}}  {cell}"
            if cell:
                console.print(Text(line, style="" if n else "bold"), soft_wrap=True)
