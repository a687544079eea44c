"""The functions that ``import atlasseg`` offers: one a step of a segmentation, on files or on volumes in memory.

Every argument is taken as a path, as an image of nibabel, SimpleITK or ANTs, or as a type of :mod:`atlasseg.volume`:
:mod:`atlasseg.api.coercion` is the one place that turns one into the other. Where atlases are expected, an
`AtlasLibrary` or its folder will do. Many in give many out, in their order.
"""
