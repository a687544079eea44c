"""Train corrective learning on a library, and keep the model beside it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from atlasseg.app.context import training_library
from atlasseg.app.outputs import software_versions
from atlasseg.app.registrar import make_registrar
from atlasseg.atlases.library import read_library
from atlasseg.pipeline import call_directly
from atlasseg.recipe import Recipe
from atlasseg.refinement.corrective_learning import CorrectiveModel, write_model
from atlasseg.store.cache import Cache
from atlasseg.training import train_corrective


def correct(
    recipe: Recipe,
    out: Path,
    *,
    without: Collection[str] = (),
    cases: Path | None = None,
    samples_per_label: int = 100_000,
    seed: int = 0,
    cache: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> CorrectiveModel:
    """Train corrective learning on the recipe's library and write the model into `out`.

    Parameters
    ----------
    recipe : Recipe
        With `data.atlases` set.
    out : path
        Folder for the model.
    without : collection of str
        Atlases to leave out: those that the model is to be used on, as in a leave-one-out evaluation.
    cases : path, optional
        Folder of further labelled scans to learn on.
    samples_per_label, seed, progress
        As for `training.train_corrective`.
    cache : path, optional
        Folder for what is computed on the way, registrations and segmentations, found again by its content, so that a
        training that was broken off goes on where it was; without one it is not kept.

    Raises
    ------
    InputError
        There is no library, or no atlas of a name in `without`; or as for `training.train_corrective`.
    OutputError
        The model cannot be written.
    """
    library = training_library(recipe, without)
    further = None if cases is None else read_library(cases)
    executor = call_directly if cache is None else Cache(cache)
    model = train_corrective(
        [library.read(id_) for id_ in library.ids],
        recipe,
        cases=[] if further is None else [further.read(id_) for id_ in further.ids],
        samples_per_label=samples_per_label,
        seed=seed,
        versions=software_versions(),
        registrar=make_registrar(recipe, library, executor),
        executor=executor,
        progress=progress,
    )
    write_model(model, out, table=library.table)
    return model
