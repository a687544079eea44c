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
from atlasseg.registration._coarse import coarser as coarser
from atlasseg.registration._engine.pyramid import prepare as scaled_and_cut
from atlasseg.resampling import coverage, resample
from atlasseg.transforms import Affine, Chain, DisplacementField, Transform, grid_points
from atlasseg.volume import Float64, Grid, Image, Mask

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]
"""Told what is being done, in a few words, as it begins."""

Engine = Callable[..., list[Transform]]
"""Registers as `diffeomorphic.register` does, some of its parameters perhaps given already."""

LARGE_VOXELS = 1_000_000
"""Above this many voxels the template has voxels of twice the reference's, unless asked otherwise."""

MARGIN_SHARE = 0.08
"""The template's grid is wider than the reference's by this share of it on every side: others reach farther."""

WIDER_SHARE = 0.25
"""Fields go on beyond the template's grid by this share of its size before they end."""


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
    """The mean image on the mean shape, and the transforms from it to each image.

    The first template is the mean of the images after affine registration to one of them (the one of median size), on
    their mean affine shape. In each round all images are registered to the template; each transform T_i is put after
    the inverse of their mean, ``T_i <- T_i M^-1`` with ``M(x) = mean T_i(x)``, so that the template is on the mean
    shape and favours none; and the template becomes the mean of the images seen through them.

    Parameters
    ----------
    images : sequence of Image
        At least 2, of the same channels; intensities of any scale.
    masks : sequence of Mask or None, optional
        Where each image is known, on its grid.
    engine : callable
        `diffeomorphic.register`, with other parameters than its defaults if need be: see `engine_of`.
    rounds : int
        Deformable rounds, at least 1.
    shrink : int, optional
        Voxels of the template as a multiple of the reference's; by default 1, or 2 where that would be more than
        `LARGE_VOXELS` voxels.
    sharpening : float
        Share of the template's difference from its blurred self (one voxel) that is added to it; 0 for none.
    progress : callable, optional
        Told what is being done as it begins.

    Returns
    -------
    template : Image
    mask : Mask or None
        Where at least half of the images are known; None where that is everywhere.
    transforms : list of Transform
        image_from_template, in the order given.

    Raises
    ------
    InputError
        There are fewer than 2 images, `rounds` or `shrink` is below 1, or an image cannot be registered.
    """
    if len(images) < 2 or rounds < 1 or (shrink is not None and shrink < 1):
        raise InputError(
            f"a template needs at least 2 images, 1 round and a shrink of 1 or more; got {len(images)} images, "
            f"{rounds} rounds, shrink {shrink}"
        )
    known = [None] * len(images) if masks is None else list(masks)
    tell = progress or logger.info
    scaled = [_scaled(image, mask) for image, mask in zip(images, known, strict=True)]
    reference = _median_sized(scaled, known)
    if shrink is None:
        shrink = 1 if np.prod(scaled[reference].shape) <= LARGE_VOXELS else 2
    grid = _with_margin(coarser(scaled[reference].grid, shrink * float(scaled[reference].spacing_mm.min())))

    tell(f"template: {len(images)} images, affine, onto {images[reference].name or f'image {reference}'}")
    aligned = affine.register(scaled[reference], scaled, fixed_mask=known[reference], moving_masks=known)
    matrices = _about_their_mean(aligned, grid.centre_mm)
    transforms: list[Transform] = list(matrices)
    template, mask = _mean_image(scaled, known, transforms, grid, sharpening)
    for n in range(rounds):
        tell(f"template: {len(images)} images, deformable, round {n + 1} of {rounds}")
        found = engine(template, scaled, initial=transforms, fixed_mask=mask, moving_masks=known)
        transforms = _deformations_about_their_mean(found, matrices, grid)
        template, mask = _mean_image(scaled, known, transforms, grid, sharpening)
    return template, mask, transforms


