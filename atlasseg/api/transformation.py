"""``atlasseg.apply_transform``: images, labels and points through transforms of any program."""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np

from atlasseg import io
from atlasseg.api.coercion import as_grid, as_transform, is_path, refuse
from atlasseg.api.registration import convert_volume
from atlasseg.errors import InputError
from atlasseg.propagation import propagate
from atlasseg.resampling import resample
from atlasseg.transforms import Transform, grid_points, invert_matrix
from atlasseg.volume import Atlas, Grid

log = logging.getLogger(__name__)

TRANSFORMS = "a transform (a path, one of atlasseg.transforms or SimpleITK, a registration), or a list of these"
POINTS = "points, an array of shape (..., 3) in RAS+ mm"
_PROBES = 24  # points along each axis at which overlap is looked for


def apply_transform(
    value: Any,
    transforms: Any,
    *,
    reference: Any = None,
    kind: Literal["image", "labels", "mask", "points"] | None = None,
    interpolation: str | None = None,
    inverse: bool = False,
    convention: io.Convention | None = None,
    flirt_source: Any = None,
    flirt_reference: Any = None,
) -> Any:
    """Apply transforms of ITK, ANTs, Slicer, FSL, FreeSurfer, SPM or NiftyReg to an image, to labels or to points.

    Parameters
    ----------
    value : Image, LabelMap, Mask, ProbabilityMap, Atlas, path, image of another library, or (..., 3) array
        What is moved: a volume in the space of the moving image, or points in RAS+ mm.
    transforms : path, Transform, SimpleITK.Transform, PairwiseRegistration, or list of these
        A list has the order of ``antsApplyTransforms -t``: the first one of the list is the first that a point of the
        fixed image goes through. ``"[affine.mat,1]"`` is the inverse of a file. See `read_transform` for the formats.
    reference : volume, path or Grid, optional
        The fixed image: a volume comes out on its grid. Not needed for points.
    kind : {"image", "labels", "mask", "points"}, optional
        What a path or an image of another library holds: it decides the interpolation. An array holds points.
    interpolation : str, optional
        As of `resample`: an image "linear", "cubic" or "nearest"; labels "linear" (each label on its own, values are
        never mixed), "gaussian" or "nearest". The default is "linear".
    inverse : bool
        Apply the inverse of the whole: volumes of the fixed image come onto the grid of the moving one.
    convention : str, optional
        Meaning of a field or matrix that does not say it, see `read_transform`.
    flirt_source, flirt_reference : volume, path, Grid or list of these, optional
        The images of FLIRT's matrices and FNIRT's fields, see `read_ants_transforms`.

    Returns
    -------
    Image, LabelMap, Mask, ProbabilityMap, Atlas or (..., 3) float64
        The kind that was given. **Points** go the way the transform takes points: from the fixed to the moving image,
        as with ``antsApplyTransformsToPoints``. With ``inverse=True`` points of the moving image go where its volume
        goes.

    Raises
    ------
    InputError
        The value or a transform cannot be used, what it holds cannot be known, or there is no reference.

    See Also
    --------
    register : finds a transform; its result has `warp` and `transform_points`.
    read_transform : reads one file.

    Examples
    --------
    >>> import atlasseg, numpy as np
    >>> labels = atlasseg.LabelMap(np.array([[[0, 7, 9, 0]]]), np.eye(4))
    >>> shift = atlasseg.Affine.translation((0, 0, 1))
    >>> atlasseg.apply_transform(labels, shift, reference=labels).array
    array([[[7, 9, 0, 0]]], dtype=int32)
    >>> atlasseg.apply_transform([[0, 0, 1]], shift, kind="points")
    array([[0., 0., 2.]])
    """
    transform = _compose(transforms, convention, flirt_source, flirt_reference)
    if inverse:
        transform = ~transform
    if kind == "points" or (kind is None and isinstance(value, np.ndarray)):
        return _move_points(value, transform, reference, interpolation)
    volume = convert_volume(value, kind)
    if reference is None:
        raise InputError("reference: expected the fixed image, on whose grid the volume comes out, got None.")
    grid = as_grid(reference, what="reference")
    _check_overlap(volume.image.grid if isinstance(volume, Atlas) else volume.grid, grid, transform)
    options: dict[str, Any] = {} if interpolation is None else {"interpolation": interpolation}
    if isinstance(volume, Atlas):
        return propagate(volume, transform, grid, **options)
    return resample(volume, grid, transform, **options)


