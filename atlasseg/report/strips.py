"""Structures by targets, as strips of dots."""

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
"""Structures drawn one by one; of more, those that differ most between targets."""
MOST_DOTS = 100
"""Of more targets the middle half is drawn as a box, and only those beyond its whiskers as dots."""

_LEFT, _RIGHT, _ROW, _TOP = 250, 970, 20, 24


@dataclass(frozen=True)
class Axis:
    """What a strip spans: values are cut to `low`..`high`; `ticks` are (value, its name), `said` puts one in words."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    said: Callable[[float], str]

    def across(self, value: float) -> float:
        """Where a value lies."""
        part = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return _LEFT + part * (_RIGHT - _LEFT)


@dataclass(frozen=True)
class Strips:
    """A drawing, and how to read it."""

    svg: Markup
    about: str


@dataclass(frozen=True)
class Box:
    """The middle half of some values, and whiskers to the farthest within 1.5 times its width of it."""

    low: float
    q1: float
    q3: float
    high: float

    @classmethod
    def of(cls, values: ArrayLike) -> Box:
        """The box of the values."""
        numbers = np.asarray(values, float)
        q1, q3 = np.percentile(numbers, (25, 75))
        reach = 1.5 * (q3 - q1)
        within = numbers[(numbers >= q1 - reach) & (numbers <= q3 + reach)]
        return cls(float(within.min()), float(q1), float(q3), float(within.max()))

    def placed(self, across: Callable[[float], float]) -> Box:
        """Where it is drawn."""
        return Box(across(self.low), across(self.q1), across(self.q3), across(self.high))


def strips(
    values: Mapping[str, Mapping[int, float]],
    *,
    table: LabelTable,
    axis: Axis,
    hrefs: Mapping[str, str],
    title: str,
) -> Strips | None:
    """One row a structure, one dot a target; None where there is nothing to draw.

    Parameters
    ----------
    values : mapping of str to mapping of int to float
        Target to its value of each label; NaN where not known.
    table : LabelTable
        Names of the labels.
    axis : Axis
        What the rows span.
    hrefs : mapping of str to str
        Target to the address of its page, empty where there is none.
    title : str
        What the drawing is of, for those who do not see it.
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
        remark = f" Shown are the {MOST_STRIPS} of {len(labels)} structures that differ most between targets."
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
        described=f"{title}: one row a structure, {'a box' if boxed else 'a dot a target'} and their median",
        top=_TOP,
        height=_TOP + _ROW * len(labels) + 6,
        ticks=[(axis.across(value), text) for value, text in axis.ticks],
        rows=rows,
        radius=4.5,
        reach=6,
        median_reach=7,
    )
    about = (
        "A box holds the middle half of the targets, whiskers reach as far as 1.5 times its width, dots are targets "
        "beyond them, the heavy line is the median."
        if boxed
        else "A dot is a target, the heavy line their median."
    )
    return Strips(drawn, about + remark)
