"""
Your own library
================

Make a library of your labelled scans, and check it before you use it.

A library is a folder. You learn here how to lay it out, how to name the labels, how to find mistakes in it
with ``atlasseg doctor``, and what to do when some scans lack some labels.
"""

# %%
# The layout
# ----------
# Scans go into ``images/`` and their labels into ``labels/``, under the same name:
#
# .. code-block:: text
#
#    my_atlases/images/anna.nii.gz      my_atlases/labels/anna.nii.gz
#    my_atlases/images/bert.nii.gz      my_atlases/labels/bert.nii.gz
#    my_atlases/labels.tsv              names of the labels (optional)
#
# We write three atlases with nibabel, as a program of yours might. Each keeps its own grid.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

import atlasseg
from atlasseg.doctor import examine
from atlasseg.phantoms import sample
from atlasseg.report import plot_slices

root = Path(tempfile.mkdtemp()) / "my_atlases"
(root / "images").mkdir(parents=True)
(root / "labels").mkdir()

for name, source in {"anna": "atlas1", "bert": "atlas2", "cleo": "atlas3"}.items():
    phantom = sample(source)
    image = nib.Nifti1Image(phantom.image.array, phantom.image.affine)
    array = phantom.labels.array.astype(np.uint8)
    if name == "cleo":  # nobody drew the hippocampi in this one
        array[np.isin(array, [17, 53])] = 0
    labels = nib.Nifti1Image(array, phantom.labels.affine)
    nib.save(image, root / "images" / f"{name}.nii.gz")
    nib.save(labels, root / "labels" / f"{name}.nii.gz")

# %%
# Names
# -----
# A table gives each label a name and a colour. Names appear in every table and picture. Tables of ITK-SNAP
# and FreeSurfer are read as well.

table = "index\tname\tcolor\n10\tthalamus left\t#0072b2\n49\tthalamus right\t#56b4e9\n17\thippocampus left\t#d55e00\n"
(root / "labels.tsv").write_text(table)

# %%
# Check it
# --------
# The doctor looks for what makes a run fail or, worse, silently wrong: labels on another grid than their
# scan, constant scans, labels without a name, copies of a scan. Run it before you spend hours on
# registration.


def print_findings(folder):
    """Print what the doctor found, as ``atlasseg doctor`` does."""
    for finding in examine(folder).findings:
        print(f"{finding.severity}: {finding.file.name}: {finding.message}. {finding.remedy}.")


library = atlasseg.read_library(root)
print_findings(root)

# %%
# A typical mistake is a label file that lost its geometry, because a program wrote it with the wrong affine.
# We break one on purpose:

broken = nib.load(root / "labels/bert.nii.gz")
shifted = broken.affine.copy()
shifted[0, 3] += 4.0
nib.save(nib.Nifti1Image(np.asarray(broken.dataobj), shifted), root / "labels/bert.nii.gz")
print_findings(root)

# %%
# Such an atlas is refused, with the reason, when it is read:

try:
    library.read("bert")
except atlasseg.errors.AtlasSegError as error:
    print(str(error).replace(f"{root.parent}/", ""))

# %%
# Look at it
# ----------
# Read an atlas and look at it. The picture shows the patient's right on the left, whatever the order of the
# axes in the file.

anna = library.read("anna")
plot_slices(anna.image, anna.segmentation, table=library.table, title="anna")
plt.show()

# %%
# Labels that are missing in some atlases
# ---------------------------------------
# Nobody drew the hippocampi in *cleo*. Their voxels then say "background", and would vote against the
# structure. Say that the label was not annotated, in ``labels/cleo.json``, and the background of *cleo* no
# longer counts as evidence against it:

(root / "labels/cleo.json").write_text('{"not_annotated": [17, 53]}')
print(atlasseg.read_library(root).read("cleo").not_annotated)
