# The public modules of this package, loaded when they are first used.

from . import (
    corrective_learning,
    examples,
    markov_field,
    network,
    unet,
)

__all__ = [
    "corrective_learning",
    "examples",
    "markov_field",
    "network",
    "unet",
]
