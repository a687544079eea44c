"""Functions of ``import atlasseg``: one per step of a segmentation, on files or on volumes in memory.

Each function accepts a path, an image of nibabel, SimpleITK or ANTs, or a type of :mod:`atlasseg.volume`;
:mod:`atlasseg.api.coercion` converts them. Where atlases are expected, an `AtlasLibrary` or its folder is accepted too.
A list of inputs gives a list of results in the same order.
"""
