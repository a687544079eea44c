"""Tissues of a scan from its intensities: one file a model, each with a function ``classify``; `naming` names them."""

import lazy_loader as _lazy

from atlasseg.tissues._classes import Tissues

__all__ = ["Tissues"]

__getattr__, _dir, _submodules = _lazy.attach(
    __name__,
    ["chain", "field", "locus", "markov_field", "mixture", "naming", "nearest_neighbours"],
)


def __dir__() -> list[str]:
    return [*__all__, *_submodules]
