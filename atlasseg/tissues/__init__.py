"""Tissue classes of a scan by intensity: one file per model with a function ``classify``; `naming` has their names."""

import lazy_loader as _lazy

from atlasseg.tissues._classes import Tissues

__all__ = ["Tissues"]

__getattr__, _dir, _submodules = _lazy.attach(
    __name__,
    ["chain", "field", "locus", "markov_field", "mixture", "naming", "nearest_neighbours"],
)


def __dir__() -> list[str]:
    return [*__all__, *_submodules]
