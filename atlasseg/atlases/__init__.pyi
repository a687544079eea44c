# The public modules of this package, loaded when they are first used.

from . import (
    fetching,
    library,
    organs,
    prepared,
    probabilistic,
    selection,
    structures,
)

__all__ = [
    "fetching",
    "library",
    "organs",
    "prepared",
    "probabilistic",
    "selection",
    "structures",
]
