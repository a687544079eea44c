"""
Comparing fusion methods
========================

Find out which way of fusing is best for your data.

Registration takes most of the time, and it does not depend on the fusion. So atlasseg registers once and
fuses in several ways. You learn here how to compare methods on the same registrations, and how to tell a
real difference from chance.
"""

# %%
# Compare
# -------
# We need targets with reference labels. The library itself will do: each atlas is segmented with the others,
# which is called leave-one-out. Here we take three atlases as targets to keep the example short; use all of
# yours.

import matplotlib.pyplot as plt
import numpy as np

import atlasseg
from atlasseg.report import plot_slices

library = atlasseg.read_library(atlasseg.sample_data() / "atlases")
targets = library.only(["atlas1", "atlas3", "atlas5"])

methods = ["majority", "global_weighted", "local_weighted", "staple"]
found = atlasseg.compare(targets, library, methods)
print(found)

# %%
# Scores
# ------
# ``scores`` has the mean Dice over all labels: one row a target, one column a method.

found.scores.round(4)

# %%
# ``metrics`` has every measure of every label. We plot the Dice of all labels, one colour a method.

dice = found.metrics[(found.metrics["metric"] == "dice") & found.metrics["label"].notna()]
figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
axis.boxplot([dice.loc[dice["method"] == name, "value"] for name in methods], tick_labels=methods)
axis.set(ylabel="Dice", title="Dice over all labels and targets")
axis.grid(axis="y", alpha=0.3)
plt.show()

# %%
# Is the difference real?
# -----------------------
# The same targets were fused in every way, so the differences are paired. The Wilcoxon signed-rank test is
# made for that, and Holm's correction accounts for the number of pairs. Three targets are too few for any
# test: no p-value can be small. That is what the table should say.

found.tests.round(3)

# %%
# Where do they differ?
# ---------------------
# Register once by hand, fuse twice, and mark the voxels where the two methods give different labels. They lie
# on borders: away from borders all atlases agree, and then every fusion gives the same answer.

scan = atlasseg.read_image(atlasseg.sample_data() / "targets/images/target1.nii.gz")
registered = atlasseg.register(scan, library)
candidates = [each.candidate for each in registered]
majority = atlasseg.fuse(scan, candidates, "majority").label_map()
local = atlasseg.fuse(scan, candidates, "local_weighted").label_map()

different = np.where(majority.array != local.array, 1.0, np.nan)
print(f"{np.nansum(different) / (local.array != 0).sum():.1%} of the labelled voxels differ")
counts = [np.nansum(different, axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
at_mm = scan.affine[:3] @ [*(count.argmax() for count in counts), 1]  # the planes with most differences
plot_slices(
    scan,
    overlay=different,
    overlay_range=(0, 1),
    overlay_colors="autumn_r",
    at_mm=at_mm,
    title="red: majority and local_weighted differ",
)
plt.show()

# %%
# In a terminal ``atlasseg compare RECIPE --methods majority,joint`` does the same for many targets, in
# parallel, with a report. All 13 methods have a page with equations: :doc:`/generated/methods/fusion/index`.
