"""Phantom of a small organ in a large, variable view: a heart of blood pool and muscle that moves by itself in a chest.

The chest varies in size and shape, and its organs vary apart from each other. The heart lies anywhere in the
mediastinum, turned and of any size, and the field of view is centred anywhere near it. An alignment of the chests
therefore does not align the hearts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from atlasseg.phantoms.heads import scan_anatomy
from atlasseg.phantoms.scanning import tilted_grid, turned
from atlasseg.volume import Atlas, Bool, Float64, Grid, Int32

BLOOD_POOL, MYOCARDIUM = 1, 2
"""Labels of the phantom: cavity and muscle of the left ventricle."""

RIGHT_VENTRICLE, LUNG, FAT, LIVER, BONE, VESSEL, STOMACH, SOFT_TISSUE = 3, 4, 5, 6, 7, 8, 9, 10
"""Codes of the other tissues; no label map has them."""

BRIGHTNESS = {
    BLOOD_POOL: 1.0,
    MYOCARDIUM: 0.38,
    RIGHT_VENTRICLE: 0.95,
    LUNG: 0.07,
    FAT: 0.85,
    LIVER: 0.5,
    BONE: 0.25,
    VESSEL: 0.95,
    STOMACH: 0.6,
    SOFT_TISSUE: 0.42,
}
"""Brightness of each tissue in an individual of average contrast."""

POOL_MM, WALL_MM = np.array([22.0, 22.0, 44.0]), 10.0
"""Semi-axes of the cavity, and thickness of the muscle around it."""

BASE_MM = 22.0
"""The heart is cut off this far above its middle."""


def small_organ(
    id: str = "small_organ",
    *,
    seed: int = 0,
    shape: tuple[int, int, int] = (72, 66, 10),
    spacing_mm: ArrayLike = (3.2, 3.2, 10.0),
    off_centre_mm: float = 45.0,
    turn_degrees: float = 30.0,
    contrast: float = 0.25,
    bias: float = 0.3,
    noise: float = 0.04,
    subsamples: int = 1,
) -> Atlas:
    """Make a phantom scan of a heart in the chest of a random individual, in thick slices across the heart.

    Parameters
    ----------
    id : str
        Its name.
    seed : int
        Everything random follows from it: chest, heart, contrast and field of view.
    shape : (I, J, K)
        Number of voxels.
    spacing_mm : (3,)
        Voxel size; K runs along the heart.
    off_centre_mm : float
        The heart lies up to this far from the centre of the field of view, along each axis in the slice.
    turn_degrees : float
        The heart is turned up to this far in the slice, and the field of view likewise, apart from each other.
    contrast : float
        Each tissue's brightness varies by up to this fraction.
    bias : float
        Strength of the bias field, see `bias_field`.
    noise : float
        Standard deviation of the Rician noise, as a part of the intensity of blood.
    subsamples : int
        Points along each axis of a voxel over which tissue is averaged (partial volume); labels are read at its centre.

    Returns
    -------
    Atlas
        Labels 1 (blood pool of the left ventricle) and 2 (its muscle).

    Examples
    --------
    >>> small_organ(seed=3, shape=(24, 22, 8), spacing_mm=(9.6, 9.6, 12.5)).label_values
    array([0, 1, 2], dtype=int32)
    """
    rng = np.random.default_rng([seed, 7])
    heart_mm = np.array([18.0, 22.0, 0.0]) + rng.uniform(-1, 1, 3) * (22, 18, 12)
    off_mm = rng.uniform(-1, 1, 3) * (off_centre_mm, off_centre_mm, 8.0)
    tilt = (*rng.uniform(-4, 4, 2), turn_degrees * rng.uniform(-1, 1))
    grid = tilted_grid(shape, spacing_mm=spacing_mm, angles_degrees=tilt, centre_mm=heart_mm + off_mm)
    brightness = {tissue: bright * (1 + contrast * rng.uniform(-1, 1)) for tissue, bright in BRIGHTNESS.items()}
    scanned = scan_anatomy(
        id,
        _individual(rng, heart_mm, turn_degrees),
        brightness,
        grid=grid,
        box=_box(grid),
        middle_mm=grid.centre_mm,
        labelled=(BLOOD_POOL, MYOCARDIUM),
        seed=seed,
        largest_mm=6.0,
        smoothness_mm=22.0,
        pose=False,
        bias=bias,
        noise=noise,
        white_matter=600.0 * float(rng.uniform(0.5, 2)),
        subsamples=subsamples,
    )
    return scanned.atlas


def _box(grid: Grid) -> Grid:
    """Points, 12 mm apart, at which the individual's deformation is given."""
    extent = np.ceil((np.ptp(grid.corners_mm, axis=0) + 60) / 12).astype(int)
    i, j, k = (int(n) for n in extent)
    return tilted_grid((i, j, k), spacing_mm=(12, 12, 12), angles_degrees=(0, 0, 0), centre_mm=grid.centre_mm)


