"""A fusion against the same with corrective learning, on targets that no training saw.

    python benchmarks/corrective.py --data DIR [--sets hippocampus hippocampus_cases hippocampus95 human]
                                    [--targets N] [--cache DIR] [--fusion joint] [--set stage.key=value ...]
                                    [--samples N] [--out DIR]

`hippocampus` trains on the 15 atlases, each segmented from the 14 others, and segments the 20 targets from them;
`hippocampus_cases` trains on ``more_atlases`` too, segmented from the 15 as a target is; in `hippocampus95` they are
atlases as well, of which those most like each scan are chosen. `human` trains on the library
without 1000, 1001 and 1002, each atlas segmented from the 11 others; each of the three is segmented from the 14 others.
Both rows of a target come from the same registrations and the same fusion: their difference is corrective learning.

Targets come first, then the training. Registrations and fusions are kept in ``--cache`` by their content: a run that
was broken off, or is repeated with other settings of the training, goes on from there. Threads: set NUMBA_NUM_THREADS
and OMP_NUM_THREADS. A human brain takes 1 GB, and training on twelve of them 3 GB.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from atlasseg.app.outputs import software_versions
from atlasseg.atlases.library import read_library
from atlasseg.evaluation import evaluate, mean_over_labels
from atlasseg.evaluation.calibration import expected_calibration_error
from atlasseg.evaluation.comparison import paired_tests
from atlasseg.labels import LabelTable
from atlasseg.recipe import Recipe, read_recipe
from atlasseg.refinement.corrective_learning import CorrectiveModel, Example, corrected, train
from atlasseg.store.cache import Cache
from atlasseg.training import leave_one_out, segment_example
from atlasseg.volume import ProbabilityMap

PIPELINES = Path(__file__).parents[1] / "pipelines"
told = partial(print, flush=True)


@dataclass(frozen=True)
class Plan:
    """A set: its recipe, the folders of its library, and its targets: a folder, or atlases held out of the training.

    `cases` are further scans to learn on, segmented from the library as a target is.
    """

    recipe: str
    library: tuple[str, ...]
    targets: str | tuple[str, ...]
    settings: tuple[str, ...] = ()
    samples_per_label: int = 100_000
    cases: str | None = None


SETS = {
    "hippocampus": Plan("hippocampus", ("hippocampus/atlases",), "hippocampus/targets"),
    "hippocampus_cases": Plan(
        "hippocampus",
        ("hippocampus/atlases",),
        "hippocampus/targets",
        samples_per_label=400_000,
        cases="hippocampus/more_atlases",
    ),
    "hippocampus95": Plan(
        "hippocampus",
        ("hippocampus/atlases", "hippocampus/more_atlases"),
        "hippocampus/targets",
        ("selection.before=25",),
        400_000,
    ),
    "human": Plan("human_brain_t1", ("human_brain/atlases",), ("1000", "1001", "1002"), (), 50_000),
}


def row(found: ProbabilityMap, example: Example, method: str, table: LabelTable) -> dict[str, object]:
    """Measures of one segmentation."""
    scores = evaluate(found.label_map(), example.truth, table=table, not_annotated=example.not_annotated)
    means = mean_over_labels(scores)
    dice = {f"Dice of {s.label}": s.value for s in scores if s.metric == "dice" and s.label is not None}
    out = {
        "target": example.id,
        "method": method,
        "Dice": means["dice"],
        **(dice if len(dice) < 10 else {}),
        "HD95, mm": means["hausdorff_95_mm"],
        "calibration error": expected_calibration_error(found, example.truth),
    }
    told(out)
    return out


def as_markdown(frame: pd.DataFrame) -> str:
    """A table in Markdown."""
    shown = frame.map(lambda value: f"{value:.4f}" if isinstance(value, float) else str(value))
    lines = ["| " + " | ".join(cells) + " |" for cells in [list(shown.columns), *shown.to_numpy().tolist()]]
    return "\n".join([lines[0], "|" + "---|" * shown.shape[1], *lines[1:]]) + "\n"


def measured(name: str, plan: Plan, recipe: Recipe, given: argparse.Namespace) -> str:
    """Segment the targets, train, correct: the page of a set."""
    library = read_library(*(given.data / folder for folder in plan.library))
    atlases = [library.read(id_) for id_ in library.ids]
    if isinstance(plan.targets, str):
        own = read_library(given.data / plan.targets)
        cases, training = [own.read(id_) for id_ in own.ids[: given.targets]], atlases
    else:
        cases = [atlas for atlas in atlases if atlas.id in plan.targets[: given.targets]]
        training = [atlas for atlas in atlases if atlas.id not in plan.targets]
    executor = Cache(given.cache / name)
    way = recipe.fusion.method.name
    rows, found = [], []
    for case in cases:
        voters = [atlas for atlas in atlases if atlas.id != case.id]
        found.append(segment_example(case, voters, recipe, executor=executor))
        rows.append(row(found[-1].fused, found[-1], way, library.table))
    examples = list(leave_one_out(training, recipe, executor=executor, progress=told))
    if plan.cases is not None:
        further = read_library(given.data / plan.cases)
        examples += [segment_example(further.read(id_), atlases, recipe, executor=executor) for id_ in further.ids]
    samples = given.samples or plan.samples_per_label
    begun = time.perf_counter()
    model: CorrectiveModel = train(examples, samples_per_label=samples, seed=0)
    training_s = time.perf_counter() - begun
    known = {*model.labels, *(int(v) for each in found for v in each.fused.label_values)}
    model = replace(model, labels=tuple(sorted(known)))  # what only held-out atlases have stays as it is fused
    told(f"trained {len(model.classifiers)} classifiers in {training_s:.0f} s")
    correcting_s = []
    for example in found:
        begun = time.perf_counter()
        mended = corrected(example.target, example.fused, model)
        correcting_s.append(time.perf_counter() - begun)
        rows.append(row(mended, example, f"{way}, corrected", library.table))

    table = pd.DataFrame(rows)
    scores = table.pivot(index="target", columns="method", values="Dice")[[way, f"{way}, corrected"]]
    means = table.drop(columns="target").groupby("method", sort=False).mean().reset_index()
    spread = scores.agg(["std", "min"]).T.rename(columns={"std": "sd", "min": "worst"})
    means = means.merge(spread, left_on="method", right_index=True)
    test = paired_tests(scores[[means.method[1], means.method[0]]]).iloc[0]
    versions = ", ".join(f"{library} {version}" for library, version in software_versions().items())
    settings = " ".join(f"--set '{setting}'" for setting in given.set)
    return (
        f"# Corrective learning: {name}\n\n"
        f"`python benchmarks/corrective.py --data DIR --sets {name} --targets {len(cases)} --fusion {way} "
        f"--samples {samples} {settings}`: trained on {len(examples)} scans, none segmented from itself; "
        f"measured on {len(scores)} targets.\n\n"
        f"{as_markdown(means)}\n"
        f"Corrected minus not: mean Dice {test.mean_difference:+.4f} (median {test.median_difference:+.4f}), better on "
        f"{test.a_better} of {test.targets} targets, Wilcoxon p = {test.p:.2g}.\n\n"
        f"The {len(model.classifiers)} classifiers took {training_s:.0f} s on "
        f"{sum(sum(n.values()) for n in model.record['samples'].values())} samples, the correction of a target "
        f"{np.mean(correcting_s):.1f} s.\n\n{as_markdown(table)}\n{versions}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["hippocampus"])
    parser.add_argument("--targets", type=int, default=None, help="the first so many of each set")
    parser.add_argument("--fusion", default="joint")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.KEY=VALUE", help="change the recipe")
    parser.add_argument("--samples", type=int, default=None, help="voxels that a classifier is trained on at most")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "atlasseg_benchmark" / "corrective")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    for name in given.sets:
        plan = SETS[name]
        recipe = read_recipe(
            PIPELINES / f"{plan.recipe}.toml",
            overrides=[f"fusion.method={given.fusion}", *plan.settings, *given.set],
        )
        page = measured(name, plan, recipe, given)
        given.out.mkdir(parents=True, exist_ok=True)
        path = given.out / ("corrective.md" if name == "hippocampus" else f"corrective_{name}.md")
        path.write_text(page, encoding="utf-8")
        told(path)


if __name__ == "__main__":
    main()
