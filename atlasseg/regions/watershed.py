"""Watershed: flood the gradient magnitude from markers, then merge the basins on their adjacency graph.

scikit-image floods. Without markers, every minimum deeper than a noise-calibrated height is a marker, and the basins,
which are too many, are merged like the blocks of split and merge.
"""

from __future__ import annotations

import numpy as np

from atlasseg.errors import GeometryError, InputError
from atlasseg.methods import Data, method
from atlasseg.regions.adjacency_graph import adjacency_graph
from atlasseg.regions.merging import Criterion, Merges, merge
from atlasseg.regions.noise import noise_sd as estimated_noise_sd
from atlasseg.regions.region_growing import check_seeds, gradient_magnitude
from atlasseg.regions.split_and_merge import default_threshold
from atlasseg.volume import Bool, Float32, Image, Int32, LabelMap, Mask

__all__ = ["hierarchy"]


def hierarchy(
    image: Image,
    *,
    markers: LabelMap | None = None,
    inside: Mask | None = None,
    depth: float = 0.5,
    sigma_mm: float | None = None,
    criterion: Criterion = "ward",
    merge_threshold: float | None = None,
    regions: int | None = None,
    noise_sd: tuple[float, ...] | None = None,
) -> tuple[LabelMap, Merges | None]:
    """Compute the regions of `partition` with the merges of the basins; None with given markers.

    Parameters
    ----------
    image, markers, inside, depth, sigma_mm, criterion, merge_threshold, regions, noise_sd
        As for `partition`.

    Returns
    -------
    regions : LabelMap
        Result of `partition`.
    merges : Merges or None
        The merges; None with given markers.
    """
    channels = image.channels.shape[-1]
    if not depth >= 0:
        raise InputError(f"depth: expected 0 or more, got {depth}")
    if inside is not None and not inside.grid.matches(image.grid):
        raise GeometryError(
            f"mask: expected the grid of image {image.name!r}, got shapes {inside.shape} and {image.shape}"
        )
    if inside is not None and not inside.array.any():
        raise InputError(f"mask {inside.name!r}: expected voxels inside, got none")
    if regions is not None and regions > np.prod(image.shape):
        raise InputError(
            f"regions: expected at most the {np.prod(image.shape)} voxels of image {image.name!r}, got {regions}"
        )
    sd = estimated_noise_sd(image) if noise_sd is None else np.asarray(noise_sd, np.float64)
    if sd.shape != (channels,) or not (np.isfinite(sd) & (sd >= 0)).all():
        raise InputError(f"noise_sd: expected {channels} values of 0 or more, one for each channel, got {noise_sd!r}")
    scale = np.where(sd > 0, sd, 1.0)
    relative = Image(np.divide(image.channels, scale, dtype=np.float32), image.affine, image.name)
    if sigma_mm is not None:
        relative = _smooth(relative, sigma_mm)
    height = gradient_magnitude(relative) * np.float32(image.spacing_mm.min())
    if markers is not None:
        check_seeds(image, markers, "markers")
        if inside is not None:
            lost = np.setdiff1d(markers.values, markers.array[inside.array])
            if lost[lost != 0].size:
                raise InputError(f"markers: expected each inside the mask, got {lost[lost != 0].tolist()} outside")
        return LabelMap(_flood(height, markers.array, inside), image.affine, image.name), None
    basins = LabelMap(_flood(height, _minima(height, depth, inside), inside), image.affine, image.name)
    if merge_threshold is None and regions is None:
        merge_threshold = default_threshold(criterion, image.affine)
    merges = merge(
        adjacency_graph(image, basins),
        criterion=criterion,
        threshold=merge_threshold,
        regions=regions,
        noise_sd=tuple(scale.tolist()),
    )
    region_of = np.concatenate([[0], merges.cut(merges.count - merges.kept.size)]).astype(np.int32)
    return LabelMap(region_of[basins.array], image.affine, image.name), merges


