"""``atlasseg.segment``: segment scans with a library of atlases, by a recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atlasseg.api.coercion import (
    IMAGE,
    as_atlases,
    as_image,
    as_label_map,
    as_list,
    as_mask,
    is_path,
    refuse,
    repeat_or_check,
)
from atlasseg.api.recipes import as_recipe, get_kind
from atlasseg.api.registrar import load_prepared, make_registrar
from atlasseg.atlases.library import AtlasLibrary, Target, read_library, read_targets
from atlasseg.atlases.selection import exclude_scan
from atlasseg.errors import InputError
from atlasseg.methods import STAGES
from atlasseg.pipeline import segment as segment_scan
from atlasseg.volume import Atlas, Image, LabelMap, Mask


@dataclass(frozen=True, eq=False)
class Case:
    """Scan with its id, and an optional mask and reference segmentation."""

    id: str
    scan: Image
    mask: Mask | None = None
    reference: LabelMap | None = None
    not_annotated: frozenset[int] = frozenset()


def segment(
    scan: Any,
    library: Any,
    recipe: Any = None,
    *,
    mask: Any = None,
    overrides: Sequence[str] = (),
    localise: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Any:
    """Segment one or many scans with a library of atlases.

    An atlas with the id or the intensities of the scan is left out.

    Parameters
    ----------
    scan : image or list of images
        A path, an `Image`, or an image of nibabel, SimpleITK or ANTs; a folder with ``images/`` holds many.
    library : AtlasLibrary, path or list of atlases
        The library or its folder; atlases or pairs (image, labels). A single atlas is enough.
    recipe : Recipe, path or str, optional
        A recipe, its ``.toml`` file, the name of a bundled recipe (``"hippocampus"``), or fusion and refinement
        (``"joint"``, ``"majority"``, ``"joint+markov_field"``) for the default recipe. The default scales the
        intensities, registers every atlas deformably and fuses by joint label fusion; a single atlas is propagated
        without fusion.
    mask : mask or list of masks, optional
        Region of the scan in which similarity is measured.
    overrides : sequence of str
        Values of the recipe to set, as by ``--set``: ``["fusion.beta=3"]``.
    localise : bool
        Find the organ first, by its surroundings in every atlas, and register in a box around it: for a small organ in
        a large, variable view. Sets ``localisation.method`` of the recipe to ``"combined"``.
    progress : callable, optional
        Called with the name of each stage when it starts.

    Returns
    -------
    Segmentation, or list of Segmentation
        On the grid of the scan: ``labels``, ``probabilities`` (with their ``entropy``, in bits), ``alignment``
        (candidates and their quality of registration) and ``seconds``.

    Raises
    ------
    InputError
        An argument is unsuitable, the recipe is invalid, or the only atlas is the scan itself.
    GeometryError
        A mask is not on the grid of its scan.

    See Also
    --------
    run : segment many scans in parallel, with reports; resumes after an interruption.
    compare : compare fusion methods on the same registrations.

    Examples
    --------
    >>> import atlasseg
    >>> sample = atlasseg.sample_data()
    >>> library = atlasseg.read_library(sample / "atlases").only(["atlas1", "atlas2"])
    >>> result = atlasseg.segment(sample / "targets/images/target1.nii.gz", library, "majority",
    ...                           overrides=['registration.steps=["affine"]'])
    >>> result.labels.shape
    (48, 56, 42)
    """
    source = as_library(library)
    atlases = as_atlases(source, what="library")
    if localise:
        overrides = [f"localisation.method={STAGES['localisation'].main_default}", *overrides]
    checked = as_recipe(recipe, overrides=overrides, kind=get_kind(atlases))
    if checked.tissue is not None:
        raise InputError(f"recipe {checked.name}: expected no table [tissue], got one. Use it with atlasseg.tissue.")
    if progress is not None and not callable(progress):
        raise refuse(progress, "progress", "a function that takes the name of a stage")
    cases, many = as_cases(scan, mask=mask)
    prepared = load_prepared(checked, source)
    results = [
        segment_scan(
            case.scan,
            exclude_scan(case.id, case.scan, atlases),
            checked,
            mask=case.mask,
            progress=progress,
            registrar=make_registrar(checked, target=case.id, prepared=prepared),
        )
        for case in cases
    ]
    return results if many else results[0]


def as_cases(value: Any, *, mask: Any = None, what: str = "scan") -> tuple[list[Case], bool]:
    """Convert the given scans to cases, and return whether there were several.

    Raises
    ------
    InputError
        A scan is unsuitable.
    """
    if isinstance(value, AtlasLibrary):
        value = [value.read(id_) for id_ in value.ids]
    elif is_path(value) and is_folder_of_images(value):
        value = list(read_targets(value))
    members, many = as_list(value, what, IMAGE)
    masks = repeat_or_check(mask, len(members), "mask")
    cases = []
    for number, (member, inside) in enumerate(zip(members, masks, strict=True), start=1):
        name = f"{what}, number {number}" if many else what
        case = _case(member, name, number)
        cases.append(case if inside is None else replace(case, mask=as_mask(inside)))
    return cases, many


def _case(value: Any, what: str, number: int) -> Case:
    if isinstance(value, Target):
        scan, mask = value.read()
        return Case(value.id, scan, mask, value.read_labels(scan))
    if isinstance(value, Atlas):
        return Case(value.id, value.image, value.mask, value.segmentation, value.not_annotated)
    if isinstance(value, tuple) and len(value) in (2, 3):
        scan = as_image(value[0], what=f"{what}, image")
        mask = None if len(value) == 2 or value[2] is None else as_mask(value[2], what=f"{what}, mask")
        return Case(scan.name or f"scan{number}", scan, mask, as_label_map(value[1], what=f"{what}, labels"))
    scan = as_image(value, what=what)
    return Case(scan.name or f"scan{number}", scan)


def is_folder_of_images(path: Any) -> bool:
    """Return whether a path is a folder that contains ``images/``."""
    return bool(str(path).strip()) and (Path(path) / "images").is_dir()


def as_library(value: Any) -> Any:
    """Convert a folder to a library (its volumes are read later); return any other value unchanged."""
    return read_library(value) if is_path(value) and is_folder_of_images(value) else value
