# The public modules of this package, loaded when they are first used.

from . import (
    contrast,
    gaussian_mixture,
    generative,
    global_weighted,
    joint,
    local_weighted,
    majority,
    markov_chain,
    markov_field,
    nearest_patches,
    nonlocal_staple,
    simple,
    staple,
    steps,
)

__all__ = [
    "contrast",
    "gaussian_mixture",
    "generative",
    "global_weighted",
    "joint",
    "local_weighted",
    "majority",
    "markov_chain",
    "markov_field",
    "nearest_patches",
    "nonlocal_staple",
    "simple",
    "staple",
    "steps",
]
