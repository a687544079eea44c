"""What the pages are put together from: one document, tables, numbers in words."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from urllib.parse import quote

MINUS = "\u2212"


@dataclass(frozen=True)
class Cell:
    """A table cell: what it shows, what it sorts by, and how full its bar is (0 to 1)."""

    html: str
    value: float | str | None = None
    part: float | None = None
    numeric: bool = False

    @property
    def row_header(self) -> str:
        """As the first cell of a row."""
        return f'<th scope="row"{self._sorted_by}>{self.html}</th>'

    @property
    def data(self) -> str:
        """As any other cell."""
        classes = " ".join(name for name, on in (("n", self.numeric), ("bar", self.part is not None)) if on)
        style = "" if self.part is None else f' style="--part:{min(max(self.part, 0), 1):.3f}"'
        return f"<td{f' class={classes!r}' if classes else ''}{style}{self._sorted_by}>{self.html}</td>".replace(
            "'", '"'
        )

    @property
    def _sorted_by(self) -> str:
        return "" if self.value is None else f' data-value="{escape(str(self.value))}"'


def address(path: str) -> str:
    """Percent-encode a relative path as the value of ``href``: a name may hold ``#``, ``?``, ``%`` or a space."""
    return escape(quote(os.fsencode(path)))


def text(value: object) -> Cell:
    """A cell of plain text."""
    return Cell(escape(str(value)))


def number(value: float, *, digits: int = 3, part: float | None = None) -> Cell:
    """A cell of a number to so many significant digits; a dash where it is not known."""
    if not math.isfinite(value):
        return Cell('<span class="soft">\u2013</span>', "", numeric=True)
    return Cell(significant(value, digits), f"{value:.6g}", part, numeric=True)


def fixed(value: float, decimals: int, *, part: float | None = None) -> Cell:
    """A cell of a number to so many decimals; a dash where it is not known."""
    if not math.isfinite(value):
        return Cell('<span class="soft">\u2013</span>', "", numeric=True)
    return Cell(grouped(f"{value:.{decimals}f}"), f"{value:.6g}", part, numeric=True)


def significant(value: float, digits: int = 3) -> str:
    """A number to so many significant digits, without an exponent, thousands parted by thin spaces."""
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # of the rounded value: 0.9996 shows as 1.00
    decimals = max(digits - 1 - exponent, 0)
    return grouped(f"{value:.{min(decimals, 6)}f}")


def grouped(digits: str) -> str:
    """Thousands parted by thin spaces that do not break, and a true minus sign."""
    whole, dot, rest = digits.lstrip("-").partition(".")
    parts = [whole[max(n - 3, 0) : n] for n in range(len(whole), 0, -3)][::-1]
    negative = digits.startswith("-") and any(c in "123456789" for c in digits)
    return (MINUS if negative else "") + "\u202f".join(parts) + dot + rest


def volume(mm3: float) -> str:
    """A volume in the unit that suits it."""
    return f"{significant(mm3 / 1000)} ml" if mm3 >= 1000 else f"{significant(mm3)} mm\u00b3"


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def count(n: int, one: str, many: str | None = None) -> str:
    """``1 atlas``, ``2 atlases``."""
    return f"{grouped(str(n))} {one if n == 1 else many or one + 's'}"


def table(
    heads: Sequence[tuple[str, bool]],
    rows: Iterable[tuple[Sequence[Cell], bool]],
    *,
    caption: str = "",
    sorts: bool = True,
) -> str:
    """A table.

    Parameters
    ----------
    heads : sequence of (str, bool)
        HTML of each column's head, and whether it holds numbers.
    rows : iterable of (sequence of Cell, bool)
        Cells, the first heading its row, and whether the row wants attention.
    """
    head = "".join(f'<th scope="col"{" class=n" if numeric else ""}>{html}</th>' for html, numeric in heads)
    body = "".join(
        f"<tr{' class=flag' if flag else ''}>{cells[0].row_header}{''.join(c.data for c in cells[1:])}</tr>\n"
        for cells, flag in rows
    )
    titled = f"<caption>{caption}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table{" class=sorts" if sorts else ""}>{titled}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>\n"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Name and figure, side by side."""
    return f'<dl class="facts">{"".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in pairs)}</dl>\n'


def making(recipe: str, versions: Mapping[str, str]) -> str:
    """The end of a page: recipe and software folded away, where they are known, and who made it."""
    parts = []
    if recipe:
        parts.append(f"<details><summary>Recipe</summary><pre>{escape(recipe)}</pre></details>\n")
    if versions:
        rows = [([text(name), text(version)], False) for name, version in versions.items()]
        listed = table([("Software", False), ("Version", False)], rows, sorts=False)
        parts.append(f"<details><summary>Software</summary>{listed}</details>\n")
    version = versions.get("atlasseg", "")
    made = f'<section aria-label="How it was made">{"".join(parts)}</section>\n' if parts else ""
    return f"{made}</main>\n<footer>Made by atlasseg{' ' + escape(version) if version else ''}.</footer>\n"


POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
)
"""What a page may load: what is in it. The browser sees to it."""


def document(title: str, body: str, *, style: str = "", scripts: str = "") -> str:
    """A page that needs nothing but itself; `scripts` are elements for its end."""
    here = files("atlasseg.report")
    css = (here / "style.css").read_text("utf-8") + style
    script = (here / "script.js").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n{body}"
        f"<script>\n{script}</script>\n{scripts}</body>\n</html>\n"
    )
