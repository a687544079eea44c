"""Train corrective learning on a library, and keep the model beside it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from atlasseg.atlases.library import read_library
from atlasseg.cohort.cache import kept_registrations, registration_key
from atlasseg.cohort.outputs import software_versions
from atlasseg.cohort.run import registrar
from atlasseg.errors import InputError
from atlasseg.pipeline import Registrar
from atlasseg.recipe import Recipe
from atlasseg.refinement.corrective_learning import CorrectiveModel, write_model
from atlasseg.training import train_corrective
from atlasseg.volume import Atlas


def correct(
    recipe: Recipe,
    out: Path,
    *,
    without: Collection[str] = (),
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
    samples_per_label, seed, progress
        As for `training.train_corrective`.
    cache : path, optional
        Folder for registrations, found again by their content; without one they are not kept.

    Raises
    ------
    InputError
        There is no library, or no atlas of a name in `without`; or as for `training.train_corrective`.
    OutputError
        The model cannot be written.
    """
    if not recipe.data.atlases:
        raise InputError(f"recipe {recipe.name}: [data] must name atlases (or give them as an option)")
    library = read_library(*recipe.data.atlases)
    library = library.only([id_ for id_ in library.ids if id_ not in {library.files(left).id for left in without}])
    registers = registrar(recipe, library)

    def registrar_for(atlas: Atlas, others: Sequence[Atlas]) -> Registrar:
        if cache is None:
            return registers
        folder = cache / registration_key(atlas.image, atlas.mask, others, recipe)
        return lambda scans: kept_registrations(
            folder, [chosen.id for chosen in scans.atlases], lambda: registers(scans), atlas.image
        )

    model = train_corrective(
        [library.read(id_) for id_ in library.ids],
        recipe,
        samples_per_label=samples_per_label,
        seed=seed,
        versions=software_versions(),
        registrar_for=registrar_for,
        progress=progress,
    )
    write_model(model, out, table=library.table)
    return model
