"""Create a probabilistic library from a library of labelled scans: template, label probabilities, label table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from atlasseg import io
from atlasseg.app.outputs import software_versions
from atlasseg.atlases.library import AtlasLibrary, read_library
from atlasseg.atlases.prepared import PreparedLibrary, prepare, read_prepared
from atlasseg.atlases.probabilistic import Average, average
from atlasseg.errors import InputError
from atlasseg.files import atomic_directory
from atlasseg.labels import LabelTable
from atlasseg.pipeline import preprocess
from atlasseg.recipe import Step

__all__ = ["average_library"]

HEADER, NAME = "average.json", "template"


def average_library(
    folder: Path,
    out: Path,
    *,
    prepared: Path | None = None,
    steps: Sequence[Step] = (),
    rounds: int = 3,
    shrink: int | None = None,
    smoothing_mm: float | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Average:
    """Average the labels of a library on its groupwise template, and write both as a probabilistic library.

    Parameters
    ----------
    folder : path
        Folder of the library.
    out : path
        Folder of the new library, written atomically. An earlier result of this function is replaced.
    prepared : path, optional
        Folder of the prepared library of ``atlasseg atlases prepare``. Without it the template is computed here.
    steps : sequence of Step
        Preprocessing of the scans before the template is computed.
    rounds, shrink
        Settings of the template, as for `atlases.prepared.prepare`.
    smoothing_mm : float, optional
        As for `atlases.probabilistic.average`.
    progress : callable
        Called with the name of each step when it starts.

    Returns
    -------
    Average
        Template probabilities and smoothing, as written.

    Raises
    ------
    InputError
        The library has fewer than 2 atlases or cannot be read, the prepared library does not match it, or `out` holds
        other files.
    OutputError
        `out` cannot be written. Its earlier content is unchanged.
    """
    if out.exists() and not (out / HEADER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: expected a new folder or an averaged library, got other files. Give another folder.")
    library = read_library(folder)
    atlases = [library.read(id_) for id_ in library.ids]
    if prepared is None:
        made = prepare(
            library,
            preprocess=lambda image: preprocess(image, steps),
            rounds=rounds,
            shrink=shrink,
            progress=progress,
        )
    else:
        made = read_prepared(prepared)
        made.check(library)
    transforms = [made.transforms[atlas.id] for atlas in atlases]
    found = average(atlases, transforms, made.template.grid, smoothing_mm=smoothing_mm, progress=progress)
    nowhere = frozenset.intersection(*(atlas.not_annotated for atlas in atlases))
    _write(found, made, library, nowhere, out)
    return found


def _write(
    found: Average, prepared: PreparedLibrary, library: AtlasLibrary, nowhere: frozenset[int], out: Path
) -> None:
    named = LabelTable(tuple(replace(label, not_annotated_in=frozenset()) for label in library.table))
    header = {
        "Atlases": list(library.ids),
        "SmoothingMillimetres": found.smoothing_mm,
        "HeldOutLogLikelihood": [
            {"SmoothingMillimetres": width, "NatsPerVoxel": value} for width, value in found.log_likelihoods.items()
        ],
        "Template": dict(prepared.settings),
        "Libraries": software_versions(),
    }
    with atomic_directory(out) as aside:
        io.write_image(prepared.template, aside / "images" / f"{NAME}.nii.gz")
        io.write_probability_map(found.probabilities, aside / "probabilities" / f"{NAME}.nii.gz")
        if prepared.mask is not None:
            io.write_mask(prepared.mask, aside / "masks" / f"{NAME}.nii.gz")
        if nowhere:
            io.write_json({"not_annotated": sorted(nowhere)}, aside / "probabilities" / f"{NAME}.json")
        io.write_label_table(named.completed(found.probabilities.label_values.tolist()), aside / "labels.tsv")
        io.write_json(header, aside / HEADER)
