"""BIDS derivatives: run over the scans of a BIDS dataset, and summarise all participants.

::

    OUT/dataset_description.json                          README, .bidsignore
    OUT/sub-01/[ses-1/]anat/sub-01_desc-joint_dseg.nii.gz .json, .tsv
                            sub-01_desc-joint_probseg.nii.gz, sub-01_from-ATLAS_to-T1w_mode-image_xfm.h5 on request
                            sub-01_desc-joint_entropy.nii.gz, _volumes.tsv, _atlases.tsv, _prediction.tsv
    OUT/sub-01/sub-01.html                                report; figures/ holds the pictures for index.html
    OUT/group_volumes.tsv, .json, index.html              written by the group level
    OUT/logs/                                             logs of scans that failed

The run is the one of :func:`atlasseg.run`, in a separate work folder. The process that computed the results of a
scan moves all of them into the derivative at once, ``dseg.json`` last. A scan without ``dseg.json`` has no result.
"""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasseg import io
from atlasseg.app import outputs
from atlasseg.app.context import DEFAULT_LIMIT_BYTES
from atlasseg.app.run import run, write_logs
from atlasseg.atlases.library import Target, read_library
from atlasseg.bids.scans import Scan
from atlasseg.compute.execution import Listener, Outcome
from atlasseg.compute.workers import Workers
from atlasseg.errors import InputError
from atlasseg.files import files_together
from atlasseg.io import read_label_table
from atlasseg.labels import LabelTable
from atlasseg.recipe import Recipe, with_paths
from atlasseg.version import __version__

if TYPE_CHECKING:
    import pandas as pd

    from atlasseg.report.cohort_page import TargetSummary

__all__ = ["group_level", "participant_level"]

WORK = ".work"
"""Default work folder of the run, inside the output folder."""

NON_BIDS_PATTERNS = (
    f"{WORK}/",
    "*.html",
    "figures",
    "logs/",
    "*_entropy.nii.gz",
    "*_entropy.json",
    "*_disagreement.*",
    "*_volumes.*",
    "*_atlases.tsv",
    "*_prediction.tsv",
    "*_regions.tsv",
    "*_xfm.*",
)
"""File name patterns in the derivative that BIDS 1.11 does not define."""

README = """\
# Segmentations by atlasseg

Atlas-based segmentations: the labels of a library of atlases were propagated by registration and fused. The folder
`anat` of each scan holds:

- `*_dseg.nii.gz` segmentation on the grid of the scan; `*_dseg.tsv` names of its labels
- `*_dseg.json` recipe, methods and library versions
- `*_probseg.nii.gz` label probabilities, one volume per label, in the order of `LabelMap`
- `*_entropy.nii.gz` uncertainty of each voxel: entropy of the label probabilities, in bits
- `*_volumes.tsv` volume of each label; `*_atlases.tsv` similarity of each atlas, and whether it voted
- `*_prediction.tsv` predicted Dice of each label, computed without a reference
- `*_from-ATLAS_to-T1w_mode-image_xfm.h5` transform that resamples images of an atlas onto the scan (ITK)

`sub-LABEL/*.html` is the report of one scan. `index.html` and `group_volumes.tsv` summarise all scans.
"""


@dataclass(frozen=True)
class Derivative:
    """Output folder of a derivative, and the dataset that it was derived from."""

    root: Path
    dataset: Path

    def report(self, scan: Scan) -> Path:
        """Path of the HTML report of a scan."""
        return self.root / scan.folder.parts[0] / f"{scan.stem}.html"

    def picture(self, scan: Scan) -> Path:
        """Path of the picture of a scan that ``index.html`` shows."""
        return self.root / scan.folder.parts[0] / "figures" / f"{scan.stem}_dseg.html"

    def uri(self, scan: Scan) -> str:
        """BIDS URI of the scan, such as ``bids:raw:sub-01/anat/sub-01_T1w.nii.gz``."""
        folder = scan.path.parent.resolve().relative_to(
            self.dataset.resolve()
        )  # resolve the folder only: the file may be a git-annex link
        return f"bids:raw:{(folder / scan.path.name).as_posix()}"


