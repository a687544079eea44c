"""Registration of a recipe over files, with kept results."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from atlasseg.api import registrar
from atlasseg.api.registrar import initial_file
from atlasseg.atlases.library import AtlasLibrary
from atlasseg.atlases.prepared import PreparedLibrary, engine_of, read_prepared, register_prepared
from atlasseg.errors import InputError
from atlasseg.pipeline import Executor, Registrar, Scans, call_directly
from atlasseg.recipe import Recipe
from atlasseg.store.cache import Cache
from atlasseg.store.serialisation import combine_digests, digest
from atlasseg.transforms import Transform


def make_registrar(
    recipe: Recipe, library: AtlasLibrary, executor: Executor = call_directly, *, target: str | None = None
) -> Registrar:
    """Make the function that registers atlases to a target by a recipe; see `api.registrar.make_registrar`.

    A `Cache` as `executor` stores the result of each atlas separately.
    """
    folder = recipe.registration.prepared
    if folder is None:
        return registrar.make_registrar(recipe, executor, target=target)
    prepared = read_checked(folder, library)
    each = partial(_register_each, recipe, prepared, executor) if isinstance(executor, Cache) else None
    return registrar.make_registrar(recipe, executor, target=target, prepared=prepared, register_each=each)


def _register_each(
    recipe: Recipe, prepared: PreparedLibrary, cache: Cache, scans: Scans, compute: registrar.Compute
) -> Sequence[Transform]:
    """Register the atlases without a result in the cache."""
    engine, iterations = engine_of(recipe.registration.steps), recipe.registration.refine_iterations
    target = (scans.target, scans.target_mask, prepared.template, prepared.mask)
    shared = digest((register_prepared, engine, iterations, *target))
    atlas_from_template = [prepared.transforms[atlas.id] for atlas in scans.atlases]
    each = zip(scans.images, scans.atlas_masks, atlas_from_template, strict=True)
    keys = [combine_digests(shared, digest(parts)) for parts in each]
    return cache.each("registration.prepared", keys, compute)


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
