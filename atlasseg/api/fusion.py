"""``atlasseg.propagate``, ``atlasseg.fuse`` and ``atlasseg.refine``: from registered atlases to a segmentation."""

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
    one_each,
)
from atlasseg.errors import GeometryError
from atlasseg.methods import Method
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
    """Carry atlases onto the grid of a target, each in one resampling.

    Parameters
    ----------
    atlas : Atlas, pair (image, labels), library or list of these
        Each on its own grid.
    transform : transform or list of transforms
        Takes points of the target to points of the atlas: a `Transform`, a path, a transform of SimpleITK, or what
        `register` returned. One for all, or one each.
    target : image or Grid
        Only its grid is used.
    interpolation : {"linear", "gaussian", "nearest"}
        How each label is carried over on its own, see `resample`.
    fractions : bool
        Keep each label's share of a voxel, as probabilities; otherwise the largest share takes the voxel.

    Returns
    -------
    Atlas, or list of Atlas
        On the target's grid, with a mask of where the atlas's field of view reaches.

    Raises
    ------
    InputError
        An argument cannot be used, or there are not as many transforms as atlases.

    See Also
    --------
    register : find the transforms.
    fuse : make one segmentation of propagated atlases.

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
    each_one = one_each(transforms if several else transforms[0], len(atlases), "transform")
    chosen = [as_transform(one) for one in each_one]
    carried = [
        propagate_atlas(each, t, grid, interpolation=interpolation, fractions=fractions)
        for each, t in zip(atlases, chosen, strict=True)
    ]
    return carried if many else carried[0]


def fuse(
    target: Any, candidates: Any, method: str | Method = "joint", *, mask: Any = None, **parameters: Any
) -> ProbabilityMap:
    """Fuse atlases that lie on the target's grid into one segmentation.

    Parameters
    ----------
    target : image
        The scan: a path, an `Image`, or an image of nibabel, SimpleITK or ANTs.
    candidates : list of atlases, library or list of label maps
        On the grid of the target, from `propagate`, `register` (of atlases) or another program: atlases, pairs
        (image, labels), or a library or its folder. Labels without images suit the methods that compare no intensities
        (``"majority"``, ``"staple"``, ``"simple"``).
    method : str
        Name of a fusion method, see ``atlasseg.list_methods("fusion")``.
    mask : mask, optional
        Where in the target intensities are compared, for the methods that can use it.
    **parameters
        Of the method, by name; see ``atlasseg methods fusion METHOD`` for names, ranges and defaults.

    Returns
    -------
    ProbabilityMap
        On the target's grid; its `label_map` is the segmentation, its `entropy` the uncertainty in bits.

    Raises
    ------
    InputError
        An argument cannot be used, or there is no such method or parameter.
    GeometryError
        A candidate is not on the target's grid.

    See Also
    --------
    segment : registration, fusion and all between, by a recipe.

    References
    ----------
    Every method names its paper: ``atlasseg methods fusion METHOD``. The default is joint label fusion, Wang et al.
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
                f"candidate {atlas.id!r}: expected the grid of the target ({scan.grid.described()}), got "
                f"{atlas.image.grid.described()}. Carry it over by atlasseg.register and atlasseg.propagate, or do "
                "all at once by atlasseg.segment."
            )
    inside = None if mask is None else as_mask(mask)
    if inside is not None and not inside.grid.matches(scan.grid):
        raise GeometryError(
            f"mask: expected the grid of the target ({scan.grid.described()}), got {inside.grid.described()}."
        )
    fused: ProbabilityMap = step(scan, voters, mask=inside)
    return fused


def refine(target: Any, fused: Any, method: str | Method = "markov_field", **parameters: Any) -> ProbabilityMap:
    """Post-process a fused segmentation, by neighbourhood or by a trained model.

    Parameters
    ----------
    target : image
        The scan: a path, an `Image`, or an image of nibabel, SimpleITK or ANTs. A trained model expects it
        preprocessed as in training; `segment` with a recipe does that.
    fused : probabilities
        What `fuse` or `segment` returned, the path of a 4-D file of probabilities, or a `LabelMap`.
    method : str
        Name of a refinement method, see ``atlasseg.list_methods("refinement")``.
    **parameters
        Of the method, by name; trained ones need ``model``, the folder of the model.

    Returns
    -------
    ProbabilityMap
        On the target's grid.

    Raises
    ------
    InputError
        An argument cannot be used, or there is no such method, parameter or model.
    GeometryError
        The segmentation is not on the target's grid.

    References
    ----------
    Every method names its paper: ``atlasseg methods refinement METHOD``.

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
            f"fused: expected the grid of the target ({scan.grid.described()}), got {before.grid.described()}."
        )
    refined: ProbabilityMap = step(scan, before)
    return refined
