"""SimpleITK registration: checks, initial alignments, pyramid, and the optimisation at one level.

Every pair runs with one ITK thread, since ITK's sums depend on the number of threads, and pairs run one after another:
when two ran side by side in threads of Python, about one result in a hundred was another one. `--jobs` uses more cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from atlasseg.errors import GeometryError, InputError
from atlasseg.itk import (
    image_to_sitk,
    is_orthonormal,
    one_thread,
    orthonormal_grid,
    transform_from_sitk,
    transform_to_sitk,
)
from atlasseg.methods import OneOf
from atlasseg.resampling import coverage, resample, smooth
from atlasseg.similarity.metric import RENAMED
from atlasseg.transforms import Affine, Chain, DisplacementField, Transform, to_displacement_field
from atlasseg.volume import Grid, Image, Mask

if TYPE_CHECKING:
    import SimpleITK as sitk

METRICS = ("correlation", "mean_squares", "mutual_information")

METRIC_NAMES = OneOf(METRICS, renamed=RENAMED)

Metric = Annotated[str, METRIC_NAMES]
Start = Literal["geometry", "moments", "identity"]

MATTES_BINS = 32

SEED = 1
"""Seed of the small random shifts of ITK's samples from the voxel centres."""

FEWEST_VOXELS = 8
"""Minimum number of voxels along an axis after shrinking; shorter axes are not shrunk."""

FEWEST_FOR_GRADIENT_FILTER = 4
"""Minimum number of voxels along each axis for ITK's recursive Gaussian derivatives."""

SMOOTHING_PER_FACTOR = 0.5
"""Standard deviation of the Gaussian before shrinking by n, in voxels, divided by n; no smoothing for n = 1."""

LEAST_OVERLAP = 0.5
"""Overlap of an initial alignment, as a fraction of the best overlap, below which it is not considered."""

FEWEST_OVERLAPPING = 0.01
"""Minimum fraction of the fixed voxels that must map into the moving image."""

FIRST_STEP_VOXELS = 1.0
"""First step of a linear optimisation: maximum displacement of the image, in voxels of the level."""

LAST_STEP_VOXELS = 0.005
"""Step below which a linear optimisation stops, in voxels of the full image; the step is halved at each reversal."""

GRADIENT_TOLERANCE = 1e-8
"""Gradient of the metric below which a linear optimisation stops."""


@dataclass(frozen=True, eq=False)
class Side:
    """Scalar image of a pair, on a grid with perpendicular axes, with an optional mask."""

    image: Image
    mask: Mask | None
    name: str

    @property
    def domain(self) -> NDArray[np.bool_]:
        """Voxels that count, (I, J, K)."""
        return np.ones(self.image.shape, bool) if self.mask is None else self.mask.array


def check_sides(
    fixed: Image,
    moving: Sequence[Image],
    initial: Sequence[Transform] | None,
    fixed_mask: Mask | None,
    moving_masks: Sequence[Mask | None] | None,
) -> tuple[Side, list[Side]]:
    """Check the fixed and moving images, and resample sheared ones to perpendicular axes."""
    for what, given in (("initial transforms", initial), ("moving masks", moving_masks)):
        if given is not None and len(given) != len(moving):
            raise InputError(f"{what}: expected one per moving image ({len(moving)}), got {len(given)}")
    masks = moving_masks or [None] * len(moving)
    sides = [_side(image, mask, "moving") for image, mask in zip(moving, masks, strict=True)]
    return _side(fixed, fixed_mask, "fixed"), sides


def register_pairs(
    fixed: Image,
    moving: Sequence[Image],
    initial: Sequence[Transform] | None,
    fixed_mask: Mask | None,
    moving_masks: Sequence[Mask | None] | None,
    one: Callable[[Side, Side, Transform | None], Transform],
) -> list[Transform]:
    """Check all inputs, then run `one` on each pair, one after another."""
    target, sides = check_sides(fixed, moving, initial, fixed_mask, moving_masks)
    starts: Sequence[Transform | None] = initial or [None] * len(moving)
    with one_thread():
        return [one(target, side, start) for side, start in zip(sides, starts, strict=True)]


