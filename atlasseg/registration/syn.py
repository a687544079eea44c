"""SyN, symmetric diffeomorphic registration, with ANTs (needs antspyx: ``pip install 'atlasseg[syn]'``)."""

from __future__ import annotations

import logging
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError, MissingLibraryError
from atlasseg.io import read_ants_transforms
from atlasseg.itk import LPS
from atlasseg.methods import Data, OneOf, method
from atlasseg.registration._itk import Side, check_sides, require_overlap, resample_through
from atlasseg.transforms import Transform
from atlasseg.volume import Image, Mask

logger = logging.getLogger(__name__)

METRICS = {
    "mutual_information": "mattes",
    "local_correlation": "CC",
    "mean_squares": "meansquares",
    "correlation": "GC",
    "demons": "demons",
}
"""Names of the metrics in ANTs."""

METRIC_NAMES = OneOf(tuple(METRICS), renamed={theirs: name for name, theirs in METRICS.items()})

THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"


@method("registration", channels="one", libraries=("ants",), install="atlasseg[syn]")
def register(
    fixed: Image,
    moving: Sequence[Image],
    *,
    initial: Data[Sequence[Transform] | None] = None,
    fixed_mask: Data[Mask | None] = None,
    moving_masks: Data[Sequence[Mask | None] | None] = None,
    type_of_transform: str = "SyN",
    metric: Annotated[str, METRIC_NAMES] = "mutual_information",
    metric_parameter: int = 32,
    iterations: tuple[int, ...] = (40, 20, 0),
    gradient_step: float = 0.2,
    flow_sigma: float = 3.0,
    total_sigma: float = 0.0,
    seed: int = 123,
) -> list[Transform]:
    """Register each moving image to the fixed one by `antsRegistration`: affine, then SyN.

    Runs with one ITK thread and a fixed seed, one pair after the other, so that results are reproducible.
    Files of ANTs go to a temporary folder, which is removed; the transforms are kept in memory.

    Parameters
    ----------
    fixed : Image
        The target: one channel, not constant.
    moving : sequence of Image
        Images of the atlases, each on its own grid.
    initial : sequence of Transform, optional
        Initial transform of each moving image, from points of the fixed image to points of the moving image. ANTs gets
        the moving image resampled by it. Default: ANTs aligns the centres of mass first.
    fixed_mask, moving_masks : Mask, optional
        Regions in which similarity is measured, on the grids of the images.
    type_of_transform : str
        Name of the transform in ANTsPy: "SyN", "SyNRA", "SyNOnly", "SyNCC", "antsRegistrationSyNQuick[s]", "Affine",
        "Rigid", ...
    metric : {"mutual_information", "local_correlation", "mean_squares", "correlation", "demons"}
        Similarity metric of the deformable part: Mattes mutual information, local cross-correlation, mean squares,
        global correlation, or demons.
    metric_parameter : int
        Number of bins of "mutual_information", radius in voxels of "local_correlation"; at least 1.
    iterations : tuple of int
        Number of iterations of the deformable part at each level, coarse to fine; 0 skips a level.
    gradient_step, flow_sigma, total_sigma : float
        SyN's step, and the Gaussians (variance in voxels) that smooth each update and the whole field.
    seed : int
        Seed of the random samples of the affine part.

    Returns
    -------
    list of Transform
        One per moving image, `initial` included: maps points of the fixed image to points of the moving image.

    Raises
    ------
    MissingLibraryError
        antspyx is not installed.
    InputError
        The metric is unknown or its parameter below 1, an image is constant or has several channels, a mask is empty,
        or ANTs failed.
    GeometryError
        A mask is not on its image's grid, or the images do not overlap.

    References
    ----------
    Avants et al. 2008, Symmetric diffeomorphic image registration with cross-correlation, MedIA 12(1).
    """
    METRIC_NAMES.check(metric, "metric")
    if metric_parameter < 1:
        raise InputError(
            f"metric_parameter: expected 1 or more, got {metric_parameter}. "
            "Give the bins of mutual_information (such as 32), or the radius of local_correlation (such as 4)."
        )
    target, sides = check_sides(fixed, moving, initial, fixed_mask, moving_masks)
    ants = _import_ants()
    found = []
    for n, side in enumerate(sides):
        source = side
        if initial is not None:
            require_overlap(target, side, initial[n])
            source = resample_through(side, initial[n], target)
        with tempfile.TemporaryDirectory(prefix="atlasseg-syn-") as folder, _deterministic(ants, seed):
            try:
                result = ants.registration(
                    _to_ants_image(ants, target.image.array, target.image.affine),
                    _to_ants_image(ants, source.image.array, source.image.affine),
                    type_of_transform=type_of_transform,
                    outprefix=str(Path(folder) / "x"),
                    mask=_to_ants_mask(ants, target),
                    moving_mask=_to_ants_mask(ants, source),
                    mask_all_stages=True,
                    syn_metric=METRICS[metric],
                    syn_sampling=metric_parameter,
                    reg_iterations=iterations,
                    grad_step=gradient_step,
                    flow_sigma=flow_sigma,
                    total_sigma=total_sigma,
                )
                transform = read_ants_transforms([Path(path) for path in result["fwdtransforms"]])
            except (RuntimeError, ValueError) as error:
                raise InputError(
                    f"fixed image {target.name!r} and moving image {side.name!r}: ANTs' registration failed: {error}"
                ) from error
        found.append(transform if initial is None else initial[n] @ transform)
        require_overlap(target, side, found[-1])
    return found


def _import_ants() -> Any:
    """Import ANTs with one ITK thread."""
    begun = "ants" in sys.modules
    before = os.environ.get(THREADS)
    if begun and before != "1":
        logger.warning("ants was imported before this method: set %s=1 for reproducible results", THREADS)
    os.environ[THREADS] = "1"
    try:
        import ants
    except ImportError as error:
        raise MissingLibraryError("SyN needs antspyx: pip install 'atlasseg[syn]'") from error
    return ants


@contextmanager
def _deterministic(ants: Any, seed: int) -> Iterator[None]:
    """Seed ANTs by its own switch; restore the generators of Python and NumPy, which it also seeds."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - ANTs seeds the legacy generator
    was_on, was_seed = ants.config._deterministic, ants.config._random_seed
    ants.config.set_ants_deterministic(True, seed)
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    try:
        yield
    finally:
        ants.config._deterministic, ants.config._random_seed = was_on, was_seed


def _to_ants_image(ants: Any, array: NDArray[Any], affine: NDArray[np.float64]) -> Any:
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return ants.from_numpy(
        np.asarray(array, np.float32),
        lps[:3, 3].tolist(),
        spacing.tolist(),
        np.ascontiguousarray(lps[:3, :3] / spacing),
    )


def _to_ants_mask(ants: Any, side: Side) -> Any:
    return None if side.mask is None else _to_ants_image(ants, side.mask.array, side.mask.affine)
