"""
Registering other contrasts
===========================

Choose a similarity metric for scans whose contrasts differ.

Registration moves an image until it is as similar as possible to another. What "similar" means is the
*metric*. If scan and atlases come from one kind of scanner and sequence, nearly any metric works. If they
do not, the wrong metric fails. You learn here which metric suits which case.
"""

# %%
# A scan with inverted contrast
# -----------------------------
# We invert the intensities of the target: what was bright is dark. This stands for a T2-weighted scan beside
# T1-weighted atlases.

import matplotlib.pyplot as plt
import pandas as pd

import atlasseg
from atlasseg.report import plot_slices

folder = atlasseg.sample_data()
atlas = atlasseg.read_library(folder / "atlases").read("atlas1")
scan = atlasseg.read_image(folder / "targets/images/target1.nii.gz")
reference = atlasseg.read_label_map(folder / "targets/labels/target1.nii.gz")

head = scan.array > 0.15 * scan.array.max()
other_contrast = scan.with_array((scan.array.max() * 1.2 - scan.array) * head)
plot_slices(other_contrast, title="the target with inverted contrast")
plt.show()

# %%
# Four metrics
# ------------
# ``mean_squares`` compares the intensities themselves, ``correlation`` and ``local_correlation`` their linear
# relation, and ``mutual_information`` any relation. The local correlation is squared, so it takes bright for
# dark as well as bright for bright.

rows = []
for name, target in {"same contrast": scan, "inverted": other_contrast}.items():
    for metric in ["mean_squares", "correlation", "local_correlation", "mutual_information"]:
        found = atlasseg.register(target, atlas, "affine", metric=metric)
        dice = atlasseg.evaluate(found.warp(atlas.segmentation), reference).mean()["dice"]
        rows.append({"metric": metric, "target": name, "Dice": dice})

table = pd.DataFrame(rows).pivot(index="metric", columns="target", values="Dice")
table.round(3)

# %%
figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
table.plot.barh(ax=axis, color=["#d55e00", "#0072b2"])
axis.set(xlabel="Dice after affine registration", ylabel="", title="Metrics on the same and on inverted contrast")
axis.legend(title="target", loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %%
# With inverted contrast ``mean_squares`` and ``correlation`` fail: they pull bright onto bright.
# ``local_correlation`` finds its way, and ``mutual_information`` loses nothing.
#
# Rule of thumb: keep the default, ``local_correlation``, for scans of one kind. It is robust to a bias field,
# because it looks at one small window at a time. Take ``mutual_information`` for scans of different modality.
# ``mean_squares`` is for scans on one intensity scale, such as CT.
