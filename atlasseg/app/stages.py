"""Single stages on files, for the commands ``register`` and ``fuse``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atlasseg import io
from atlasseg.atlases.library import read_library
from atlasseg.errors import GeometryError, InputError
from atlasseg.io import write_transform
from atlasseg.recipe import Recipe, parse_recipe, with_device
from atlasseg.registration.quality import RegistrationQuality, measure_quality
from atlasseg.resampling import resample
from atlasseg.similarity.local_correlation import LocalCorrelation
from atlasseg.transforms import Transform
from atlasseg.volume import Mask, ProbabilityMap

__all__ = ["fuse_files", "register_files"]


def register_files(
    fixed: Path,
    moving: Path,
    out: Path,
    *,
    steps: Sequence[str],
    settings: Sequence[str] = (),
    fixed_mask: Path | None = None,
    moving_mask: Path | None = None,
    warped: Path | None = None,
    labels: Path | None = None,
    warped_labels: Path | None = None,
    initial: Path | None = None,
    device: str = "auto",
    spacing_from: io.SpacingSource = "sform",
) -> tuple[RegistrationQuality, float]:
    """Register a moving scan to a fixed scan and write the transform.

    Parameters
    ----------
    fixed, moving : path
        Scans.
    out : path
        Output transform file: .h5, .tfm, .mat or .nii.gz.
    steps : sequence of str
        Registration methods, in order.
    settings : sequence of str
        Parameters of the methods, each ``"method.key=value"``.
    fixed_mask, moving_mask : path, optional
        Masks of the voxels where similarity is measured.
    warped : path, optional
        Output file of the moving scan, resampled onto the grid of the fixed scan.
    labels, warped_labels : path, optional
        Label map of the moving scan, and its output file on the grid of the fixed scan.
    initial : path, optional
        File of the initial transform of the first step, from points of the fixed scan to points of the moving scan.
    device : str
        "auto", "cpu" or "cuda".
    spacing_from : {"sform", "pixdim"}
        As of :func:`atlasseg.io.read_image`.

    Returns
    -------
    quality : RegistrationQuality
        Range of the Jacobian determinant, folded fraction and SDlogJ on the fixed grid.
    similarity : float
        Mean local correlation of the warped and the fixed scan.
    """
    recipe = _recipe({"registration": {"steps": list(steps)}}, [f"registration.{s}" for s in settings], device)
    (target, known), (source, source_known) = (
        io.read_scan(path, spacing_from=spacing_from) for path in (fixed, moving)
    )
    masks = [_mask(fixed_mask, known, spacing_from), _mask(moving_mask, source_known, spacing_from)]
    transforms: Sequence[Transform] | None = None if initial is None else [io.read_transform(initial)]
    for step in recipe.registration.steps:
        transforms = step(target, [source], initial=transforms, fixed_mask=masks[0], moving_masks=[masks[1]])
    if transforms is None or not recipe.registration.steps:
        raise InputError("--steps: expected at least one registration method, got none")
    transform = transforms[0]
    write_transform(transform, out, grid=target.grid)
    carried = resample(source, target.grid, transform)
    if warped is not None:
        io.write_image(carried, warped, like=target)
    if labels is not None and warped_labels is not None:
        label_map = io.read_label_map(labels, spacing_from=spacing_from)
        io.write_label_map(resample(label_map, target.grid, transform), warped_labels, like=target)
    value = LocalCorrelation().value(target.array, carried.array, mask=masks[0].array if masks[0] else None)
    return measure_quality(transform, target.grid, mask=masks[0]), value


def fuse_files(
    target: Path,
    candidates: Path,
    out: Path,
    *,
    method: str,
    settings: Sequence[str] = (),
    device: str = "auto",
    spacing_from: io.SpacingSource = "sform",
    format: io.LabelFormat | None = None,
) -> ProbabilityMap:
    """Fuse the candidates in a folder and write the segmentation.

    Parameters
    ----------
    target : path
        Scan of the target.
    candidates : path
        Folder with ``images/`` and ``labels/`` of atlases that are already propagated to the grid of the target.
    out : path
        Output label map, with the names of the label table of `candidates` where its format holds them.
    method : str
        Fusion method.
    settings : sequence of str
        Parameters of the method, each ``"key=value"``.
    device : str
        "auto", "cpu" or "cuda".
    spacing_from : {"sform", "pixdim"}
        As of :func:`atlasseg.io.read_image`.
    format : {"nifti", "seg.nrrd", "rtstruct", "dicomseg"}, optional
        As for :func:`atlasseg.io.write_label_map`.

    Returns
    -------
    ProbabilityMap
        Fused label probabilities.

    Raises
    ------
    GeometryError
        A candidate is on another grid.
    """
    recipe = _recipe({"fusion": {"method": method}}, [f"fusion.{method}.{s}" for s in settings], device)
    scan = io.read_image(target, spacing_from=spacing_from)
    library = read_library(candidates, spacing_from=spacing_from)
    fused: ProbabilityMap = recipe.fusion.method(scan, [library.read(id_) for id_ in library.ids])
    io.write_label_map(fused.label_map(), out, like=scan, format=format, table=library.table)
    return fused


def _mask(path: Path | None, known: Mask | None, spacing_from: io.SpacingSource) -> Mask | None:
    """Read a mask, without the voxels whose intensity is not finite."""
    if path is None:
        return known
    mask = io.read_mask(path, spacing_from=spacing_from)
    if known is not None and not mask.grid.matches(known.grid):
        raise GeometryError(f"{path}: expected a mask on the grid of its image")
    return mask if known is None else mask.with_array(mask.array & known.array)


def _recipe(tables: dict[str, dict[str, object]], settings: Sequence[str], device: str) -> Recipe:
    """Make a recipe of one stage from command line options."""
    return with_device(
        parse_recipe({"fusion": {"method": "majority"}, **tables}, overrides=settings, where="--set"), device
    )
