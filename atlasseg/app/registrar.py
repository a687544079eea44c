"""Registration of a recipe: by its steps, or through the template of a prepared library."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from atlasseg import io
from atlasseg.atlases.library import AtlasLibrary
from atlasseg.atlases.prepared import PreparedLibrary, engine_of, read_prepared, register_prepared
from atlasseg.errors import InputError
from atlasseg.pipeline import Executor, Registrar, RegistrationResult, Scans, call_directly, register
from atlasseg.recipe import Recipe
from atlasseg.store.cache import Cache
from atlasseg.store.serialisation import combine_digests, digest
from atlasseg.transforms import Transform


def make_registrar(
    recipe: Recipe, library: AtlasLibrary, executor: Executor = call_directly, *, target: str | None = None
) -> Registrar:
    """Make the function that registers atlases to a target by a recipe.

    Parameters
    ----------
    recipe : Recipe
    library : AtlasLibrary
        Library of the atlases. A prepared library in the recipe must have been made from it.
    executor : callable
        As for `pipeline.segment`. A `Cache` stores the result of each atlas separately.
    target : str, optional
        Id of the target, for recipes with initial transforms.

    Raises
    ------
    InputError
        The prepared library cannot be read, or does not match `library`; or the recipe has initial transforms, and the
        target is missing, or the file of an atlas is missing or cannot be read.
    """
    folder, pattern = recipe.registration.prepared, recipe.registration.initial
    if pattern is not None:
        if target is None:
            raise InputError(
                f"recipe {recipe.name}: [registration] initial: expected a target, got the atlases of a training. "
                "Remove `initial` to train."
            )

        def from_initial(scans: Scans) -> RegistrationResult:
            initial = {atlas.id: io.read_transform(initial_file(pattern, target, atlas.id)) for atlas in scans.atlases}
            return register(scans, recipe, initial=initial, executor=executor)

        return from_initial
    if folder is None:
        return partial(register, recipe=recipe, executor=executor)
    prepared = read_checked(folder, library)
    engine, iterations = engine_of(recipe.registration.steps), recipe.registration.refine_iterations

    def by_template(scans: Scans) -> RegistrationResult:
        ids = [atlas.id for atlas in scans.atlases]

        def compute(chosen: Sequence[int]) -> list[Transform]:
            return register_prepared(
                scans.target,
                prepared,
                [scans.images[n] for n in chosen],
                ids=[ids[n] for n in chosen],
                fixed_mask=scans.target_mask,
                moving_masks=[scans.atlas_masks[n] for n in chosen],
                engine=engine,
                refine_iterations=iterations,
            )

        if isinstance(executor, Cache):
            target = (scans.target, scans.target_mask, prepared.template, prepared.mask)
            shared = digest((register_prepared, engine, iterations, *target))
            atlas_from_template = [prepared.transforms[id_] for id_ in ids]
            each = zip(scans.images, scans.atlas_masks, atlas_from_template, strict=True)
            keys = [combine_digests(shared, digest(parts)) for parts in each]
            transforms = executor.each("registration.prepared", keys, compute)
        else:
            transforms = compute(range(len(ids)))
        return RegistrationResult(tuple(transforms), (0, 0, 0), scans.target.shape)

    return by_template


def initial_file(pattern: str, target: str, atlas: str) -> Path:
    """Path of the initial transform from a target to an atlas."""
    return Path(pattern.format(target=target, atlas=atlas))


def check_initial_files(recipe: Recipe, library: AtlasLibrary, targets: Sequence[str]) -> None:
    """Check that the files of all initial transforms of a run exist.

    Raises
    ------
    InputError
        A file is missing.
    """
    pattern = recipe.registration.initial
    if pattern is None:
        return
    pairs = [(target, atlas) for target in targets for atlas in library.ids if atlas != target]
    missing = [path for path in (initial_file(pattern, *pair) for pair in pairs) if not path.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: expected the initial transform of a target and an atlas, got no such file "
            f"({len(missing)} of {len(pairs)} are missing). Write the files, or remove [registration] initial."
        )


@cache
def read_checked(folder: Path, library: AtlasLibrary) -> PreparedLibrary:
    """Read a prepared library and check it against its library, once per process (`read_checked.cache_clear`)."""
    prepared = read_prepared(folder)
    prepared.check(library)
    return prepared
