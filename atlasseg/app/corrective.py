"""Training of corrective learning on a library."""

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

__all__ = ["correct"]


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
        Recipe with `data.atlases`.
    out : path
        Folder for the model.
    without : collection of str
        Atlases to leave out, such as those that the model will be evaluated on.
    cases : path, optional
        Folder with further labelled scans for training.
    samples_per_label, seed, progress
        As for `training.train_corrective`.
    cache : path, optional
        Cache folder for registrations and segmentations, so that an interrupted training can be resumed; by default
        nothing is cached.

    Returns
    -------
    CorrectiveModel
        The model that was written.

    Raises
    ------
    InputError
        There is no library, or an atlas in `without` does not exist; or as for `training.train_corrective`.
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
