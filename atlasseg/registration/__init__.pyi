# The public modules of this package, loaded when they are first used.

from . import (
    affine,
    coupled_convex,
    diffeomorphic,
    elastix,
    ffd,
    fit,
    itk_affine,
    itk_bspline,
    itk_rigid,
    outliers,
    quality,
    rigid,
    similarity_transform,
    syn,
    template,
    thin_plate,
)

__all__ = [
    "affine",
    "coupled_convex",
    "diffeomorphic",
    "elastix",
    "ffd",
    "fit",
    "itk_affine",
    "itk_bspline",
    "itk_rigid",
    "outliers",
    "quality",
    "rigid",
    "similarity_transform",
    "syn",
    "template",
    "thin_plate",
]
