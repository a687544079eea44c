# The public modules of this package, loaded when they are first used.

from . import (
    crop,
    foreground,
    histogram_matching,
    intensity,
    n4,
    window,
)

__all__ = [
    "crop",
    "foreground",
    "histogram_matching",
    "intensity",
    "n4",
    "window",
]
