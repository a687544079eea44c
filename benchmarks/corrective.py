"""Joint label fusion against the same with corrective learning, on targets that no training saw.

    python benchmarks/corrective.py --data DIR [--targets N] [--cache DIR] [--fusion joint]
                                    [--out benchmarks/results/corrective.md]

Trains on the 15 hippocampus atlases, each segmented from the 14 others, then segments the 20 targets from the 15
atlases and corrects them. Both columns come from the same registrations and the same fusion, so that their difference
is corrective learning alone. Registrations are kept in ``--cache`` by their content. Threads: set NUMBA_NUM_THREADS
and OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from atlasseg import pipeline
from atlasseg.atlases.library import AtlasLibrary, read_library
from atlasseg.cohort.cache import Cache
from atlasseg.cohort.outputs import software_versions
from atlasseg.evaluation import evaluate, mean_over_labels
from atlasseg.evaluation.calibration import expected_calibration_error
from atlasseg.evaluation.comparison import paired_tests
from atlasseg.recipe import Recipe, parse_recipe
from atlasseg.refinement.corrective_learning import CorrectiveModel, corrected
from atlasseg.training import train_corrective
from atlasseg.volume import Atlas


def measured(
    case: Atlas, library: AtlasLibrary, atlases: Sequence[Atlas], recipe: Recipe, model: CorrectiveModel, cache: Path
) -> list[dict[str, object]]:
    """A row for the fusion, and one for the fusion corrected."""
    alignment = pipeline.align(case.image, atlases, recipe, mask=case.mask, call=Cache(cache))
    begun = time.perf_counter()
    fused = pipeline.fuse(alignment, recipe.fusion.method)
    fusion_s = time.perf_counter() - begun
    begun = time.perf_counter()
    mended = corrected(alignment.target, fused.probabilities, model)  # no crop in this recipe: the grids are the same
    mending_s = time.perf_counter() - begun
    rows: list[dict[str, object]] = []
    name = recipe.fusion.method.name
    found = ((name, fused.probabilities, fusion_s), (f"{name}, corrected", mended, fusion_s + mending_s))
    for method, probabilities, seconds in found:
        scores = evaluate(probabilities.label_map(), case.segmentation, table=library.table)
        means = mean_over_labels(scores)
        by_label = {f"Dice of {s.label}": s.value for s in scores if s.metric == "dice" and s.label is not None}
        row = {
            "target": case.id,
            "method": method,
            "Dice": means["dice"],
            **by_label,
            "HD95, mm": means["hausdorff_95_mm"],
            "calibration error": expected_calibration_error(probabilities, case.segmentation),
            "seconds": seconds,
        }
        print(row, flush=True)
        rows.append(row)
    return rows


def as_markdown(frame: pd.DataFrame) -> str:
    """A table in Markdown."""
    shown = frame.map(lambda value: f"{value:.4f}" if isinstance(value, float) else str(value))
    lines = ["| " + " | ".join(cells) + " |" for cells in [list(shown.columns), *shown.to_numpy().tolist()]]
    return "\n".join([lines[0], "|" + "---|" * shown.shape[1], *lines[1:]]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--targets", type=int, default=20)
    parser.add_argument("--fusion", default="joint")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "atlasseg_benchmark" / "corrective")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "corrective.md")
    given = parser.parse_args()

    recipe = parse_recipe(
        {
            "preprocessing": {"steps": ["intensity"]},
            "registration": {"steps": ["affine", "diffeomorphic"]},
            "fusion": {"method": given.fusion},
        }
    )
    root = given.data / "hippocampus"
    library, cases = read_library(root / "atlases"), read_library(root / "targets")
    atlases = [library.read(id_) for id_ in library.ids]
    begun = time.perf_counter()
    told = partial(print, flush=True)
    model = train_corrective(atlases, recipe, call=Cache(given.cache), progress=told)
    training_s = time.perf_counter() - begun

    rows = []
    for id_ in cases.ids[: given.targets]:
        rows += measured(cases.read(id_), library, atlases, recipe, model, given.cache)
    table = pd.DataFrame(rows)
    means = table.drop(columns="target").groupby("method", sort=False).mean().reset_index()
    scores = table.pivot_table(index="target", columns="method", values="Dice")
    spread = scores.agg(["std", "min"]).T.rename(columns={"std": "sd", "min": "worst"})
    means = means.merge(spread, left_on="method", right_index=True)
    test = paired_tests(scores[[means.method[1], means.method[0]]]).iloc[0]
    versions = ", ".join(f"{name} {version}" for name, version in software_versions().items())
    text = (
        "# Corrective learning on hippocampus\n\n"
        f"`python benchmarks/corrective.py --data DIR --targets {given.targets} --fusion {given.fusion}`: trained on "
        f"{len(atlases)} atlases, each segmented from the others; measured on {len(scores)} targets.\n\n"
        f"{as_markdown(means)}\n"
        f"Corrected minus not: mean Dice {test.mean_difference:+.4f} (median {test.median_difference:+.4f}), better on "
        f"{test.a_better} of {test.targets} targets, Wilcoxon p = {test.p:.2g}.\n\n"
        f"Training took {training_s:.0f} s (registrations that were not kept, fusions and classifiers), of "
        f"{sum(sum(n.values()) for n in model.record['samples'].values())} samples; seconds above are fusion and "
        f"correction of a target, without registration.\n\n{as_markdown(table)}\n{versions}\n"
    )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text, encoding="utf-8")
    print(np.array2string(scores.mean().to_numpy(), precision=4), given.out)


if __name__ == "__main__":
    main()
