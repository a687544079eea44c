# The public modules of this package, loaded when they are first used.

from . import (
    doctor,
    fetching,
    library,
    organs,
    prepared,
    probabilistic,
    selection,
)

__all__ = [
    "doctor",
    "fetching",
    "library",
    "organs",
    "prepared",
    "probabilistic",
    "selection",
]
