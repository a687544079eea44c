"""Whole-head phantom: the head phantom's brain inside fluid, skull, scalp, face, eyes and neck, in any contrast."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from atlasseg.errors import InputError
from atlasseg.phantoms.heads import HEAD_SEMI_AXES_MM, STRUCTURES, Phantom, anatomy, scan_anatomy
from atlasseg.phantoms.scanning import tilted_grid
from atlasseg.volume import Bool, Float64, Grid, Int32

OUTER_FLUID, SKULL, SCALP, MUSCLE, EYE, ORBIT, SPINAL_CORD = 201, 202, 203, 204, 205, 206, 207
"""Codes of the tissues around the brain, in `whole_head_anatomy` alone: no label map has them."""

CONTRASTS: dict[str, dict[str, float]] = {
    "T1": {
        "white matter": 1.0,
        "deep grey matter": 0.72,
        "cortex": 0.60,
        "fluid": 0.22,
        "skull": 0.08,
        "scalp": 1.05,
        "muscle": 0.50,
        "eye": 0.20,
        "orbit": 1.0,
    },
    "T2": {
        "white matter": 0.35,
        "deep grey matter": 0.45,
        "cortex": 0.52,
        "fluid": 1.0,
        "skull": 0.05,
        "scalp": 0.65,
        "muscle": 0.20,
        "eye": 0.95,
        "orbit": 0.65,
    },
    "CT": {
        "white matter": 0.33,
        "deep grey matter": 0.36,
        "cortex": 0.36,
        "fluid": 0.28,
        "skull": 1.0,
        "scalp": 0.22,
        "muscle": 0.36,
        "eye": 0.29,
        "orbit": 0.20,
    },
}
"""Brightness of each tissue in each contrast."""

SKULL_MM, SCALP_MM = 2.5, 3.0
"""Thickness of the skull, with a little fluid under it, and of the scalp."""

EXTENT_MM = (64.0, 80.0, 92.0)
"""Grid that holds the head from the vertex to the neck, along R, A and S."""

MIDDLE_MM = (0.0, 2.0, -14.0)
"""Point of canonical space in the middle of that grid."""

NECK_TOP_MM, CORD = -12.0, (0.0, -5.0)
"""Height at which the neck begins under the skull; R and A of the spinal cord."""


def whole_head_anatomy(points_mm: ArrayLike) -> Int32:
    """Compute the tissue of the whole head at each point of canonical space.

    Parameters
    ----------
    points_mm : (N, 3)
        RAS+ mm; the brain is that of `anatomy`, centred on the origin.

    Returns
    -------
    (N,) int32
        Labels of the brain, codes such as `SKULL` around it, 0 for air.

    Examples
    --------
    >>> whole_head_anatomy([[0, 0, 0], [0, 0, 19], [0, 0, 22], [0, -5, -30], [0, 0, 60]]).tolist()
    [2, 202, 203, 207, 0]
    """
    points = np.asarray(points_mm, dtype=np.float64).reshape(-1, 3)
    x, y, z = points.T
    tissue = np.zeros(len(points), np.int32)
    side = np.abs(x)

    def within(centre: ArrayLike, semi_axes: ArrayLike, of: Float64 = points) -> Bool:
        return np.asarray((((of - np.asarray(centre, float)) / np.asarray(semi_axes, float)) ** 2).sum(axis=1) < 1)

    folded = np.stack([side, y, z], axis=1)
    skull = HEAD_SEMI_AXES_MM + SKULL_MM
    around_cord = np.hypot(x - CORD[0], y - CORD[1])
    neck = z < NECK_TOP_MM
    tissue[neck & (np.hypot(x / 14.0, (y + 2.0) / 13.0) < 1)] = SCALP
    tissue[neck & (np.hypot(x / 12.0, (y + 2.0) / 11.0) < 1)] = MUSCLE
    tissue[within((0, 12, -18), (14, 15, 17))] = SCALP  # the face
    tissue[within((0, 11, -18), (11, 12, 14))] = MUSCLE
    tissue[within((0, 0, 0), skull + SCALP_MM)] = SCALP
    tissue[within((0, 18, -25), (5, 6, 5))] = 0  # the mouth
    tissue[neck & (around_cord < 6.5)] = SKULL  # vertebrae
    tissue[within((0, 0, 0), skull)] = SKULL
    tissue[within((8.5, 22, -11), (6.5, 7, 6), folded)] = ORBIT
    tissue[within((8.5, 23, -11), (4.5, 4.5, 4.5), folded)] = EYE
    tissue[within((0, 0, 0), HEAD_SEMI_AXES_MM + 0.6)] = OUTER_FLUID
    tissue[neck & (around_cord < 3.6)] = OUTER_FLUID  # it leaves the skull with the spinal cord
    tissue[neck & (around_cord < 2.2)] = SPINAL_CORD
    brain = anatomy(points)
    tissue[brain > 0] = brain[brain > 0]
    return tissue


def whole_head(
    id: str = "whole_head",
    *,
    grid: Grid | None = None,
    seed: int = 0,
    contrast: str | Mapping[str, float] = "T1",
    largest_mm: float = 2.5,
    smoothness_mm: float = 9.0,
    pose: bool = True,
    bias: float = 0.25,
    noise: float = 0.04,
    white_matter: float = 800.0,
    subsamples: int = 2,
) -> Phantom:
    """Make a phantom scan of the whole head of a random individual; labels are those of the brain.

    The spinal cord goes on below the brain with the intensity of white matter and is not labelled, and the scalp is as
    bright as the brain, so that intensity alone does not find the brain.

    Parameters
    ----------
    id : str
        Its name.
    grid : Grid, optional
        Where its voxels lie; the head's middle is put in its middle. By default 40 x 47 x 51 voxels of `tilted_grid`
        that hold the head from the vertex to the neck; see `whole_head_grid`.
    seed : int
        Everything random follows from it.
    contrast : {"T1", "T2", "CT"} or mapping of str to float
        Brightness of each tissue (keys of `CONTRASTS`), 1 being `white_matter`.
    largest_mm, smoothness_mm, pose, bias, noise, white_matter, subsamples
        As for `phantoms.head`.

    Returns
    -------
    Phantom

    Raises
    ------
    InputError
        There is no such contrast, or the brightness of a tissue is missing.
    """
    if isinstance(contrast, str):
        if contrast not in CONTRASTS:
            raise InputError(f"contrast: expected one of {', '.join(CONTRASTS)}, or a mapping, got {contrast!r}")
        contrast = CONTRASTS[contrast]
    lacking = sorted(CONTRASTS["T1"].keys() - contrast.keys())
    if lacking:
        raise InputError(f"contrast: expected the brightness of every tissue, got none of {', '.join(lacking)}")
    brightness = {structure.value: contrast[structure.group] for structure in STRUCTURES}
    brightness |= {
        OUTER_FLUID: contrast["fluid"],
        SKULL: contrast["skull"],
        SCALP: contrast["scalp"],
        MUSCLE: contrast["muscle"],
        EYE: contrast["eye"],
        ORBIT: contrast["orbit"],
        SPINAL_CORD: contrast["white matter"],
    }
    return scan_anatomy(
        id,
        whole_head_anatomy,
        brightness,
        grid=whole_head_grid() if grid is None else grid,
        middle_mm=MIDDLE_MM,
        box=tilted_grid((35, 43, 47), spacing_mm=(2.4, 2.4, 2.4), angles_degrees=(0, 0, 0), centre_mm=MIDDLE_MM),
        labelled=[structure.value for structure in STRUCTURES],
        seed=seed,
        largest_mm=largest_mm,
        smoothness_mm=smoothness_mm,
        pose=pose,
        bias=bias,
        noise=noise,
        white_matter=white_matter,
        subsamples=subsamples,
    )


def whole_head_grid(spacing_mm: ArrayLike = (1.6, 1.7, 1.8), *, axes: str = "RAS") -> Grid:
    """Make an oblique grid that holds the head from the vertex to the neck.

    Parameters
    ----------
    spacing_mm : (3,)
        Voxel size along i, j and k.
    axes : str
        As for `tilted_grid`; the extent follows the axes.

    Returns
    -------
    Grid
    """
    spacing = np.broadcast_to(np.asarray(spacing_mm, float), 3)
    world = [next(n for n, pair in enumerate(("LR", "PA", "IS")) if letter in pair) for letter in axes]
    i, j, k = (int(np.ceil(EXTENT_MM[axis] / step)) for axis, step in zip(world, spacing, strict=True))
    return tilted_grid((i, j, k), spacing_mm=spacing, angles_degrees=(5.0, -4.0, 7.0), axes=axes)
