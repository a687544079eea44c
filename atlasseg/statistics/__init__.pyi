# The public modules of this package, loaded when they are first used.

from . import (
    belief_propagation,
    bias_field,
    curves,
    gaussian_mixture,
    gaussians,
    graph_cut,
    icm,
    kmeans,
    label_posteriors,
    locus,
    markov_chain,
    markov_field,
    mean_field,
    nearest_neighbours,
)

__all__ = [
    "belief_propagation",
    "bias_field",
    "curves",
    "gaussian_mixture",
    "gaussians",
    "graph_cut",
    "icm",
    "kmeans",
    "label_posteriors",
    "locus",
    "markov_chain",
    "markov_field",
    "mean_field",
    "nearest_neighbours",
]
