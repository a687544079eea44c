"""Structures by targets, as strips of dots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from atlasseg.labels import LabelTable
from atlasseg.report._html import address

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

    svg: str
    about: str


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
    height = _TOP + _ROW * len(labels) + 6
    described = escape(f"{title}: one row a structure, {'a box' if boxed else 'a dot a target'} and their median")
    parts = [f'<svg class="strip" viewBox="0 0 1000 {height}" role="group" aria-label="{described}">']
    for value, said in axis.ticks:
        x = axis.across(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{height - 6}"/>')
        parts.append(f'<text class="axis" x="{x:.1f}" y="9">{said}</text>')
    for n, label in enumerate(labels):
        y = _TOP + _ROW * (n + 0.5)
        name = table.name(label)
        parts.append(f'<text x="0" y="{y:.1f}">{escape(name if len(name) <= 36 else name[:35] + chr(0x2026))}</text>')
        dots = by_label[label]
        if boxed:
            box, dots = _box(dots, axis, y)
            parts.append(box)
        parts += [_dot(target, value, axis, y, hrefs.get(target, "")) for target, value in dots.items()]
        x = axis.across(float(np.median([*by_label[label].values()])))
        parts.append(f'<line class="median" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 7:.1f}" y2="{y + 7:.1f}"/>')
    about = (
        "A box holds the middle half of the targets, whiskers reach as far as 1.5 times its width, dots are targets "
        "beyond them, the heavy line is the median."
        if boxed
        else "A dot is a target, the heavy line their median."
    )
    return Strips("".join([*parts, "</svg>"]), about + remark)


def _dot(target: str, value: float, axis: Axis, y: float, href: str) -> str:
    told = f"<title>{escape(target)}: {axis.said(value)}</title>"
    dot = f'<circle cx="{axis.across(value):.1f}" cy="{y:.1f}" r="4.5">{told}</circle>'
    return f'<a href="{address(href)}" aria-label="{escape(target)}">{dot}</a>' if href else dot


def _box(dots: Mapping[str, float], axis: Axis, y: float) -> tuple[str, dict[str, float]]:
    """Box and whiskers, and what lies beyond."""
    values = np.array([*dots.values()])
    q1, q3 = np.percentile(values, (25, 75))
    reach = 1.5 * (q3 - q1)
    within = values[(values >= q1 - reach) & (values <= q3 + reach)]
    a, b, w1, w2 = (axis.across(float(v)) for v in (q1, q3, within.min(), within.max()))
    box = (
        f'<path class="whisker" d="M{w1:.1f} {y:.1f}H{a:.1f}M{b:.1f} {y:.1f}H{w2:.1f}"/>'
        f'<rect x="{a:.1f}" y="{y - 6:.1f}" width="{max(b - a, 0.5):.1f}" height="12" rx="2"/>'
    )
    return box, {t: v for t, v in dots.items() if v < within.min() or v > within.max()}
