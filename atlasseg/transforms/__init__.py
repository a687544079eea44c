"""Data types: spatial transforms, from RAS+ millimetres to RAS+ millimetres.

A transform is a function of points: ``t(points_mm)``; ``a @ b`` is `a` after `b`, so ``(a @ b)(x) == a(b(x))``;
``~t`` is the inverse. A registration returns `moving_from_fixed`: it takes points of the fixed (target) image to
points of the moving (atlas) image, which is what resampling pulls with.

``t.to_sitk()`` is the same transform for SimpleITK; files are read and written in :mod:`atlasseg.io`.
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
    inverse_matrix,
    slabs,
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
    "inverse_matrix",
    "slabs",
    "to_displacement_field",
]
