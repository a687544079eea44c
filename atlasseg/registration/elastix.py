"""Affine and B-spline registration with elastix (needs itk-elastix: ``pip install 'atlasseg[elastix]'``)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np

from atlasseg.errors import InputError, MissingLibraryError
from atlasseg.itk import LPS, transform_from_sitk
from atlasseg.methods import Data, OneOf, method
from atlasseg.registration._itk import Side, check_sides, require_overlap, resample_through
from atlasseg.similarity.metric import RENAMED
from atlasseg.transforms import BSplineField, Transform
from atlasseg.volume import Float64, Image, Mask

METRICS = {
    "correlation": "AdvancedNormalizedCorrelation",
    "mean_squares": "AdvancedMeanSquares",
    "mutual_information": "AdvancedMattesMutualInformation",
    "normalized_mutual_information": "NormalizedMutualInformation",
}
"""Names of the metrics in elastix."""

METRIC_NAMES = OneOf(tuple(METRICS), renamed=RENAMED)

FIXED_SETTINGS: dict[str, Sequence[object]] = {"ErodeMask": ("false",), "WriteResultImage": ("false",)}
"""Settings of elastix that no parameter changes."""

STAGES = {"rigid": ("rigid",), "affine": ("affine",), "bspline": ("affine", "bspline")}


@method("registration", channels="one", libraries=("itk",), install="atlasseg[elastix]")
def register(
    fixed: Image,
    moving: Sequence[Image],
    *,
    initial: Data[Sequence[Transform] | None] = None,
    fixed_mask: Data[Mask | None] = None,
    moving_masks: Data[Sequence[Mask | None] | None] = None,
    metric: Annotated[str, METRIC_NAMES] = "mutual_information",
    transform: Literal["rigid", "affine", "bspline"] = "bspline",
    grid_spacing_mm: float = 10.0,
    bending: float = 1.0,
    resolutions: int = 4,
    iterations: int = 256,
    samples: int = 2048,
    seed: int = 121212,
) -> list[Transform]:
    """Register each moving image to the fixed one by elastix's adaptive stochastic gradient descent.

    Uses the default settings of elastix except for the parameters below. Runs with one thread and a fixed seed, one
    pair after the other, so that results are reproducible. Sheared axes are treated as in `itk_rigid`.

    Parameters
    ----------
    fixed : Image
        The target: one channel, not constant.
    moving : sequence of Image
        Images of the atlases, each on its own grid.
    initial : sequence of Transform, optional
        Initial transform of each moving image, from points of the fixed image to points of the moving image. elastix
        gets the moving image resampled by it, and does no affine registration before a B-spline. Default: elastix
        aligns the centres of the grids first.
    fixed_mask, moving_masks : Mask, optional
        Regions in which similarity is measured, on the grids of the images.
    metric : {"correlation", "mean_squares", "mutual_information", "normalized_mutual_information"}
        Similarity metric to optimise.
    transform : {"rigid", "affine", "bspline"}
        "bspline": affine, then a cubic B-spline.
    grid_spacing_mm : float
        Spacing of the control points at the last resolution in mm, above 0. It doubles at each resolution before.
    bending : float
        Weight of the bending energy of the B-spline relative to the metric, 0 or more.
    resolutions : int
        Number of levels of the pyramid, at least 1.
    iterations : int
        Number of iterations at each level, at least 1.
    samples : int
        Number of random points of the fixed image in each iteration, at least 1.
    seed : int
        Seed of the random points.

    Returns
    -------
    list of Transform
        One per moving image, `initial` included: maps points of the fixed image to points of the moving image.

    Raises
    ------
    MissingLibraryError
        itk-elastix is not installed.
    InputError
        An image is constant or has several channels, a mask is empty, a parameter is out of range, elastix failed.
    GeometryError
        A mask is not on its image's grid, or the images do not overlap.

    References
    ----------
    Klein et al. 2010, elastix: a toolbox for intensity-based medical image registration, IEEE TMI 29(1).
    Klein et al. 2009, Adaptive stochastic gradient descent optimisation for image registration, IJCV 81(3).
    """
    METRIC_NAMES.check(metric, "metric")
    if transform not in STAGES:
        raise InputError(f"transform must be one of {', '.join(STAGES)}; got {transform!r}")
    if not grid_spacing_mm > 0 or bending < 0 or min(resolutions, iterations, samples) < 1:
        raise InputError(
            "grid_spacing_mm must be above 0, bending 0 or above, resolutions, iterations and samples 1 or above; got "
            f"{grid_spacing_mm}, {bending}, {resolutions}, {iterations} and {samples}"
        )
    target, sides = check_sides(fixed, moving, initial, fixed_mask, moving_masks)
    itk = _import_elastix()
    stages = STAGES[transform] if initial is None else STAGES[transform][-1:]
    parameters = itk.ParameterObject.New()
    for stage in stages:
        settings = parameters.GetDefaultParameterMap(stage, resolutions)
        changed: dict[str, Sequence[object]] = {
            "Metric": (METRICS[metric],),
            "MaximumNumberOfIterations": (iterations,),
            "NumberOfSpatialSamples": (samples,),
            "RandomSeed": (seed,),
            "AutomaticTransformInitialization": ("true" if initial is None else "false",),
        }
        if stage == "bspline":
            changed |= _bspline_settings(metric, bending, grid_spacing_mm, resolutions)
        for name, values in (FIXED_SETTINGS | changed).items():
            settings[name] = [str(v) for v in values]
        parameters.AddParameterMap(settings)
    found = []
    for n, side in enumerate(sides):
        source = side
        if initial is not None:
            require_overlap(target, side, initial[n])
            source = resample_through(side, initial[n], target)
        maps = _run_elastix(itk, parameters, target, source, side.name)
        mapped = transform_from_parameters(maps)
        found.append(mapped if initial is None else initial[n] @ mapped)
        require_overlap(target, side, found[-1])
    return found


def _bspline_settings(
    metric: str, bending: float, grid_spacing_mm: float, resolutions: int
) -> dict[str, Sequence[object]]:
    """Make the settings of elastix for a B-spline after an affine registration."""
    return {
        "Metric": (METRICS[metric], "TransformBendingEnergyPenalty"),
        "Metric1Weight": (bending,),
        "FinalGridSpacingInPhysicalUnits": (grid_spacing_mm,),
        "GridSpacingSchedule": [2**n for n in reversed(range(resolutions))],
        "AutomaticTransformInitialization": ("false",),
    }


def _run_elastix(itk: Any, parameters: Any, target: Side, source: Side, name: str) -> list[Any]:
    """Run elastix on a target and a moving image `source`, called `name` in errors; return the parameter maps."""
    masks = {
        key: _to_itk_image(itk, given.mask.array.astype(np.uint8), given.mask.affine)
        for key, given in (("fixed_mask", target), ("moving_mask", source))
        if given.mask is not None
    }
    try:
        _, result = itk.elastix_registration_method(
            _to_itk_image(itk, target.image.array.astype(np.float32), target.image.affine),
            _to_itk_image(itk, source.image.array.astype(np.float32), source.image.affine),
            parameter_object=parameters,
            number_of_threads=1,
            log_to_console=False,
            **masks,
        )
    except RuntimeError as error:
        raise InputError(
            f"fixed image {target.name!r} and moving image {name!r}: elastix failed: {_find_cause(error)}"
        ) from error
    return [result.GetParameterMap(n) for n in range(result.GetNumberOfParameterMaps())]


def transform_from_parameters(maps: Sequence[Mapping[str, Sequence[str]]]) -> Transform:
    """Convert transform parameters of elastix to a transform; the first of them is applied first.

    Raises
    ------
    InputError
        A transform has an unsupported type.
    """
    parts = [_convert_part(parameters) for parameters in maps]
    whole = parts[0]
    for part in parts[1:]:
        whole = part @ whole
    return whole


def _convert_part(parameters: Mapping[str, Sequence[str]]) -> Transform:
    import SimpleITK as sitk

    def numbers(name: str) -> Float64:
        return np.array([float(value) for value in parameters[name]])

    kind, values = parameters["Transform"][0], numbers("TransformParameters")
    if kind == "BSplineTransform" and parameters["BSplineTransformSplineOrder"][0] == "3":
        size = [int(n) for n in parameters["GridSize"]]
        affine = np.eye(4)
        affine[:3, :3] = numbers("GridDirection").reshape(3, 3).T * numbers("GridSpacing")
        affine[:3, 3] = numbers("GridOrigin") + affine[:3, :3] @ numbers("GridIndex")
        coefficients = values.reshape(3, *size[::-1]).transpose(3, 2, 1, 0)
        return BSplineField(coefficients @ LPS[:3, :3], LPS @ affine)
    linear: Any
    if kind == "AffineTransform":
        linear = sitk.AffineTransform(3)
    elif kind == "EulerTransform":
        linear = sitk.Euler3DTransform()
        linear.SetComputeZYX(parameters["ComputeZYX"][0] == "true")
    else:
        raise InputError(f"elastix: expected an Euler, affine or B-spline transform, got {kind}")
    linear.SetCenter(numbers("CenterOfRotationPoint").tolist())
    linear.SetParameters(values.tolist())
    return transform_from_sitk(linear)


def _import_elastix() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # SWIG's types warn; as errors they would crash ITK's loader
        try:
            import itk

            itk.ParameterObject, itk.elastix_registration_method  # noqa: B018 - missing without itk-elastix
            itk.image_from_array(np.zeros((1, 1, 1), np.float32))  # loads the conversion of arrays
        except (ImportError, AttributeError) as error:
            raise MissingLibraryError("elastix needs itk-elastix: pip install 'atlasseg[elastix]'") from error
    return itk


def _to_itk_image(itk: Any, array: Any, affine: Float64) -> Any:
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = itk.image_from_array(np.ascontiguousarray(array.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:3, :3] / spacing)))
    return image


def _find_cause(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
