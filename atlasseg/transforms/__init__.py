"""Data types: spatial transforms, from RAS+ millimetres to RAS+ millimetres.

A transform maps points: ``t(points_mm)``. ``a @ b`` composes two transforms, `b` first: ``(a @ b)(x) == a(b(x))``.
``~t`` is the inverse. A registration returns `moving_from_fixed`, which maps points of the fixed (target) image to
points of the moving (atlas) image. Resampling the moving image onto the fixed grid needs this direction.

``t.to_sitk()`` converts a transform to SimpleITK. Transform files are read and written in :mod:`atlasseg.io`.
"""

from atlasseg.transforms._kernels import EDGE_VOXELS
from atlasseg.transforms.base import (
    INVERSE_MAX_ITERATIONS,
    INVERSE_TOLERANCE_MM,
    Affine,
    Chain,
    Inverse,
    Transform,
    grid_points,
    invert_matrix,
    split_slabs,
)
from atlasseg.transforms.fields import (
    ALIGNED_TOLERANCE,
    BSplineField,
    DisplacementField,
    to_displacement_field,
)

__all__ = [
    "ALIGNED_TOLERANCE",
    "EDGE_VOXELS",
    "INVERSE_MAX_ITERATIONS",
    "INVERSE_TOLERANCE_MM",
    "Affine",
    "BSplineField",
    "Chain",
    "DisplacementField",
    "Inverse",
    "Transform",
    "grid_points",
    "invert_matrix",
    "split_slabs",
    "to_displacement_field",
]
