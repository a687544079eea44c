"""The stages whose methods can be chosen, and the data that each of them gives its methods."""

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
"""``mask: Data[Mask | None] = None``: a keyword argument that the pipeline gives, and a recipe therefore cannot."""


@dataclass(frozen=True)
class Stage:
    """A stage: the data arguments of its methods, and the methods used by default.

    Attributes
    ----------
    positional : tuple of str
        Arguments that every method takes first, in this order.
    required : tuple of str
        Keyword arguments that every method takes as well, marked by `Data`.
    optional : tuple of str
        Keyword arguments that a method may take, marked by `Data`.
    package : str
        Subpackage of atlasseg that holds the methods, where it has not the stage's name.
    default : tuple of str
        Methods used where none is chosen, in order: in the command line, in Python and in the default recipe.
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
"""Name of the stage to the data of its methods, in the order in which the stages run."""


def stage_of(name: str) -> Stage:
    """The stage `name`.

    Raises
    ------
    InputError
        There is no such stage.
    """
    if not isinstance(name, str) or name not in STAGES:
        raise InputError(f"there is no stage {name!r} with methods{suggestion(str(name), STAGES)}")
    return STAGES[name]


def suggestion(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'? There are: ..."`` for a name that is not among `known`."""
    every = sorted(known)
    close = difflib.get_close_matches(name, every, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else "."
    return f"{guess} There are: {', '.join(every) or 'none'}"
