"""Homogeneous regions of a volume, their adjacency graph, and label maps made consistent with the regions."""

import lazy_loader as _lazy

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

__getattr__, _dir, _submodules = _lazy.attach(
    __name__,
    [
        "consistency",
        "evidence",
        "figures",
        "label_field",
        "merging",
        "noise",
        "octree",
        "region_growing",
        "split_and_merge",
        "watershed",
    ],
)


def __dir__() -> list[str]:
    return [*__all__, *_submodules]
