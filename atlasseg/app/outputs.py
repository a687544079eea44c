"""What a run writes for a target: a folder that appears whole or not at all."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atlasseg import io
from atlasseg.errors import OutputError
from atlasseg.evaluation import Score
from atlasseg.evaluation.calibration import reliability
from atlasseg.evaluation.disagreement import disagreement
from atlasseg.evaluation.prediction import atlas_agreement, expected_dice
from atlasseg.files import sweep
from atlasseg.labels import LabelTable
from atlasseg.pipeline import Alignment, Segmentation
from atlasseg.recipe import Recipe
from atlasseg.version import __version__
from atlasseg.volume import Atlas, Image, LabelMap, Mask, ProbabilityMap

if TYPE_CHECKING:
    import pandas as pd

    from atlasseg.report.cohort_page import TargetSummary

LIBRARIES = ("atlasseg", "numpy", "scipy", "nibabel", "SimpleITK", "numba", "antspyx", "torch")


def software_versions() -> dict[str, str]:
    """Versions of Python, atlasseg and the libraries that results depend on, of those installed."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["atlasseg"] = __version__
    return found


def dataset_description(recipe: Recipe) -> dict[str, Any]:
    """BIDS ``dataset_description.json`` of a derivative made by `recipe`."""
    return {
        "Name": f"atlasseg {recipe.name}",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "atlasseg", "Version": __version__, "Description": f"recipe {recipe.name}"}],
        "SourceDatasets": [{"URL": str(path)} for path in (*recipe.data.targets, *recipe.data.atlases)],
        "Recipe": recipe.text,
        "Libraries": software_versions(),
    }


DESCRIPTION = "dataset_description.json"


def ready_folder(out: Path, recipe: Recipe) -> None:
    """Make sure that results can be written into `out`, and describe there what makes them.

    Raises
    ------
    OutputError
        They cannot.
    """
    check_writable(out)
    io.write_json(dataset_description(recipe), out / DESCRIPTION)


def check_writable(out: Path) -> None:
    """Make a folder for results, remove from it what a killed run had half-written, and try to write into it.

    Raises
    ------
    OutputError
        It cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OutputError(f"output folder {out} cannot be written: {error.strerror or error}") from error
    sweep(out)


def volumes(labels: LabelMap, table: LabelTable) -> pd.DataFrame:
    """Voxels and volume in mm^3 of every label of the table or the map, background left out."""
    import pandas as pd

    voxel_mm3 = abs(float(np.linalg.det(labels.affine[:3, :3])))
    values, counts = np.unique(labels.array, return_counts=True)
    voxels = dict(zip(values.tolist(), counts.tolist(), strict=True))
    every = sorted({*(entry.value for entry in table), *voxels} - {0})
    return pd.DataFrame(
        {
            "label": every,
            "name": [table.name(value) for value in every],
            "voxels": [voxels.get(value, 0) for value in every],
            "volume_mm3": [voxels.get(value, 0) * voxel_mm3 for value in every],
        }
    )


def atlas_rows(result: Segmentation) -> pd.DataFrame:
    """One row an atlas: similarity, regularity of its registration, whether it voted, and why not."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "atlas": c.atlas.id,
                "similarity": round(c.similarity, 6),
                "jacobian_min": round(c.quality.jacobian_min, 4),
                "jacobian_max": round(c.quality.jacobian_max, 4),
                "folded_percent": round(100 * c.quality.folded_share, 5),
                "sd_log_jacobian": round(c.quality.sd_log_jacobian, 5),
                "voted": "yes" if c.qc.keep else "no",
                "reason": c.qc.reason,
            }
            for c in result.alignment.candidates
        ]
    )


def voters(result: Segmentation) -> list[Atlas]:
    """The candidates that voted, on the grid that was worked on."""
    return [candidate.atlas for candidate in result.alignment.candidates if candidate.qc.keep]


def worked_on(labels: LabelMap, alignment: Alignment) -> LabelMap:
    """The part of labels on the scan's grid that was worked on."""
    box = tuple(slice(a, a + n) for a, n in zip(alignment.start, alignment.target.shape, strict=True))
    return LabelMap(labels.array[box], alignment.target.affine)


def prediction_table(result: Segmentation, table: LabelTable) -> pd.DataFrame:
    """What Dice each label is likely to have, made without a reference: see `evaluation.prediction`.

    Columns: label, name, predicted_dice, atlas_agreement.
    """
    import pandas as pd

    expected = expected_dice(result.probabilities)
    agreed = atlas_agreement(voters(result), worked_on(result.labels, result.alignment))
    labels = sorted({*expected, *agreed})
    return pd.DataFrame(
        {
            "label": labels,
            "name": [table.name(label) for label in labels],
            "predicted_dice": [expected.get(label, float("nan")) for label in labels],
            "atlas_agreement": [agreed.get(label, float("nan")) for label in labels],
        }
    )


def change_rows(result: Segmentation) -> pd.DataFrame | None:
    """One row a label: what regions did to it; None where they were not asked for."""
    import pandas as pd

    return pd.DataFrame([asdict(change) for change in result.changes]) if result.changes else None


def metrics_table(scores: Sequence[Score], **columns: str) -> pd.DataFrame:
    """Scores in long form, `columns` (such as target and method) before them; `label` is missing for a group."""
    import pandas as pd

    table = pd.DataFrame([asdict(score) for score in scores], columns=[f.name for f in fields(Score)])
    table["label"] = table["label"].astype("Int64")
    for position, (name, value) in enumerate(columns.items()):
        table.insert(position, name, value)
    return table