def participant_level(
    dataset: Path,
    out: Path,
    scans: Sequence[Scan],
    recipe: Recipe,
    *,
    work: Path | None = None,
    workers: Workers = Workers(),  # noqa: B008 - frozen
    listener: Listener | None = None,
    limit_bytes: int | None = DEFAULT_LIMIT_BYTES,
    stop_on_failure: bool = False,
) -> list[Outcome[TargetSummary]]:
    """Segment scans of a BIDS dataset and write the results as a derivative.

    Parameters
    ----------
    dataset : path
        Root of the BIDS dataset.
    out : path
        Root of the derivative.
    scans : sequence of Scan
        Scans to segment, from `find_scans`.
    recipe : Recipe
        Its targets and its output folder are ignored.
    work : path, optional
        Folder for intermediate results and the cache; by default ``.work`` in `out`.
    workers, listener, limit_bytes, stop_on_failure
        As for `run`.

    Returns
    -------
    list of Outcome
        One per scan, as from `run`.

    Raises
    ------
    InputError, OutputError, ClusterError
        As from `run`; also if `out` is the dataset itself.
    """
    derivative = Derivative(out, dataset)
    prepared = prepare_recipe(dataset, out, scans, recipe, work=work)
    write_description(derivative, recipe)
    done = run(
        prepared,
        workers=workers,
        listener=listener,
        limit_bytes=limit_bytes,
        after=partial(_publish, derivative=derivative),
        stop_on_failure=stop_on_failure,
        keep_others=True,
    )
    write_logs(done, out)
    return done


def prepare_recipe(
    dataset: Path, out: Path, scans: Sequence[Scan], recipe: Recipe, *, work: Path | None = None
) -> Recipe:
    """Set the targets of a recipe to the scans and its output folder to the work folder.

    The parameters are those of `participant_level`.

    Raises
    ------
    InputError
        `out` or the work folder is the dataset itself, or two atlases get the same name in BIDS, where only letters and
        digits count.
    """
    work = work or out / WORK
    for folder in (out, work):
        if folder.resolve() == dataset.resolve():
            raise InputError(
                f"{folder}: expected an output folder other than the dataset itself. Give e.g. "
                f"{dataset}/derivatives/atlasseg."
            )
    if recipe.output.transforms and recipe.data.atlases:
        names: dict[str, str] = {}
        for atlas in read_library(*recipe.data.atlases, **recipe.data.reading).ids:
            other = names.setdefault(outputs.entity(atlas), atlas)
            if other != atlas:
                raise InputError(
                    f"the transforms of atlases {other!r} and {atlas!r} would have the same file name in BIDS, which "
                    f"allows only letters and digits. Rename one of the atlases."
                )
    return with_paths(recipe, targets=[scan.path for scan in scans], out=work)


def write_description(derivative: Derivative, recipe: Recipe) -> None:
    """Create the output folder with ``dataset_description.json``, ``.bidsignore`` and a README."""
    outputs.prepare_folder(derivative.root, recipe)
    description = {
        **outputs.dataset_description(recipe),
        "SourceDatasets": [
            {"URL": _relative(path, derivative.root)} for path in (derivative.dataset, *recipe.data.atlases)
        ],
        "DatasetLinks": {"raw": _relative(derivative.dataset, derivative.root)},
    }
    io.write_json(description, derivative.root / "dataset_description.json")
    io.write_text("".join(f"{pattern}\n" for pattern in NON_BIDS_PATTERNS), derivative.root / ".bidsignore")
    readme = derivative.root / "README.md"
    if not readme.exists():
        io.write_text(README, readme)


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive on Windows
        return path.resolve().as_uri()


# -- one scan ---------------------------------------------------------------------------------------------------------


def _publish(target: Target, results: Path, summary: TargetSummary, *, derivative: Derivative) -> None:
    """Copy the results of a scan into the derivative under their BIDS names."""
    scan = Scan(target.image)
    desc = next(results.glob("*_dseg.json")).name.split("_")[-2]
    with files_together(
        derivative.root / scan.folder, scan.stem, replaced=lambda name: is_result(name, scan), seal="_dseg.json"
    ) as folder:
        for source in results.iterdir():
            if source.suffix not in (".html", ".json", *outputs.VIEWER_SUFFIXES):
                shutil.copyfile(source, folder / result_name(source.name, target.id, scan, desc))
        for name, sidecar in _sidecars(folder, results, scan, target.channels, summary, desc, derivative).items():
            io.write_json(sidecar, folder / name)
    page = results / f"{target.id}.html"
    if page.is_file():
        io.write_text(page.read_text("utf-8"), derivative.report(scan))
    if summary.picture:
        io.write_text(summary.picture, derivative.picture(scan))


def is_result(name: str, scan: Scan) -> bool:
    """Whether a file in an ``anat`` folder is a result of this scan."""
    return re.match(rf"{re.escape(scan.stem)}_(desc|from)-", name) is not None


