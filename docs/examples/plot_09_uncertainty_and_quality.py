"""
Uncertainty and quality control
===============================

Find out how far a result can be trusted, with and without a reference.

Every voxel of a segmentation comes with probabilities. You learn here how to look at the uncertainty, how
to test whether the probabilities are honest, how to predict the Dice coefficient without a reference, and
how a failed registration is found.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import atlasseg
from atlasseg.evaluation.calibration import reliability
from atlasseg.evaluation.prediction import expected_dice
from atlasseg.report import plot_slices

folder = atlasseg.sample_data()
library = atlasseg.read_library(folder / "atlases")
scan = atlasseg.read_image(folder / "targets/images/target2.nii.gz")
reference = atlasseg.read_label_map(folder / "targets/labels/target2.nii.gz")
result = atlasseg.segment(scan, library, "local_weighted")

# %%
# Where is it uncertain?
# ----------------------
# The entropy is 0 bits where one label has all the probability, and 1 bit where two labels are equally
# probable.

plot_slices(scan, overlay=result.probabilities.entropy(), overlay_range=(0, 1), overlay_name="entropy (bits)")
plt.show()

# %%
# Do the errors lie there? The mean entropy of wrong voxels is far higher than that of right ones:

wrong = result.labels.array != reference.array
entropy = result.probabilities.entropy()
labelled = (reference.array != 0) | (result.labels.array != 0)
print(f"right: {entropy[labelled & ~wrong].mean():.2f} bits, wrong: {entropy[labelled & wrong].mean():.2f} bits")

# %%
# Are the probabilities honest?
# -----------------------------
# Of all voxels whose label has the probability 0.8, 80 % should be right. The reliability diagram compares
# the two. Points below the diagonal mean that the method is too sure of itself.

figure, axis = plt.subplots(figsize=(4.5, 4.2), layout="constrained")
axis.plot([0, 1], [0, 1], "--", color="0.6")
candidates = [each.atlas for each in result.alignment.candidates]
for method in ["majority", "local_weighted", "staple"]:
    fused = atlasseg.fuse(result.alignment.target, candidates, method)
    table = reliability(fused.padded_to(scan.grid, result.alignment.start), reference)
    name = f"{method} (error {table.expected_calibration_error:.3f})"
    axis.plot(table.confidence, table.accuracy, "o-", label=name)
axis.set(xlabel="probability", ylabel="share that is right", title="Reliability", xlim=(0, 1), ylim=(0, 1))
axis.legend()
plt.show()

# %%
# Majority and local weighting lie above the diagonal: they are less sure than they could be. STAPLE lies below it.
#
# Predict the Dice without a reference
# ------------------------------------
# From the probabilities follows the Dice that can be expected. It tells difficult structures from easy ones.

predicted = expected_dice(result.probabilities)
scores = atlasseg.evaluate(result.labels, reference, table=library.table)
labels = sorted(predicted)
frame = pd.DataFrame(
    {"predicted": [predicted[label] for label in labels], "true": [scores["dice", label] for label in labels]},
    index=[library.table.name(label) for label in labels],
)
frame.round(3)

# %%
figure, axis = plt.subplots(figsize=(4.5, 4.2), layout="constrained")
axis.scatter(frame["predicted"], frame["true"])
axis.plot([0.8, 1], [0.8, 1], "--", color="0.6")
axis.set(xlabel="predicted Dice", ylabel="true Dice", title="One point a structure")
plt.show()

# %%
# All points lie above the line: probabilities that are too careful predict a Dice that is too low. The order of the
# structures is the useful part.
#
# Which registration failed?
# --------------------------
# An atlas of something else must not vote. We add one whose intensities are pure noise. Its similarity to the
# scan is far below that of the others, so it is flagged and left out.

good = library.read("atlas1")
noise = np.random.default_rng(0).normal(100, 20, good.image.shape)
bad = atlasseg.Atlas("noise", good.image.with_array(noise), good.segmentation)
atlases = [*(library.read(id) for id in library.ids), bad]
with_bad = atlasseg.segment(scan, atlases, "local_weighted")
rows = [
    {"atlas": each.atlas.id, "similarity": each.similarity, "votes": each.qc.keep, "reason": each.qc.reason}
    for each in with_bad.alignment.candidates
]
pd.DataFrame(rows).set_index("atlas").round(3)