def register_linear(
    fixed: Image,
    moving: Sequence[Image],
    initial: Sequence[Transform] | None,
    fixed_mask: Mask | None,
    moving_masks: Sequence[Mask | None] | None,
    **options: Any,
) -> list[Transform]:
    """Register all pairs as in :mod:`itk_rigid` and :mod:`itk_affine`; see `register_linear_pair`."""

    def one(target: Side, source: Side, start: Transform | None) -> Transform:
        return register_linear_pair(target, source, start, **options)

    return register_pairs(fixed, moving, initial, fixed_mask, moving_masks, one)


def measure_overlap(fixed: Side, moving: Side, transform: Transform) -> float:
    """Estimate, on about 10000 voxels, the fraction of the fixed image's voxels that map into the moving image."""
    grid = fixed.image.grid
    step = max(1, round((np.prod(grid.shape) / 10_000) ** (1 / 3)))
    coarse = Grid(tuple(-(-n // step) for n in grid.shape), grid.affine @ np.diag([step, step, step, 1.0]))  # type: ignore[arg-type]
    inside = coverage(moving.image.grid, coarse, transform).array
    counted = fixed.domain[::step, ::step, ::step]
    return float((inside & counted).sum() / max(1, counted.sum()))


def require_overlap(fixed: Side, moving: Side, transform: Transform) -> None:
    """Raise a `GeometryError` if the images do not overlap (less than `FEWEST_OVERLAPPING`)."""
    share = measure_overlap(fixed, moving, transform)
    if share < FEWEST_OVERLAPPING:
        raise GeometryError(
            f"fixed image {fixed.name!r} and moving image {moving.name!r} do not overlap in space: "
            f"{100 * share:.2g} % of the fixed image lies in the moving image"
        )


def find_best_start(
    fixed: Side,
    moving: Side,
    *,
    metric: Metric,
    starts: Sequence[Start],
    rotations_degrees: Sequence[tuple[float, float, float]],
    factor: int,
    samples: int,
) -> Affine:
    """Find the best initial alignment, each combined with each rotation, by the metric at the coarsest level."""
    centres = {"geometry": _centre(fixed, False), "moments": _centre(fixed, True), "identity": _centre(fixed, False)}
    goals = {"geometry": _centre(moving, False), "moments": _centre(moving, True), "identity": centres["identity"]}
    if not starts:
        raise InputError("starts: expected at least one of geometry, moments, identity, got none")
    candidates = []
    for start in starts:
        if start not in centres:
            raise InputError(f"starts: expected geometry, moments or identity, got {start!r}")
        for angles in ((0.0, 0.0, 0.0), *rotations_degrees):
            turn = np.eye(4)
            turn[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
            turn[:3, 3] = goals[start] - turn[:3, :3] @ centres[start]
            candidates.append(Affine(turn))
    shares = [measure_overlap(fixed, moving, candidate) for candidate in candidates]
    if max(shares) < FEWEST_OVERLAPPING:
        require_overlap(fixed, moving, candidates[int(np.argmax(shares))])
    f, m = shrink(fixed, factor), shrink(moving, factor)
    values = [
        make_level_method(f, m, metric, start=candidate, samples=samples).MetricEvaluate(f.image, m.image)
        if share >= LEAST_OVERLAP * max(shares)
        else np.inf
        for candidate, share in zip(candidates, shares, strict=True)
    ]
    return candidates[int(np.argmin(values))]


@dataclass(frozen=True, eq=False)
class Level:
    """One resolution of a side, as ITK images."""

    image: sitk.Image
    mask: sitk.Image | None


def shrink(side: Side, factor: int) -> Level:
    """Smooth and shrink the image by about `factor`, less along coarse and short axes; the mask is not changed."""
    import SimpleITK as sitk

    finest = side.image.spacing_mm.min()
    factors = [
        max(1, min(round(factor * finest / size), n // FEWEST_VOXELS))
        for n, size in zip(side.image.shape, side.image.spacing_mm, strict=True)
    ]
    sigma = [
        SMOOTHING_PER_FACTOR * n * size if n > 1 else 0.0
        for n, size in zip(factors, side.image.spacing_mm, strict=True)
    ]
    image = image_to_sitk(smooth(side.image, sigma))
    return Level(sitk.Shrink(image, factors), None if side.mask is None else image_to_sitk(side.mask))


def make_level_method(
    fixed: Level, moving: Level, metric: Metric, *, start: Transform, samples: int
) -> sitk.ImageRegistrationMethod:
    """Set up the registration at one level, of a transform applied before `start`, on at most `samples` voxels."""
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    METRIC_NAMES.check(metric, "metric")
    if metric == "mean_squares":
        method.SetMetricAsMeanSquares()
    elif metric == "mutual_information":
        method.SetMetricAsMattesMutualInformation(MATTES_BINS)
    else:
        method.SetMetricAsCorrelation()
    method.SetInterpolator(sitk.sitkLinear)
    voxels = fixed.image.GetNumberOfPixels()
    if samples < voxels:
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(samples / voxels, SEED)
    if min((*fixed.image.GetSize(), *moving.image.GetSize())) < FEWEST_FOR_GRADIENT_FILTER:
        method.MetricUseFixedImageGradientFilterOff()  # use differences of neighbours
        method.MetricUseMovingImageGradientFilterOff()
    if fixed.mask is not None:
        method.SetMetricFixedMask(fixed.mask)
    if moving.mask is not None:
        method.SetMetricMovingMask(moving.mask)
    method.SetMovingInitialTransform(transform_to_sitk(start))
    method.SetInitialTransform(sitk.Transform(3, sitk.sitkIdentity), inPlace=True)
    return method


def execute(method: sitk.ImageRegistrationMethod, fixed: Level, moving: Level, names: tuple[str, str]) -> None:
    """Run the registration; convert errors of ITK to an `InputError` that names both images."""
    try:
        method.Execute(fixed.image, moving.image)
    except RuntimeError as error:
        cause = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        raise InputError(
            f"fixed image {names[0]!r} and moving image {names[1]!r}: ITK's registration failed: {cause}"
        ) from error


def register_linear_pair(
    fixed: Side,
    moving: Side,
    initial: Transform | None,
    *,
    transform_model: Literal["rigid", "affine"],
    metric: Metric,
    starts: Sequence[Start],
    rotations_degrees: Sequence[tuple[float, float, float]],
    shrink_factors: Sequence[int],
    iterations: int,
    samples: int,
) -> Transform:
    """Register one pair by a rigid or affine transform, coarse to fine; without `initial`, from the best start."""
    import SimpleITK as sitk

    check_levels(shrink_factors, iterations, samples)
    if initial is None:
        initial = find_best_start(
            fixed,
            moving,
            metric=metric,
            starts=starts,
            rotations_degrees=rotations_degrees,
            factor=max(shrink_factors),
            samples=samples,
        )
        if transform_model == "affine":  # the rotation is more robust before scaling is allowed
            initial = register_linear_pair(
                fixed,
                moving,
                initial,
                transform_model="rigid",
                metric=metric,
                starts=(),
                rotations_degrees=(),
                shrink_factors=shrink_factors[:1],
                iterations=iterations,
                samples=samples,
            )
    require_overlap(fixed, moving, initial)
    unit = _unit_ball(fixed)  # so that equal translations, rotations and scalings move the image equally
    f, m = _in_units(fixed, unit), _in_units(moving, unit)
    start = ~unit @ make_differentiable(initial, fixed.image.grid) @ unit
    motion = sitk.Euler3DTransform() if transform_model == "rigid" else sitk.AffineTransform(3)
    for factor in shrink_factors:
        at_f, at_m = shrink(f, factor), shrink(m, factor)
        method = make_level_method(at_f, at_m, metric, start=start, samples=samples)
        voxel = float(f.image.spacing_mm.min())
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=FIRST_STEP_VOXELS * factor * voxel,
            minStep=LAST_STEP_VOXELS * voxel,
            numberOfIterations=iterations,
            relaxationFactor=0.5,
            gradientMagnitudeTolerance=GRADIENT_TOLERANCE,
        )
        method.SetOptimizerScales([1.0] * motion.GetNumberOfParameters())
        method.SetInitialTransform(motion, inPlace=True)
        execute(method, at_f, at_m, (fixed.name, moving.name))
    found = initial @ unit @ transform_from_sitk(motion) @ ~unit
    require_overlap(fixed, moving, found)
    return found


def make_differentiable(transform: Transform, grid: Grid) -> Transform:
    """Convert a transform to affines and displacement fields, the only initial transforms of ITK's metrics.

    Other kinds are sampled on `grid`, that of the fixed image; affines applied after them stay exact.
    """
    parts = list(transform.transforms) if isinstance(transform, Chain) else [transform]
    if all(isinstance(part, Affine | DisplacementField) for part in parts):
        return transform
    after: Transform = Affine.identity()
    while isinstance(parts[0], Affine):
        after = after @ parts.pop(0)
    return after @ to_displacement_field(Chain(tuple(parts)), grid)


def resample_through(side: Side, transform: Transform, target: Side) -> Side:
    """Resample the moving side to the grid of the fixed image."""
    grid = target.image.grid
    known = coverage(side.image.grid, grid, transform)
    mask = known if side.mask is None else Mask(resample(side.mask, grid, transform).array & known.array, grid.affine)
    return Side(resample(side.image, grid, transform, interpolation="cubic"), mask, side.name)


def _unit_ball(side: Side) -> Affine:
    """Make the affine that maps the unit ball to the ball around the image."""
    grid = side.image.grid
    matrix = np.eye(4) * np.linalg.norm(grid.corners_mm - grid.centre_mm, axis=1).max()
    matrix[3, 3] = 1
    matrix[:3, 3] = grid.centre_mm
    return Affine(matrix)


def _in_units(side: Side, unit: Affine) -> Side:
    affine = (~unit).matrix @ side.image.affine
    mask = None if side.mask is None else Mask(side.mask.array, affine)
    return Side(Image(side.image.array, affine), mask, side.name)


def check_levels(shrink_factors: Sequence[int], iterations: int, samples: int) -> None:
    """Raise an `InputError` for an invalid pyramid, or without iterations or samples."""
    if not shrink_factors or min(shrink_factors) < 1 or iterations < 1 or samples < 1:
        raise InputError(
            f"expected shrink_factors of at least 1 (one or more), iterations and samples of at least 1, got "
            f"{tuple(shrink_factors)}, {iterations} and {samples}"
        )


def _side(image: Image, mask: Mask | None, role: str) -> Side:
    name = image.name
    if image.channels.shape[3] != 1:
        raise InputError(
            f"{role} image {name!r}: expected one channel, as ITK's metrics require, got {image.channels.shape[3]}"
        )
    array = image.channels[..., 0].astype(np.float64)
    if array.min() == array.max():
        raise InputError(
            f"{role} image {name!r} is constant: expected several intensities, got {array.flat[0]:g} at every voxel"
        )
    if mask is not None:
        if not mask.grid.matches(image.grid):
            raise GeometryError(
                f"{role} image {name!r} and its mask are not on one grid: expected shape {image.shape} and affine "
                f"{image.affine.tolist()}, got shape {mask.shape}, affine {mask.affine.tolist()}"
            )
        if not mask.array.any():
            raise InputError(f"{role} image {name!r}: its mask is empty: expected voxels inside, got none")
        inside = array[mask.array]
        if inside.min() == inside.max():
            raise InputError(
                f"{role} image {name!r} is constant in its mask: expected several intensities, got {inside.flat[0]:g}"
            )
    plain = Image(image.channels[..., 0], image.affine, name)
    if not is_orthonormal(plain.grid):  # ITK's gradients assume perpendicular axes
        grid = orthonormal_grid(plain.grid)
        known = coverage(plain.grid, grid)
        mask = known if mask is None else Mask(resample(mask, grid).array & known.array, grid.affine)
        plain = resample(plain, grid)
    return Side(plain, mask, name)


def _centre(side: Side, weighted: bool) -> NDArray[np.float64]:
    """Compute the centre (3,) in RAS+ mm of the grid, or of the mass: intensities above the minimum, in the mask."""
    if not weighted:
        return side.image.grid.centre_mm
    weight = np.where(side.domain, side.image.array.astype(np.float64) - side.image.array[side.domain].min(), 0)
    index = [np.arange(n) @ weight.sum(axis=tuple({0, 1, 2} - {a})) for a, n in enumerate(weight.shape)]
    return np.asarray(side.image.affine[:3, :3] @ (np.array(index) / weight.sum()) + side.image.affine[:3, 3])
