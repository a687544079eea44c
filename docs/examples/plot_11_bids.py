"""
A BIDS dataset
==============

Segment every scan of a BIDS dataset, and write a BIDS derivative.

`BIDS <https://bids.neuroimaging.io>`_ is a standard for the folders of a neuroimaging study. ``atlasseg
bids`` is a *BIDS-App*: it finds the scans itself and writes results under standard names. You learn here
how to call it, what it writes, and how to get one table of all volumes.
"""

# %%
# A study
# -------
# Two participants, one of them with two sessions. We write it from phantoms.

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import atlasseg
from atlasseg.report import plot_slices

folder = atlasseg.sample_data()
work = Path(tempfile.mkdtemp())
study = work / "study"
scans = {
    "sub-01/anat/sub-01_T1w.nii.gz": "target1",
    "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz": "target2",
}
for name, target in scans.items():
    (study / name).parent.mkdir(parents=True)
    shutil.copy(folder / f"targets/images/{target}.nii.gz", study / name)
description = {"Name": "Phantoms", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
(study / "dataset_description.json").write_text(json.dumps(description))
(study / "README").write_text("Two phantoms.")


def show_tree(root):
    """Print the files below a folder."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts):
            print(path.relative_to(root).as_posix())


show_tree(study)

# %%
# Participants
# ------------
# The first call segments the scans. It needs a recipe and a library. ``--skip-bids-validation`` is for this
# example, which should run where the BIDS validator is not installed; leave it out for your study.


def run_command(line):
    """Run a command of atlasseg and print what it prints."""
    command = [sys.executable, "-m", "atlasseg", *shlex.split(line)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=work, env={**os.environ, "COLUMNS": "100"})
    print(done.stdout or done.stderr)
    done.check_returncode()


out = study / "derivatives/atlasseg"
run_command(
    f"bids study study/derivatives/atlasseg participant --recipe quickstart --atlases {folder / 'atlases'} "
    "--skip-bids-validation --nprocs 1 --set preprocessing.mask=none"
)
show_tree(out)

# %%
# The names say what each file is: ``dseg`` are labels, ``entropy`` is the uncertainty, the ``.tsv`` beside
# the labels holds their names, and the ``.json`` says how they were made.

labels = atlasseg.read_label_map(out / "sub-01/anat/sub-01_desc-localweighted_dseg.nii.gz")
table = atlasseg.read_label_table(out / "sub-01/anat/sub-01_desc-localweighted_dseg.tsv")
scan = atlasseg.read_image(study / "sub-01/anat/sub-01_T1w.nii.gz")
plot_slices(scan, labels, table=table, title="sub-01")
plt.show()

# %%
# Group
# -----
# The second call makes one table of all volumes: a row a scan, a column a structure.

run_command("bids study study/derivatives/atlasseg group")
volumes = pd.read_csv(out / "group_volumes.tsv", sep="\t")
volumes.iloc[:, :8].round(1)

# %%
# More is in the guide, :doc:`/guide/bids`: filters, sessions, clusters and containers.
