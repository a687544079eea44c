"""Names of the classes of a brain: by the contrast of the scan, which is stated or found from where the classes lie."""

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
"""Mean depths of two tissues differ by at least this factor where the contrast is clear."""

LARGEST_BRAIN_MM3 = 2.2e6
"""No human intracranial volume is larger."""

SHARES = {"CSF": (0.0, 0.6), "GM": (0.2, 0.9), "WM": (0.04, 0.6)}
"""Least and largest share of the three tissues' volume, from mice to old people with wide ventricles."""


def name_classes(found: Tissues, names: Sequence[str], contrast: Contrast = "auto") -> tuple[Tissues, str]:
    """Put the classes in the order of their names.

    Cerebrospinal fluid, grey and white matter go to the classes by the contrast of the first modality. Without one that
    is stated, it is found: of the orders in `ORDERS`, the one in which the mean depth below the border of the region
    grows most from CSF to GM to WM. Other names go to the classes as they are, ascending by intensity.

    Parameters
    ----------
    found : Tissues
        Classes in any order; their means in the first modality say which is darker.
    names : sequence of str
        One name for each class.
    contrast : str
        ``"auto"``, ``"ascending"`` for names that are in the order of the intensities, or one of `ORDERS`.

    Returns
    -------
    named : Tissues
        Label n is that of ``names[n - 1]``.
    reason : str
        Why the names are where they are; empty where they are simply ascending.

    Raises
    ------
    InputError
        A contrast is stated that says nothing about the names.
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
                "the names %s go to the classes in ascending order of intensity, whatever the contrast of the scan. "
                "State the contrast `ascending` where this is right",
                ", ".join(names),
            )
        return found, ""
    if contrast != "auto":
        order = tuple(kind for kind in ORDERS[contrast] if kind in kinds)
        return _reorder(found, [order.index(kind) for kind in kinds]), f"Names by the stated contrast, {contrast}"
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
            "expected CSF outside and WM inside, got classes with mean depths of %s: the names may be exchanged. State "
            "the contrast (T1, T2, PD, FLAIR, or ascending), and check that the region is a brain",
            listed,
        )
    return _reorder(found, [order.index(kind) for kind in kinds]), reason


def _brain_tissues(names: Sequence[str]) -> list[str]:
    """CSF, GM or WM for each name that means one of them, and an empty string for the others."""
    return [SYNONYMS.get(" ".join(name.lower().replace("_", " ").split()), "") for name in names]


def check_names(names: Sequence[str], classes: int) -> tuple[str, ...]:
    """The names, one a class.

    Raises
    ------
    InputError
        There are more or fewer, or two are the same.
    """
    if len(names) != classes or len(set(names)) != classes:
        raise InputError(f"names: expected {classes} different names, one a class, got {', '.join(names)}.")
    return tuple(names)


def mean_depths_mm(found: Tissues) -> list[float]:
    """Mean distance in mm of each class to the border of the region, each voxel weighted with its probability."""
    inside = np.pad(found.labels.array > 0, 1)
    distance = ndimage.distance_transform_edt(inside, sampling=found.labels.grid.spacing_mm)[1:-1, 1:-1, 1:-1]
    depths = []
    for label in range(1, len(found.means) + 1):
        parts = found.probabilities.probability(label)
        depths.append(float((parts * distance).sum(dtype=np.float64) / max(parts.sum(dtype=np.float64), 1e-12)))
    return depths


def check_brain(found: Tissues, names: Sequence[str], *, whole_foreground: bool) -> None:
    """Warn of volumes that no brain has, where the classes are named as the tissues of one.

    Parameters
    ----------
    found : Tissues
        Label n is that of ``names[n - 1]``.
    names : sequence of str
    whole_foreground : bool
        Whether the region is all that is brighter than the background of a scan from which nothing was removed.
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
            "the region is the whole foreground of the scan (%.4g ml), with skull and scalp if they are in it: the "
            "classes are tissues of a brain only inside a brain. Give a mask of the brain",
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
    """How much deeper each step inwards lies, for classes of these names; negative where depth falls."""
    ranks = np.array([INWARDS.index(kind) for kind in order], np.float64)
    centred = ranks - ranks.mean()
    return float((centred * np.array(depths)).sum() / (centred**2).sum())


def _reorder(found: Tissues, classes: Sequence[int]) -> Tissues:
    """The tissues with class ``classes[n]`` (from 0) as label n + 1."""
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
