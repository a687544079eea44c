"""Registration of a recipe: by its steps, from initial transforms, or through the template of a prepared library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from atlasseg import io
from atlasseg.atlases.library import AtlasLibrary
from atlasseg.atlases.prepared import PreparedLibrary, engine_of, read_prepared, register_prepared
from atlasseg.errors import InputError
from atlasseg.pipeline import Executor, Registrar, RegistrationResult, Scans, call_directly, register
from atlasseg.recipe import Recipe
from atlasseg.transforms import Transform

Compute = Callable[[Sequence[int]], list[Transform]]
"""Function that registers the atlases with the given positions among those of the scans."""


def make_registrar(
    recipe: Recipe,
    executor: Executor = call_directly,
    *,
    target: str | None = None,
    prepared: PreparedLibrary | None = None,
    register_each: Callable[[Scans, Compute], Sequence[Transform]] | None = None,
) -> Registrar:
    """Make the function that registers atlases to a target by a recipe.

    Parameters
    ----------
    recipe : Recipe
        The recipe.
    executor : callable
        As for `pipeline.segment`.
    target : str, optional
        Id of the target, for recipes with initial transforms.
    prepared : PreparedLibrary, optional
        The prepared library of the recipe, from `load_prepared`.
    register_each : callable, optional
        Function that calls its second argument for all atlases, or for those without a kept result.

    Returns
    -------
    callable
        Function of `Scans` that returns a `RegistrationResult`.

    Raises
    ------
    InputError
        The recipe has initial transforms, and the target is missing, or the file of an atlas is missing or cannot be
        read.
    """
    pattern = recipe.registration.initial
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
    if prepared is None:
        return partial(register, recipe=recipe, executor=executor)
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

        transforms = compute(range(len(ids))) if register_each is None else register_each(scans, compute)
        return RegistrationResult(tuple(transforms), (0, 0, 0), scans.target.shape)

    return by_template


def initial_file(pattern: str, target: str, atlas: str) -> Path:
    """Path of the initial transform from a target to an atlas."""
    return Path(pattern.format(target=target, atlas=atlas))


def load_prepared(recipe: Recipe, library: Any) -> PreparedLibrary | None:
    """Read the prepared library of a recipe and check it against `library`; None if the recipe has none.

    Raises
    ------
    InputError
        It cannot be read, or does not match `library`.
    """
    folder = recipe.registration.prepared
    if folder is None:
        return None
    if not isinstance(library, AtlasLibrary):
        raise InputError(
            f"recipe {recipe.name}: expected the library that {folder} was prepared from, got atlases in memory. "
            "Give an AtlasLibrary or its folder."
        )
    prepared = read_prepared(folder)
    prepared.check(library)
    return prepared
