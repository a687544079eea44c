"""Default recipe for each kind of library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from atlasseg.methods import STAGES
from atlasseg.recipe import Recipe, parse_recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["default_recipe", "default_tables"]

Kind = Literal["single", "probabilistic", "multi"]

NAME = "default"

FUSIONS: dict[Kind, str] = {"multi": STAGES["fusion"].main_default, "single": "majority", "probabilistic": "majority"}
"""A single candidate leaves nothing to fuse: its labels, or the most probable ones, are the result."""


def default_tables(kind: Kind) -> dict[str, dict[str, Any]]:
    """Make the tables of the default recipe.

    Parameters
    ----------
    kind : str
        Kind of the library: "multi" for several labelled scans, "single" for one, "probabilistic" for a template with
        label probabilities.

    Returns
    -------
    dict of str to dict
        Tables by section.

    Examples
    --------
    >>> default_tables("multi")["fusion"]
    {'method': 'joint'}
    """
    return {
        "preprocessing": {"steps": list(STAGES["preprocessing"].default)},
        "registration": {"steps": list(STAGES["registration"].default)},
        "fusion": {"method": FUSIONS[kind]},
    }


def default_recipe(kind: Kind, *, overrides: Sequence[str] = ()) -> Recipe:
    """Create the default recipe. Its output folder is ``out/default`` in the current folder.

    Parameters
    ----------
    kind : str
        As for `default_tables`.
    overrides : sequence of str
        As for `read_recipe`.

    Returns
    -------
    Recipe
    """
    tables = {"data": {"out": f"out/{NAME}"}, **default_tables(kind)}
    return parse_recipe(tables, overrides=overrides, where="--set", name=NAME)


def describe(recipe: Recipe) -> str:
    """Describe the methods of a recipe in one line, stage by stage.

    Examples
    --------
    >>> describe(default_recipe("multi"))
    'preprocessing intensity; registration affine, diffeomorphic; fusion joint'
    """
    stages = {
        "preprocessing": recipe.preprocessing.steps,
        "localisation": (recipe.localisation.method,),
        "registration": recipe.registration.steps,
        "fusion": (recipe.fusion.method,),
        "refinement": (recipe.refinement.method,),
    }
    named = {stage: [step.name for step in steps if step is not None] for stage, steps in stages.items()}
    return "; ".join(f"{stage} {', '.join(names)}" for stage, names in named.items() if names)