def _individual(rng: np.random.Generator, heart_mm: Float64, turn_degrees: float) -> Callable[[ArrayLike], Int32]:
    """Draw an individual, and return the function that takes points (N, 3) to the tissue of each."""
    chest = np.array([165.0, 112.0]) * rng.uniform(0.85, 1.15, 2)
    fat_mm, size, wall = rng.uniform(8, 24), rng.uniform(0.85, 1.18), rng.uniform(0.8, 1.25)
    turn = turned((*rng.uniform(-8, 8, 2), turn_degrees * rng.uniform(-1, 1)))
    squeeze = rng.uniform(0.9, 1.1, 3)
    lungs = [
        (np.array([side * 88.0, 0.0, 40.0]) + rng.uniform(-12, 12, 3), rng.uniform(0.85, 1.15, 3) * (62, 84, 130))
        for side in (-1, 1)
    ]
    liver = (np.array([-60.0, 15.0, -75.0]) + rng.uniform(-20, 20, 3), rng.uniform(0.8, 1.2, 3) * (75, 65, 50))
    stomach = (np.array([60.0, 20.0, -80.0]) + rng.uniform(-25, 25, 3), rng.uniform(0.7, 1.3, 3) * (38, 35, 40))
    aorta_mm, vena_mm = np.array([18.0, -50.0]) + rng.uniform(-8, 8, 2), np.array([-25, 0]) + rng.uniform(-8, 8, 2)

    def tissue_at(points_mm: ArrayLike) -> Int32:
        points = np.asarray(points_mm, float).reshape(-1, 3)
        tissue = np.zeros(len(points), np.int32)

        def within(centre: ArrayLike, semi_axes: ArrayLike, of: Float64 = points) -> Bool:
            return np.asarray((((of - np.asarray(centre)) / np.asarray(semi_axes)) ** 2).sum(axis=1) < 1)

        tissue[(((points[:, :2]) / chest) ** 2).sum(axis=1) < 1] = FAT
        tissue[(((points[:, :2]) / (chest - fat_mm)) ** 2).sum(axis=1) < 1] = SOFT_TISSUE
        inside = (((points[:, :2]) / (chest - fat_mm - 12)) ** 2).sum(axis=1) < 1
        for centre, semi_axes in lungs:
            tissue[inside & within(centre, semi_axes)] = LUNG
        tissue[inside & within(*liver)] = LIVER
        tissue[inside & within(*stomach)] = STOMACH
        tissue[np.hypot(points[:, 0], points[:, 1] + 0.72 * chest[1]) < 21] = BONE
        tissue[np.hypot(*(points[:, :2] - aorta_mm).T) < 13] = VESSEL
        tissue[np.hypot(*(points[:, :2] - vena_mm).T) < 11] = VESSEL
        own = (points - heart_mm) @ turn / (size * squeeze)  # the heart's axes
        below = own[:, 2] < BASE_MM
        muscle = POOL_MM + WALL_MM * wall
        tissue[below & within((0, 0, 0), muscle + 9, own)] = FAT
        tissue[below & within((-34, 8, 3), (25, 34, 42), own)] = RIGHT_VENTRICLE
        tissue[below & within((0, 0, 0), muscle, own)] = MYOCARDIUM
        tissue[below & within((0, 0, 0), POOL_MM, own)] = BLOOD_POOL
        return tissue

    return tissue_at
