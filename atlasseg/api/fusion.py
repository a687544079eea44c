"""``atlasseg.propagate``, ``atlasseg.fuse`` and ``atlasseg.refine``: segment a scan with registered atlases."""

from __future__ import annotations

from typing import Any, Literal

from atlasseg.api.coercion import (
    TRANSFORM,
    as_atlas,
    as_atlases,
    as_candidates,
    as_grid,
    as_image,
    as_list,
    as_mask,
    as_probability_map,
    as_step,
    as_transform,
    is_many,
    repeat_or_check,
)
from atlasseg.errors import GeometryError
from atlasseg.methods import STAGES, Method
from atlasseg.propagation import propagate as propagate_atlas
from atlasseg.volume import ProbabilityMap


def propagate(
    atlas: Any,
    transform: Any,
    target: Any,
    *,
    interpolation: Literal["linear", "gaussian", "nearest"] = "linear",
    fractions: bool = True,
) -> Any:
    """Propagate atlases to the grid of a target, each by one resampling.

    Parameters
    ----------
    atlas : Atlas, pair (image, labels), library or list of these
        Each on its own grid.
    transform : transform or list of transforms
        Maps points of the target to points of the atlas: a `Transform`, a path, a SimpleITK transform, or a result of
        `register`. One for all atlases, or one per atlas.
    target : image or Grid
        Only its grid is used.
    interpolation : {"linear", "gaussian", "nearest"}
        Interpolation of each label, see `resample`.
    fractions : bool
        Keep the fraction of each label at a voxel as probabilities. Otherwise the label with the largest fraction wins.

    Returns
    -------
    Atlas, or list of Atlas
        On the grid of the target, with a mask of the atlas's field of view.

    Raises
    ------
    InputError
        An argument is unsuitable, or the numbers of transforms and atlases differ.

    See Also
    --------
    register : compute the transforms.
    fuse : fuse propagated atlases into one segmentation.

    Examples
    --------
    >>> import atlasseg, numpy as np
    >>> image = atlasseg.Image(np.zeros((4, 5, 6)), np.eye(4))
    >>> labels = atlasseg.LabelMap(np.ones((4, 5, 6)), np.eye(4))
    >>> atlasseg.propagate((image, labels), atlasseg.Affine.identity(), image).shape
    (4, 5, 6)
    """
    grid = as_grid(target, what="target")
    many = is_many(atlas)
    atlases = as_atlases(atlas, what="atlas") if many else [as_atlas(atlas)]
    transforms, several = as_list(transform, "transform", TRANSFORM)
    each_one = repeat_or_check(transforms if several else transforms[0], len(atlases), "transform")
    chosen = [as_transform(one) for one in each_one]
    carried = [
        propagate_atlas(each, t, grid, interpolation=interpolation, fractions=fractions)
        for each, t in zip(atlases, chosen, strict=True)
    ]
    return carried if many else carried[0]


