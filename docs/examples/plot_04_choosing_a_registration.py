"""
Choosing a registration
=======================

See what rigid, affine and deformable registration can and cannot do.

The atlases vote with the labels that registration puts in place, so registration decides most of the
result. You learn here how to register one image to another, how to judge the outcome, and what to look for
beside overlap: speed and folds.
"""

# %%
# Register one image
# ------------------
# `register` returns the transform and everything that can be done with it. ``method`` is the model of the
# transform.

import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import atlasseg
from atlasseg.registration.quality import compute_jacobian_determinant
from atlasseg.report import plot_slices

folder = atlasseg.sample_data()
library = atlasseg.read_library(folder / "atlases")
scan = atlasseg.read_image(folder / "targets/images/target1.nii.gz")
reference = atlasseg.read_label_map(folder / "targets/labels/target1.nii.gz")
atlas = library.read("atlas5")

found = atlasseg.register(scan, atlas, "affine")
print(found)

# %%
# ``warped`` is the atlas's image on the grid of the scan. The outlines are the reference labels of the scan:
# with a perfect registration they would fit the warped image exactly.

plot_slices(found.warped, reference, table=library.table, title="atlas5 after affine registration")
plt.show()

# %%
# Four models
# -----------
# A *rigid* transform turns and shifts (6 numbers). An *affine* one also scales and shears (12 numbers). *ffd*
# and *diffeomorphic* move every point on its own, smoothly. We register with each, carry the labels over and
# measure.

rows, results = [], {}
for method in ["rigid", "affine", "ffd", "diffeomorphic"]:
    begun = time.perf_counter()
    found = atlasseg.register(scan, atlas, method)
    seconds = time.perf_counter() - begun
    dice = atlasseg.evaluate(found.warp(atlas.segmentation), reference).mean()["dice"]
    folded = 100 * found.quality.folded_share
    rows.append({"method": method, "Dice": dice, "similarity": found.similarity, "folded %": folded, "s": seconds})
    results[method] = found

pd.DataFrame(rows).set_index("method").round(3)

# %%
# The picture shows why. Rigid registration leaves the outlines away from the structures, deformable
# registration brings them together.

figure, axes = plt.subplots(1, 4, figsize=(12, 3.6), layout="constrained")
for axis, (method, found) in zip(axes, results.items(), strict=True):
    plot_slices(found.warped, reference, table=library.table, planes=["axial"], axes=[axis], title=method)
plt.show()

# %%
# Does it fold?
# -------------
# A deformation of an anatomy must not fold. The Jacobian determinant is the local change of volume: 1 keeps
# it, 2 doubles it, and 0 or less means that space has folded. ``diffeomorphic`` repairs its field until no
# voxel folds.

jacobian = compute_jacobian_determinant(results["diffeomorphic"].transform, scan.grid)
plot_slices(
    scan,
    overlay=jacobian,
    overlay_range=(0, 2),
    overlay_name="Jacobian determinant",
    overlay_colors="coolwarm",
    title="blue shrinks, red grows",
)
plt.show()
print(results["diffeomorphic"].quality)

# %%
# The similarity is measured without any labels, so you can use it on your own scans: an atlas with a much
# lower similarity than the others was probably registered wrongly. See
# :doc:`plot_09_uncertainty_and_quality`.
#
# Points can be carried over as well. This is where the centre of the scan lies in the atlas, in mm:

print(np.round(results["diffeomorphic"].transform_points(scan.grid.centre_mm), 1))
