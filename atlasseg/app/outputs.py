"""Output files of a target."""

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
from atlasseg.atlases.library import Target
from atlasseg.errors import InputError, OutputError
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
    """Versions of Python, atlasseg and the installed libraries that results depend on."""
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


def prepare_folder(out: Path, recipe: Recipe) -> None:
    """Create an output folder with ``dataset_description.json``, and check that it is writable.

    Raises
    ------
    OutputError
        The folder is not writable.
    """
    check_writable(out)
    io.write_json(dataset_description(recipe), out / DESCRIPTION)


def check_writable(out: Path) -> None:
    """Create an output folder, remove unfinished files of killed runs, and check that it is writable.

    Raises
    ------
    OutputError
        The folder cannot be created or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OutputError(f"output folder {out} cannot be written: {error.strerror or error}") from error
    sweep(out)


def volumes(
    labels: LabelMap, table: LabelTable, *, reference: LabelMap | None = None, not_annotated: Collection[int] = ()
) -> pd.DataFrame:
    """Number of voxels and volume in mm^3 of every label of the table or the maps, without background.

    With a reference also its volumes, in the column ``reference_mm3``; missing for labels that are not annotated in it.
    """
    import pandas as pd

    voxels = _count_voxels(labels)
    of_reference = {} if reference is None else _count_voxels(reference)
    every = sorted({*(entry.value for entry in table), *voxels, *of_reference} - {0})
    found = pd.DataFrame(
        {
            "label": every,
            "name": [table.name(value) for value in every],
            "voxels": [voxels.get(value, 0) for value in every],
            "volume_mm3": [voxels.get(value, 0) * _voxel_mm3(labels) for value in every],
        }
    )
    if reference is not None:
        found["reference_mm3"] = [
            float("nan") if value in not_annotated else of_reference.get(value, 0) * _voxel_mm3(reference)
            for value in every
        ]
    return found


def _count_voxels(labels: LabelMap) -> dict[int, int]:
    values, counts = np.unique(labels.array, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _voxel_mm3(labels: LabelMap) -> float:
    return abs(float(np.linalg.det(labels.affine[:3, :3])))


def volumes_table(summaries: Sequence[TargetSummary]) -> pd.DataFrame:
    """Volumes of the structures of all targets in one table, with a column ``target``."""
    import pandas as pd

    tables = []
    for summary in summaries:
        if summary.volumes is not None:
            tables.append(summary.volumes.copy())
            tables[-1].insert(0, "target", summary.target)
    return pd.concat(tables)


def atlas_rows(result: Segmentation) -> pd.DataFrame:
    """Table with one row per atlas: similarity, regularity of its registration, whether it voted, or why not."""
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
    """Candidates that voted, on the grid of the alignment."""
    return [candidate.atlas for candidate in result.alignment.candidates if candidate.qc.keep]


def crop_to_alignment(labels: LabelMap, alignment: Alignment) -> LabelMap:
    """Crop labels on the grid of the scan to the grid of the alignment."""
    box = tuple(slice(a, a + n) for a, n in zip(alignment.start, alignment.target.shape, strict=True))
    return LabelMap(labels.array[box], alignment.target.affine)


def prediction_table(result: Segmentation, table: LabelTable) -> pd.DataFrame:
    """Predicted Dice of each label, computed without a reference, see `evaluation.prediction`.

    Columns: label, name, predicted_dice, atlas_agreement.
    """
    import pandas as pd

    expected = expected_dice(result.probabilities)
    agreed = atlas_agreement(voters(result), crop_to_alignment(result.labels, result.alignment))
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
    """Table with one row per label and its changes by the regions stage; None without this stage."""
    import pandas as pd

    return pd.DataFrame([asdict(change) for change in result.changes]) if result.changes else None


def metrics_table(scores: Sequence[Score], **columns: str) -> pd.DataFrame:
    """Table of scores in long form after the `columns` (such as target and method); groups have no `label`."""
    import pandas as pd

    table = pd.DataFrame([asdict(score) for score in scores], columns=[f.name for f in fields(Score)])
    table["label"] = table["label"].astype("Int64")
    for position, (name, value) in enumerate(columns.items()):
        table.insert(position, name, value)
    return table


def entity(name: str) -> str:
    """Convert a name to the label of a BIDS entity, which has only letters and digits."""
    return re.sub("[^A-Za-z0-9]", "", name)


def calibration_table(
    probabilities: ProbabilityMap, reference: LabelMap, *, target: str, method: str, not_annotated: Collection[int] = ()
) -> pd.DataFrame:
    """Reliability table, one row per bin, with the expected calibration error in every row.

    Voxels whose label in the segmentation or the reference is in `not_annotated` are left out.

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