@method("regions", companions={"hierarchy": hierarchy})
def partition(
    image: Image,
    *,
    markers: Data[LabelMap | None] = None,
    inside: Data[Mask | None] = None,
    depth: float = 0.5,
    sigma_mm: float | None = None,
    criterion: Criterion = "ward",
    merge_threshold: float | None = None,
    regions: int | None = None,
    noise_sd: Data[tuple[float, ...] | None] = None,
) -> LabelMap:
    """Partition a volume into regions by flooding its gradient.

    Parameters
    ----------
    image : Image
        Volume of any size and spacing, with one or several channels.
    markers : LabelMap, optional
        Markers of the basins on the image's grid (0: no marker). Basins have their labels and are not merged.
        Default: the h-minima of the gradient.
    inside : Mask, optional
        Voxels to flood; the others get 0.
    depth : float
        Minimum depth of a minimum that is a marker, in noise standard deviations per voxel.
    sigma_mm : float, optional
        Standard deviation of the Gaussian smoothing before the gradient, in mm. Default: no smoothing.
    criterion : {"ward", "mean_difference", "mumford_shah"}
        Cost of a merge; see `merging.merge`.
    merge_threshold : float, optional
        Largest cost of a merge, in units of the noise; `split_and_merge.default_threshold` if neither this nor
        `regions` is given.
    regions : int, optional
        Number of regions at which merging ends.
    noise_sd : tuple of float, optional
        Noise of each channel. Default: estimated. A channel without noise is used in its own units.

    Returns
    -------
    LabelMap
        Basins with the labels of their markers, or regions 1..R.

    Raises
    ------
    GeometryError
        Markers or mask are on another grid.
    InputError
        There is no marker, a marker is completely outside the mask, or a parameter is out of range.

    References
    ----------
    .. [1] Vincent, Soille, Watersheds in digital spaces, IEEE TPAMI 13, 1991.
    .. [2] Beucher, Watershed, hierarchical segmentation and waterfall algorithm, ISMM 1994.
    """
    return hierarchy(
        image,
        markers=markers,
        inside=inside,
        depth=depth,
        sigma_mm=sigma_mm,
        criterion=criterion,
        merge_threshold=merge_threshold,
        regions=regions,
        noise_sd=noise_sd,
    )[0]


def _smooth(image: Image, sigma_mm: float) -> Image:
    from atlasseg.resampling import smooth

    return smooth(image, sigma_mm)


def _minima(height: Float32, depth: float, inside: Mask | None) -> Int32:
    """Number the connected minima deeper than `depth`; one marker if the height is constant."""
    from scipy.ndimage import label
    from skimage.morphology import reconstruction

    lifted = height if inside is None else np.where(inside.array, height, height.max())
    if depth > 0:
        lifted = reconstruction(lifted + np.float32(depth), lifted, method="erosion")
    found, count = label(_regional_minima(lifted, inside))
    if count == 0:
        found = np.ones(height.shape, np.int32) if inside is None else inside.array.astype(np.int32)
    return np.asarray(found, np.int32)


def _regional_minima(height: Float32, inside: Mask | None) -> Bool:
    """Plateaus without a lower face neighbour."""
    from skimage.morphology import local_minima

    thick = [axis for axis, n in enumerate(height.shape) if n > 1]
    squeezed = height.squeeze() if thick else height.reshape(1)
    minima = local_minima(squeezed, connectivity=1) if thick and squeezed.size > 2 else np.zeros(squeezed.shape, bool)
    minima = minima.reshape(height.shape)
    return np.asarray(minima if inside is None else minima & inside.array, bool)


def _flood(height: Float32, markers: Int32, inside: Mask | None) -> Int32:
    from skimage.segmentation import watershed

    mask = None if inside is None else inside.array
    return np.asarray(watershed(height, markers, connectivity=1, mask=mask), np.int32)
