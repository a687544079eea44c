"""What the reports of a run say of a target: its own page, and its line on that of the cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from atlasseg.cohort import outputs
from atlasseg.labels import LabelTable
from atlasseg.pipeline import Segmentation
from atlasseg.recipe import Recipe
from atlasseg.volume import LabelMap

if TYPE_CHECKING:
    import pandas as pd

    from atlasseg.cohort.run import Case
    from atlasseg.report.cohort_page import TargetSummary
    from atlasseg.report.viewer import Candidate


def summarised(
    id_: str, case: Case, result: Segmentation, recipe: Recipe, table: LabelTable, metrics: pd.DataFrame | None
) -> TargetSummary:
    """A target among the others of its run."""
    from atlasseg.report.cohort_page import TargetSummary
    from atlasseg.report.figures import contact

    prediction = outputs.prediction_table(result, table).dropna(subset="predicted_dice")
    labelled = result.labels.array != 0
    kept = [c for c in result.alignment.candidates if c.verdict.keep]
    reported = recipe.output.report
    return TargetSummary(
        target=id_,
        href=f"{id_}/{id_}.html" if reported else "",
        picture=contact(case.scan, result.labels, table=table) if reported else "",
        volumes=outputs.volumes(result.labels, table),
        metrics=metrics,
        predicted=dict(zip(prediction["label"].tolist(), prediction["predicted_dice"].tolist(), strict=True)),
        similarity=float(np.mean([c.similarity for c in kept])),
        entropy_bits=float(result.probabilities.entropy()[labelled].mean()) if labelled.any() else float("nan"),
        atlases=len(result.alignment.candidates),
        voted=len(kept),
    )


def page(
    summary: TargetSummary,
    case: Case,
    result: Segmentation,
    recipe: Recipe,
    table: LabelTable,
    seconds: Mapping[str, float],
    heard: Sequence[str],
) -> str:
    """The report on a target."""
    from atlasseg.report.page import TargetReport, render

    report = TargetReport(
        target=summary.target,
        image=case.scan,
        labels=result.labels,
        table=table,
        fusion=recipe.fusion.method.name,
        entropy=result.probabilities.entropy(),
        reference=case.reference,
        volumes=summary.volumes,
        metrics=summary.metrics,
        predicted=summary.predicted,
        atlases=outputs.atlas_rows(result),
        changes=outputs.change_rows(result),
        seconds=seconds,
        recipe=recipe.text,
        warnings=tuple(heard),
        versions=outputs.software_versions(),
        home="../index.html",
        candidates=viewed(result, case.reference),
        viewer=recipe.output.viewer,
    )
    return render(report)


def viewed(result: Segmentation, reference: LabelMap | None) -> list[Candidate]:
    """What a viewer can step to: the reference, then the atlases as they were carried over, those that vote first."""
    from atlasseg.report.viewer import Candidate

    found = [] if reference is None else [Candidate("the reference", reference)]
    alignment = result.alignment
    for c in sorted(alignment.candidates, key=lambda c: (not c.verdict.keep, -c.similarity)):
        note = f"similarity {c.similarity:.3f}" + ("" if c.verdict.keep else ", did not vote")
        found.append(Candidate(f"atlas {c.atlas.id}", c.atlas.segmentation, alignment.start, note))
    return found