def _compose(transforms: Any, convention: Any, flirt_source: Any, flirt_reference: Any) -> Transform:
    """One transform of all, in ANTs' order."""
    entries = list(transforms) if isinstance(transforms, list | tuple) else [transforms]
    if not entries:
        raise refuse(transforms, "transforms", TRANSFORMS)
    images = {
        name: None if given is None else [_space(each, name) for each in _listed(given)]
        for name, given in (("flirt_source", flirt_source), ("flirt_reference", flirt_reference))
    }
    if all(is_path(entry) for entry in entries):
        return io.read_ants_transforms(entries, convention=convention, **images)
    composed: Transform | None = None
    for number, entry in enumerate(entries, start=1):
        if is_path(entry):
            found = io.read_ants_transforms([entry], convention=convention, **images)
        else:
            found = as_transform(entry, what="transforms" if len(entries) == 1 else f"transforms, number {number}")
        composed = found if composed is None else found @ composed
    assert composed is not None
    return composed


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def _space(given: Any, what: str) -> Any:
    """An image of FSL: a path as it is, since its header is looked at; else the grid of a volume."""
    return given if is_path(given) else as_grid(given, what=what)


def _move_points(value: Any, transform: Transform, reference: Any, interpolation: str | None) -> Any:
    if reference is not None or interpolation is not None:
        raise InputError("reference and interpolation: expected none for points, which have no grid.")
    try:
        points = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise refuse(value, "value", POINTS) from None
    if points.ndim == 0 or points.shape[-1] != 3 or not np.isfinite(points).all():
        raise refuse(value, "value", POINTS, "Every coordinate must be a finite number")
    outside = share_outside(transform, points.reshape(-1, 3))
    if outside > 0:
        log.warning("%.3g %% of the points lie outside of a field of the transform, which moves nothing there", outside)
    return transform(points)


def share_outside(transform: Transform, points_mm: Any) -> float:
    """Percentage of (N, 3) points, in RAS+ mm, that come to lie outside of a field on their way through a transform."""
    points, outside = np.asarray(points_mm, np.float64), np.zeros(len(points_mm), bool)
    for part in reversed(getattr(transform, "transforms", (transform,))):
        if part.domain is not None:
            outside |= ~_inside(part.domain, points)
        points = part(points)
    return 100.0 * float(outside.mean()) if len(outside) else 0.0


def _inside(grid: Grid, points_mm: Any) -> Any:
    """(N,) bool: which of (N, 3) points lie in the voxels of a grid."""
    inverse = invert_matrix(grid.affine)
    voxels = points_mm @ inverse[:3, :3].T + inverse[:3, 3]
    return ((voxels >= -0.5) & (voxels <= np.array(grid.shape) - 0.5)).all(axis=-1)


def _check_overlap(moving: Grid, grid: Grid, transform: Transform) -> None:
    """Warn where nothing of the moving volume reaches the grid: mostly the transform is meant the other way round."""
    counts = [min(n, _PROBES) for n in grid.shape]
    steps = [(n - 1) / max(count - 1, 1) for n, count in zip(grid.shape, counts, strict=True)]
    probes = grid_points(Grid((counts[0], counts[1], counts[2]), grid.affine @ np.diag([*(s or 1 for s in steps), 1])))
    if not _inside(moving, transform(probes.reshape(-1, 3))).any():
        log.warning(
            "nothing of the volume reaches the grid of the reference by this transform. Check which image is which, or "
            "apply the inverse"
        )