def compose_through_template(
    atlas_from_template: Sequence[Transform], template_from_target: Transform, grid: Grid
) -> list[Transform]:
    """Compose transforms into one affine after one displacement field each.

    Parameters
    ----------
    atlas_from_template : sequence of Transform
        Each an affine after a displacement field, or one of the two.
    template_from_target : Transform
    grid : Grid
        The displacements are sampled at its voxels.

    Returns
    -------
    list of Transform
        atlas_from_target, in the order given.
    """
    points_mm, template_mm = grid_points(grid), template_from_target.on_grid(grid)
    composed: list[Transform] = []
    for each in atlas_from_template:
        whole = _leading(each) @ _leading(template_from_target)
        displacement_mm = (~whole)(_widened(each)(template_mm)) - points_mm
        composed.append(whole @ DisplacementField(displacement_mm.astype(np.float32), grid.affine))
    return composed


def _widened(transform: Transform) -> Transform:
    """A field that goes on as on its edge for `WIDER_SHARE` of its size, where by itself it ends in a step.

    Any affine applied after it stays; other transforms are returned as they are.
    """
    match transform:
        case DisplacementField(displacement_mm=field):
            wider = [int(np.ceil(WIDER_SHARE * n)) for n in field.shape[:3]]
            grid = transform.grid.cropped(
                [-n for n in wider], [n + m for n, m in zip(field.shape[:3], wider, strict=True)]
            )
            return DisplacementField(np.pad(field, [*((n, n) for n in wider), (0, 0)], mode="edge"), grid.affine)
        case Chain(transforms=(Affine() as matrix, DisplacementField() as field)):
            return matrix @ _widened(field)
    return transform


def _leading(transform: Transform) -> Affine:
    """The affine that a transform applies last."""
    last = transform.transforms[0] if isinstance(transform, Chain) else transform
    return last if isinstance(last, Affine) else Affine.identity()


def _scaled(image: Image, mask: Mask | None) -> Image:
    """Intensities from the 1st to the 99th percentile of the foreground brought to 0..1, and clipped."""
    return image.with_array(np.stack(scaled_and_cut(image, mask, cut=False).channels, axis=-1))


def _median_sized(images: Sequence[Image], masks: Sequence[Mask | None]) -> int:
    """Which image has the foreground of median volume; the lower of the two middle ones."""
    volumes = []
    for image, mask in zip(images, masks, strict=True):
        filled = mask.array if mask is not None else (image.channels > 0).any(axis=-1)
        volumes.append(filled.sum() * abs(np.linalg.det(image.affine[:3, :3])))
    return int(np.argsort(volumes, kind="stable")[(len(volumes) - 1) // 2])


def _with_margin(grid: Grid) -> Grid:
    size = np.array(grid.shape)
    margin = np.maximum(np.ceil(MARGIN_SHARE * size).astype(int), 2)
    return grid.cropped(-margin, size + margin)


def _about_their_mean(transforms: Sequence[Transform], centre_mm: Float64) -> list[Affine]:
    """Affines after the inverse of their log-Euclidean mean, which leaves `centre_mm` where it is."""
    matrices = [_leading(t).matrix for t in transforms]
    mean = linalg.expm(np.mean([linalg.logm(m[:3, :3]) for m in matrices], axis=0)).real
    shape = np.eye(4)
    shape[:3, :3] = mean
    shape[:3, 3] = centre_mm - mean @ centre_mm
    return [Affine(m @ (~Affine(shape)).matrix) for m in matrices]


def _deformations_about_their_mean(
    transforms: Sequence[Transform], matrices: Sequence[Affine], grid: Grid
) -> list[Transform]:
    """Each transform after the inverse of the mean displacement beyond the affines, as an affine after a field."""
    points_mm = grid_points(grid)
    fields = [
        DisplacementField(((~matrix)(t.on_grid(grid)) - points_mm).astype(np.float32), grid.affine)
        for t, matrix in zip(transforms, matrices, strict=True)
    ]
    mean_mm = np.mean([f.displacement_mm for f in fields], axis=0)
    before_mm = (~_widened(DisplacementField(mean_mm, grid.affine)))(points_mm)
    return [
        matrix @ DisplacementField((_widened(f)(before_mm) - points_mm).astype(np.float32), grid.affine)
        for f, matrix in zip(fields, matrices, strict=True)
    ]


def _mean_image(
    images: Sequence[Image],
    masks: Sequence[Mask | None],
    transforms: Sequence[Transform],
    grid: Grid,
    sharpening: float,
) -> tuple[Image, Mask | None]:
    """The mean over the images that are known at each voxel, and where at least half of them are."""
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