def fuse(
    target: Any,
    candidates: Any,
    method: str | Method = STAGES["fusion"].main_default,
    *,
    mask: Any = None,
    **parameters: Any,
) -> ProbabilityMap:
    """Fuse the labels of atlases on the grid of the target into one segmentation.

    Parameters
    ----------
    target : image
        The scan: a path, an `Image`, or an image of nibabel, SimpleITK or ANTs.
    candidates : list of atlases, library or list of label maps
        On the grid of the target, from `propagate`, `register` (of atlases) or another program: atlases, pairs
        (image, labels), or a library or its folder. Methods that do not compare intensities (``"majority"``,
        ``"staple"``, ``"simple"``) also take labels without images.
    method : str
        Name of a fusion method, see ``atlasseg.list_methods("fusion")``.
    mask : mask, optional
        Region of the target in which intensities are compared, for methods that use it.
    **parameters
        Parameters of the method; see ``atlasseg methods fusion METHOD`` for names, ranges and defaults.

    Returns
    -------
    ProbabilityMap
        On the target's grid; its `label_map` is the segmentation, its `entropy` the uncertainty in bits.

    Raises
    ------
    InputError
        An argument is unsuitable, or the method or a parameter does not exist.
    GeometryError
        A candidate is not on the target's grid.

    See Also
    --------
    segment : preprocessing, registration and fusion by a recipe.

    References
    ----------
    For the source of each method see ``atlasseg methods fusion METHOD``. The default is joint label fusion, Wang et al.
    (2013), IEEE TPAMI 35(3):611-623.

    Examples
    --------
    >>> import atlasseg, numpy as np
    >>> scan = atlasseg.Image(np.zeros((2, 3, 4)), np.eye(4))
    >>> voters = [atlasseg.LabelMap(np.full((2, 3, 4), label), np.eye(4)) for label in (1, 1, 2)]
    >>> fused = atlasseg.fuse(scan, voters, method="majority")
    >>> fused.label_map().values, round(float(fused.probability(1)[0, 0, 0]), 3)
    (array([1], dtype=int32), 0.667)
    """
    step = as_step("fusion", method, parameters)
    scan = as_image(target, what="target")
    voters = as_candidates(candidates, scan, step.method)
    for atlas in voters:
        if not atlas.image.grid.matches(scan.grid):
            raise GeometryError(
                f"candidate {atlas.id!r}: expected the grid of the target ({scan.grid.describe()}), got "
                f"{atlas.image.grid.describe()}. Resample it with atlasseg.register and atlasseg.propagate, or do "
                "all steps with atlasseg.segment."
            )
    inside = None if mask is None else as_mask(mask)
    if inside is not None and not inside.grid.matches(scan.grid):
        raise GeometryError(
            f"mask: expected the grid of the target ({scan.grid.describe()}), got {inside.grid.describe()}."
        )
    fused: ProbabilityMap = step(scan, voters, mask=inside)
    return fused


def refine(target: Any, fused: Any, method: str | Method = "markov_field", **parameters: Any) -> ProbabilityMap:
    """Refine a fused segmentation, by a neighbourhood model or a trained model.

    Parameters
    ----------
    target : image
        The scan: a path, an `Image`, or an image of nibabel, SimpleITK or ANTs. A trained model expects it
        preprocessed as in training; `segment` with a recipe does that.
    fused : probabilities
        A result of `fuse` or `segment`, the path of a 4-D file of probabilities, or a `LabelMap`.
    method : str
        Name of a refinement method, see ``atlasseg.list_methods("refinement")``.
    **parameters
        Parameters of the method. Trained methods need ``model``, the folder of the model.

    Returns
    -------
    ProbabilityMap
        On the target's grid.

    Raises
    ------
    InputError
        An argument is unsuitable, or the method, a parameter or the model does not exist.
    GeometryError
        The segmentation is not on the target's grid.

    References
    ----------
    For the source of each method see ``atlasseg methods refinement METHOD``.

    Examples
    --------
    >>> import atlasseg, numpy as np
    >>> scan = atlasseg.Image(np.zeros((5, 5, 5)), np.eye(4))
    >>> noisy = np.zeros((5, 5, 5, 2))
    >>> noisy[...] = 0.9, 0.1
    >>> noisy[2, 2, 2] = 0.4, 0.6  # a single voxel against its neighbours
    >>> fused = atlasseg.ProbabilityMap.from_dense(noisy, [0, 1], np.eye(4))
    >>> atlasseg.refine(scan, fused).label_map().values
    array([0], dtype=int32)
    """
    step = as_step("refinement", method, parameters)
    scan = as_image(target, what="target")
    before = as_probability_map(fused, what="fused")
    if not before.grid.matches(scan.grid):
        raise GeometryError(
            f"fused: expected the grid of the target ({scan.grid.describe()}), got {before.grid.describe()}."
        )
    refined: ProbabilityMap = step(scan, before)
    return refined