def entity(name: str) -> str:
    """A name as a BIDS entity may hold it: letters and digits alone."""
    return re.sub("[^A-Za-z0-9]", "", name)


def calibration_table(
    probabilities: ProbabilityMap, reference: LabelMap, *, target: str, method: str, not_annotated: Collection[int] = ()
) -> pd.DataFrame:
    """How often the most probable label is right by its probability, one row a bin, and over all bins the error.

    Voxels that are given, or have in the reference, a label that is `not_annotated` there are left out.

    Columns: target, method, lower, upper, voxels, confidence, accuracy, expected_calibration_error.
    """
    import pandas as pd

    mask = None
    if not_annotated:
        ignored = np.array(sorted(not_annotated), np.int32)
        judged = ~(np.isin(probabilities.mode, ignored) | np.isin(reference.array, ignored))
        mask = Mask(judged, reference.affine)
    found = reliability(probabilities, reference, mask=mask)
    return pd.DataFrame(
        {
            "target": target,
            "method": method,
            "lower": found.lower,
            "upper": found.upper,
            "voxels": found.counts,
            "confidence": found.confidence,
            "accuracy": found.accuracy,
            "expected_calibration_error": found.expected_calibration_error,
        }
    )


def write_segmentation(
    folder: Path,
    target: str,
    scan: Image,
    result: Segmentation,
    recipe: Recipe,
    table: LabelTable,
    sources: Sequence[str],
    *,
    variant: str | None = None,
) -> None:
    """Write labels, label table, sidecar, volumes, atlas table and what else `recipe.output` asks for into `folder`.

    With several segmentations of a target in one folder each has the name of its `variant`; by default files are named
    after the fusion.
    """
    stem = f"{target}_desc-{entity(variant or recipe.fusion.method.name)}"
    own = stem if variant else target
    io.write_label_map(result.labels, folder / f"{stem}_dseg.nii.gz", like=scan)
    io.write_label_table(table, folder / f"{stem}_dseg.tsv")
    voted = [atlas.id for atlas in voters(result)]
    sidecar = {
        "Sources": [*sources],
        "Atlases": voted,
        "FusionMethod": recipe.fusion.method.name,
        "FusionParameters": {
            p.name: recipe.fusion.method.arguments.get(p.name, p.default)
            for p in recipe.fusion.method.method.parameters
        },
        "Contrast": result.contrast or None,
        "Refinement": recipe.refinement.method.name if recipe.refinement.method is not None else None,
        "Regions": recipe.regions is not None,
        "Recipe": recipe.text,
        "Libraries": software_versions(),
    }
    io.write_json(sidecar, folder / f"{stem}_dseg.json")
    write_table(volumes(result.labels, table), folder / f"{own}_volumes.tsv")
    write_table(atlas_rows(result), folder / f"{target}_atlases.tsv")
    write_table(prediction_table(result, table), folder / f"{own}_prediction.tsv")
    changes = change_rows(result)
    if changes is not None:
        write_table(changes, folder / f"{own}_regions.tsv")
    if recipe.output.entropy:
        entropy = Image(result.probabilities.entropy(), scan.affine)
        io.write_image(entropy, folder / f"{stem}_entropy.nii.gz", like=scan)
    if recipe.output.disagreement:
        aligned = result.alignment
        box = tuple(slice(a, a + n) for a, n in zip(aligned.start, aligned.target.shape, strict=True))
        share = np.zeros(scan.shape, np.float32)
        share[box] = disagreement(voters(result), worked_on(result.labels, aligned))
        io.write_image(Image(share, scan.affine), folder / f"{stem}_disagreement.nii.gz", like=scan)
    if recipe.output.probabilities:
        io.write_probability_map(result.probabilities, folder / f"{stem}_probseg.nii.gz", like=scan)
        order = [int(value) for value in result.probabilities.label_values]
        io.write_json({"LabelMap": order}, folder / f"{stem}_probseg.json")
    if recipe.output.transforms:
        from atlasseg.io import write_transform

        for candidate in result.alignment.candidates:
            name = f"{target}_from-scan_to-{candidate.atlas.id}_mode-points_xfm.h5"
            write_transform(candidate.transform, folder / name, grid=result.alignment.target.grid)


def quality_table(summaries: Sequence[TargetSummary]) -> pd.DataFrame:
    """One row a target: "ok" or what to check, mean similarity of the atlases that voted, and the findings."""
    import pandas as pd

    rows = [
        {
            "target": s.target,
            "quality": s.quality,
            "similarity": round(s.similarity, 4),
            "findings": " ".join(message for _, message in s.findings),
        }
        for s in summaries
    ]
    return pd.DataFrame(rows, columns=["target", "quality", "similarity", "findings"])


class PeakMemory:
    """How much memory the process took at most since this was made, beyond what it had then.

    The kernel keeps the mark (Linux); elsewhere it is not known, and NaN.
    """

    def __init__(self) -> None:
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._before = self._read("VmRSS")
        except OSError:
            self._before = float("nan")

    def megabytes(self) -> float:
        """Peak since then, in MB of 1e6 bytes."""
        return float("nan") if self._before != self._before else max(0.0, self._read("VmHWM") - self._before)

    @staticmethod
    def _read(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def write_table(table: pd.DataFrame, path: Path) -> None:
    """A TSV file as BIDS has it: tabs, ``n/a`` for what is not known."""
    io.write_text(table.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n", float_format="%.6g"), path)
