"""The whole chain on the real sets: accuracy with its spread, and what it costs. Prints Markdown tables.

    python benchmarks/segmentation.py hippocampus mouse quickstart start

The real volumes are looked for in ../shared/data, or in the folder in ATLASSEG_REAL_DATA.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("ATLASSEG_REAL_DATA", ROOT.parent / "shared" / "data"))


def run(*arguments: str | Path) -> float:
    """Wall-clock seconds of a command; its output goes to standard error."""
    print("+ atlasseg", *arguments, file=sys.stderr)
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "atlasseg", *map(str, arguments)], check=True, stdout=sys.stderr)
    return time.perf_counter() - begun


def dice(table: Path) -> pd.DataFrame:
    """Mean Dice over labels: a row a target, a column a method."""
    rows = pd.read_csv(table, sep="\t")
    rows = rows[(rows.metric == "dice") & rows.label.notna()]
    return rows.pivot_table(index="target", columns="method", values="value")


def line(name: str, scores: pd.Series[float], seconds: float) -> str:
    return (
        f"| {name} | {len(scores)} | {scores.mean():.4f} ± {scores.std():.4f} | {scores.min():.4f} ({scores.idxmin()}) "
        f"| {seconds:.0f} |"
    )


def hippocampus(out: Path) -> None:
    print("| hippocampus, 15 atlases | targets | mean Dice ± sd | worst | s in all |\n|---|---|---|---|---|")
    for method in ("local_weighted", "majority", "joint"):
        seconds = run(
            "run", ROOT / "pipelines/hippocampus.toml", "--out", out / method, "--set", f"fusion.method={method}"
        )
        print(line(method, dice(out / method / "metrics.tsv")[method], seconds), flush=True)


def mouse(out: Path) -> None:
    print("| mouse brain, leave-one-out | targets | mean Dice ± sd | worst | s in all |\n|---|---|---|---|---|")
    for steps, method in (('["syn"]', "majority"), (None, "majority"), (None, "joint")):
        options = [] if steps is None else ["--set", f"registration.steps={steps}"]
        folder = out / f"{method}{len(options)}"
        options += ["--set", f"fusion.method={method}"]
        seconds = run("run", ROOT / "pipelines/mouse_brain.toml", "--out", folder, *options)
        print(
            line(f"{'SyN' if steps else 'recipe'}, {method}", dice(folder / "metrics.tsv")[method], seconds), flush=True
        )


def human(out: Path) -> None:
    print("| human brain, leave-one-out | targets | mean Dice ± sd | worst | s in all |\n|---|---|---|---|---|")
    images = DATA / "human_brain/atlases/images"
    chosen = out / "targets"
    for kind in ("images", "labels"):
        (chosen / kind).mkdir(parents=True, exist_ok=True)
        for path in sorted((images.parent / kind).iterdir())[:3]:
            (chosen / kind / path.name).symlink_to(path.resolve())
    seconds = run(
        "compare", ROOT / "pipelines/human_brain_t1.toml", "--targets", chosen, "--out", out / "out",
        "--methods", "majority,local_weighted,joint", "--jobs", "1",
    )  # fmt: skip
    for method, scores in dice(out / "out/comparison.tsv").items():
        print(line(str(method), scores, seconds))


def quickstart(out: Path) -> None:
    seconds = [run("run", ROOT / "pipelines/quickstart.toml", "--out", out / str(n)) for n in range(3)]
    scores = dice(out / "0" / "metrics.tsv").iloc[:, 0]
    print("| quickstart | mean Dice | s, first run | s, median of three |\n|---|---|---|---|")
    print(f"| 2 phantoms, 6 atlases | {scores.mean():.4f} | {seconds[0]:.1f} | {statistics.median(seconds):.1f} |")


def start(out: Path) -> None:
    print("| start | s, median of 9 |\n|---|---|")
    for name, code in (("import atlasseg", "import atlasseg"), ("atlasseg --help", None)):
        command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "atlasseg", "--help"]
        times = []
        for _ in range(9):
            begun = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - begun)
        print(f"| `{name}` | {statistics.median(times):.2f} |")


SETS = {f.__name__: f for f in (hippocampus, mouse, human, quickstart, start)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", choices=[*SETS, []], default=list(SETS))
    libraries = ("atlasseg", "numpy", "numba", "SimpleITK", "antspyx")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {versions}\n")
    for name in parser.parse_args().sets:
        with tempfile.TemporaryDirectory() as folder:
            SETS[name](Path(folder))
            print()
