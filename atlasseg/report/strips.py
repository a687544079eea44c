"""Strip plots: one row per structure, one dot per target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from atlasseg.labels import LabelTable
from atlasseg.templating import render_macro

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_STRIPS = 60
"""Maximum number of rows. Of more structures, those that differ most between targets are drawn."""
MOST_DOTS = 100
"""Maximum number of dots per row. For more targets a box plot is drawn, with dots for values beyond its whiskers."""

_LEFT, _RIGHT, _ROW, _TOP = 250, 970, 20, 24


@dataclass(frozen=True)
class Axis:
    """Axis of a strip: values are clipped to `low`..`high`; `ticks` are (value, text); `said` formats a value."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    said: Callable[[float], str]

    def across(self, value: float) -> float:
        """Horizontal position of a value in the drawing."""
        part = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return _LEFT + part * (_RIGHT - _LEFT)


@dataclass(frozen=True)
class Strips:
    """A strip plot and its explanation."""

    svg: Markup
    about: str


@dataclass(frozen=True)
class Box:
    """Box plot: quartiles, and whiskers to the farthest values within 1.5 interquartile ranges of the box."""

    low: float
    q1: float
    q3: float
    high: float

    @classmethod
    def of(cls, values: ArrayLike) -> Box:
        """Compute the box plot of the values."""
        numbers = np.asarray(values, float)
        q1, q3 = np.percentile(numbers, (25, 75))
        reach = 1.5 * (q3 - q1)
        within = numbers[(numbers >= q1 - reach) & (numbers <= q3 + reach)]
        return cls(float(within.min()), float(q1), float(q3), float(within.max()))

    def placed(self, across: Callable[[float], float]) -> Box:
        """Map the box to horizontal positions in the drawing."""
        return Box(across(self.low), across(self.q1), across(self.q3), across(self.high))


def strips(
    values: Mapping[str, Mapping[int, float]],
    *,
    table: LabelTable,
    axis: Axis,
    hrefs: Mapping[str, str],
    title: str,
) -> Strips | None:
    """Draw one row per structure and one dot per target. The result is None without finite values.

    Parameters
    ----------
    values : mapping of str to mapping of int to float
        Value of each label for each target; NaN if not known.
    table : LabelTable
        Names of the labels.
    axis : Axis
        Axis of the rows.
    hrefs : mapping of str to str
        Address of each target's page; empty if there is none.
    title : str
        Title, for screen readers.
    """
    by_label: dict[int, dict[str, float]] = {}
    for target, of in values.items():
        for label, value in of.items():
            if np.isfinite(value):
                by_label.setdefault(label, {})[target] = value
    if not by_label:
        return None
    labels, remark = sorted(by_label), ""
    if len(labels) > MOST_STRIPS:
        remark = f" The plot shows the {MOST_STRIPS} of {len(labels)} structures that differ most between targets."
        labels = sorted(sorted(labels, key=lambda v: (-float(np.ptp([*by_label[v].values()])), v))[:MOST_STRIPS])
    boxed = max(len(of) for of in by_label.values()) > MOST_DOTS
    rows = []
    for n, label in enumerate(labels):
        y, name, known = _TOP + _ROW * (n + 0.5), table.name(label), by_label[label]
        box = Box.of([*known.values()]) if boxed else None
        dots = [
            {"target": t, "x": axis.across(v), "y": y, "text": axis.said(v), "href": hrefs.get(t, "")}
            for t, v in known.items()
            if box is None or not box.low <= v <= box.high
        ]
        rows.append(
            {
                "y": y,
                "name": name if len(name) <= 36 else name[:35] + chr(0x2026),
                "box": box and box.placed(axis.across),
                "dots": dots,
                "median": axis.across(float(np.median([*known.values()]))),
            }
        )
    drawn = render_macro(
        "figures.html.j2",
        "strips",
        role="group",
        described=f"{title}: one row per structure, {'a box plot' if boxed else 'one dot per target'} and the median",
        top=_TOP,
        height=_TOP + _ROW * len(labels) + 6,
        ticks=[(axis.across(value), text) for value, text in axis.ticks],
        rows=rows,
        radius=4.5,
        reach=6,
        median_reach=7,
    )
    about = (
        "Boxes span the quartiles over the targets, whiskers reach to values within 1.5 interquartile ranges, dots are "
        "targets beyond them, and the heavy line is the median."
        if boxed
        else "Each dot is a target. The heavy line is the median."
    )
    return Strips(drawn, about + remark)
