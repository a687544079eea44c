"""``atlasseg.extract_brain``: find the brain, or another organ, in scans from a library in which it is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from atlasseg.api.coercion import as_atlases, is_path, refuse
from atlasseg.api.segmentation import as_cases, is_folder_of_images
from atlasseg.atlases.library import AtlasLibrary, read_library
from atlasseg.atlases.selection import exclude_scan
from atlasseg.organ_mask import find_organ


def extract_brain(scan: Any, library: Any, *, progress: Callable[[str], None] | None = None) -> Any:
    """Find the brain, or any other organ, in one or many scans from a library in which it is known.

    An atlas with the id or the intensities of the scan is left out.

    Parameters
    ----------
    scan : image or list of images
        A path, an `Image`, or an image of nibabel, SimpleITK or ANTs; a folder with ``images/`` holds many.
    library : AtlasLibrary, path or list of atlases
        The library or its folder; atlases or pairs (image, labels). The organ is what its ``masks/`` hold, if every
        atlas has one there; otherwise everything that is labelled. One atlas is enough; more make it better.
    progress : callable, optional
        Called with the name of each step when it starts.

    Returns
    -------
    OrganMask, or list of OrganMask
        On the grid of the scan: ``mask``, ``probabilities``, ``volume_ml``, ``similarities`` of the atlases,
        ``cut_off`` (the faces of the scan at which the organ ends) and ``seconds``.

    Raises
    ------
    InputError
        An argument is unsuitable, an atlas has neither labels nor a mask, or the only atlas is the scan itself.
    GeometryError
        The organ of no atlas lands on the scan.

    See Also
    --------
    segment : with ``[preprocessing] mask = "brain"`` in the recipe, the mask is made on the way.

    Examples
    --------
    >>> import atlasseg
    >>> from atlasseg.phantoms import whole_head
    >>> atlas, scan = (whole_head(id, seed=seed, subsamples=1) for id, seed in (("atlas", 1), ("scan", 2)))
    >>> found = atlasseg.extract_brain(scan.image, [(atlas.image, atlas.labels)])
    >>> both = (found.mask.array & (scan.labels.array > 0)).sum()
    >>> bool(2 * both / (found.mask.array.sum() + (scan.labels.array > 0).sum()) > 0.9)
    True
    """
    if progress is not None and not callable(progress):
        raise refuse(progress, "progress", "a function that takes the name of a step")
    source = read_library(Path(library), masks_suffice=True) if _is_folder(library) else library
    atlases = (
        [source.read(id_) for id_ in source.ids]
        if isinstance(source, AtlasLibrary)
        else as_atlases(source, what="library")
    )
    cases, many = as_cases(scan)
    found = [find_organ(case.scan, exclude_scan(case.id, case.scan, atlases), progress=progress) for case in cases]
    return found if many else found[0]


def _is_folder(value: Any) -> bool:
    return is_path(value) and is_folder_of_images(value)
