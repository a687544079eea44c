"""What the registrations through SimpleITK share: checks, starts, the pyramid, and one optimisation at one level.

Every pair runs with one ITK thread, since ITK's sums depend on the number of threads; several pairs run at once, each
in a thread of Python, as SimpleITK releases the interpreter while it works.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numba
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
from atlasseg.transforms import Affine, Chain, DisplacementField, Transform, grid_points, to_displacement_field
from atlasseg.volume import Grid, Image, Mask

if TYPE_CHECKING:
    import SimpleITK as sitk

METRICS = ("correlation", "mean_squares", "mutual_information")

METRIC_NAMES = OneOf(METRICS, renamed=RENAMED)

Metric = Annotated[str, METRIC_NAMES]
Start = Literal["geometry", "moments", "identity"]

MATTES_BINS = 32

SEED = 1
"""Of the small shifts by which ITK moves its samples off the voxels' centres."""

FEWEST_VOXELS = 8
"""No axis is shrunk to fewer voxels than this; one that has fewer is not shrunk."""

FEWEST_FOR_GRADIENT_FILTER = 4
"""ITK's recursive Gaussian derivatives need so many voxels along each axis."""

SMOOTHING_PER_FACTOR = 0.5
"""Standard deviation of the Gaussian before shrinking by n: this times n, in voxels; none where n is 1."""

LEAST_OVERLAP = 0.5
"""A start is considered where it overlaps by at least this share of what the best start overlaps."""

FEWEST_OVERLAPPING = 0.01
"""Share of the fixed voxels that must land in the moving image."""

FIRST_STEP_VOXELS = 1.0
"""First step of a linear optimisation at a level: the most that it moves the image, in that level's voxels."""

LAST_STEP_VOXELS = 0.005
"""Such an optimisation ends when its step, halved whenever it turns back, is smaller than this, in full voxels."""

GRADIENT_TOLERANCE = 1e-8
"""A linear optimisation ends where the metric is flatter than this."""


@dataclass(frozen=True, eq=False)
class Side:
    """One image of a pair: scalar, on a grid with perpendicular axes, perhaps with a mask."""

    image: Image
    mask: Mask | None
    name: str

    @property
    def domain(self) -> NDArray[np.bool_]:
        """(I, J, K) voxels that count."""
        return np.ones(self.image.shape, bool) if self.mask is None else self.mask.array


def checked_sides(
    fixed: Image,
    moving: Sequence[Image],
    initial: Sequence[Transform] | None,
    fixed_mask: Mask | None,
    moving_masks: Sequence[Mask | None] | None,
) -> tuple[Side, list[Side]]:
    """The fixed and the moving sides, each checked and brought onto perpendicular axes."""
    for what, given in (("initial transforms", initial), ("moving masks", moving_masks)):
        if given is not None and len(given) != len(moving):
            raise InputError(f"{len(moving)} moving images want as many {what}, got {len(given)}")
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
    """Check everything, then run `one` on each pair, several at a time."""
    target, sides = checked_sides(fixed, moving, initial, fixed_mask, moving_masks)
    starts: Sequence[Transform | None] = initial or [None] * len(moving)
    with one_thread(), ThreadPoolExecutor(_pairs_at_once(len(sides))) as pool:
        return list(pool.map(one, [target] * len(sides), sides, starts))


def register_linear(
    fixed: Image,
    moving: Sequence[Image],
    initial: Sequence[Transform] | None,
    fixed_mask: Mask | None,
    moving_masks: Sequence[Mask | None] | None,
    **options: Any,
) -> list[Transform]:
    """What :mod:`itk_rigid` and :mod:`itk_affine` share; `options` are those of `linear`."""

    def one(target: Side, source: Side, start: Transform | None) -> Transform:
        return linear(target, source, start, **options)

    return register_pairs(fixed, moving, initial, fixed_mask, moving_masks, one)


def _pairs_at_once(pairs: int) -> int:
    """As many as numba has threads; 1 where its threads cannot be shared by several of Python's."""
    grid_points(Grid((1, 1, 1), np.eye(4)))  # the first parallel loop decides on the layer
    return 1 if numba.threading_layer() == "workqueue" else max(1, min(pairs, numba.get_num_threads()))


