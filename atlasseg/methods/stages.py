"""Stages with selectable methods, and the data that each stage passes to its methods."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from atlasseg.errors import InputError

T = TypeVar("T")


class DataMark:
    """Marks an argument of a method as data; see `Data`."""

    def __repr__(self) -> str:
        return "DATA"


DATA = DataMark()

Data = Annotated[T, DATA]
"""``mask: Data[Mask | None] = None``: a keyword argument that the pipeline passes and a recipe cannot set."""


@dataclass(frozen=True)
class Stage:
    """A stage: the data arguments of its methods, and the methods used by default.

    Parameters
    ----------
    positional : tuple of str
        First arguments of every method, in this order.
    required : tuple of str
        Keyword arguments of every method, marked by `Data`.
    optional : tuple of str
        Optional keyword arguments of a method, marked by `Data`.
    package : str
        Subpackage of atlasseg with the methods, if its name is not that of the stage.
    default : tuple of str
        Default methods, in order, of the command line, of Python functions and of the default recipe.
    """

    positional: tuple[str, ...]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    package: str = ""
    default: tuple[str, ...] = ()

    @property
    def main_default(self) -> str:
        """The last of the default methods, for functions that take a single one."""
        return self.default[-1]


STAGES: dict[str, Stage] = {
    "preprocessing": Stage(("image",), optional=("mask", "reference"), default=("intensity",)),
    "localisation": Stage(("target", "atlases"), optional=("target_mask", "atlas_masks"), default=("combined",)),
    "registration": Stage(
        ("fixed", "moving"),
        required=("initial", "fixed_mask", "moving_masks"),
        default=("affine", "diffeomorphic"),
    ),
    "fusion": Stage(("target", "candidates"), optional=("mask",), default=("joint",)),
    "refinement": Stage(("target", "fused"), optional=("provenance",)),
    "regions": Stage(("image",), optional=("seeds", "markers", "inside", "noise_sd"), default=("split_and_merge",)),
    "tissue": Stage(("image", "inside", "prior"), package="tissues", default=("field",)),
}
"""Stages by name, in the order in which they run."""


def stage_of(name: str) -> Stage:
    """Get a stage by name.

    Raises
    ------
    InputError
        The stage is unknown.
    """
    if not isinstance(name, str) or name not in STAGES:
        raise InputError(f"expected a stage with methods, got {name!r}{suggestion(str(name), STAGES)}")
    return STAGES[name]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Make the end of an error message for an unknown name: ``"; did you mean 'x'? There are: ..."``.

    Parameters
    ----------
    name : str
        The unknown name.
    known : iterable of str
        The known names.

    Returns
    -------
    str
    """
    every = sorted(known)
    close = difflib.get_close_matches(name, every, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else "."
    return f"{guess} There are: {', '.join(every) or 'none'}"
