"""
Tissue classes
==============

Divide a brain into fluid, grey matter and white matter from its intensities alone.

No atlas is needed. A Gaussian mixture finds the intensities of the classes, and at the same time the *bias
field*, the smooth change of brightness across the scan. You learn here how to run the three models, how to
look at the bias field, and what partial volume is.
"""

# %%
# A phantom
# ---------
# The phantom is a folded brain with noise and a strong bias field. For every voxel the true fractions of the
# three tissues are known.

import matplotlib.pyplot as plt
import numpy as np

import atlasseg
from atlasseg.phantoms import TISSUES, tissue
from atlasseg.report import plot_slices

phantom = tissue(noise_percent=3, bias_percent=40)
scan = phantom.image
inside = phantom.mask
plot_slices(scan, title="3 % noise, 40 % bias field")
plt.show()

# %%
# Classify
# --------
# ``field`` is the default model: a voxel's class depends on its intensity and on its neighbours. The classes
# are numbered by ascending intensity.

found = atlasseg.tissue(scan, "field", mask=inside, classes=3)
plot_slices(scan, found.labels, filled=True, title="classes by the model field")
plt.show()

# %%
# The bias field
# --------------
# The estimated field and the corrected scan. White matter now has one brightness everywhere.

gain = np.where(inside.array, found.bias.array, np.nan)
plot_slices(scan, overlay=gain, overlay_name="gain", overlay_colors="viridis", title="estimated bias field")
plot_slices(found.corrected, title="corrected scan")
plt.show()

# %%
# Three models
# ------------
# ``mixture`` looks at each voxel alone, ``chain`` adds the voxel before it along a space-filling curve,
# ``field`` adds all 26 neighbours. The more noise there is, the more neighbours help. We try 9 % noise.

noisy = tissue(noise_percent=9, bias_percent=20)
for model in ["mixture", "chain", "field"]:
    labels = atlasseg.tissue(noisy.image, model, mask=noisy.mask, classes=3).labels
    dice = atlasseg.evaluate(labels, noisy.truth)["dice"]
    print(f"{model}: Dice of fluid, grey and white matter {dice.round(3).tolist()}")

# %%
# Partial volume
# --------------
# A voxel on a border holds two tissues. The probability of a class is therefore its expected *fraction* of
# the voxel. Summed over the scan, fractions give better volumes than counting whole voxels.

voxel_ml = float(np.prod(scan.spacing_mm)) / 1000
for number, name in enumerate(TISSUES, start=1):
    counted = (found.labels.array == number).sum() * voxel_ml
    summed = found.probabilities.probability(number).sum() * voxel_ml
    true = phantom.fractions[..., number - 1].sum() * voxel_ml
    print(f"{name}: {counted:.1f} ml counted, {summed:.1f} ml by fractions, {true:.1f} ml true")
