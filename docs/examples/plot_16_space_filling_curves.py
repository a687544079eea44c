"""
Space-filling curves
====================

Put the voxels of a volume into one order, for methods that work along a chain.

A hidden Markov chain is much faster than a field: it visits every voxel once. It needs an order in which
neighbours in the chain are neighbours in space. You learn here which curves there are, and how well they
keep near voxels together.
"""

# %%
# Two curves
# ----------
# The Hilbert curve turns at every step and fills one part of the box after the other. The serpentine scan
# runs through whole rows. Both work for boxes of any size, and every step goes to a voxel that shares a face
# with the last one.

import matplotlib.pyplot as plt
import numpy as np

from atlasseg.statistics.curves import curve

figure = plt.figure(figsize=(11, 3.8), layout="constrained")
for number, (shape, name) in enumerate([((8, 8, 8), "hilbert"), ((9, 7, 5), "hilbert"), ((9, 7, 5), "serpentine")]):
    points = np.stack(np.unravel_index(curve(shape, name), shape), axis=1)
    axis = figure.add_subplot(1, 3, number + 1, projection="3d")
    for n in range(len(points) - 1):
        axis.plot(*points[n : n + 2].T, color=plt.colormaps["viridis"](n / len(points)), linewidth=1.6)
    axis.set(title=f"{name}, {shape[0]} x {shape[1]} x {shape[2]}", xticks=[], yticks=[], zticks=[])
    axis.set_box_aspect(shape)
plt.show()

# %%
# How near do they stay?
# ----------------------
# Take two voxels that are some steps apart along the curve. How far are they apart in space? The smaller the
# distance, the more of a voxel's surroundings the chain remembers.

steps = np.arange(1, 200)
shape = (24, 24, 24)
figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name in ["hilbert", "serpentine"]:
    points = np.stack(np.unravel_index(curve(shape, name), shape), axis=1).astype(float)
    apart = [np.linalg.norm(points[step:] - points[:-step], axis=1).mean() for step in steps]
    axis.plot(steps, apart, label=name)
axis.set(xlabel="steps along the curve", ylabel="mean distance (voxels)", title="Distance in space")
axis.legend()
plt.show()

# %%
# ``atlasseg tissue --model chain`` and the fusion ``markov_chain`` use the Hilbert curve by default.
