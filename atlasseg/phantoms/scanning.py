"""Effects of a scan: oblique grids, smooth deformations, bias fields and Rician noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from atlasseg.errors import InputError
from atlasseg.transforms import DisplacementField
from atlasseg.volume import Float64, Grid


def tilted_grid(
    shape: tuple[int, int, int],
    *,
    spacing_mm: ArrayLike = (1.0, 1.1, 1.3),
    angles_degrees: ArrayLike = (8.0, -5.0, 11.0),
    centre_mm: ArrayLike = (0.0, 0.0, 0.0),
    axes: str = "RAS",
) -> Grid:
    """Make an anisotropic, oblique grid with its axes in any order and direction.

    Parameters
    ----------
    shape : (I, J, K)
        Number of voxels along i, j and k.
    spacing_mm : (3,) float
        Voxel size in mm.
    angles_degrees : (3,)
        Turns about R, then A, then S, that tilt the grid in space.
    centre_mm : (3,)
        Where the middle of the grid lies, RAS+ mm.
    axes : str
        Which way i, j and k run before the tilt, as ``"RAS"``, ``"LAS"`` (left-handed), ``"PIR"``, ...

    Returns
    -------
    Grid

    Raises
    ------
    InputError
        `axes` does not name each of the three directions once.

    Examples
    --------
    >>> tilted_grid((4, 3, 2), spacing_mm=(1, 2, 3), angles_degrees=(0, 0, 0), axes="LPS").affine
    array([[-1. ,  0. ,  0. ,  1.5],
           [ 0. , -2. ,  0. ,  2. ],
           [ 0. ,  0. ,  3. , -1.5],
           [ 0. ,  0. ,  0. ,  1. ]])
    """
    letters = ("LR", "PA", "IS")
    world = [next((n for n, pair in enumerate(letters) if a in pair), -1) for a in axes]
    if sorted(world) != [0, 1, 2]:
        raise InputError(f"expected axes with each of R/L, A/P and S/I once, got {axes!r}")
    directions = np.zeros((3, 3))
    for column, (row, letter) in enumerate(zip(world, axes, strict=True)):
        directions[row, column] = 1.0 if letter in "RAS" else -1.0
    affine = np.eye(4)
    affine[:3, :3] = turned(angles_degrees) @ directions * np.asarray(spacing_mm, float) + 0.0  # no negative zeros
    affine[:3, 3] = np.asarray(centre_mm, float) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def turned(angles_degrees: ArrayLike) -> Float64:
    """(3, 3) rotation about x, then y, then z."""
    turns = []
    for axis, angle in enumerate(np.radians(np.asarray(angles_degrees, float))):
        turn, (a, b) = np.eye(3), [n for n in range(3) if n != axis]
        sign = -1.0 if axis == 1 else 1.0
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -sign * np.sin(angle), sign * np.sin(angle)
        turns.append(turn)
    product: Float64 = turns[2] @ turns[1] @ turns[0]
    return product


def smooth_deformation(
    grid: Grid, *, largest_mm: float = 3.0, smoothness_mm: float = 6.0, seed: int = 0
) -> DisplacementField:
    """Make a random smooth displacement field that is zero at the border of its grid.

    White noise under a Gaussian, faded out toward the grid's edge, and scaled to a largest displacement. It can be
    inverted while `largest_mm` stays below about `smoothness_mm`: the larger it is, the more space is squeezed.

    Parameters
    ----------
    grid : Grid
        Where the displacement is given; about `smoothness_mm` / 3 between its points is fine enough.
    largest_mm : float
        Length of the longest displacement, in mm.
    smoothness_mm : float
        Standard deviation of the Gaussian, in mm.
    seed : int
        The same seed gives the same field.

    Returns
    -------
    DisplacementField
    """
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng([seed, 1])
    noise = rng.standard_normal((*grid.shape, 3))
    sigma = smoothness_mm / grid.spacing_mm
    smooth = np.stack([gaussian_filter(noise[..., c], sigma, mode="reflect") for c in range(3)], axis=-1)
    for axis, n in enumerate(grid.shape):
        fade = np.maximum(np.sin(np.pi * np.arange(n) / max(n - 1, 1)), 0) ** 0.5  # a rounded pi may lie beyond pi
        smooth *= fade.reshape([-1 if a == axis else 1 for a in range(3)] + [1])
    longest = np.sqrt((smooth**2).sum(-1)).max()
    displacement_mm = (smooth * (largest_mm / longest if longest > 0 else 0.0)).astype(np.float32)
    return DisplacementField(displacement_mm, grid.affine)


def bias_field(grid: Grid, *, strength: float = 0.25, seed: int = 0) -> Float64:
    """Make a bias field: a smooth positive gain, the exponential of a random polynomial of order two.

    Parameters
    ----------
    grid : Grid
        Grid of the field.
    strength : float
        Strength of the field, 0 to 1.
    seed : int
        Seed of the random numbers.

    Returns
    -------
    (I, J, K) float64
        Between ``1 - strength`` and ``1 + strength`` or so, its logarithm of mean 0 over the grid.
    """
    rng = np.random.default_rng([seed, 2])
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in grid.shape], indexing="ij", sparse=True)
    terms = (x, y, z, x * x, y * y, z * z, x * y, y * z, x * z)
    logarithm = np.zeros(grid.shape)
    for weight, term in zip(rng.standard_normal(len(terms)), terms, strict=True):
        logarithm += weight * term
    logarithm -= logarithm.mean()
    gain: Float64 = np.exp(logarithm * (np.log1p(strength) / np.abs(logarithm).max()))
    return gain


def rician(signal: Float64, *, sigma: float, seed: int = 0) -> Float64:
    """Add Rician noise: the magnitude of a signal with complex Gaussian noise (Gudbjartsson and Patz 1995, eq. 1).

    Parameters
    ----------
    signal : (I, J, K) float64
        Without noise, 0 or more.
    sigma : float
        Standard deviation of the noise in the real and in the imaginary channel, in units of `signal`.
    seed : int
        Seed of the random numbers.

    Returns
    -------
    (I, J, K) float64
        Magnitude, 0 or more.
    """
    rng = np.random.default_rng([seed, 3])
    real, imaginary = rng.standard_normal((2, *signal.shape)) * sigma
    magnitude: Float64 = np.hypot(signal + real, imaginary)
    return magnitude
