"""
Where is left?
==============

Understand voxels, millimetres and orientation, and why atlasseg does not confuse left and right.

A scan is an array of numbers and an *affine*, a matrix that takes voxel indices to millimetres in the
patient. You learn here to read it, to compare scans stored in different ways, and to test that nothing was
mirrored.
"""

# %%
# The same head, stored in three ways
# -----------------------------------
# The letters say where each axis of the array runs to. ``RAS``: the first index runs to the patient's right,
# the second to anterior (the front), the third to superior (the top). ``LPS`` runs the other way along the
# first two.

import matplotlib.pyplot as plt
import numpy as np

import atlasseg
from atlasseg.report import plot_slices

library = atlasseg.read_library(atlasseg.sample_data() / "atlases")
for id in ["atlas1", "atlas4", "atlas6"]:
    image = library.read(id).image
    print(id, image.grid.orientation, image.shape, image.spacing_mm.round(2), "mm")

# %%
# If you show the arrays as they are, you see three different pictures. Which side is left? You cannot tell.

figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
for axis, id in zip(axes, ["atlas1", "atlas4", "atlas6"], strict=True):
    array = library.read(id).image.array
    axis.imshow(array[:, :, array.shape[2] // 2].T, cmap="gray", origin="lower")
    axis.set(title=f"{id}: the raw array", xticks=[], yticks=[])
plt.show()

# %%
# With the affine the pictures agree. `plot_slices` turns each array so that the patient's right is on the
# left, and marks the sides.

figure, axes = plt.subplots(1, 3, figsize=(9, 3.8), layout="constrained")
for axis, id in zip(axes, ["atlas1", "atlas4", "atlas6"], strict=True):
    atlas = library.read(id)
    plot_slices(atlas.image, atlas.segmentation, table=library.table, planes=["axial"], axes=[axis], title=id)
plt.show()

# %%
# From voxels to millimetres
# --------------------------
# The affine is a 4 x 4 matrix. Its first three columns are the steps along the axes of the array, its last
# column is where voxel (0, 0, 0) lies. Coordinates grow to the patient's Right, Anterior and Superior (RAS+).

scan = library.read("atlas4").image
np.set_printoptions(precision=2, suppress=True)
print(scan.affine)
print("voxel (10, 20, 30) lies at", scan.affine[:3] @ [10, 20, 30, 1], "mm")

# %%
# The way back is the inverse matrix:

print("and that point is voxel", np.linalg.solve(scan.affine, scan.affine @ [10, 20, 30, 1])[:3])

# %%
# Left stays left
# ---------------
# Registration and resampling in atlasseg work in millimetres, so the order of the axes plays no part. The
# test: carry the labels of an atlas stored as ``PSR`` to a scan stored as ``LAS``, and ask where the left
# thalamus lies.

target = atlasseg.read_image(atlasseg.sample_data() / "targets/images/target2.nii.gz")
found = atlasseg.register(target, library.read("atlas4"), "affine")
carried = found.candidate.segmentation
for name in ["Left-Thalamus", "Right-Thalamus"]:
    voxels = np.argwhere(carried.array == library.table.value(name))
    place = carried.affine[:3] @ np.append(voxels.mean(axis=0), 1)
    print(f"{name}: {place[0] - target.grid.centre_mm[0]:+.1f} mm to the right of the middle")

# %%
# A file can still be wrong: a program may have written the wrong affine. ``atlasseg doctor`` compares the two
# affines of a NIfTI file, and the fields of view of all scans. The guide has more on geometry:
# :doc:`/guide/geometry`.
