"""
Cohorts
=======

Segment many scans in one run, and find those that need a look.

A run over a cohort writes a folder for every scan, one table of all measures and one page that lists the
scans, those that stand out first. You learn here how to start a run, what is kept so that it can go on
after an interruption, and how to read the tables.
"""

# %%
# A recipe
# --------
# ``atlasseg recipes`` lists the recipes that come with the package. ``quickstart`` has two targets and six
# atlases. We segment the library itself as well: where a target is in the library, it is left out of its own
# fusion (leave-one-out).

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import atlasseg

folder = atlasseg.sample_data()
work = Path(tempfile.mkdtemp())
out = work / "out"


def run_command(line):
    """Run a command of atlasseg and print what it prints."""
    command = [sys.executable, "-m", "atlasseg", *shlex.split(line)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=work, env={**os.environ, "COLUMNS": "100"})
    print(done.stdout or done.stderr)
    done.check_returncode()


run = (
    f"run quickstart --targets {folder / 'targets'} --targets {folder / 'atlases'} --out out --jobs 1 "
    '--set \'registration.steps=["affine", "ffd"]\' --set fusion.method=majority'
)

# %%
# Before a long run, ask what there is to do, and what it will cost:

run_command(run + " --dry-run")

# %%
# The run itself, in one process. ``--jobs 8`` would use eight processes, ``--cluster slurm`` a cluster; the
# results are the same bytes.

run_command(run)

# %%
# The results
# -----------
# Every target has its folder. ``index.html`` is the page of all targets; open it with ``atlasseg view``.

print(*sorted(path.name for path in out.iterdir()), sep="\n")
print(*sorted(path.name for path in (out / "target1").iterdir()), sep="\n")

# %%
# The table
# ---------
# ``metrics.tsv`` has one row a target, label and measure. pandas makes a summary of it.

metrics = pd.read_csv(out / "metrics.tsv", sep="\t")
dice = metrics[(metrics["metric"] == "dice") & metrics["label"].notna()]
dice.pivot(index="name", columns="target", values="value").round(2)

# %%
# Which scans need a look? Order them by their worst structure:

figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
order = dice.groupby("target")["value"].min().sort_values().index
axis.boxplot([dice.loc[dice["target"] == target, "value"] for target in order], tick_labels=order)
axis.set(ylabel="Dice", title="All structures of each target, the worst target first")
axis.grid(axis="y", alpha=0.3)
plt.show()

# %%
# Go on where it stopped
# ----------------------
# Results are kept by the content of what they were made from. The same command again computes nothing; with
# another fusion method, nothing is registered again.

import time

begun = time.perf_counter()
run_command(run)
print(f"the same run again: {time.perf_counter() - begun:.1f} s")

begun = time.perf_counter()
run_command(run.replace("majority", "local_weighted"))
print(f"another fusion: {time.perf_counter() - begun:.1f} s")

# %%
# How this scales to thousands of scans is in the guide: :doc:`/guide/scaling`.
