"""Report pages of a run: the page of each target, and the cohort page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atlasseg import io
from atlasseg.app import outputs
from atlasseg.atlases.library import AtlasLibrary
from atlasseg.compute.execution import Outcome
from atlasseg.labels import LabelTable
from atlasseg.pipeline import Segmentation
from atlasseg.recipe import Recipe
from atlasseg.volume import LabelMap

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

    from atlasseg.app.case import Case
    from atlasseg.report.cohort_page import TargetSummary
    from atlasseg.report.viewer import Candidate


def write_index(
    done: Sequence[Outcome[Any]],
    summaries: Sequence[TargetSummary | None],
    library: AtlasLibrary,
    recipe: Recipe,
    out: Path,
    *,
    comparison: Markup | str = "",
) -> None:
    """The page of the cohort, ``index.html``, from which the targets' own are reached.

    Parameters
    ----------
    done : sequence of Outcome
        How the targets ended.
    summaries : sequence of TargetSummary or None
        What is said of each; None of those that failed.
    library, recipe, out
        Of the run.
    comparison : Markup
        Sections on the methods that were tried.
    """
    from atlasseg.report.cohort_page import CohortReport, TargetSummary, render_cohort

    told = [
        s or TargetSummary(o.target, seconds=o.seconds, error=o.error) for o, s in zip(done, summaries, strict=True)
    ]
    labels = {int(v) for s in told if s.volumes is not None for v in s.volumes["label"]}
    report = CohortReport(
        name=recipe.name,
        fusion=recipe.variant,
        targets=told,
        table=library.table.completed(labels),
        atlases=len(library),
        recipe=recipe.text,
        versions=outputs.software_versions(),
        comparison=comparison,
    )
    io.write_text(render_cohort(report), out / "index.html")


def summarise_target(
    id_: str, case: Case, result: Segmentation, recipe: Recipe, table: LabelTable, metrics: pd.DataFrame | None
) -> TargetSummary:
    """A target among the others of its run."""
    from atlasseg.report.cohort_page import TargetSummary
    from atlasseg.report.figures import contact

    prediction = outputs.prediction_table(result, table).dropna(subset="predicted_dice")
    labelled = result.labels.array != 0
    kept = [c for c in result.alignment.candidates if c.qc.keep]
    reported = recipe.output.report
    return TargetSummary(
        target=id_,
        href=f"{id_}/{id_}.html" if reported else "",
        picture=contact(case.scan, result.labels, table=table) if reported else "",
        volumes=outputs.volumes(result.labels, table, reference=case.reference, not_annotated=case.not_annotated),
        metrics=metrics,
        predicted=dict(zip(prediction["label"].tolist(), prediction["predicted_dice"].tolist(), strict=True)),
        similarity=float(np.mean([c.similarity for c in kept])),
        entropy_bits=float(result.probabilities.entropy()[labelled].mean()) if labelled.any() else float("nan"),
        atlases=len(result.alignment.candidates),
        voted=len(kept),
        findings=tuple((f.kind, f.message) for f in result.alignment.findings),
    )


def page(
    summary: TargetSummary,
    case: Case,
    result: Segmentation,
    recipe: Recipe,
    table: LabelTable,
    seconds: Mapping[str, float],
    heard: Sequence[str],
    others: Sequence[Candidate] = (),
) -> str:
    """Render the report of a target; `others` are shown in its viewer before the reference and the atlases."""
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
        localisation=result.alignment.localisation,
        changes=outputs.change_rows(result),
        seconds=seconds,
        recipe=recipe.text,
        warnings=tuple(heard),
        versions=outputs.software_versions(),
        home="../index.html",
        candidates=[*others, *list_candidates(result, case.reference)],
        viewer=recipe.output.viewer,
    )
    return render(report)


def list_candidates(result: Segmentation, reference: LabelMap | None) -> list[Candidate]:
    """List the label maps of a viewer: the reference, then the propagated atlases, those that voted first."""
    from atlasseg.report.viewer import Candidate

    found = [] if reference is None else [Candidate("the reference", reference)]
    alignment = result.alignment
    for c in sorted(alignment.candidates, key=lambda c: (not c.qc.keep, -c.similarity)):
        note = f"similarity {c.similarity:.3f}" + ("" if c.qc.keep else ", did not vote")
        found.append(Candidate(f"atlas {c.atlas.id}", c.atlas.segmentation, alignment.start, note))
    return found
