"""Linear parts of the poses that a search tries: turns, scales, and quarter turns and mirror images of the view."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from atlasseg.volume import Float64, Grid

THICK = 2.0
"""A scan has thick slices if one spacing is at least this many times the median of the three."""

TURNS_DEGREES, TURNS_3D_DEGREES = (-30.0, -15.0, 0.0, 15.0, 30.0), (-20.0, 20.0)
"""Turns in the slice, and about each axis of a scan without thick slices."""

SCALES = (0.82, 1.0, 1.22)
"""Sizes of the scan's organ relative to the atlas's."""

SAME_AXES_DEGREES = 8.0
"""Axes of two grids that differ by less are the same."""


@dataclass(frozen=True)
class View:
    """How the field of view of a scan lies relative to that of the atlases."""

    turned_degrees: float = 0.0
    mirrored: bool = False

    @property
    def as_usual(self) -> bool:
        """Whether it is that of the atlases."""
        return not (self.mirrored or self.turned_degrees)


def thick_axis(grid: Grid) -> int | None:
    """Axis of a grid along which its slices are thick; None if they are not."""
    spacing = grid.spacing_mm
    axis = int(spacing.argmax())
    return axis if spacing[axis] >= THICK * np.median(spacing) else None


def list_views(grid: Grid, *, quarter_turns: bool, mirrored: bool) -> list[View]:
    """List the views to try, the usual one first; quarter turns are in the slice, so they need thick slices."""
    turns = (0.0, 90.0, 180.0, 270.0) if quarter_turns and thick_axis(grid) is not None else (0.0,)
    return [View(turn, mirror) for mirror in ((False, True) if mirrored else (False,)) for turn in turns]


def rotation_about(axis: Float64, degrees: float) -> Float64:
    """Rotation (3, 3) about a unit vector."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def list_linear_parts(fixed: Grid, moving: Grid, view: View) -> list[Float64]:
    """List matrices (3, 3) that take vectors of the scan to vectors of an atlas, mm, for one view.

    Parameters
    ----------
    fixed, moving : Grid
        Of the scan and of the atlas.
    view : View

    Returns
    -------
    list of (3, 3)
        All combinations of turns and scales; in views other than the usual one, without scales.
    """
    directions = fixed.affine[:3, :3] / fixed.spacing_mm
    thick = thick_axis(fixed)
    if thick is None:
        turns = [np.eye(3)] + [rotation_about(e, angle) for e in np.eye(3) for angle in TURNS_3D_DEGREES]
        flipped = np.array([1.0, 0.0, 0.0])
    else:
        normal = directions[:, thick]
        turns = [rotation_about(normal, view.turned_degrees + angle) for angle in TURNS_DEGREES]
        flipped = directions[:, (thick + 1) % 3]
    mirror = np.eye(3) - 2 * np.outer(flipped, flipped) if view.mirrored else np.eye(3)
    scales = SCALES if view.as_usual else (1.0,)
    return [
        scale * base @ turn @ mirror
        for base in list_bases(fixed, moving)
        for turn in turns
        for scale in 1 / np.array(scales)
    ]


def list_bases(fixed: Grid, moving: Grid) -> list[Float64]:
    """List rotations (3, 3) from the scan to the atlas: that of the headers, and that of the grids' axes if it differs.

    Slices across an organ are oblique, each scan in its own way, so that the axes of the grids correspond and not those
    of space. A thick axis corresponds to a thick one. If the slices are parallel anyway, the turns in the slice are
    tried about the headers' alone.
    """
    here = fixed.affine[:3, :3] / fixed.spacing_mm
    there = moving.affine[:3, :3] / moving.spacing_mm
    thick, other = thick_axis(fixed), thick_axis(moving)
    best, most = np.eye(3), -np.inf
    for order in itertools.permutations(range(3)):
        if thick is not None and other is not None and order[thick] != other:
            continue
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matched = there[:, order] * signs
            if np.linalg.det(matched) * np.linalg.det(here) > 0:
                left, _, right = np.linalg.svd(matched @ np.linalg.inv(here))
                turn = left @ right
                if np.trace(turn) > most + 1e-9:
                    best, most = turn, float(np.trace(turn))
    cosine = (most - 1) / 2
    if thick is not None and other is not None:
        cosine = abs(float(here[:, thick] @ there[:, other]))
    degrees = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    return [np.eye(3)] if degrees < SAME_AXES_DEGREES else [np.eye(3), best]
