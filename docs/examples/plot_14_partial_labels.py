"""
Atlases with missing labels
===========================

Use atlases in which not every structure was drawn.

Labels are expensive, so one atlas may have only the ventricles and another only the hippocampus. In such an
atlas, a background voxel can mean "nothing is here" or "nobody looked". You learn here what happens when
the two are confused, and how to tell atlasseg.
"""

# %%
# The experiment
# --------------
# We erase the left hippocampus from four of six atlases, as if nobody had drawn it there. Then we segment a
# scan in three ways: with the complete library, with the erased labels taken for background, and with the
# erased labels declared as *not annotated*.

from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd

import atlasseg
from atlasseg.report import plot_slices

folder = atlasseg.sample_data()
library = atlasseg.read_library(folder / "atlases")
scan = atlasseg.read_image(folder / "targets/images/target1.nii.gz")
reference = atlasseg.read_label_map(folder / "targets/labels/target1.nii.gz")
hippocampus = library.table.value("Left-Hippocampus")
white_matter = library.table.value("Left-Cerebral-White-Matter")


def erase(atlas, declared):
    """Remove the hippocampus from the labels of an atlas, and say so or not."""
    labels = atlas.segmentation.array.copy()
    labels[labels == hippocampus] = 0
    silent = frozenset({hippocampus}) if declared else frozenset()
    return replace(atlas, labels=atlas.segmentation.with_array(labels), not_annotated=silent)


complete = [library.read(id) for id in library.ids]
taken_for_background = [*complete[:2], *(erase(atlas, declared=False) for atlas in complete[2:])]
declared = [*complete[:2], *(erase(atlas, declared=True) for atlas in complete[2:])]

# %%
# The result
# ----------
# Without the declaration the structure is voted away: four atlases say "background" there. With it, their
# background votes count as unknown, and the two atlases that know the hippocampus decide.

faster = ['registration.steps=["affine", "ffd"]']
rows, results = [], {}
for name, atlases in {
    "complete": complete,
    "taken for background": taken_for_background,
    "declared": declared,
}.items():
    results[name] = atlasseg.segment(
        scan, atlases, "local_weighted", overrides=['registration.steps=["affine", "ffd"]']
    )
    scores = atlasseg.evaluate(results[name], reference, table=library.table)
    rows.append({"atlases": name, "Dice of the left hippocampus": scores["dice", hippocampus]})

pd.DataFrame(rows).set_index("atlases").round(3)

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 3.8), layout="constrained")
at_mm = scan.affine[:3] @ [*(sum(index) / len(index) for index in (reference.array == hippocampus).nonzero()), 1]
for axis, (name, result) in zip(axes, results.items(), strict=True):
    only = result.labels.with_array((result.labels.array == hippocampus) * hippocampus)
    plot_slices(scan, only, table=library.table, planes=["coronal"], at_mm=at_mm, filled=True, axes=[axis], title=name)
plt.show()

# %%
# In a library on disk
# --------------------
# Declare it in the sidecar of the labels, ``labels/anna.json``, by value or by name:
#
# .. code-block:: json
#
#    {"not_annotated": ["Left-Hippocampus"]}
#
# or for many atlases in the column ``not_annotated_in`` of ``labels.tsv``. See :doc:`/guide/data`.
