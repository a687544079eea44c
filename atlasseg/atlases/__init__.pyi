# The public modules of this package, loaded when they are first used.

from . import (
    channels,
    fetching,
    library,
    organs,
    prepared,
    probabilistic,
    selection,
    structures,
)

__all__ = [
    "channels",
    "fetching",
    "library",
    "organs",
    "prepared",
    "probabilistic",
    "selection",
    "structures",
]
