"""Conversion to a recipe: from a file, the name of a bundled recipe, a fusion method, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atlasseg import methods, resources
from atlasseg.api.coercion import is_path, refuse
from atlasseg.errors import InputError
from atlasseg.recipe import Recipe, parse_recipe, read_recipe, with_methods
from atlasseg.recipe.defaults import Kind, default_recipe, default_tables, describe
from atlasseg.volume import Atlas, ProbabilityMap

log = logging.getLogger(__name__)

RECIPE = (
    "a recipe (an atlasseg.Recipe, the path of a .toml file, the name of a recipe that comes with atlasseg, "
    "or the name of a fusion method)"
)


def as_recipe(value: Any, *, overrides: Sequence[str] = (), kind: Kind = "multi", what: str = "recipe") -> Recipe:
    """Convert a file, a name, a fusion method or nested tables to a `Recipe`; without a value take the default.

    Parameters
    ----------
    value : Recipe, path, str, mapping or None
        ``"joint"`` or ``"joint+markov_field"`` set the methods of the default recipe; ``"hippocampus"`` is a recipe
        that comes with atlasseg; a mapping holds the tables of the TOML file. None gives the default recipe, which is
        logged.
    overrides : sequence of str
        As in `read_recipe`: ``"fusion.beta=3"``. Not allowed with a `Recipe`, which is already checked.
    kind : {"multi", "single", "probabilistic"}
        Kind of the library; it decides the default.
    what : str
        Name of the argument in messages.

    Returns
    -------
    Recipe

    Raises
    ------
    InputError
        The value has another type, or the recipe is invalid.
    """
    if isinstance(overrides, str) or not all(isinstance(each, str) for each in overrides):
        raise refuse(overrides, "overrides", 'a list of texts like "fusion.beta=3"')
    if isinstance(value, Recipe):
        if overrides:
            raise InputError(f"{what}: expected a path or a name together with overrides, got a Recipe.")
        return value
    if value is None:
        default = default_recipe(kind, overrides=overrides)
        log.info("no recipe given: using the default (%s)", describe(default))
        return default
    if isinstance(value, Mapping):
        return parse_recipe(value, overrides=overrides, where=what)
    if not is_path(value) or not str(value).strip():
        raise refuse(value, what, RECIPE)
    text = str(value)
    fusions, shipped = methods.names("fusion"), resources.shipped_recipes()
    if Path(text).is_file() or text.endswith(".toml") or text in shipped:
        return read_recipe(text, overrides=overrides)
    if text.partition("+")[0] in fusions:
        return _with_variant(text, kind, overrides)
    known = [*fusions, *shipped]
    raise InputError(f"{what}: expected {RECIPE}, got {text!r}{methods.suggestion(text, known)}.")


def as_variants(value: Any, recipe: Recipe) -> list[Recipe]:
    """Make one recipe per fusion method, with or without a refinement; see `as_recipe` for their names.

    Raises
    ------
    InputError
        There are fewer than two different methods, or a method does not exist.
    """
    expected = 'a list of fusion methods, like ["majority", "joint", "joint+markov_field"]'
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise refuse(value, "methods", expected)
    names = list(dict.fromkeys(value))
    if len(names) < 2:
        raise InputError(f"methods: expected at least two different methods to compare, got {names}.")
    return [with_methods(recipe, name) for name in names]


def _with_variant(variant: str, kind: Kind, overrides: Sequence[str]) -> Recipe:
    """Set the methods of the default recipe: ``"FUSION"`` or ``"FUSION+REFINEMENT"``."""
    fusion, plus, refinement = variant.partition("+")
    tables = {**default_tables(kind), "fusion": {"method": fusion}}
    if plus:
        tables["refinement"] = {"method": refinement}
    return parse_recipe(tables, overrides=overrides, name=variant)


def get_kind(atlases: Sequence[Atlas]) -> Kind:
    """Return the kind of a library: single, probabilistic, or multi-atlas."""
    if any(isinstance(atlas.labels, ProbabilityMap) for atlas in atlases):
        return "probabilistic"
    return "single" if len(atlases) == 1 else "multi"
