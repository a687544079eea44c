"""Groupwise template: the mean image of several scans on their mean shape.

All scans are registered to the current mean image. The next mean image is resampled by the inverse of the mean
deformation [1]_ [2]_, so that the template has the mean shape as well. Affine transforms are averaged in the log domain
[3]_.

References
----------
.. [1] Guimond, A., Meunier, J., Thirion, J.-P. (2000). Average brain models: a convergence study. Computer Vision and
   Image Understanding 77(2), 192-210 (mean intensity on the inverse of the mean deformation).
.. [2] Avants, B. B., et al. (2010). The optimal template effect in hippocampus studies of diseased populations.
   NeuroImage 49(3), 2457-2466.
.. [3] Arsigny, V., et al. (2009). A fast and log-Euclidean polyaffine framework for locally linear registration.
   Journal of Mathematical Imaging and Vision 33, 222-238 (the mean of affine transforms).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from scipy import linalg, ndimage

from atlasseg.errors import InputError
from atlasseg.registration import affine, diffeomorphic
from atlasseg.registration._coarse import coarsen as coarsen
from atlasseg.registration._engine.pyramid import prepare as scaled_and_cut
from atlasseg.resampling import coverage, resample
from atlasseg.transforms import Affine, Chain, DisplacementField, Transform, grid_points
from atlasseg.volume import Float64, Grid, Image, Mask

__all__ = ["compose_through_template", "groupwise_template"]

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]
"""Called with a short description of each step when it starts."""

Engine = Callable[..., list[Transform]]
"""Function with the signature of `diffeomorphic.register`, possibly with some parameters bound."""

LARGE_VOXELS = 1_000_000
"""Number of voxels above which the template by default has twice the voxel size of the reference."""

MARGIN_SHARE = 0.08
"""Margin of the template's grid on every side, as a fraction of the reference's size, for larger subjects."""

WIDER_SHARE = 0.25
"""Margin by which fields extend beyond the template's grid, as a fraction of its size."""


def groupwise_template(
    images: Sequence[Image],
    *,
    masks: Sequence[Mask | None] | None = None,
    engine: Engine = diffeomorphic.register,
    rounds: int = 3,
    shrink: int | None = None,
    sharpening: float = 0.0,
    progress: Progress | None = None,
) -> tuple[Image, Mask | None, list[Transform]]:
    """Build a groupwise template: the mean image on the mean shape, and the transforms from it to each image.

    The first template is the mean of the images after affine registration to one of them (the one of median size), on
    their mean affine shape. In each round all images are registered to the template. The inverse of the mean transform
    is composed with each transform, ``T_i <- T_i M^-1`` with ``M(x) = mean T_i(x)``, so that the template is unbiased
    and has the mean shape. The new template is the mean of the images resampled by these transforms.

    Parameters
    ----------
    images : sequence of Image
        At least 2 images with the same number of channels; intensities of any scale.
    masks : sequence of Mask or None, optional
        Where each image is known, on the grid of the image.
    engine : callable
        `diffeomorphic.register`, or the same with other parameters: see `make_engine`.
    rounds : int
        Number of deformable rounds, at least 1.
    shrink : int, optional
        Voxel size of the template as a multiple of that of the reference. Default: 1, or 2 if that would be more than
        `LARGE_VOXELS` voxels.
    sharpening : float
        Weight of unsharp masking (blur of one voxel) of the template; 0: none.
    progress : callable, optional
        Called with a short description of each step when it starts.

    Returns
    -------
    template : Image
    mask : Mask or None
        Where at least half of the images are known; None if that is everywhere.
    transforms : list of Transform
        image_from_template, in the given order.

    Raises
    ------
    InputError
        There are fewer than 2 images, `rounds` or `shrink` is below 1, or an image cannot be registered.
    """
    if len(images) < 2 or rounds < 1 or (shrink is not None and shrink < 1):
        raise InputError(
            f"expected at least 2 images, 1 round and a shrink of at least 1, got {len(images)} images, "
            f"{rounds} rounds, shrink {shrink}"
        )
    known = [None] * len(images) if masks is None else list(masks)
    tell = progress or logger.info
    scaled = [_scale(image, mask) for image, mask in zip(images, known, strict=True)]
    reference = _find_median_size(scaled, known)
    if shrink is None:
        shrink = 1 if np.prod(scaled[reference].shape) <= LARGE_VOXELS else 2
    grid = _add_margin(coarsen(scaled[reference].grid, shrink * float(scaled[reference].spacing_mm.min())))

    tell(f"template: {len(images)} images, affine, onto {images[reference].name or f'image {reference}'}")
    aligned = affine.register(scaled[reference], scaled, fixed_mask=known[reference], moving_masks=known)
    matrices = _center_affines(aligned, grid.centre_mm)
    transforms: list[Transform] = list(matrices)
    template, mask = _average_images(scaled, known, transforms, grid, sharpening)
    for n in range(rounds):
        tell(f"template: {len(images)} images, deformable, round {n + 1} of {rounds}")
        found = engine(template, scaled, initial=transforms, fixed_mask=mask, moving_masks=known)
        transforms = _center_deformations(found, matrices, grid)
        template, mask = _average_images(scaled, known, transforms, grid, sharpening)
    return template, mask, transforms


