"""
First segmentation
==================

Segment a scan with a library of labelled scans.

You need two things: the scan, and a *library* of *atlases*. An atlas is a scan with its labels. Every atlas
is registered to the scan, its labels are carried over, and all atlases vote on the label of every voxel.
You learn here how to do this in one call, how to look at the result, how to measure it, and how to save it.
"""

# %%
# The data
# --------
# The package comes with six labelled phantoms and two further scans. Everything that is read from a file is
# on the grid of that file. The atlases differ in grid, orientation and intensity scale; they need not match
# the scan.

import matplotlib.pyplot as plt

import atlasseg
from atlasseg.report import plot_slices

folder = atlasseg.sample_data()
library = atlasseg.read_library(folder / "atlases")
scan = atlasseg.read_image(folder / "targets/images/target1.nii.gz")

print(library.ids)
scan

# %%
# One call
# --------
# `segment` takes the scan, the library and the name of a fusion method. It scales the intensities, registers
# every atlas, first affinely and then deformably, and fuses the votes.

result = atlasseg.segment(scan, library, "local_weighted")

# %%
# The result is on the grid of the scan. Look at it: every structure is outlined in its colour.

plot_slices(scan, result.labels, table=library.table, title="segmentation")
plt.show()

# %%
# The result holds more than labels. For every voxel it has the probability of each label. The *entropy* of
# these probabilities is high where the atlases disagree, which is at the borders. Look there first when you
# check a result.

plot_slices(scan, overlay=result.probabilities.entropy(), overlay_name="entropy (bits)", title="uncertainty")
plt.show()

# %%
# How good is it?
# ---------------
# This scan has reference labels, so we can measure. The Dice coefficient is 1 for a perfect overlap and 0 for
# none.

reference = atlasseg.read_label_map(folder / "targets/labels/target1.nii.gz")
scores = atlasseg.evaluate(result.labels, reference, table=library.table)
print(scores)

# %%
# Save it
# -------
# The segmentation is written with the header of the scan, so that every viewer shows the two in the same
# place.

import tempfile
from pathlib import Path

out = Path(tempfile.mkdtemp()) / "target1_segmentation.nii.gz"
atlasseg.write_label_map(result.labels, out, like=scan)
print(out.name, out.stat().st_size, "bytes")

# %%
# In a terminal the same takes one line, and writes a report for the browser as well:
#
# .. code-block:: sh
#
#    atlasseg run quickstart
