"""Tissue classification on files, for the command ``tissue``."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from atlasseg import io
from atlasseg.app import outputs
from atlasseg.atlases.channels import read_channels
from atlasseg.atlases.library import Target, read_library, read_targets
from atlasseg.atlases.organs import organs_of
from atlasseg.compute.execution import Listener, Outcome, capture_logs, process_targets
from atlasseg.compute.workers import Workers
from atlasseg.errors import GeometryError, InputError
from atlasseg.files import atomic_directory, discard_partial
from atlasseg.labels import Label, LabelTable, default_color
from atlasseg.organ_mask import find_organ
from atlasseg.pipeline import Progress
from atlasseg.preprocessing.foreground import find_erased_background, foreground
from atlasseg.priors import Prior, on_scan, read_prior
from atlasseg.recipe import Recipe
from atlasseg.tissues import Tissues
from atlasseg.tissues.naming import check_brain, check_names, name_classes
from atlasseg.volume import Atlas, Image, Mask

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["tissue"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Scan:
    """Scan of a target with its channels, and the region to classify.

    `whole_foreground` is True if the region is everything brighter than the background, which may include the skull.
    """

    image: Image
    inside: Mask
    sources: tuple[Path, ...]
    whole_foreground: bool = False


def tissue(
    recipe: Recipe,
    *,
    modalities: Sequence[Path] = (),
    mask: Path | None = None,
    workers: Workers = Workers(),  # noqa: B008 - frozen
    listener: Listener | None = None,
) -> list[Outcome[pd.DataFrame]]:
    """Classify the tissues of every target of a recipe, each into its own folder.

    Parameters
    ----------
    recipe : Recipe
        Recipe with a table [tissue], `data.targets` and `data.out`. A 4-D target is one scan with several modalities.
    modalities : sequence of path
        Further modalities of a single target. They are resampled if they are on another grid.
    mask : path, optional
        Mask of the voxels to classify in a single target. By default the mask beside it in a data set, or else the
        foreground of the scan. With ``[preprocessing] mask = "brain"`` the brain is found from the atlases of the
        recipe in every target that has no mask.
    workers, listener
        As for `app.run.run`.

    Returns
    -------
    list of Outcome
        One per target, with its table of volumes, or the reason of its failure.

    Raises
    ------
    InputError
        The request is invalid: no target, a prior that cannot be read or has another number of classes, or several
        targets with further modalities or a mask.
    OutputError
        The output folder cannot be written.
    """
    if recipe.tissue is None:
        raise InputError(f"recipe {recipe.name}: expected the table [tissue]. Add it")
    if not recipe.data.targets or recipe.data.out is None:
        raise InputError("expected scans and an output folder. Give SCAN... and --out, or [data] in the recipe")
    targets = read_targets(recipe.data.targets, **recipe.data.reading)
    if len(targets) > 1 and (modalities or mask is not None):
        raise InputError(f"--with and --mask: expected a single scan, got {len(targets)}")
    outputs.check_formats(recipe, targets)
    organs = _read_organs(recipe) if recipe.preprocessing.mask == "brain" else ()
    prior = read_prior(recipe.tissue.prior) if recipe.tissue.prior else None
    method = recipe.tissue.method
    if prior is not None and method.arguments.get("classes", len(prior.classes)) != len(prior.classes):
        raise InputError(
            f"expected a prior of {method.arguments['classes']} classes, got one of {len(prior.classes)}: "
            f"{', '.join(map(prior.name, prior.classes))}"
        )
    out = recipe.data.out
    outputs.prepare_folder(out, recipe)
    task = partial(
        _classify, recipe=recipe, prior=prior, modalities=tuple(modalities), mask=mask, organs=organs, out=out
    )
    return process_targets(
        task, targets, workers=workers, listener=listener, on_abort=lambda target: discard_partial(out / target.id)
    )


def _classify(
    target: Target,
    progress: Progress,
    *,
    recipe: Recipe,
    prior: Prior | None,
    modalities: tuple[Path, ...],
    mask: Path | None,
    organs: tuple[Atlas, ...],
    out: Path,
) -> pd.DataFrame:
    """Read, classify, report and write one target."""
    from atlasseg.report.tissue_page import TissueReport, render

    assert recipe.tissue is not None
    method = recipe.tissue.method
    begun = time.perf_counter()
    seconds: dict[str, float] = {}
    with capture_logs(logging.WARNING, "%(message)s") as heard:
        progress("read")
        scan = read_scan(target, modalities, mask, recipe, organs, progress)
        seconds["read"] = time.perf_counter() - begun
        given = None
        if prior is not None:
            since = time.perf_counter()
            given = on_scan(prior, scan.image, scan.inside, recipe, progress)
            seconds["prior"] = time.perf_counter() - since
        progress("classify")
        since = time.perf_counter()
        found: Tissues = method(scan.image, scan.inside, given)
        seconds["classify"] = time.perf_counter() - since
        progress("write")
        table = _table(recipe, prior, found.means.shape[0])
        names, named_by = [entry.name for entry in table], ""
        if prior is None:
            found, named_by = name_classes(found, names, recipe.tissue.contrast)
        check_brain(found, names, whole_foreground=scan.whole_foreground)
        volumes = volume_rows(found, table)
        volumes.attrs["names"] = named_by
        with atomic_directory(out / target.id) as folder:
            stem = f"{target.id}_desc-{method.name}"
            since = time.perf_counter()
            _write(folder, stem, target.id, scan, found, table, volumes, recipe, prior)
            seconds["write"] = time.perf_counter() - since
            if recipe.output.report:
                report = TissueReport(
                    target=target.id,
                    model=method.name,
                    image=scan.image,
                    tissues=found,
                    table=table,
                    volumes=volumes,
                    seconds={**seconds, "total": time.perf_counter() - begun},
                    recipe=recipe.text,
                    warnings=tuple(heard),
                    versions=outputs.software_versions(),
                    naming=named_by,
                )
                io.write_text(render(report), folder / f"{target.id}.html")
    return volumes


def _read_organs(recipe: Recipe) -> tuple[Atlas, ...]:
    """Read the atlases that the brain is found from."""
    if not recipe.data.atlases:
        raise InputError(
            f'recipe {recipe.name}: expected atlases for [preprocessing] mask = "brain", got none. Give --atlases, or '
            "[data] atlases in the recipe."
        )
    library = read_library(*recipe.data.atlases, masks_suffice=True, **recipe.data.reading)
    return tuple(organs_of([library.read(id_) for id_ in library.ids]))


def read_scan(
    target: Target,
    modalities: Sequence[Path],
    mask: Path | None,
    recipe: Recipe,
    organs: Sequence[Atlas] = (),
    progress: Progress = lambda stage: None,
) -> Scan:
    """Read a scan with its modalities as channels on the grid of the first one, and its region.

    Without a mask the region is found from `organs`, where these are given: by the first channel alone if they have one
    channel.

    Raises
    ------
    InputError
        A file cannot be read, or the region is empty.
    GeometryError
        A mask is not on the grid of the scan, or a modality does not overlap the scan.
    """
    sources = (target.image, *target.channels, *modalities)
    image, finite = read_channels(sources, spacing_from=target.spacing_from)
    known = np.ones(image.shape, bool) if finite is None else finite.array
    path = mask or target.mask
    if path is None and organs:
        inside = _find_region(image, target.id, organs, progress)
    elif path is None or recipe.preprocessing.mask == "foreground":
        path, inside = None, foreground(image)
    else:
        inside = _read_region(path, target, image)
    region = inside.array & known
    if not region.any():
        raise InputError(f"{target.image}: no voxel of its mask has a known intensity")
    whole = path is None and not organs and find_erased_background(image.channels[..., 0]) is None
    return Scan(image, inside.with_array(region), sources, whole)


def _find_region(image: Image, id_: str, organs: Sequence[Atlas], progress: Progress) -> Mask:
    """Find the brain from atlases other than the scan itself."""
    single = all(atlas.image.channels.shape[3] == 1 for atlas in organs)
    first = replace(image, array=image.channels[..., 0]) if single else image
    content = io.content_hash(first)
    others = [
        atlas
        for atlas in organs
        if atlas.id != id_ and not (atlas.image.shape == first.shape and io.content_hash(atlas.image) == content)
    ]
    if not others:
        raise InputError(f"{id_}: expected atlases other than the scan itself to find its mask, got none")
    return find_organ(first, others, progress=progress).mask


def _read_region(path: Path, target: Target, image: Image) -> Mask:
    found = io.read_mask(path, spacing_from=target.spacing_from)
    if not found.grid.matches(image.grid):
        raise GeometryError(
            f"{path}: the mask (shape {found.shape}) is not on the grid of {target.image} (shape {image.shape})"
        )
    return replace(found, affine=image.affine)


def _table(recipe: Recipe, prior: Prior | None, count: int) -> LabelTable:
    """Names of the classes: those of the recipe, or else of the prior, or else their numbers."""
    assert recipe.tissue is not None
    names = recipe.tissue.names
    if names:
        names = check_names(names, count)
    else:
        names = (
            tuple(f"class {n + 1}" for n in range(count)) if prior is None else tuple(map(prior.name, prior.classes))
        )
    return LabelTable(tuple(Label(n, name, default_color(n)) for n, name in enumerate(names, start=1)))


def volume_rows(found: Tissues, table: LabelTable) -> pd.DataFrame:
    """Table with one row per class: voxels, volume, partial-volume estimate, mean and sd in each modality."""
    volumes = outputs.volumes(found.labels, table)
    voxel_mm3 = abs(float(np.linalg.det(found.labels.affine[:3, :3])))
    parts = [found.probabilities.probability(entry.value).sum(dtype=np.float64) for entry in table]
    volumes["fraction_volume_mm3"] = np.array(parts) * voxel_mm3
    for c in range(found.means.shape[1]):
        suffix = "" if found.means.shape[1] == 1 else f"_{c + 1}"
        volumes[f"mean{suffix}"], volumes[f"sd{suffix}"] = found.means[:, c], found.sds[:, c]
    return volumes


def _write(
    folder: Path,
    stem: str,
    target: str,
    scan: Scan,
    found: Tissues,
    table: LabelTable,
    volumes: pd.DataFrame,
    recipe: Recipe,
    prior: Prior | None,
) -> None:
    assert recipe.tissue is not None
    method = recipe.tissue.method
    outputs.write_labels(folder, stem, found.labels, scan.image, table, recipe)
    io.write_probability_map(found.probabilities, folder / f"{stem}_probseg.nii.gz", like=scan.image)
    io.write_image(found.corrected, folder / f"{stem}_corrected.nii.gz", like=scan.image)
    io.write_image(found.bias, folder / f"{stem}_biasfield.nii.gz", like=scan.image)
    outputs.write_table(volumes, folder / f"{target}_volumes.tsv")
    sidecar = {
        "Sources": [str(path) for path in scan.sources],
        "Model": method.name,
        "Parameters": {p.name: method.arguments.get(p.name, p.default) for p in method.method.parameters},
        "Names": volumes.attrs["names"] or "names in the order given",
        "Prior": [] if prior is None else [str(path) for path in prior.paths],
        "LabelMap": [0, *table.values],
        "Region": int(scan.inside.array.sum()),
        "Recipe": recipe.text,
        "Libraries": outputs.software_versions(),
    }
    io.write_json(sidecar, folder / f"{stem}_dseg.json")