_FORMAT_ENDINGS = {"seg.nrrd": "dseg.seg.nrrd", "rtstruct": "rtstruct.dcm", "dicomseg": "dicomseg.dcm"}
VIEWER_SUFFIXES = (".label", ".nrrd", ".dcm")
"""Suffixes of the files that other programs open beside the segmentation itself; no part of a BIDS derivative."""


def write_labels(folder: Path, stem: str, labels: LabelMap, scan: Image, table: LabelTable, recipe: Recipe) -> None:
    """Write labels as NIfTI and in the formats of `recipe.output`, their label table, and that for ITK-SNAP."""
    io.write_label_map(labels, folder / f"{stem}_dseg.nii.gz", like=scan)
    io.write_label_table(table, folder / f"{stem}_dseg.tsv")
    io.write_label_table(table, folder / f"{stem}_dseg.label", format="itk-snap")
    for format in recipe.output.formats:
        io.write_label_map(labels, folder / f"{stem}_{_FORMAT_ENDINGS[format]}", like=scan, format=format, table=table)


def check_formats(recipe: Recipe, targets: Sequence[Target]) -> None:
    """Check before a run that the targets have what the formats of the results need.

    Raises
    ------
    InputError
        RTSTRUCT or DICOM-SEG is asked for, and a target is not a DICOM series.
    """
    wanted = [format for format in recipe.output.formats if format != "seg.nrrd"]
    for target in targets if wanted else ():
        if not io.is_dicom(target.image):
            raise InputError(
                f"{target.image}: expected a DICOM series, to which the format {wanted[0]} refers, got another volume. "
                "Give the folder of the series, or choose the format seg.nrrd."
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
    reference: LabelMap | None = None,
    not_annotated: Collection[int] = (),
) -> None:
    """Write labels, label table, sidecar, volumes, atlas table and the optional files of `recipe.output`.

    File names contain the `variant`, by default the fusion, so a folder can hold several segmentations of a target.
    """
    stem = f"{target}_desc-{entity(variant or recipe.fusion.method.name)}"
    own = stem if variant else target
    write_labels(folder, stem, result.labels, scan, table, recipe)
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
    sizes = volumes(result.labels, table, reference=reference, not_annotated=not_annotated)
    write_table(sizes, folder / f"{own}_volumes.tsv")
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
        share[box] = disagreement(voters(result), crop_to_alignment(result.labels, aligned))
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
    """Table with one row per target: "ok" or what to check, mean similarity of the atlases that voted, findings."""
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
    """Peak memory of this process since the object was created, beyond the memory at that time.

    The kernel keeps the peak (Linux). On other systems it is unknown, and the result is NaN.
    """

    def __init__(self) -> None:
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._before = self._read("VmRSS")
        except OSError:
            self._before = float("nan")

    def megabytes(self) -> float:
        """Peak memory since the object was created, in MB (1e6 bytes)."""
        return float("nan") if self._before != self._before else max(0.0, self._read("VmHWM") - self._before)

    @staticmethod
    def _read(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a BIDS TSV file: tab-separated, ``n/a`` for missing values."""
    io.write_text(table.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n", float_format="%.6g"), path)