def overlap(fixed: Side, moving: Side, transform: Transform) -> float:
    """Share of the fixed image's voxels that count and land in the moving image, on about 10000 of them."""
    grid = fixed.image.grid
    step = max(1, round((np.prod(grid.shape) / 10_000) ** (1 / 3)))
    coarse = Grid(tuple(-(-n // step) for n in grid.shape), grid.affine @ np.diag([step, step, step, 1.0]))  # type: ignore[arg-type]
    inside = coverage(moving.image.grid, coarse, transform).array
    counted = fixed.domain[::step, ::step, ::step]
    return float((inside & counted).sum() / max(1, counted.sum()))


def require_overlap(fixed: Side, moving: Side, transform: Transform) -> None:
    """Raise `GeometryError` where next to nothing of the fixed image lands in the moving one."""
    share = overlap(fixed, moving, transform)
    if share < FEWEST_OVERLAPPING:
        raise GeometryError(
            f"fixed image {fixed.name!r} and moving image {moving.name!r} do not overlap in space: "
            f"{100 * share:.2g} % of the fixed image lands in the moving one"
        )


def best_start(
    fixed: Side,
    moving: Side,
    *,
    metric: Metric,
    starts: Sequence[Start],
    rotations_degrees: Sequence[tuple[float, float, float]],
    factor: int,
    samples: int,
) -> Affine:
    """The best, by the metric at the coarsest level, of the starts, each with each of the rotations."""
    centres = {"geometry": _centre(fixed, False), "moments": _centre(fixed, True), "identity": _centre(fixed, False)}
    goals = {"geometry": _centre(moving, False), "moments": _centre(moving, True), "identity": centres["identity"]}
    if not starts:
        raise InputError("at least one start is wanted: geometry, moments, identity")
    candidates = []
    for start in starts:
        if start not in centres:
            raise InputError(f"a start is one of geometry, moments, identity; got {start!r}")
        for angles in ((0.0, 0.0, 0.0), *rotations_degrees):
            turn = np.eye(4)
            turn[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
            turn[:3, 3] = goals[start] - turn[:3, :3] @ centres[start]
            candidates.append(Affine(turn))
    shares = [overlap(fixed, moving, candidate) for candidate in candidates]
    if max(shares) < FEWEST_OVERLAPPING:
        require_overlap(fixed, moving, candidates[int(np.argmax(shares))])
    f, m = shrunk(fixed, factor), shrunk(moving, factor)
    values = [
        level_method(f, m, metric, start=candidate, samples=samples).MetricEvaluate(f.image, m.image)
        if share >= LEAST_OVERLAP * max(shares)
        else np.inf
        for candidate, share in zip(candidates, shares, strict=True)
    ]
    return candidates[int(np.argmin(values))]


@dataclass(frozen=True, eq=False)
class Level:
    """A side as ITK's images, at one resolution."""

    image: sitk.Image
    mask: sitk.Image | None


def shrunk(side: Side, factor: int) -> Level:
    """The image smoothed and shrunk by about `factor`: less along coarse and short axes; the mask as it is."""
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


def level_method(
    fixed: Level, moving: Level, metric: Metric, *, start: Transform, samples: int
) -> sitk.ImageRegistrationMethod:
    """A registration at one level, of a transform whose result goes on into `start`, on at most `samples` voxels."""
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
        method.MetricUseFixedImageGradientFilterOff()  # differences of neighbours instead
        method.MetricUseMovingImageGradientFilterOff()
    if fixed.mask is not None:
        method.SetMetricFixedMask(fixed.mask)
    if moving.mask is not None:
        method.SetMetricMovingMask(moving.mask)
    method.SetMovingInitialTransform(transform_to_sitk(start))
    method.SetInitialTransform(sitk.Transform(3, sitk.sitkIdentity), inPlace=True)
    return method


def execute(method: sitk.ImageRegistrationMethod, fixed: Level, moving: Level, names: tuple[str, str]) -> None:
    """Run it; what ITK has to say against that becomes an `InputError` that names both images."""
    try:
        method.Execute(fixed.image, moving.image)
    except RuntimeError as error:
        cause = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        raise InputError(
            f"fixed image {names[0]!r} and moving image {names[1]!r}: ITK's registration failed: {cause}"
        ) from error


def linear(
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
    """Rigid or affine registration of one pair, coarse to fine; without `initial`, from the best of the starts."""
    import SimpleITK as sitk

    check_levels(shrink_factors, iterations, samples)
    if initial is None:
        initial = best_start(
            fixed,
            moving,
            metric=metric,
            starts=starts,
            rotations_degrees=rotations_degrees,
            factor=max(shrink_factors),
            samples=samples,
        )
        if transform_model == "affine":  # a turn is found more safely before sizes may change
            initial = linear(
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
    unit = _unit_ball(fixed)  # so that translations, turns and stretches of one size move the image alike
    f, m = _in_units(fixed, unit), _in_units(moving, unit)
    start = ~unit @ differentiable(initial, fixed.image.grid) @ unit
    motion = sitk.Euler3DTransform() if transform_model == "rigid" else sitk.AffineTransform(3)
    for factor in shrink_factors:
        at_f, at_m = shrunk(f, factor), shrunk(m, factor)
        method = level_method(at_f, at_m, metric, start=start, samples=samples)
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


def differentiable(transform: Transform, grid: Grid) -> Transform:
    """The transform as affines and displacement fields, which are all that ITK's metrics can take as a start.

    Other kinds are sampled on `grid`, the fixed image's; affines that come after them stay exact.
    """
    parts = list(transform.transforms) if isinstance(transform, Chain) else [transform]
    if all(isinstance(part, Affine | DisplacementField) for part in parts):
        return transform
    after: Transform = Affine.identity()
    while isinstance(parts[0], Affine):
        after = after @ parts.pop(0)
    return after @ to_displacement_field(Chain(tuple(parts)), grid)


def seen_through(side: Side, transform: Transform, target: Side) -> Side:
    """The moving side on the fixed image's grid."""
    grid = target.image.grid
    known = coverage(side.image.grid, grid, transform)
    mask = known if side.mask is None else Mask(resample(side.mask, grid, transform).array & known.array, grid.affine)
    return Side(resample(side.image, grid, transform, interpolation="cubic"), mask, side.name)


def _unit_ball(side: Side) -> Affine:
    """Takes a ball of radius 1 about the origin to the ball that holds the image."""
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
    """Raise `InputError` where a pyramid has no level or an impossible one, or there are no iterations or samples."""
    if not shrink_factors or min(shrink_factors) < 1 or iterations < 1 or samples < 1:
        raise InputError(
            f"shrink_factors must be one or more whole numbers above 0, iterations and samples above 0; got "
            f"{tuple(shrink_factors)}, {iterations} and {samples}"
        )


def _side(image: Image, mask: Mask | None, role: str) -> Side:
    name = image.name
    if image.channels.shape[3] != 1:
        raise InputError(f"{role} image {name!r} has {image.channels.shape[3]} channels: ITK's metrics take one")
    array = image.channels[..., 0].astype(np.float64)
    if array.min() == array.max():
        raise InputError(f"{role} image {name!r} is constant: all its intensities are {array.flat[0]:g}")
    if mask is not None:
        if not mask.grid.matches(image.grid):
            raise GeometryError(
                f"{role} image {name!r} and its mask are not on one grid: shapes {image.shape} and {mask.shape}, "
                f"affines {image.affine.tolist()} and {mask.affine.tolist()}"
            )
        if not mask.array.any():
            raise InputError(f"{role} image {name!r}: its mask is empty")
        inside = array[mask.array]
        if inside.min() == inside.max():
            raise InputError(f"{role} image {name!r} is constant within its mask: {inside.flat[0]:g}")
    plain = Image(image.channels[..., 0], image.affine, name)
    if not is_orthonormal(plain.grid):  # ITK takes gradients along axes that it believes to be perpendicular
        grid = orthonormal_grid(plain.grid)
        known = coverage(plain.grid, grid)
        mask = known if mask is None else Mask(resample(mask, grid).array & known.array, grid.affine)
        plain = resample(plain, grid)
    return Side(plain, mask, name)


def _centre(side: Side, weighted: bool) -> NDArray[np.float64]:
    """(3,) centre in RAS+ mm of the grid, or of the mass: intensities above the smallest, within the mask."""
    if not weighted:
        return side.image.grid.centre_mm
    weight = np.where(side.domain, side.image.array.astype(np.float64) - side.image.array[side.domain].min(), 0)
    index = [np.arange(n) @ weight.sum(axis=tuple({0, 1, 2} - {a})) for a, n in enumerate(weight.shape)]
    return np.asarray(side.image.affine[:3, :3] @ (np.array(index) / weight.sum()) + side.image.affine[:3, 3])
