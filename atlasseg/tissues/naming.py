"""Names of the classes of a brain by the contrast of the scan, given or found from the depths of the classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy import ndimage

from atlasseg.errors import InputError
from atlasseg.tissues._classes import Tissues
from atlasseg.volume import Float64, LabelMap, ProbabilityMap

__all__ = ["check_brain", "mean_depths_mm", "name_classes"]

log = logging.getLogger(__name__)

Contrast = Literal["auto", "T1", "T2", "PD", "FLAIR", "ascending"]

ORDERS: dict[str, tuple[str, ...]] = {
    "T1": ("CSF", "GM", "WM"),
    "T2": ("WM", "GM", "CSF"),
    "PD": ("WM", "GM", "CSF"),
    "FLAIR": ("CSF", "WM", "GM"),
}
"""Tissues of an adult brain, ascending by intensity. A T1 scan of a newborn has the order of FLAIR."""

SYNONYMS = {
    "csf": "CSF", "cerebrospinal fluid": "CSF",
    "gm": "GM", "gray matter": "GM", "grey matter": "GM",
    "wm": "WM", "white matter": "WM",
}  # fmt: skip

INWARDS = ("CSF", "GM", "WM")
"""Tissues from the border of the brain to its inside."""

CLEAR_RATIO = 1.15
"""Minimum ratio of the mean depths of two tissues for a clear contrast."""

LARGEST_BRAIN_MM3 = 2.2e6
"""Maximum human intracranial volume."""

SHARES = {"CSF": (0.0, 0.6), "GM": (0.2, 0.9), "WM": (0.04, 0.6)}
"""Minimum and maximum fraction of the volume of the three tissues, from mice to old people with large ventricles."""


def name_classes(found: Tissues, names: Sequence[str], contrast: Contrast = "auto") -> tuple[Tissues, str]:
    """Put the classes in the order of their names.

    Cerebrospinal fluid, grey and white matter are assigned to the classes by the contrast of the first modality. If it
    is not given, it is found: of the orders in `ORDERS`, the one in which the mean depth below the border of the region
    increases most from CSF to GM to WM. Other names are assigned in ascending order of intensity.

    Parameters
    ----------
    found : Tissues
        Classes in any order. They are ordered by their means in the first modality.
    names : sequence of str
        One name for each class.
    contrast : str
        ``"auto"``, ``"ascending"`` for names in the order of the intensities, or one of `ORDERS`.

    Returns
    -------
    named : Tissues
        Label n is that of ``names[n - 1]``.
    reason : str
        How the names were assigned; empty if they are ascending.

    Raises
    ------
    InputError
        A contrast is given, but the names are not tissues of a brain.
    """
    found = _reorder(found, np.argsort(found.means[:, 0], kind="stable").tolist())
    kinds = _brain_tissues(names)
    of_brain = len(set(kinds)) == len(kinds) and all(kinds)
    if contrast == "ascending":
        return found, ""
    if not of_brain:
        if contrast != "auto":
            raise InputError(
                f"contrast: expected names out of CSF, GM and WM with the contrast {contrast}, got {', '.join(names)}. "
                "Give the names in ascending order of intensity and the contrast `ascending`."
            )
        if sum(map(bool, kinds)) > 1:
            log.warning(
                "the names %s are assigned in ascending order of intensity, for any contrast of the scan. "
                "Give the contrast `ascending` if this is right",
                ", ".join(names),
            )
        return found, ""
    if contrast != "auto":
        order = tuple(kind for kind in ORDERS[contrast] if kind in kinds)
        return _reorder(found, [order.index(kind) for kind in kinds]), f"Names by the given contrast, {contrast}"
    depths = mean_depths_mm(found)
    orders = {tuple(kind for kind in order if kind in kinds): name for name, order in reversed(ORDERS.items())}
    order = max(orders, key=lambda each: _inward_slope(each, depths))
    inwards = [depths[order.index(kind)] for kind in INWARDS if kind in kinds]
    listed = ", ".join(f"{kind} {depth:.3g} mm" for kind, depth in zip(order, depths, strict=True))
    reason = (
        f"Names by the contrast of {orders[order]}, found from the mean depths below the border of the region, "
        f"ascending by intensity: {listed}"
    )
    if any(inner < CLEAR_RATIO * outer for outer, inner in pairwise(inwards)):
        log.warning(
            "expected CSF outside and WM inside, got classes with mean depths of %s: the names may be exchanged. Give "
            "the contrast (T1, T2, PD, FLAIR, or ascending), and check that the region is a brain",
            listed,
        )
    return _reorder(found, [order.index(kind) for kind in kinds]), reason


def _brain_tissues(names: Sequence[str]) -> list[str]:
    """CSF, GM or WM for each name that is one of them or a synonym, and an empty string for the others."""
    return [SYNONYMS.get(" ".join(name.lower().replace("_", " ").split()), "") for name in names]


def check_names(names: Sequence[str], classes: int) -> tuple[str, ...]:
    """Check the names: one per class.

    Raises
    ------
    InputError
        The number of names is wrong, or two are equal.
    """
    if len(names) != classes or len(set(names)) != classes:
        raise InputError(f"names: expected {classes} different names, one per class, got {', '.join(names)}.")
    return tuple(names)


def mean_depths_mm(found: Tissues) -> list[float]:
    """Compute the mean distance in mm of each class to the border of the region, weighted by probability.

    Parameters
    ----------
    found : Tissues
        The tissues.

    Returns
    -------
    list of float
        Depth of each class in mm.
    """
    inside = np.pad(found.labels.array > 0, 1)
    distance = ndimage.distance_transform_edt(inside, sampling=found.labels.grid.spacing_mm)[1:-1, 1:-1, 1:-1]
    depths = []
    for label in range(1, len(found.means) + 1):
        parts = found.probabilities.probability(label)
        depths.append(float((parts * distance).sum(dtype=np.float64) / max(parts.sum(dtype=np.float64), 1e-12)))
    return depths


def check_brain(found: Tissues, names: Sequence[str], *, whole_foreground: bool) -> None:
    """Warn of implausible volumes if the classes are named as the tissues of a brain.

    Parameters
    ----------
    found : Tissues
        Label n is that of ``names[n - 1]``.
    names : sequence of str
        One name for each class.
    whole_foreground : bool
        Whether the region is the whole foreground of a scan that is not skull-stripped.
    """
    kinds = _brain_tissues(names)
    if not {"CSF", "GM", "WM"} <= set(kinds):
        return
    voxel_mm3 = abs(float(np.linalg.det(found.labels.affine[:3, :3])))
    volumes = {
        kind: float(found.probabilities.probability(label).sum(dtype=np.float64)) * voxel_mm3
        for label, kind in enumerate(kinds, start=1)
        if kind
    }
    total = sum(volumes.values())
    listed = ", ".join(f"{kind} {volume / 1000:.4g} ml" for kind, volume in volumes.items())
    if whole_foreground:
        log.warning(
            "the region is the whole foreground of the scan (%.4g ml), perhaps with skull and scalp: the "
            "classes are tissues of the brain only inside the brain. Give a mask of the brain",
            total / 1000,
        )
    if total > LARGEST_BRAIN_MM3:
        log.warning(
            "expected at most %.0f ml, the largest human brain, got %s. Give a mask of the brain, and check the voxel "
            "size in the header",
            LARGEST_BRAIN_MM3 / 1000,
            listed,
        )
    for kind, (least, most) in SHARES.items():
        share = volumes[kind] / max(total, 1e-12)
        if not least <= share <= most:
            log.warning(
                "expected %s to be %.0f to %.0f %% of the tissues' volume, got %.0f %% (%s). Check the mask and the "
                "contrast",
                kind,
                100 * least,
                100 * most,
                100 * share,
                listed,
            )


def _inward_slope(order: tuple[str, ...], depths: Sequence[float]) -> float:
    """Increase of the mean depth from CSF to GM to WM for classes of these names; negative if depth decreases."""
    ranks = np.array([INWARDS.index(kind) for kind in order], np.float64)
    centred = ranks - ranks.mean()
    return float((centred * np.array(depths)).sum() / (centred**2).sum())


def _reorder(found: Tissues, classes: Sequence[int]) -> Tissues:
    """Reorder the tissues: class ``classes[n]`` (from 0) becomes label n + 1."""
    if list(classes) == sorted(classes):
        return found
    label_of = np.zeros(len(classes) + 1, np.int32)
    label_of[np.array(classes) + 1] = np.arange(1, len(classes) + 1)
    old = found.probabilities
    labels, values = label_of[old.labels], old.values
    by_place = np.lexsort((labels, old.entries.places))
    probabilities = ProbabilityMap(
        label_of[old.mode], old.voxels, old.offsets, labels[by_place], values[by_place], old.affine, old.label_values,
        old.name,
    )  # fmt: skip
    at: Float64 = np.array(classes)
    return replace(
        found,
        labels=LabelMap(probabilities.mode, found.labels.affine, found.labels.name),
        probabilities=probabilities,
        means=found.means[at],
        sds=found.sds[at],
    )
