"""Homogeneous regions of a volume, the graph of what touches what, and label maps made consistent with both."""

from atlasseg.regions.adjacency_graph import AdjacencyGraph, adjacency_graph
from atlasseg.regions.consistency import Consistent, make_consistent
from atlasseg.regions.instances import Instances, instances
from atlasseg.regions.merging import Merges, merge
from atlasseg.regions.octree import split

__all__ = [
    "AdjacencyGraph",
    "Consistent",
    "Instances",
    "Merges",
    "adjacency_graph",
    "instances",
    "make_consistent",
    "merge",
    "split",
]
