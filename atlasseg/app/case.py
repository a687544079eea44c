"""Cases: a target read from disk, with the atlases that vote on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from atlasseg.atlases.library import AtlasLibrary, Target
from atlasseg.atlases.selection import exclude_scan
from atlasseg.pipeline import Progress
from atlasseg.volume import Atlas, Image, LabelMap, Mask


@dataclass(frozen=True, eq=False)
class Case:
    """Target read from disk, the atlases that vote on it, and its reference.

    Parameters
    ----------
    scan : Image
        Scan of the target.
    mask : Mask or None
        Voxels with valid intensities; None if all are valid.
    reference : LabelMap or None
        Labels of the target, for evaluation.
    atlases : list of Atlas
        Atlases of the library without the target itself.
    not_annotated : frozenset of int
        Labels that are not annotated in the reference.
    sources : list of str
        Paths of the scan and of the images of the atlases.
    """

    scan: Image
    mask: Mask | None
    reference: LabelMap | None
    atlases: list[Atlas]
    not_annotated: frozenset[int]
    sources: list[str]


def read_case(target: Target, library: AtlasLibrary, progress: Progress) -> Case:
    """Read a target and the atlases of the library that are not the target itself.

    Raises
    ------
    InputError
        A file cannot be read, or the library has no atlas other than the target.
    """
    progress("read")
    scan, mask = target.read()
    reference = target.read_labels(scan, library.table)
    atlases = exclude_scan(target.id, scan, [read_atlas(library, id_) for id_ in library.ids])
    known = library.files(target.id).not_annotated if target.id in library.ids else frozenset()
    not_annotated = known | target.not_annotated(library.table)
    sources = [str(target.image), *(str(library.files(atlas.id).image) for atlas in atlases)]
    return Case(scan, mask, reference, atlases, not_annotated, sources)


@cache
def read_atlas(library: AtlasLibrary, id_: str) -> Atlas:
    """Read an atlas once per process; `read_atlas.cache_clear` empties the cache."""
    return library.read(id_)


def largest_voxels(library: AtlasLibrary) -> int:
    """Count the voxels of the largest scan of a library."""
    return max(math.prod(read_atlas(library, id_).image.shape) for id_ in library.ids)
