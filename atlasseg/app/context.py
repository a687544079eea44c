"""Context of a run: library, targets, recipe, output folder and cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from atlasseg import io
from atlasseg.app import outputs
from atlasseg.app.case import read_atlas
from atlasseg.app.earlier import EarlierResults
from atlasseg.app.registrar import check_initial_files, make_registrar, read_checked
from atlasseg.atlases.library import AtlasLibrary, Target, read_library, read_targets
from atlasseg.errors import InputError
from atlasseg.files import sweep
from atlasseg.pipeline import check_provenance
from atlasseg.recipe import Recipe
from atlasseg.store.cache import PARTIAL, Cache, open_cache

CACHE, LOGS = ".cache", "logs"
"""Folders in the output folder: the default cache, and the logs of failed targets."""

DEFAULT_LIMIT_BYTES = 50_000_000_000
"""Default size limit of the cache."""


@dataclass(frozen=True, eq=False)
class RunContext:
    """Context that all targets of a run share.

    Parameters
    ----------
    library : AtlasLibrary
    recipe : Recipe
    out : path
        Output folder.
    cache : path
        Cache folder.
    limit_bytes : int or None
        Size limit of the cache.
    earlier : EarlierResults
        Folder for results of earlier runs in `out`.
    """

    library: AtlasLibrary
    recipe: Recipe
    out: Path
    cache: Path
    limit_bytes: int | None
    earlier: EarlierResults

    @property
    def kept(self) -> Cache:
        """Cache of this process."""
        return open_cache(self.cache, self.limit_bytes)


def load_inputs(recipe: Recipe) -> tuple[AtlasLibrary, tuple[Target, ...], Path]:
    """Load the library, find the targets and create the output folder of a recipe, and check all of them.

    Raises
    ------
    InputError
        The recipe has no library, targets or output folder, or is a tissue recipe; an atlas cannot be read; or the
        prepared library does not match.
    OutputError
        The output folder cannot be written.
    """
    if recipe.tissue is not None:
        raise InputError(f"recipe {recipe.name}: expected a recipe without [tissue]. Use the command atlasseg tissue.")
    if not recipe.data.atlases or not recipe.data.targets or recipe.data.out is None:
        raise InputError(
            f"recipe {recipe.name}: expected atlases, targets and out in [data]. Add them, or give them as options."
        )
    library = read_library(*recipe.data.atlases, **recipe.data.reading)
    targets = read_targets(recipe.data.targets, **recipe.data.reading)
    outputs.check_formats(recipe, targets)
    read_checked.cache_clear()
    read_atlas.cache_clear()  # files may have changed since an earlier run in this process
    for id_ in library.ids:
        read_atlas(library, id_)  # to find a broken atlas before the work starts
    check_initial_files(recipe, library, [target.id for target in targets])
    if targets:
        make_registrar(recipe, library, target=targets[0].id)
    out = recipe.data.out
    outputs.check_writable(out)
    return library, targets, out


def begin_run(
    recipe: Recipe,
    library: AtlasLibrary,
    targets: Sequence[Target],
    *,
    cache: Path | None,
    limit_bytes: int | None,
    keep_others: bool = False,
) -> RunContext:
    """Set aside the results of earlier runs in the output folder, and write the description of the new run.

    Parameters
    ----------
    recipe : Recipe
    library, targets
        From `load_inputs`.
    cache, limit_bytes
        As for `RunContext`; by default the cache is in the output folder.
    keep_others : bool
        Keep the results of targets that are not in this run, because several runs share the folder.

    Raises
    ------
    OutputError
        The output folder cannot be written.
    """
    out = recipe.data.out
    assert out is not None
    cache = cache or out / CACHE
    sweep(cache / PARTIAL)
    context = RunContext(library, recipe, out, cache, limit_bytes, EarlierResults.now(out))
    description = outputs.dataset_description(recipe)
    if not keep_others:
        context.earlier.begin(description, {target.id for target in targets})
    io.write_json(description, out / outputs.DESCRIPTION)
    return context


def training_library(recipe: Recipe, without: Collection[str] = ()) -> AtlasLibrary:
    """Read the library of a recipe without some atlases, to train a refinement.

    Raises
    ------
    InputError
        The recipe has no library, or an atlas in `without` does not exist.
    """
    if not recipe.data.atlases:
        raise InputError(f"recipe {recipe.name}: expected atlases in [data]. Add them, or give them as an option.")
    library = read_library(*recipe.data.atlases, **recipe.data.reading)
    return library.only([id_ for id_ in library.ids if id_ not in {library.files(left).id for left in without}])


def unusable_variants(variants: Sequence[Recipe], library: AtlasLibrary, targets: Sequence[Target]) -> dict[str, str]:
    """Find the variants whose refinement cannot be used on every target, with the reason.

    A model may have been trained for another fusion, or with other atlases than those that vote on a target.
    """
    voters = dict.fromkeys(tuple(id_ for id_ in library.ids if id_ != target.id) for target in targets)
    found: dict[str, str] = {}
    for each in variants:
        try:
            for ids in voters:
                check_provenance([read_atlas(library, id_) for id_ in ids], each)
        except InputError as error:
            found[each.variant] = str(error)
    return found
