"""Parts of the sections of a page: numbers, tables, colours of labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlasseg.labels import LabelTable
from atlasseg.report.figures import drawn_color
from atlasseg.templating import render_macro

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["Number", "table_section"]


@dataclass(frozen=True)
class Number:
    """A number in a table.

    Parameters
    ----------
    value : float
        The number. NaN is shown as a dash.
    decimals : int, optional
        Number of decimals; by default three significant digits are shown.
    part : float, optional
        Length of the bar in the cell, 0 to 1; by default there is no bar.
    """

    value: float
    decimals: int | None = None
    part: float | None = None


def table_section(
    id_: str, title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Number]], *, text: str = ""
) -> Markup:
    """Make a section with a heading, a text and a table that can be sorted by its columns.

    Parameters
    ----------
    id_ : str
        Anchor, unique in the page.
    title : str
        Heading.
    columns : sequence of str
        Heads of the columns.
    rows : iterable of sequence of str or Number
        One value per column. The first is the name of the row.
    text : str
        Explanation above the table.

    Returns
    -------
    Markup
        HTML of the section.
    """
    rows = list(rows)
    numeric = {n for row in rows for n, value in enumerate(row) if isinstance(value, Number)}
    heads = [(column, n in numeric) for n, column in enumerate(columns)]
    return render_macro("target_sections.html.j2", "plain", id=id_, title=title, text=text, heads=heads, rows=rows)


def label_colors(values: Iterable[int], table: LabelTable) -> list[tuple[int, str]]:
    """Give the labels their colours as ``#rrggbb``, in ascending order, for the style sheet's classes (``l17``)."""
    return [(value, drawn_color(table.color(value))) for value in sorted(values)]


def voxel_size(spacing_mm: Iterable[float]) -> str:
    """Write a voxel size: ``1 × 1 × 1.2``."""
    return " \u00d7 ".join(f"{mm:.3g}" for mm in spacing_mm)
