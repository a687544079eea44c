"""
A probabilistic atlas
=====================

Average a library into one template that knows how probable each label is at each voxel.

Many atlases need many registrations for each scan. A probabilistic atlas needs one. You learn here how to
make a template and an atlas from a library, what the smoothing does, and what you give up.
"""

# %%
# The template
# ------------
# `groupwise_template` registers all scans to their mean, again and again. The result is a scan of mean
# intensity and mean shape, and a transform from it to every atlas. We take five atlases and keep one to try
# the result on.

import matplotlib.pyplot as plt
import numpy as np

import atlasseg
from atlasseg.atlases.probabilistic import average
from atlasseg.registration.template import groupwise_template
from atlasseg.report import plot_slices

library = atlasseg.read_library(atlasseg.sample_data() / "atlases")
atlases = [library.read(id) for id in library.without("atlas6").ids]
template, mask, transforms = groupwise_template([atlas.image for atlas in atlases], rounds=1)

plot_slices(template, title="template of five atlases")
plt.show()

# %%
# The average
# -----------
# Every atlas votes on the template with its labels. The votes are smoothed a little, because five atlases
# cannot tell one voxel from the next. The width of the smoothing is found by leaving out each atlas in turn:
# it is the width under which the labels of the atlas that was left out are most probable.

found = average(atlases, transforms, template.grid)
print(f"smoothing: {found.smoothing_mm:.2f} mm")

thalamus = library.table.value("Left-Thalamus")
probability = found.probabilities.probability(thalamus)
plot_slices(
    template,
    overlay=np.where(probability > 0.01, probability, np.nan),
    overlay_range=(0, 1),
    overlay_name="probability",
    at_mm=template.grid.affine[:3] @ [*np.argwhere(probability > 0.9).mean(axis=0), 1],
    title="left thalamus",
)
plt.show()

# %%
# The widths that were tried, and how well each explains an atlas that was left out:

widths = sorted(found.log_likelihoods)
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
axis.plot(widths, [found.log_likelihoods[width] for width in widths], "o-")
axis.axvline(found.smoothing_mm, color="0.6", linestyle="--")
axis.set(xlabel="smoothing (mm)", ylabel="log-likelihood (nats per voxel)", title="Choice of the smoothing")
plt.show()

# %%
# Segment with it
# ---------------
# A probabilistic atlas is an atlas as any other: a scan with labels, whose labels are probabilities. One
# registration carries them to the new scan.

probabilistic = atlasseg.Atlas("template", template, found.probabilities)
left_out = library.read("atlas6")
result = atlasseg.segment(left_out.image, [probabilistic], "majority")
one_template = atlasseg.evaluate(result.labels, left_out.segmentation, table=library.table)

plot_slices(left_out.image, result.labels, table=library.table, title="by the probabilistic atlas")
plt.show()

# %%
# Five registrations and a vote that looks at the intensities are better, and take longer:

many = atlasseg.segment(left_out.image, atlases, "local_weighted")
print(f"mean Dice, one template: {one_template.mean()['dice']:.3f}")
print(f"mean Dice, five atlases: {atlasseg.evaluate(many.labels, left_out.segmentation).mean()['dice']:.3f}")

# %%
# In a terminal: ``atlasseg atlases average my_atlases --out my_probabilities``. The result also serves as the
# prior of ``atlasseg tissue``.
