"""``atlasseg.tissue``: classify the tissues of a scan by intensity, with or without a prior."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from atlasseg.api.coercion import (
    ATLASES,
    IMAGE,
    as_atlases,
    as_image,
    as_list,
    as_mask,
    as_step,
    is_path,
    refuse,
    repeat_or_check,
)
from atlasseg.atlases.library import AtlasLibrary
from atlasseg.errors import GeometryError, InputError
from atlasseg.methods import STAGES, Method
from atlasseg.preprocessing.foreground import find_erased_background, foreground
from atlasseg.priors import Prior, on_scan, read_prior
from atlasseg.recipe import parse_recipe
from atlasseg.resampling import stack_channels
from atlasseg.tissues import Tissues
from atlasseg.tissues.naming import Contrast, check_brain, check_names, name_classes
from atlasseg.volume import Image, Mask, ProbabilityMap

log = logging.getLogger(__name__)

PRIOR = (
    "a prior (an atlasseg.ProbabilityMap, the path of a 4-D file, a list of paths with one class each, "
    "or a probabilistic library or its folder)"
)


def tissue(
    scan: Any,
    method: str | Method = STAGES["tissue"].main_default,
    *,
    mask: Any = None,
    modalities: Any = (),
    prior: Any = None,
    names: Sequence[str] = (),
    contrast: Contrast = "auto",
    **parameters: Any,
) -> Any:
    """Classify the tissues of one or many scans by intensity, with or without a prior.

    Parameters
    ----------
    scan : image or list of images
        A path, an `Image`, or an image of nibabel, SimpleITK or ANTs. Several channels are modalities.
    method : str
        ``"mixture"`` (independent voxels), ``"field"`` (Markov random field with bias field and partial volume),
        ``"chain"`` (Markov chain along a space-filling curve), ``"locus"`` (local intensities),
        ``"markov_field"`` (field alone) or ``"nearest_neighbours"``; see ``atlasseg.list_methods("tissue")``.
    mask : mask or list of masks, optional
        Region to classify. Default: the foreground of the scan.
    modalities : list of images
        Additional modalities of a single scan; resampled if their grid differs.
    prior : probabilities, path, list of paths, or library, optional
        Probability of each class: a `ProbabilityMap` or a 4-D file in the space of the scan, one file a class, or a
        probabilistic library or its folder, which is registered to the scan.
    names : sequence of str, optional
        Names of the classes, where there is no prior: label n of the result is that of ``names[n - 1]``. CSF, GM and WM
        go to the classes by the contrast of the first modality, other names in ascending order of intensity.
    contrast : str
        ``"T1"``, ``"T2"``, ``"PD"``, ``"FLAIR"``, or ``"ascending"`` for names in ascending order of intensity; by
        default the contrast is found, see `tissues.naming.name_classes`.
    **parameters
        Parameters of the method: ``classes`` (default 3), ``bias_order``, ``partial_volume``, ...; see
        ``atlasseg methods tissue METHOD``.

    Returns
    -------
    Tissues, or list of Tissues
        ``labels`` (1 to K: in the order of the names or the prior, otherwise ascending by intensity),
        ``probabilities``, ``corrected`` (the scan without its bias field), ``bias``, ``means`` and ``sds``.

    Raises
    ------
    InputError
        An argument is unsuitable, or the method or a parameter does not exist.
    GeometryError
        A mask is not on the scan's grid, or a prior or modality does not overlap the scan.

    References
    ----------
    .. [1] Van Leemput et al. (1999), Automated model-based bias field correction of MR images of the brain, IEEE TMI
       18(10):885-896.
    .. [2] Zhang (1992), The mean field theory in EM procedures for Markov random fields, IEEE TSP 40(10):2570-2583.

    Examples
    --------
    >>> import atlasseg, numpy as np
    >>> values = np.repeat([10.0, 50.0, 90.0], 8 * 8 * 4).reshape(12, 8, 8)
    >>> noisy = values + np.random.default_rng(0).normal(0, 3, values.shape)
    >>> scan = atlasseg.Image(noisy, np.eye(4))
    >>> inside = atlasseg.Mask(np.ones(values.shape), np.eye(4))
    >>> found = atlasseg.tissue(scan, "mixture", mask=inside, classes=3, bias_order=0)
    >>> found.means.round().ravel().tolist()
    [10.0, 50.0, 90.0]
    """
    step = as_step("tissue", method, parameters)
    members, many = as_list(scan, "scan", IMAGE)
    further, _ = as_list(modalities, "modalities", IMAGE) if not _is_nothing(modalities) else ([], False)
    if many and further:
        raise InputError(f"modalities: expected a single scan, got {len(members)} scans.")
    known = None if prior is None else as_prior(prior)
    if known is not None and step.arguments.get("classes", len(known.classes)) != len(known.classes):
        raise InputError(
            f"classes: expected the number of classes of the prior ({len(known.classes)}: "
            f"{', '.join(map(known.name, known.classes))}), got {step.arguments['classes']}."
        )
    if names and known is not None:
        raise InputError("names: expected none with a prior, whose classes have names of their own.")
    results: list[Tissues] = []
    for member, region in zip(members, repeat_or_check(mask, len(members), "mask"), strict=True):
        images = [as_image(each, what=name) for each, name in [(member, "scan"), *((f, "modalities") for f in further)]]
        image, reached = stack_channels(images)
        inside = _region(image, region, reached)
        given = None
        if known is not None:
            recipe = parse_recipe({"tissue": {"method": step.name}}, name="tissue")
            given = on_scan(known, image, inside, recipe, lambda stage: log.info("prior: %s", stage))
        found = step(image, inside, given)
        if names:
            found, _ = name_classes(found, check_names(names, len(found.means)), contrast)
            whole = _is_nothing(region) and find_erased_background(image.channels[..., 0]) is None
            check_brain(found, names, whole_foreground=whole)
        results.append(found)
    return results if many else results[0]


def as_prior(value: Any, *, what: str = "prior") -> Prior:
    """Convert probabilities, paths or a probabilistic library to a prior of tissue classes.

    Raises
    ------
    InputError
        The value has another type, or cannot be read.
    """
    if isinstance(value, ProbabilityMap):
        return Prior((), probabilities=value)
    if is_path(value) and str(value).strip():
        return read_prior([Path(value)])
    if isinstance(value, list | tuple) and value and all(is_path(each) for each in value):
        return read_prior([Path(each) for each in value])
    if isinstance(value, AtlasLibrary):
        return Prior((), library=value, atlases=tuple(as_atlases(value, what=what)))
    try:
        return Prior((), atlases=tuple(as_atlases(value, what=what)))
    except InputError as error:
        raise refuse(value, what, PRIOR) if ATLASES in str(error) else error from None


def _region(image: Image, mask: Any, reached: Mask) -> Mask:
    """Return the voxels to classify: the mask, or the foreground, inside the field of view of every modality."""
    inside = foreground(image) if mask is None else as_mask(mask)
    if not inside.grid.matches(image.grid):
        raise GeometryError(
            f"mask: expected the grid of the scan ({image.grid.describe()}), got {inside.grid.describe()}."
        )
    inside = replace(inside, array=inside.array & reached.array, affine=image.affine)
    if not inside.array.any():
        raise InputError(f"{image.name or 'scan'}: expected voxels in the mask and every field of view, got none.")
    return inside


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, list | tuple) and not value)