def compose_through_template(
    atlas_from_template: Sequence[Transform], template_from_target: Transform, grid: Grid
) -> list[Transform]:
    """Compose transforms through the template, each into one displacement field followed by one affine.

    Parameters
    ----------
    atlas_from_template : sequence of Transform
        Each a displacement field followed by an affine, or one of the two.
    template_from_target : Transform
        Registration of the target to the template.
    grid : Grid
        Grid of the displacement fields.

    Returns
    -------
    list of Transform
        atlas_from_target, in the given order.
    """
    points_mm, template_mm = grid_points(grid), template_from_target.on_grid(grid)
    composed: list[Transform] = []
    for each in atlas_from_template:
        whole = _get_leading_affine(each) @ _get_leading_affine(template_from_target)
        displacement_mm = (~whole)(_extend_field(each)(template_mm)) - points_mm
        composed.append(whole @ DisplacementField(displacement_mm.astype(np.float32), grid.affine))
    return composed


def _extend_field(transform: Transform) -> Transform:
    """Extend a displacement field by `WIDER_SHARE` of its size with the values at its edge, to avoid a step.

    An affine applied after it is kept; other transforms are returned unchanged.
    """
    match transform:
        case DisplacementField(displacement_mm=field):
            wider = [int(np.ceil(WIDER_SHARE * n)) for n in field.shape[:3]]
            grid = transform.grid.cropped(
                [-n for n in wider], [n + m for n, m in zip(field.shape[:3], wider, strict=True)]
            )
            return DisplacementField(np.pad(field, [*((n, n) for n in wider), (0, 0)], mode="edge"), grid.affine)
        case Chain(transforms=(Affine() as matrix, DisplacementField() as field)):
            return matrix @ _extend_field(field)
    return transform


def _get_leading_affine(transform: Transform) -> Affine:
    """Return the affine that a transform applies last."""
    last = transform.transforms[0] if isinstance(transform, Chain) else transform
    return last if isinstance(last, Affine) else Affine.identity()


def _scale(image: Image, mask: Mask | None) -> Image:
    """Scale intensities from the 1st to the 99th percentile of the foreground to 0 to 1, and clip."""
    return image.with_array(np.stack(scaled_and_cut(image, mask, cut=False).channels, axis=-1))


def _find_median_size(images: Sequence[Image], masks: Sequence[Mask | None]) -> int:
    """Find the image with the foreground of median volume; for an even number the lower median."""
    volumes = []
    for image, mask in zip(images, masks, strict=True):
        filled = mask.array if mask is not None else (image.channels > 0).any(axis=-1)
        volumes.append(filled.sum() * abs(np.linalg.det(image.affine[:3, :3])))
    return int(np.argsort(volumes, kind="stable")[(len(volumes) - 1) // 2])


def _add_margin(grid: Grid) -> Grid:
    size = np.array(grid.shape)
    margin = np.maximum(np.ceil(MARGIN_SHARE * size).astype(int), 2)
    return grid.cropped(-margin, size + margin)


def _center_affines(transforms: Sequence[Transform], centre_mm: Float64) -> list[Affine]:
    """Compose affines with the inverse of their log-Euclidean mean, which keeps `centre_mm` fixed."""
    matrices = [_get_leading_affine(t).matrix for t in transforms]
    mean = linalg.expm(np.mean([linalg.logm(m[:3, :3]) for m in matrices], axis=0)).real
    shape = np.eye(4)
    shape[:3, :3] = mean
    shape[:3, 3] = centre_mm - mean @ centre_mm
    return [Affine(m @ (~Affine(shape)).matrix) for m in matrices]


def _center_deformations(transforms: Sequence[Transform], matrices: Sequence[Affine], grid: Grid) -> list[Transform]:
    """Compose each transform with the inverse of the mean displacement beyond the affines: a field, then an affine."""
    points_mm = grid_points(grid)
    fields = [
        DisplacementField(((~matrix)(t.on_grid(grid)) - points_mm).astype(np.float32), grid.affine)
        for t, matrix in zip(transforms, matrices, strict=True)
    ]
    mean_mm = np.mean([f.displacement_mm for f in fields], axis=0)
    before_mm = (~_extend_field(DisplacementField(mean_mm, grid.affine)))(points_mm)
    return [
        matrix @ DisplacementField((_extend_field(f)(before_mm) - points_mm).astype(np.float32), grid.affine)
        for f, matrix in zip(fields, matrices, strict=True)
    ]


def _average_images(
    images: Sequence[Image],
    masks: Sequence[Mask | None],
    transforms: Sequence[Transform],
    grid: Grid,
    sharpening: float,
) -> tuple[Image, Mask | None]:
    """Average the images that are known at each voxel; also return where at least half of them are known."""
    total = np.zeros((*grid.shape, images[0].channels.shape[3]))
    count = np.zeros(grid.shape)
    for image, mask, transform in zip(images, masks, transforms, strict=True):
        known = coverage(image.grid, grid, transform).array
        if mask is not None:
            known = known & resample(mask, grid, transform).array
        total += np.where(known[..., None], resample(image, grid, transform, antialias=True).channels, 0)
        count += known
    mean = total / np.maximum(count, 1)[..., None]
    if sharpening > 0:
        mean += sharpening * (mean - ndimage.gaussian_filter(mean, (1, 1, 1, 0), mode="nearest"))
    half = 2 * count >= len(images)
    values = mean[..., 0] if mean.shape[3] == 1 else mean
    template = Image(values.astype(np.float32), grid.affine, name="template")
    return template, None if half.all() else Mask(half, grid.affine, name="template")
