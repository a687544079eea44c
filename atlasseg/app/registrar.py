"""How a recipe registers: by its steps, or by way of the template of a prepared library."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from atlasseg.atlases.library import AtlasLibrary
from atlasseg.atlases.prepared import PreparedLibrary, engine_of, read_prepared, register_prepared
from atlasseg.pipeline import Executor, Registrar, RegistrationResult, Scans, call_directly, register
from atlasseg.recipe import Recipe
from atlasseg.store.cache import Cache
from atlasseg.store.serialisation import digest, joined
from atlasseg.transforms import Transform


def make_registrar(recipe: Recipe, library: AtlasLibrary, executor: Executor = call_directly) -> Registrar:
    """Make the function that registers atlases to a target as the recipe says.

    Parameters
    ----------
    recipe : Recipe
    library : AtlasLibrary
        A prepared library, if the recipe names one, must have been made from it.
    executor : callable
        As for `pipeline.segment`. A `Cache` keeps the result of each atlas on its own.

    Raises
    ------
    InputError
        The prepared library cannot be read, or does not fit `library`.
    """
    folder = recipe.registration.prepared
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
            keys = [joined(shared, digest(parts)) for parts in each]
            transforms = executor.each("registration.prepared", keys, compute)
        else:
            transforms = compute(range(len(ids)))
        return RegistrationResult(tuple(transforms), (0, 0, 0), scans.target.shape)

    return by_template


@cache
def read_checked(folder: Path, library: AtlasLibrary) -> PreparedLibrary:
    """Read a prepared library and check it against its library, once per process (`read_checked.cache_clear`)."""
    prepared = read_prepared(folder)
    prepared.check(library)
    return prepared
