"""
Training a refiner
==================

Train a small 3-D network that corrects the errors of a fusion, from the library alone.

Fusion makes systematic errors, for example at the same borders in every scan. A library can show them:
segment each atlas with the others, and compare with its own labels. A network learns to correct the
difference. You learn here how to train one in a minute, how to use it, and how to read its training curve.

The network here is tiny and its training very short, so do not expect an improvement. A useful one takes
some minutes a network and 15 atlases or more.
"""

# %%
# The recipe
# ----------
# A recipe says how scans are registered and fused, and how the network is trained. Here everything is small.
# What is not said keeps its default.

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import atlasseg
from atlasseg.report import plot_slices

work = Path(tempfile.mkdtemp())
recipe = work / "recipe.toml"
recipe.write_text(f"""
[data]
atlases = "{atlasseg.sample_data() / "atlases"}"

[preprocessing]
steps = ["intensity"]

[registration]
steps = ["affine"]

[fusion]
method = "majority"

[refiner]
levels = 3
width = 8
patch_voxels = [32, 32, 32]

[training]
folds = 2
n_models = 1
steps = 18
validate_every = 6
learning_rate = 1e-2
""")

# %%
# Train
# -----
# Every atlas is fused from the others. Then the atlases are divided into folds: a network is trained on all
# folds but one, and validated on that one. So no atlas votes for itself, and no network is judged by scans
# that it was trained on.
#
# In a terminal you type ``atlasseg train recipe.toml --out refiner``. From Python:


def run_command(line):
    """Run a command of atlasseg and print what it prints."""
    command = [sys.executable, "-m", "atlasseg", *shlex.split(line)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=work, env={**os.environ, "COLUMNS": "100"})
    print(done.stdout or done.stderr)
    done.check_returncode()


run_command("train recipe.toml --out refiner --device cpu")

# %%
# The curve
# ---------
# The folder of the model holds its weights, a card that describes it, and the training curve: the Dice on the
# fold that was held out, after every round. When it no longer rises, training stops.

print(sorted(path.name for path in (work / "refiner").iterdir()))
curve = pd.read_csv(work / "refiner/curves.tsv", sep="\t")
curve.tail(3)

# %%
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
axis.plot(curve["step"], curve["validation_dice"], "o-")
axis.set(xlabel="step", ylabel="validation Dice", title="Training curve")
plt.show()

# %%
# Use it
# ------
# The same recipe with a table ``[refinement]`` corrects what it fuses. We segment a scan without and with the
# network.

folder = atlasseg.sample_data()
scan = folder / "targets/images/target1.nii.gz"
reference = folder / "targets/labels/target1.nii.gz"
library = atlasseg.read_library(folder / "atlases")

fused = atlasseg.segment(scan, library, recipe)
refined = atlasseg.segment(
    scan,
    library,
    recipe,
    overrides=["refinement.method=unet", f'refinement.unet.model="{work / "refiner"}"'],
)
for name, result in {"fused": fused, "refined": refined}.items():
    print(name, round(atlasseg.evaluate(result, reference).mean()["dice"], 3))

# %%
# What did the network change? The voxels that got another label:

changed = (fused.labels.array != refined.labels.array).astype(float)
changed[changed == 0] = float("nan")
plot_slices(
    atlasseg.read_image(scan), fused.labels, overlay=changed, overlay_range=(0, 1), table=library.table, title="changed"
)
plt.show()

# %%
# All keys of the network and its training are in :doc:`/generated/recipe/refiner` and
# :doc:`/generated/recipe/training`, and :doc:`/guide/refinement` says how to start from another model.
