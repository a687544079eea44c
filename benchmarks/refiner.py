"""The refiner against fusion alone and against the same network on the scan alone, by size of the library.

    python benchmarks/refiner.py --data DIR [--sizes 5 15 95] [--minutes 60] [--members 5] [--targets N]
                                 [--cache DIR] [--device auto|cpu|cuda] [--out benchmarks/results/refiner.md]

Libraries are the first 5 and 15 hippocampus atlases, and those with the 80 further ones. For each: every atlas fused
from the others, ``--members`` networks trained on scan and fused probabilities, which share ``--minutes``, as many on
the scan alone (the control) for as long, and the 20 targets fused and refined. What is computed is kept in ``--cache``,
models beside it, so that what is finished is not done again; a training that was interrupted goes on. The threads are
those of OMP_NUM_THREADS and NUMBA_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from atlasseg.app.outputs import software_versions
from atlasseg.atlases.library import read_library
from atlasseg.device import resolve_device
from atlasseg.evaluation import evaluate, mean_over_labels
from atlasseg.evaluation.calibration import expected_calibration_error
from atlasseg.evaluation.comparison import paired_tests
from atlasseg.recipe import Recipe, parse_recipe
from atlasseg.refinement.examples import Example
from atlasseg.refinement.network.model import RefinerModel, read_model, write_model
from atlasseg.refinement.unet import refined
from atlasseg.store.cache import Cache
from atlasseg.training import segment_example, train_refiner
from atlasseg.volume import Atlas, ProbabilityMap

TABLES = {
    "preprocessing": {"steps": ["intensity"]},
    "selection": {"before": 10},
    "registration": {"steps": ["affine", "diffeomorphic"], "diffeomorphic": {"radius_voxels": 3}},
    "fusion": {"method": "joint"},
    "refiner": {"levels": 4, "width": 16, "patch_voxels": [24, 40, 32]},
    "training": {"steps": 100_000, "validate_every": 500, "patience": 1000, "learning_rate": 2e-3},
}


def trained(atlases: list[Atlas], recipe: Recipe, folder: Path, device: str, cache: Path) -> RefinerModel:
    """A model, read where it was trained before."""
    if not (folder / "model.json").is_file():
        model = train_refiner(
            atlases,
            recipe,
            device=device,
            versions=software_versions(),
            checkpoints=folder.parent / f"{folder.name}.work",
            executor=Cache(cache),
            progress=partial(print, flush=True),
        )
        write_model(model, folder)
    return read_model(folder)


def measured(target: Example, found: ProbabilityMap, seconds: float) -> dict[str, object]:
    """Scores of a segmentation."""
    scores = evaluate(found.label_map(), target.truth)
    means = mean_over_labels(scores)
    by_label = {f"Dice of {s.label}": s.value for s in scores if s.metric == "dice" and s.label is not None}
    return {
        "Dice": means["dice"],
        **by_label,
        "HD95, mm": means["hausdorff_95_mm"],
        "calibration error": expected_calibration_error(found, target.truth),
        "seconds": seconds,
    }


def as_markdown(frame: pd.DataFrame) -> str:
    """A table in Markdown."""
    shown = frame.map(lambda value: f"{value:.4f}" if isinstance(value, float) else str(value))
    lines = ["| " + " | ".join(cells) + " |" for cells in [list(shown.columns), *shown.to_numpy().tolist()]]
    return "\n".join([lines[0], "|" + "---|" * shown.shape[1], *lines[1:]]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 15, 95])
    parser.add_argument("--minutes", type=float, default=60.0, help="for each model")
    parser.add_argument("--members", type=int, default=5, help="networks of a model, which share its minutes")
    parser.add_argument("--targets", type=int, default=20)
    parser.add_argument("--no-control", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "atlasseg_benchmark" / "refiner")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "refiner.md")
    given = parser.parse_args()

    device = resolve_device(given.device)
    root = given.data / "hippocampus"
    library, cases = read_library(root / "atlases", root / "more_atlases"), read_library(root / "targets")
    first = list(read_library(root / "atlases").ids)
    order = first + [id_ for id_ in library.ids if id_ not in first]
    budget = {"n_models": given.members, "minutes": given.minutes / given.members}
    tables = {**TABLES, "training": {**TABLES["training"], **budget}}
    recipe = parse_recipe(tables)
    digest = hashlib.sha256(json.dumps(tables).encode()).hexdigest()[:8]
    kinds = {
        "refined": recipe,
        "scan alone": parse_recipe({**tables, "refiner": {**TABLES["refiner"], "prior": "none"}}),
    }
    if given.no_control:
        del kinds["scan alone"]
    rows = []
    for size in given.sizes:
        atlases = [library.read(id_) for id_ in order[:size]]
        models = {
            name: trained(
                atlases,
                each,
                given.cache / f"{size}_{name.replace(' ', '_')}_{digest}_{device}",
                device,
                given.cache / "kept",
            )
            for name, each in kinds.items()
        }
        for id_ in cases.ids[: given.targets]:
            case = cases.read(id_)
            target = segment_example(case, atlases, recipe, executor=Cache(given.cache / "kept"))
            rows.append({"atlases": size, "method": "fused", "target": id_, **measured(target, target.fused, 0.0)})
            for name, model in models.items():
                begun = time.perf_counter()
                found = refined(target.target, target.fused, model, device=device)
                seconds = time.perf_counter() - begun
                rows.append({"atlases": size, "method": name, "target": id_, **measured(target, found, seconds)})
            print(size, id_, {row["method"]: round(row["Dice"], 4) for row in rows[-1 - len(models) :]}, flush=True)
        for name, model in models.items():
            print(size, name, model.members[0].scores, flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(page(pd.DataFrame(rows), given.minutes, device, models), encoding="utf-8")
    print(given.out)


def page(table: pd.DataFrame, minutes: float, device: str, models: dict[str, RefinerModel]) -> str:
    """The results as Markdown."""
    keys = ["atlases", "method"]
    means = table.drop(columns="target").groupby(keys, sort=False).mean()
    spread = table.groupby(keys, sort=False)["Dice"].agg(["std", "min"]).rename(columns={"std": "sd", "min": "worst"})
    lines = []
    for size, part in table.groupby("atlases", sort=False):
        scores = part.pivot_table(index="target", columns="method", values="Dice")
        for name in (n for n in ("refined", "scan alone") if n in scores):
            test = paired_tests(scores[[name, "fused"]]).iloc[0]
            lines.append(
                f"- {size} atlases, {name} minus fused: mean Dice {test.mean_difference:+.4f}, better on "
                f"{test.a_better} of {test.targets} targets, Wilcoxon p = {test.p:.2g}."
            )
    members = next(iter(models.values())).members
    versions = ", ".join(f"{name} {version}" for name, version in software_versions().items())
    plans = "; ".join(f"{name}: {model.record['plan']}" for name, model in models.items())
    shares = np.mean([model.members[0].scores["loading_share"] for model in models.values()])
    steps = ", ".join(f"{model.members[0].scores['steps']:.0f} steps of {name}" for name, model in models.items())
    return (
        "# The refiner on hippocampus\n\n"
        f"`python benchmarks/refiner.py --data DIR --minutes {minutes:g} --members {len(members)}` on {device}: every "
        "model trained for that long, fusion of the 10 atlases that look most like the target; seconds are those of "
        "refinement alone.\n\n"
        f"{as_markdown(means.join(spread).reset_index())}\n" + "\n".join(lines) + "\n\n"
        f"{plans}. With the largest library: {steps} by the first network; loading patches took {100 * shares:.0f} % "
        "of the time.\n\n"
        f"{as_markdown(table)}\n{versions}\n"
    )


if __name__ == "__main__":
    main()
