"""Thin-plate spline registration on landmarks found by block matching with trimming.

The spline is that of Bookstein [1]_, with the smoothing of Rohr [2]_. Landmarks are found by block matching [3]_, and
trimmed by their leave-one-out residuals [4]_.

References
----------
.. [1] Bookstein, F. L. (1989). Principal warps: thin-plate splines and the decomposition of deformations. IEEE PAMI
   11(6), 567-585.
.. [2] Rohr, K., et al. (2001). Landmark-based elastic registration using approximating thin-plate splines. IEEE TMI
   20(6), 526-534 (the smoothing, equations 8 to 10).
.. [3] Ourselin, S., et al. (2000). Block matching: a general framework to improve robustness of rigid registration of
   medical images. MICCAI, LNCS 1935, 557-566.
.. [4] Rippa, S. (1999). An algorithm for selecting a good value for the parameter c in radial basis function
   interpolation. Advances in Computational Mathematics 11, 193-210 (leave-one-out residuals, equation 13).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike
from scipy import linalg

from atlasseg.errors import InputError
from atlasseg.methods import Data, method
from atlasseg.registration._block_matching import match_blocks, select_textured_blocks
from atlasseg.registration._coarse import check_starts_and_masks, coarsen, get_first_channel
from atlasseg.resampling import coverage, resample
from atlasseg.threads import run_slices
from atlasseg.transforms import Affine, Transform
from atlasseg.volume import Bool, Float64, Image, Mask

__all__ = ["ThinPlateSpline", "find_consistent", "fit_landmarks"]

logger = logging.getLogger(__name__)

INVERSE_TOLERANCE_MM = 1e-6
"""Distance to the goal below which the inverse at a point has converged."""

INVERSE_MAX_ITERATIONS = 50
"""Maximum number of Newton steps of the inverse at a point."""

STEP_HALVINGS = 12
"""Maximum number of halvings of a Newton step that increases the distance to the goal."""

TRIMMING_ROUNDS = 5
"""Maximum number of concentration steps of the least trimmed squares."""

FEWEST_LANDMARKS = 8
"""Minimum number of matched blocks; a level with fewer is skipped."""


@dataclass(frozen=True, eq=False)
class ThinPlateSpline(Transform):
    r"""Thin-plate spline in three dimensions: the interpolant of least bending energy.

    .. math::

        x \mapsto A x + b + \sum_i w_i \, |x - p_i|

    Parameters
    ----------
    landmarks_mm : (M, 3) float64
        p, RAS+ mm.
    weights : (M, 3) float64
        w, dimensionless.
    affine : Affine
        A and b, the affine part.
    """

    landmarks_mm: Float64
    weights: Float64
    affine: Affine

    def __post_init__(self) -> None:
        landmarks = np.ascontiguousarray(self.landmarks_mm, dtype=np.float64)
        weights = np.ascontiguousarray(self.weights, dtype=np.float64)
        if landmarks.ndim != 2 or landmarks.shape[1] != 3 or weights.shape != landmarks.shape:
            raise InputError(
                f"expected landmarks and weights of shape (M, 3), got {landmarks.shape} and {weights.shape}"
            )
        object.__setattr__(self, "landmarks_mm", landmarks)
        object.__setattr__(self, "weights", weights)

    def __call__(self, points_mm: ArrayLike) -> Float64:
        """Transform points, (..., 3) to (..., 3), RAS+ mm; each needs M distances."""
        points = np.asarray(points_mm, dtype=np.float64)
        flat = np.ascontiguousarray(points.reshape(-1, 3))
        mapped = np.empty_like(flat)
        run_slices(_spline, len(flat), flat, self.landmarks_mm, self.weights, self.affine.matrix, mapped)
        return mapped.reshape(points.shape)

    def __invert__(self) -> Transform:
        return InverseThinPlateSpline(self)


@dataclass(frozen=True, eq=False)
class InverseThinPlateSpline(Transform):
    """Inverse of a thin-plate spline, computed point by point by Newton's method with the exact derivative.

    A step that increases the distance to the goal is halved. Where the spline folds, a point has several inverses or
    none. The nearest point found is kept, and the number of such points and their largest distance are logged.
    """

    spline: ThinPlateSpline

    def __call__(self, points_mm: ArrayLike) -> Float64:
        """Transform points by the inverse, (..., 3) to (..., 3), RAS+ mm."""
        points = np.asarray(points_mm, dtype=np.float64)
        goals = np.ascontiguousarray(points.reshape(-1, 3))
        spline = self.spline
        found, missed_mm = (~spline.affine)(goals), np.empty(len(goals))
        given = goals, spline.landmarks_mm, spline.weights, spline.affine.matrix
        run_slices(_newton, len(goals), *given, found, missed_mm)
        lost = missed_mm > INVERSE_TOLERANCE_MM
        if lost.any():
            logger.warning(
                "the inverse of a thin-plate spline did not converge at %d of %d points (up to %.3g mm off): it folds",
                lost.sum(),
                len(goals),
                missed_mm.max(),
            )
        inverse: Float64 = found.reshape(points.shape)
        return inverse

    def __invert__(self) -> Transform:
        return self.spline


def fit_landmarks(fixed_points: ArrayLike, moving_points: ArrayLike, *, smoothing: float = 0.0) -> ThinPlateSpline:
    r"""Fit the thin-plate spline that maps points of the fixed image to those of the moving image.

    With :math:`U(r) = r`, :math:`K_{ij} = U(|p_i - p_j|)` and :math:`P` the rows :math:`(1, p_i)`, it solves

    .. math::

        \begin{pmatrix} K - \textit{smoothing} \cdot I & P \\ P^{\top} & 0 \end{pmatrix}
        \begin{pmatrix} w \\ a \end{pmatrix} = \begin{pmatrix} q \\ 0 \end{pmatrix}

    Parameters
    ----------
    fixed_points, moving_points : (M, 3)
        p and q, RAS+ mm, at least 4 points that are not in one plane.
    smoothing : float
        In mm. 0: pass through every landmark. Larger values allow a distance from the landmarks for less bending; the
        limit is the least-squares affine transform.

    Returns
    -------
    ThinPlateSpline

    Raises
    ------
    InputError
        The lists differ in length, a coordinate is not finite, `smoothing` is negative, there are fewer than 4
        landmarks, all lie in one plane, or two are at the same position while `smoothing` is 0.
    """
    fixed, moving = _check_pairs(fixed_points, moving_points, smoothing)
    return _fit(fixed, moving, smoothing)[0]


def _check_pairs(fixed_points: ArrayLike, moving_points: ArrayLike, smoothing: float) -> tuple[Float64, Float64]:
    fixed, moving = (np.asarray(points, dtype=np.float64) for points in (fixed_points, moving_points))
    if fixed.ndim != 2 or fixed.shape[1:] != (3,) or fixed.shape != moving.shape:
        raise InputError(f"landmarks: expected two arrays of shape (M, 3), got {fixed.shape} and {moving.shape}")
    bad = np.flatnonzero(~(np.isfinite(fixed).all(1) & np.isfinite(moving).all(1)))
    if bad.size:
        raise InputError(f"landmark {bad[0]}: expected finite coordinates, got NaN or infinity")
    if not smoothing >= 0:
        raise InputError(f"smoothing: expected 0 or more, got {smoothing}")
    spread = np.linalg.svd(fixed - fixed.mean(0), compute_uv=False) if len(fixed) else np.zeros(3)
    if len(fixed) < 4 or spread[-1] <= 1e-9 * spread[0]:
        raise InputError(f"landmarks: expected at least 4 that are not in one plane, got {len(fixed)}")
    if smoothing == 0 and len(np.unique(fixed, axis=0)) < len(fixed):
        raise InputError(
            "landmarks: expected different positions in the fixed image, got two equal ones. Give a smoothing above 0"
        )
    return fixed, moving


def _fit(fixed: Float64, moving: Float64, smoothing: float) -> tuple[ThinPlateSpline, Float64]:
    """Fit the spline; also return the leave-one-out residuals (M,) in mm (Rippa, eq. 13)."""
    centre = fixed.mean(0)
    scale = float(np.abs(fixed - centre).max())
    p = (fixed - centre) / scale
    count = len(p)
    system = np.zeros((count + 4, count + 4))
    system[:count, :count] = np.linalg.norm(p[:, None] - p[None], axis=2) - smoothing / scale * np.eye(count)
    system[:count, count] = system[count, :count] = 1
    system[:count, count + 1 :] = p
    system[count + 1 :, :count] = p.T
    inverse = linalg.inv(system)
    solution = inverse[:, :count] @ moving
    weights, offset, linear = solution[:count], solution[count], solution[count + 1 :].T
    with np.errstate(divide="ignore", invalid="ignore"):
        left_out_mm = np.linalg.norm(weights / np.diag(inverse)[:count, None], axis=1)
    matrix = np.eye(4)
    matrix[:3, :3] = linear / scale
    matrix[:3, 3] = offset - matrix[:3, :3] @ centre
    return ThinPlateSpline(fixed, weights / scale, Affine(matrix)), left_out_mm


def find_consistent(fixed_points: Float64, moving_points: Float64, *, trim: float, smoothing: float) -> Bool:
    """Trim inconsistent landmarks: least trimmed squares by concentration steps.

    Each step fits a spline to the landmarks kept, then keeps those with the smallest residuals (leave-one-out residuals
    for the landmarks that it was fitted to).

    Parameters
    ----------
    fixed_points, moving_points : (M, 3) float64
        RAS+ mm.
    trim : float
        Share of the matched blocks that is discarded, 0 to below 1.
    smoothing : float
        Of the spline, in mm.

    Returns
    -------
    (M,) bool
    """
    count = len(fixed_points)
    wanted = max(4, count - int(trim * count))
    kept = np.ones(count, bool)
    for _ in range(TRIMMING_ROUNDS):
        spline, left_out_mm = _fit(fixed_points[kept], moving_points[kept], smoothing)
        distance_mm = np.linalg.norm(spline(fixed_points) - moving_points, axis=1)
        distance_mm[kept] = left_out_mm
        nearest = np.zeros(count, bool)
        nearest[np.argsort(distance_mm, kind="stable")[:wanted]] = True
        if np.array_equal(nearest, kept):
            break
        kept = nearest
    return kept


@method("registration", channels="one")
def register(
    fixed: Image,
    moving: Sequence[Image],
    *,
    initial: Data[Sequence[Transform] | None] = None,
    fixed_mask: Data[Mask | None] = None,
    moving_masks: Data[Sequence[Mask | None] | None] = None,
    levels: tuple[float, ...] = (4.0, 2.0, 2.0),
    landmarks: int = 600,
    block_radius_voxels: int = 2,
    search_voxels: int = 3,
    trim: float = 0.3,
    smoothing: float = 10.0,
) -> list[Transform]:
    """Register by landmarks that block matching finds, level by level, through a smoothing thin plate spline.

    At each level the moving image is seen through the transform so far; blocks with texture, spread over the fixed
    image, are sought in it; the pairs that disagree with their neighbours are trimmed; and a new spline through the
    rest takes the place of the transform so far.

    Parameters
    ----------
    fixed : Image
        The target: one channel.
    moving : sequence of Image
        The atlases; each is registered on its own.
    initial : sequence of Transform, optional
        Initial transform of each moving image, from fixed to moving points. Default: an affine registration.
    fixed_mask : Mask, optional
        Blocks are centred inside it; on the fixed image's grid.
    moving_masks : sequence of Mask or None, optional
        Where each moving image is known.
    levels : sequence of float
        Voxel size at each level, in units of the fixed image's smallest spacing, coarse to fine.
    landmarks : int
        Approximate number of blocks to match at each level.
    block_radius_voxels, search_voxels : int
        Half size of the blocks and of the search window, in voxels of the level.
    trim : float
        Share of the matched blocks that is discarded, 0 to below 1.
    smoothing : float
        Smoothing of the spline, in mm: see `fit_landmarks`.

    Returns
    -------
    list of Transform
        moving_from_fixed, one per moving image: a ThinPlateSpline, or the initial transform where nothing was matched.

    Raises
    ------
    InputError
        An image has several channels, a parameter is out of range, the lists differ in length, or a mask is empty.
    GeometryError
        A mask is not on its image's grid.
    """
    if not 0 <= trim < 1 or landmarks < FEWEST_LANDMARKS or min((block_radius_voxels, search_voxels, *levels)) <= 0:
        raise InputError(
            f"expected trim in [0, 1), at least {FEWEST_LANDMARKS} landmarks, and radii and levels above 0, got "
            f"trim {trim}, landmarks {landmarks}, block radius {block_radius_voxels}, search {search_voxels}, "
            f"levels {levels}"
        )
    for image in (fixed, *moving):
        if image.channels.shape[3] != 1:
            raise InputError(
                f"image {image.name!r}: expected one channel for the registration thin_plate, got "
                f"{image.channels.shape[3]}. Choose another registration."
            )
    found, masks = check_starts_and_masks(fixed, moving, initial, fixed_mask, moving_masks)
    for level in levels:
        grid = coarsen(fixed.grid, level * float(fixed.spacing_mm.min()))
        target = get_first_channel(resample(fixed, grid, antialias=True))
        wanted = np.ones(grid.shape, bool) if fixed_mask is None else resample(fixed_mask, grid).array
        centres = select_textured_blocks(target, wanted, count=landmarks, radius_voxels=block_radius_voxels)
        centres_mm = centres @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        for n, (image, mask) in enumerate(zip(moving, masks, strict=True)):
            warped = get_first_channel(resample(image, grid, found[n], antialias=True))
            known = coverage(image.grid, grid, found[n]).array
            if mask is not None:
                known &= resample(mask, grid, found[n]).array
            offsets, correlations = match_blocks(
                target, warped, centres, known, radius_voxels=block_radius_voxels, search_voxels=search_voxels
            )
            matched = correlations > 0
            if matched.sum() < FEWEST_LANDMARKS:
                logger.warning("%s: only %d blocks were matched: the transform is kept", image.name, matched.sum())
                continue
            places_mm = centres_mm[matched]
            matches_mm = found[n](places_mm + offsets[matched] @ grid.affine[:3, :3].T)
            kept = find_consistent(places_mm, matches_mm, trim=trim, smoothing=smoothing)
            found[n] = fit_landmarks(places_mm[kept], matches_mm[kept], smoothing=smoothing)
    return found


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _spline(start, stop, points, landmarks, weights, matrix, out):  # type: ignore[no-untyped-def]
    px, py, pz = landmarks[:, 0].copy(), landmarks[:, 1].copy(), landmarks[:, 2].copy()
    wx, wy, wz = weights[:, 0].copy(), weights[:, 1].copy(), weights[:, 2].copy()
    for n in range(start, stop):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        sx = sy = sz = 0.0
        for m in range(len(px)):
            r = np.sqrt((x - px[m]) ** 2 + (y - py[m]) ** 2 + (z - pz[m]) ** 2)
            sx += wx[m] * r
            sy += wy[m] * r
            sz += wz[m] * r
        out[n, 0] = sx + matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z + matrix[0, 3]
        out[n, 1] = sy + matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z + matrix[1, 3]
        out[n, 2] = sz + matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z + matrix[2, 3]


@njit(cache=True)
def _spline_and_derivative(x, landmarks, weights, matrix, value, derivative):  # type: ignore[no-untyped-def]
    """Evaluate the spline at one point, (3,), and its derivative, (3, 3), into `value` and `derivative`."""
    for a in range(3):
        value[a] = matrix[a, 3]
        for b in range(3):
            value[a] += matrix[a, b] * x[b]
            derivative[a, b] = matrix[a, b]
    for m in range(len(landmarks)):
        dx, dy, dz = x[0] - landmarks[m, 0], x[1] - landmarks[m, 1], x[2] - landmarks[m, 2]
        r = np.sqrt(dx * dx + dy * dy + dz * dz)
        over = 1 / r if r > 0 else 0.0  # at a landmark its own derivative is taken as 0, the mean over directions
        for a in range(3):
            w = weights[m, a]
            value[a] += w * r
            derivative[a, 0] += w * dx * over
            derivative[a, 1] += w * dy * over
            derivative[a, 2] += w * dz * over


@njit(cache=True)
def _solve(a, goal, value, x):  # type: ignore[no-untyped-def]
    """Solve ``a x = goal - value``, 3 by 3, by Cramer's rule; x is ``goal - value`` if a is singular."""
    b0, b1, b2 = goal[0] - value[0], goal[1] - value[1], goal[2] - value[2]
    c0 = a[1, 1] * a[2, 2] - a[1, 2] * a[2, 1]
    c1 = a[1, 2] * a[2, 0] - a[1, 0] * a[2, 2]
    c2 = a[1, 0] * a[2, 1] - a[1, 1] * a[2, 0]
    over = a[0, 0] * c0 + a[0, 1] * c1 + a[0, 2] * c2
    if abs(over) < 1e-12:
        x[0], x[1], x[2] = b0, b1, b2
        return
    d0, d1 = a[0, 2] * a[2, 1] - a[0, 1] * a[2, 2], a[0, 1] * a[1, 2] - a[0, 2] * a[1, 1]
    e0, e1 = a[0, 0] * a[2, 2] - a[0, 2] * a[2, 0], a[0, 2] * a[1, 0] - a[0, 0] * a[1, 2]
    f0, f1 = a[0, 1] * a[2, 0] - a[0, 0] * a[2, 1], a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0]
    x[0] = (c0 * b0 + d0 * b1 + d1 * b2) / over
    x[1] = (c1 * b0 + e0 * b1 + e1 * b2) / over
    x[2] = (c2 * b0 + f0 * b1 + f1 * b2) / over


