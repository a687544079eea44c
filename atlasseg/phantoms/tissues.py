"""Tissue phantom: a skull-stripped brain of three tissues, with known fractions, noise and bias field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from atlasseg.errors import InputError
from atlasseg.phantoms.scanning import rician, tilted_grid, turned
from atlasseg.volume import Bool, Float32, Float64, Grid, Image, LabelMap, Mask

TISSUES = {"cerebrospinal fluid": 1, "grey matter": 2, "white matter": 3}
"""Labels of the tissues; 0 is outside."""

FOLD_WAVELENGTHS_MM = (19.0, 27.0, 38.0)
PIAL_SURFACE = (1.0, 13.0, 0.25)
"""Depth of the cortex below the hull in mm; how much deeper it lies in a sulcus; how wide that is, see `_folds`."""
WHITE_SURFACE = (4.0, 12.0, 0.7)
"""The same of white matter."""
GAIN_WAVELENGTHS = (1.1, 1.6, 2.3)
"""Of the waves that the gain is made of, in lengths of the brain."""


@dataclass(frozen=True, eq=False)
class TissuePhantom:
    """A scan and what it was made of.

    Parameters
    ----------
    image : Image
        Noisy, biased intensities; 0 outside the brain.
    truth : LabelMap
        The tissue of the largest fraction, as in `TISSUES`; 0 outside.
    fractions : (I, J, K, 3) float32
        How much of each voxel is fluid, grey and white matter; sum 1 in the brain, 0 outside.
    gain : (I, J, K) float32
        What the signal was multiplied by.
    """

    image: Image
    truth: LabelMap
    fractions: Float32
    gain: Float32

    @property
    def mask(self) -> Mask:
        """Where the brain is."""
        return Mask(self.truth.array > 0, self.truth.affine)


def tissue(
    shape: tuple[int, int, int] = (60, 74, 52),
    *,
    noise_percent: float = 3.0,
    bias_percent: float = 20.0,
    seed: int = 0,
    spacing_mm: ArrayLike = (1.0, 1.1, 1.2),
    brightness: ArrayLike = (0.3, 0.7, 1.0),
) -> TissuePhantom:
    """Make a brain phantom that fills the grid, similar to BrainWeb [1]_.

    Fluid surrounds a cortex about 3 mm thick and fills its narrow sulci, as deep as 14 mm; within the white matter lie
    nuclei of grey matter and ventricles. Every border is a level of a function that is scaled to be a distance in mm
    there, so a voxel's fractions are those of a plane that cuts it. The signal is the fractions' mean of the tissues'
    brightness, times the gain; Rician noise is added to it.

    Parameters
    ----------
    shape : (I, J, K)
        Voxels of the grid, which is oblique. The brain fills about half of it: 1.6 million voxels of 1 mm in
        (136, 170, 136) or so.
    noise_percent : float
        Standard deviation of the noise, in percent of the brightest tissue, 0 or more.
    bias_percent : float
        Range of the gain in the brain: 20 means 0.9 to 1.1. It is a sum of slow waves, not a polynomial. Below 200.
    seed : int
        Folds, pose of the waves, gain and noise follow from it.
    spacing_mm : (3,)
        Size of a voxel.
    brightness : (3,) or (C, 3)
        Of fluid, grey and white matter; with C rows, in each of C modalities, whose noise is independent and whose
        gain is the same.

    Returns
    -------
    TissuePhantom

    Raises
    ------
    InputError
        A percentage is out of its range, or `brightness` is not one of three tissues.

    References
    ----------
    .. [1] Kwan, Evans, Pike (1999), MRI simulation-based evaluation of image-processing and classification methods,
       IEEE TMI 18(11):1085-1097.
    """
    levels = np.atleast_2d(np.asarray(brightness, float))
    if not (noise_percent >= 0 and 0 <= bias_percent < 200):
        raise InputError(
            f"expected noise of 0 % or more and bias of 0 to 200 %, got {noise_percent} and {bias_percent}"
        )
    if levels.ndim != 2 or levels.shape[1] != 3:
        raise InputError(f"expected the brightness of three tissues, got shape {levels.shape}")
    grid = tilted_grid(shape, spacing_mm=spacing_mm)
    fractions, brain = _fractions(grid, seed)
    gain = _gain(grid, brain, bias_percent / 100, seed)
    channels = []
    for number, level in enumerate(levels):
        noisy = rician((fractions @ level) * gain, sigma=noise_percent / 100 * level.max(), seed=1000 * number + seed)
        channels.append(np.where(brain, 1000 * noisy, 0).astype(np.float32))
    array = channels[0] if len(channels) == 1 else np.stack(channels, axis=-1)
    truth = np.where(brain, fractions.argmax(axis=-1) + 1, 0)
    return TissuePhantom(
        Image(array, grid.affine, "tissue"),
        LabelMap(truth, grid.affine, "tissue"),
        fractions.astype(np.float32),
        gain.astype(np.float32),
    )


def _fractions(grid: Grid, seed: int) -> tuple[Float64, Bool]:
    """(I, J, K, 3) fractions of the tissues, and where the brain is."""
    axes = [np.arange(n, dtype=float) - (n - 1) / 2 for n in grid.shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) * grid.spacing_mm
    half_mm = 0.48 * np.array(grid.shape) * grid.spacing_mm
    voxel_mm = float(grid.spacing_mm.prod() ** (1 / 3))
    radius = np.linalg.norm(points / half_mm, axis=-1)
    length = np.linalg.norm(points, axis=-1)
    depth = (1 - radius) * length / np.maximum(radius, 1e-6)  # below the surface, along the ray
    brain = depth > 0

    def inside(distance: Float64) -> Float64:
        slope = np.sqrt(sum(g**2 for g in np.gradient(distance, *grid.spacing_mm)))
        return np.asarray(np.clip(0.5 + distance / np.maximum(slope, 0.5) / voxel_mm, 0, 1))

    def cover(fraction: Float64, tissue_of: int) -> None:
        out[...] *= 1 - fraction[..., None]
        out[..., tissue_of] += fraction

    out = np.zeros((*grid.shape, 3))
    out[..., 0] = 1
    folds = _folds(points, seed)
    for (below_mm, sulcus_mm, width), tissue_of in ((PIAL_SURFACE, 1), (WHITE_SURFACE, 2)):
        cover(inside(depth - below_mm - sulcus_mm * np.exp(-((folds / width) ** 2))), tissue_of)
    side = np.abs(points[..., 0]) / half_mm[0]
    ahead, above = points[..., 1] / half_mm[1], points[..., 2] / half_mm[2]
    thickness = float(half_mm.min())
    for centre, semi_axes, tissue_of in (
        ((0.24, 0.02, -0.05), (0.13, 0.16, 0.15), 1),  # thalamus
        ((0.44, 0.12, -0.02), (0.09, 0.20, 0.16), 1),  # putamen
        ((0.20, 0.32, 0.14), (0.07, 0.14, 0.13), 1),  # caudate
        ((0.10, 0.10, 0.20), (0.07, 0.33, 0.10), 0),  # lateral ventricle
        ((0.0, -0.05, -0.08), (0.025, 0.16, 0.14), 0),  # third ventricle
    ):
        apart = [(x - c) / a for x, c, a in zip((side, ahead, above), centre, semi_axes, strict=True)]
        cover(inside((1 - np.sqrt(sum(a**2 for a in apart))) * thickness * min(semi_axes)), tissue_of)
    out[~brain] = 0
    return out, brain


def _folds(points: Float64, seed: int) -> Float64:
    """Waves in many directions, of variance 1; sulci run along the sheets where they are 0, gyri between them."""
    rng = np.random.default_rng([seed, 4])
    total = np.zeros(points.shape[:-1])
    for wavelength_mm in FOLD_WAVELENGTHS_MM:
        directions = turned(rng.uniform(0, 360, 3)) * (2 * np.pi / wavelength_mm)
        for direction, phase in zip(directions, rng.uniform(0, 2 * np.pi, 3), strict=True):
            total += np.sin(points @ direction + phase)
    return np.asarray(total * np.sqrt(2 / (3 * len(FOLD_WAVELENGTHS_MM))))


def _gain(grid: Grid, brain: Bool, strength: float, seed: int) -> Float64:
    """(I, J, K) slow waves, ``1 - strength / 2`` to ``1 + strength / 2`` in the brain."""
    rng = np.random.default_rng([seed, 5])
    points = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, n) for n in grid.shape], indexing="ij"), axis=-1)
    waves = np.zeros(grid.shape)
    for wavelength in GAIN_WAVELENGTHS:
        direction = turned(rng.uniform(0, 360, 3))[0] * (2 * np.pi / wavelength)
        waves += wavelength * np.sin(points @ direction + rng.uniform(0, 2 * np.pi))
    low, high = waves[brain].min(), waves[brain].max()
    gain: Float64 = 1 + strength * (np.clip((waves - low) / (high - low), 0, 1) - 0.5)
    return gain
