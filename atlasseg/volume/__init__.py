"""Data types: images, label maps, masks, label probabilities and atlases on a grid in space.

Arrays are in NIfTI order ``(i, j, k)``. An affine maps voxel indices to RAS+ millimetres. Files are read in
:mod:`atlasseg.io`, and volumes are resampled in :mod:`atlasseg.resampling`. ``to_nibabel``, ``to_sitk`` and ``to_ants``
convert to objects of other libraries; ``from_nibabel``, ``from_sitk`` and ``from_ants`` convert from them.
"""

from atlasseg.volume.atlas import Atlas, check_channels
from atlasseg.volume.dense import Image, LabelMap, Mask
from atlasseg.volume.grid import (
    SAME_GRID_TOLERANCE_VOXELS,
    Bool,
    Float32,
    Float64,
    Grid,
    Int32,
    Int64,
    SourceHeader,
)
from atlasseg.volume.label_weights import LabelWeights, take_entries
from atlasseg.volume.probabilities import ProbabilityMap

__all__ = [
    "SAME_GRID_TOLERANCE_VOXELS",
    "Atlas",
    "Bool",
    "Float32",
    "Float64",
    "Grid",
    "Image",
    "Int32",
    "Int64",
    "LabelMap",
    "LabelWeights",
    "Mask",
    "ProbabilityMap",
    "SourceHeader",
    "check_channels",
    "take_entries",
]