@njit(cache=True)
def _newton_point(goal, landmarks, weights, matrix, x):  # type: ignore[no-untyped-def]
    """Move x, (3,), until the spline maps it to `goal`; return the remaining distance in mm."""
    value, derivative = np.empty(3), np.empty((3, 3))
    trial_value, trial_derivative, trial, step = np.empty(3), np.empty((3, 3)), np.empty(3), np.empty(3)
    _spline_and_derivative(x, landmarks, weights, matrix, value, derivative)
    error = _distance(value, goal)
    for _ in range(INVERSE_MAX_ITERATIONS):
        if error <= INVERSE_TOLERANCE_MM:
            break
        _solve(derivative, goal, value, step)
        share, moved = 1.0, False
        for _ in range(STEP_HALVINGS):
            for a in range(3):
                trial[a] = x[a] + share * step[a]
            _spline_and_derivative(trial, landmarks, weights, matrix, trial_value, trial_derivative)
            trial_error = _distance(trial_value, goal)
            if trial_error < error:
                for a in range(3):
                    x[a], value[a] = trial[a], trial_value[a]
                    for b in range(3):
                        derivative[a, b] = trial_derivative[a, b]
                error, moved = trial_error, True
                break
            share /= 2
        if not moved:
            break
    return error


@njit(cache=True)
def _distance(a, b):  # type: ignore[no-untyped-def]
    return np.sqrt((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2)


@njit(cache=True, nogil=True)
def _newton(start, stop, goals, landmarks, weights, matrix, found, missed):  # type: ignore[no-untyped-def]
    """Move the points `found`, (N, 3), until the spline maps them to the goals; write what is missed, in mm."""
    for n in range(start, stop):
        missed[n] = _newton_point(goals[n], landmarks, weights, matrix, found[n])