def result_name(name: str, target: str, scan: Scan, desc: str) -> str:
    """BIDS file name of a file that `run` wrote for a target."""
    rest = name.removeprefix(f"{target}_")
    transform = re.fullmatch(r"from-scan_to-(.+)_mode-points_(xfm\..+)", rest)
    if transform is not None:  # a transform that maps points from scan to atlas resamples images from atlas to scan
        atlas, suffix = outputs.entity(transform[1]), transform[2]
        return f"{scan.stem}_from-{atlas}_to-{scan.suffix}_mode-image_{suffix}"
    return f"{scan.stem}_{rest}" if rest.startswith("desc-") else f"{scan.stem}_{desc}_{rest}"


COLUMNS = {
    "volumes": {
        "label": {"Description": "value in the segmentation"},
        "name": {"Description": "structure"},
        "voxels": {"Description": "number of voxels"},
        "volume_mm3": {"Description": "volume", "Units": "mm^3"},
    },
    "dseg": {
        "group": {"Description": "group of labels that is also measured as one structure"},
        "not_annotated_in": {"Description": "atlases in which the label is not annotated"},
    },
}
"""Descriptions of table columns for the sidecars."""


def _sidecars(
    folder: Path,
    results: Path,
    scan: Scan,
    channels: Sequence[Path],
    summary: TargetSummary,
    desc: str,
    derivative: Derivative,
) -> dict[str, dict[str, Any]]:
    """Contents of the JSON sidecars of a scan, by file name."""
    stem, raw = f"{scan.stem}_{desc}", derivative.uri(scan)
    image = f"bids::{scan.folder}/{stem}_dseg.nii.gz"
    placed = {"Sources": [raw, *(derivative.uri(Scan(path)) for path in channels)], "SpatialReference": raw}
    made = {**io.read_json(results / f"{results.name}_{desc}_dseg.json"), "Warnings": summary.warnings}
    sidecars = {
        "dseg": {**made, **placed, **COLUMNS["dseg"], "Description": "labels fused from atlases", "Manual": False},
        "entropy": {
            "Description": "entropy of the label probabilities",
            "Units": "bit",
            **placed,
        },
        "disagreement": {
            "Description": "fraction of the atlases that vote for another label",
            **placed,
        },
        "volumes": {"Description": "volumes of the labels", "Sources": [image], **COLUMNS["volumes"]},
    }
    order = results / f"{results.name}_{desc}_probseg.json"
    if order.is_file():
        description = "label probabilities, one volume per label, in the order of LabelMap"
        sidecars["probseg"] = {"Description": description, **io.read_json(order), **placed, "Manual": False}
    files = {name: [*folder.glob(f"{stem}_{name}.nii.gz"), *folder.glob(f"{stem}_{name}.tsv")] for name in sidecars}
    return {f"{stem}_{name}.json": content for name, content in sidecars.items() if files[name]}


def write_report(scan: Scan, out: Path, dataset: Path) -> None:
    """Write the HTML report of a scan again from its results in the derivative, without computing anything.

    The page lacks the run times and the warnings, because the derivative does not store them.

    Raises
    ------
    InputError
        The scan has no results, or a file of its results cannot be read.
    """
    from atlasseg.report.figures import contact
    from atlasseg.report.page import TargetReport, render

    derivative = Derivative(out, dataset)
    found = _results(out / scan.folder, scan)
    if found is None:
        raise InputError(
            f"{out / scan.folder}: expected results of {scan.path.name}, got none. Run the participant level first."
        )
    stem, made = found
    data = tomllib.loads(made["Recipe"]).get("data", {})
    image, _ = Target(scan.id, scan.path, spacing_from=data.get("spacing_from", "sform")).read()
    labels = io.read_label_map(Path(f"{stem}_dseg.nii.gz"))
    table = read_label_table(Path(f"{stem}_dseg.tsv"))
    entropy, changes = Path(f"{stem}_entropy.nii.gz"), Path(f"{stem}_regions.tsv")
    report = TargetReport(
        target=scan.stem,
        image=image,
        labels=labels,
        table=table,
        fusion=made["FusionMethod"],
        entropy=io.read_image(entropy).array if entropy.is_file() else None,
        volumes=_read_table(f"{stem}_volumes.tsv"),
        predicted=_predicted(stem),
        atlases=_read_table(f"{stem}_atlases.tsv"),
        changes=_read_table(str(changes)) if changes.is_file() else None,
        recipe=made["Recipe"],
        versions=made["Libraries"],
        home="../index.html",
    )
    io.write_text(render(report), derivative.report(scan))
    io.write_text(contact(image, labels, table=table), derivative.picture(scan))


def _results(folder: Path, scan: Scan) -> tuple[str, dict[str, Any]] | None:
    """Common beginning of the paths of a scan's results, and the sidecar of its segmentation; None without results."""
    for path in sorted(folder.glob("*_dseg.json")):
        if is_result(path.name, scan):
            return str(path).removesuffix("_dseg.json"), io.read_json(path)
    return None


