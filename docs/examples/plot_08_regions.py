"""
Regions
=======

Cut a scan into homogeneous regions, and use them to clean a segmentation.

Regions need no atlas: they are parts of the scan in which the intensity is even. You learn here what the
octree does, how regions are merged, and how they correct single voxels of a segmentation.
"""

# %%
# A slice of 8 x 8 pixels
# -----------------------
# Start with the classic example. An octree (here a quadtree) halves every block whose values differ. Then
# blocks with equal values that touch are merged. The sevens are one region of 26 pixels in the end.

import matplotlib.pyplot as plt
import numpy as np

import atlasseg
from atlasseg.regions import adjacency_graph, figures, make_consistent, merge, split, split_and_merge
from atlasseg.report import plot_slices

rows = ["01007777", "10227777", "02227777", "44227777", "00113377", "11223777", "24305777", "23355077"]
digits = np.array([[float(digit) for digit in row] for row in rows])
image = atlasseg.Image(digits[..., None], np.eye(4))
blocks = split(image, homogeneity="range", threshold=0)
regions = split_and_merge.partition(image, homogeneity="range", split_threshold=0)

figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.8), layout="constrained")
titles = ["pixels", f"split: {blocks.array.max()} blocks", f"merged: {regions.array.max()} regions"]
for axis, parts, title in zip(axes, [None, blocks, regions], titles, strict=True):
    axis.imshow(digits, cmap="Blues", vmax=14)
    for row, column in np.ndindex(digits.shape):
        axis.text(column, row, f"{digits[row, column]:.0f}", ha="center", va="center")
    if parts is not None:
        for value in np.unique(parts.array):
            inside = np.kron(parts.array[..., 0] == value, np.ones((20, 20)))
            axis.contour(np.arange(160) / 20 - 0.475, np.arange(160) / 20 - 0.475, inside, [0.5], colors="#e69f00")
    axis.set(title=title, xticks=[], yticks=[])
plt.show()

# %%
# Split
# -----
# In three dimensions an octree starts with the whole scan and halves every block that is not homogeneous,
# until every block is. "Homogeneous" now means that the block varies no more than the noise, which is
# estimated from the scan.

folder = atlasseg.sample_data()
scan = atlasseg.read_image(folder / "targets/images/target1.nii.gz")
blocks = split(scan)
figures.borders(scan, blocks, title="Octree blocks")

# %%
# Merge
# -----
# Blocks that touch and look alike are merged, the most similar pair first. What is left follows the anatomy.

regions = split_and_merge.partition(scan)
figures.borders(scan, regions, title="Regions")

# %%
# The dendrogram shows how merging would go on. The height is the cost of a merge: a long vertical line is a
# region that differs from all its neighbours.

graph = adjacency_graph(scan, regions)
figures.dendrogram(merge(graph, regions=1))

# %%
# Clean a segmentation
# --------------------
# We take a true segmentation and add speckles: five percent of the voxels get the label of another structure.
# This is an exaggerated picture of what a fusion can leave behind.

truth = atlasseg.read_label_map(folder / "targets/labels/target1.nii.gz")
rng = np.random.default_rng(0)
speckled = truth.array.copy()
hit = (rng.random(truth.shape) < 0.05) & (truth.array != 0)
speckled[hit] = rng.choice(truth.values[1:], hit.sum())
speckled = truth.with_array(speckled)
plot_slices(scan, speckled, filled=True, title="with speckles")
plt.show()

# %%
# `make_consistent` gives islands, small separate parts of a label, to the neighbour that explains them best.

cleaned = make_consistent(scan, speckled)
plot_slices(scan, cleaned.labels, filled=True, title="cleaned")
plt.show()

for name, labels in {"speckled": speckled, "cleaned": cleaned.labels}.items():
    print(name, round(atlasseg.evaluate(labels, truth).mean()["dice"], 3))

# %%
# In a recipe, regions are the last stage: a table ``[regions]`` switches them on. All keys are on the page
# :doc:`/generated/recipe/regions`, and the methods of cutting on :doc:`/generated/methods/regions/index`.