# -- all of them ------------------------------------------------------------------------------------------------------


def group_level(dataset: Path, out: Path, scans: Sequence[Scan]) -> list[Scan]:
    """Write the table of volumes and the summary page of all scans from the results in the derivative.

    Parameters
    ----------
    dataset, out : path
        Roots of the dataset and of its derivative.
    scans : sequence of Scan
        Scans to summarise. One without results is listed as failed.

    Returns
    -------
    list of Scan
        Scans without results.

    Raises
    ------
    InputError
        No scan has results, or a file of results cannot be read.
    """
    from markupsafe import Markup

    from atlasseg.report.cohort_page import CohortReport, TargetSummary, render_cohort

    derivative = Derivative(out, dataset)
    found = {scan.stem: _results(out / scan.folder, scan) for scan in scans}
    summaries, rows, table, atlases = [], [], LabelTable(), 0
    for scan in scans:
        result = found[scan.stem]
        if result is None:
            summaries.append(TargetSummary(scan.stem, error="no results"))
            continue
        stem, made = result
        volumes = _read_table(f"{stem}_volumes.tsv")
        quality = _read_table(f"{stem}_atlases.tsv")
        voted = quality["voted"] == "yes"
        page, picture = derivative.report(scan), derivative.picture(scan)
        summaries.append(
            TargetSummary(
                scan.stem,
                page.relative_to(out).as_posix() if page.is_file() else "",
                picture=Markup(picture.read_text("utf-8")) if picture.is_file() else "",
                warnings=made["Warnings"],
                volumes=volumes,
                predicted=_predicted(stem),
                similarity=float(quality.loc[voted, "similarity"].mean()),
                atlases=len(quality),
                voted=int(voted.sum()),
            )
        )
        rows.append((scan, made, volumes))
        table = table if len(table) else read_label_table(f"{stem}_dseg.tsv")
        atlases = max(atlases, len(quality))
    if not rows:
        raise InputError(f"{out}: expected results of {len(scans)} scans, got none. Run the participant level first.")
    _write_volumes(rows, out)
    recipes = {made["Recipe"] for _, made, _ in rows}
    report = CohortReport(
        name=io.read_json(dataset / "dataset_description.json")["Name"],
        fusion=", ".join(sorted({made["FusionMethod"] for _, made, _ in rows})),
        targets=summaries,
        table=table.completed({int(value) for _, _, volumes in rows for value in volumes["label"]}),
        atlases=atlases,
        recipe=recipes.pop() if len(recipes) == 1 else "",
        versions=outputs.software_versions(),
    )
    io.write_text(render_cohort(report), out / "index.html")
    return [scan for scan in scans if found[scan.stem] is None]


def _predicted(stem: str) -> dict[int, float]:
    """Predicted Dice of each label."""
    known = _read_table(f"{stem}_prediction.tsv").dropna(subset="predicted_dice")
    return dict(zip(known["label"].tolist(), known["predicted_dice"].tolist(), strict=True))


def _read_table(path: str) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False)


def _write_volumes(rows: Sequence[tuple[Scan, Mapping[str, Any], pd.DataFrame]], out: Path) -> None:
    """Write ``group_volumes.tsv`` (one row per scan, one column per structure) and its sidecar."""
    import pandas as pd

    names = {int(label): str(name) for _, _, v in rows for label, name in zip(v["label"], v["name"], strict=True)}
    counts = Counter(names.values())
    columns = {label: f"{name} {label}" if counts[name] > 1 else name for label, name in sorted(names.items())}
    table = pd.DataFrame(
        [
            {
                "participant_id": f"sub-{scan.labels['sub']}",
                "session_id": f"ses-{scan.labels['ses']}" if "ses" in scan.labels else None,
                "scan": scan.path.name,
                "fusion": made["FusionMethod"],
                **{columns[int(x)]: mm3 for x, mm3 in zip(volumes["label"], volumes["volume_mm3"], strict=True)},
            }
            for scan, made, volumes in rows
        ]
    )
    outputs.write_table(table.dropna(axis="columns", how="all"), out / "group_volumes.tsv")
    sidecar: dict[str, Any] = {
        "participant_id": {"Description": "participant"},
        "session_id": {"Description": "session, if the dataset has sessions"},
        "scan": {"Description": "segmented scan"},
        "fusion": {"Description": "fusion method"},
    }
    sidecar |= {c: {"Description": f"volume of label {label}", "Units": "mm^3"} for label, c in columns.items()}
    io.write_json({"GeneratedBy": {"Name": "atlasseg", "Version": __version__}, **sidecar}, out / "group_volumes.json")
