"""A run over the scans of a BIDS dataset, written as a BIDS derivative; and what is said of all participants together.

::

    OUT/dataset_description.json                          README, .bidsignore
    OUT/sub-01/[ses-1/]anat/sub-01_desc-joint_dseg.nii.gz .json, .tsv
                            sub-01_desc-joint_probseg.nii.gz, sub-01_from-ATLAS_to-T1w_mode-image_xfm.h5 on request
                            sub-01_desc-joint_entropy.nii.gz, _volumes.tsv, _atlases.tsv, _prediction.tsv
    OUT/sub-01/sub-01.html                                the report; in figures/ what the page of all shows of it
    OUT/group_volumes.tsv, .json, index.html              by the group level
    OUT/logs/                                             what was said of scans that failed

The run itself is that of :mod:`atlasseg.app.run`, in a folder of its own. The process that made a scan's results puts
them into the derivative together: where there is no ``dseg.json`` there is no result.
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

WORK = ".work"
"""In the output folder: where the run computes, where no other folder is named."""

NOT_OF_BIDS = (
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
"""Patterns of what a derivative holds that BIDS 1.11 has no name for."""

README = """\
# Segmentations by atlasseg

Labels that were carried over from a library of atlases by registration and fused. For each scan, in its folder `anat`:

- `*_dseg.nii.gz` the segmentation on the scan's own grid; `*_dseg.tsv` what its labels mean
- `*_dseg.json` how it was made
- `*_probseg.nii.gz` the probabilities of the labels, one a volume, in the order of `LabelMap`
- `*_entropy.nii.gz` where to look: how unsure each voxel is, in bits
- `*_volumes.tsv` the labels' volumes; `*_atlases.tsv` how well each atlas fits, and whether it voted
- `*_prediction.tsv` what Dice each label is likely to have, made without a reference
- `*_from-ATLAS_to-T1w_mode-image_xfm.h5` brings images of an atlas onto the scan (ITK)

`sub-LABEL/*.html` is the report on a scan, `index.html` and `group_volumes.tsv` are about all of them.
"""


@dataclass(frozen=True)
class Derivative:
    """Where a derivative of a dataset goes."""

    root: Path
    dataset: Path

    def report(self, scan: Scan) -> Path:
        """The page on a scan."""
        return self.root / scan.folder.parts[0] / f"{scan.stem}.html"

    def picture(self, scan: Scan) -> Path:
        """What the page of all scans shows of one."""
        return self.root / scan.folder.parts[0] / "figures" / f"{scan.stem}_dseg.html"

    def uri(self, scan: Scan) -> str:
        """The scan as a BIDS URI of the derivative."""
        folder = scan.path.parent.resolve().relative_to(
            self.dataset.resolve()
        )  # the file itself may be a link of git-annex
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
        The scans' dataset.
    out : path
        The derivative.
    scans : sequence of Scan
        See `find_scans`.
    recipe : Recipe
        Its targets and output folder are not used.
    work : path, optional
        Where the run computes and keeps what it computed; by default ``.work`` in `out`.
    workers, listener, limit_bytes, stop_on_failure
        As for `run`.

    Returns
    -------
    list of Outcome
        One a scan, as of `run`.

    Raises
    ------
    InputError, OutputError, ClusterError
        As `run` does; also where `out` is the dataset itself.
    """
    derivative = Derivative(out, dataset)
    prepared = planned(dataset, out, scans, recipe, work=work)
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


def planned(dataset: Path, out: Path, scans: Sequence[Scan], recipe: Recipe, *, work: Path | None = None) -> Recipe:
    """The recipe as `run` is given it: over the scans, into the folder for work. Parameters as of `participant_level`.

    Raises
    ------
    InputError
        `out` or the folder for work is the dataset itself, or atlases have names that differ in no letter or digit.
    """
    work = work or out / WORK
    for folder in (out, work):
        if folder.resolve() == dataset.resolve():
            raise InputError(
                f"{folder}: results cannot go into the dataset itself; give e.g. {dataset}/derivatives/atlasseg"
            )
    if recipe.output.transforms and recipe.data.atlases:
        names: dict[str, str] = {}
        for atlas in read_library(*recipe.data.atlases, spacing_from=recipe.data.spacing_from).ids:
            other = names.setdefault(outputs.entity(atlas), atlas)
            if other != atlas:
                raise InputError(
                    f"the transforms of atlases {other!r} and {atlas!r} would have one name in BIDS; rename one"
                )
    return with_paths(recipe, targets=[scan.path for scan in scans], out=work)


def write_description(derivative: Derivative, recipe: Recipe) -> None:
    """Make the output folder, and say there what made it, from what, and what is not of BIDS in it."""
    outputs.ready_folder(derivative.root, recipe)
    described = {
        **outputs.dataset_description(recipe),
        "SourceDatasets": [
            {"URL": _relative(path, derivative.root)} for path in (derivative.dataset, *recipe.data.atlases)
        ],
        "DatasetLinks": {"raw": _relative(derivative.dataset, derivative.root)},
    }
    io.write_json(described, derivative.root / "dataset_description.json")
    io.write_text("".join(f"{pattern}\n" for pattern in NOT_OF_BIDS), derivative.root / ".bidsignore")
    readme = derivative.root / "README.md"
    if not readme.exists():
        io.write_text(README, readme)


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # on another drive of Windows
        return path.resolve().as_uri()


# -- one scan ---------------------------------------------------------------------------------------------------------


def _publish(target: Target, results: Path, summary: TargetSummary, *, derivative: Derivative) -> None:
    """Put the results of a scan into the derivative, under the names that BIDS gives them."""
    scan = Scan(target.image)
    desc = next(results.glob("*_dseg.json")).name.split("_")[-2]
    with files_together(
        derivative.root / scan.folder, scan.stem, replaced=lambda name: is_result(name, scan), seal="_dseg.json"
    ) as folder:
        for source in results.iterdir():
            if source.suffix not in (".html", ".json"):
                shutil.copyfile(source, folder / result_name(source.name, target.id, scan, desc))
        for name, sidecar in _sidecars(folder, results, scan, summary, desc, derivative).items():
            io.write_json(sidecar, folder / name)
    page = results / f"{target.id}.html"
    if page.is_file():
        io.write_text(page.read_text("utf-8"), derivative.report(scan))
    if summary.picture:
        io.write_text(summary.picture, derivative.picture(scan))


def is_result(name: str, scan: Scan) -> bool:
    """Whether a file of an ``anat`` folder is a result of this scan, and not of another one."""
    return re.match(rf"{re.escape(scan.stem)}_(desc|from)-", name) is not None


def result_name(name: str, target: str, scan: Scan, desc: str) -> str:
    """The name in a derivative of a file that `run` wrote for a target."""
    rest = name.removeprefix(f"{target}_")
    transform = re.fullmatch(r"from-scan_to-(.+)_mode-points_(xfm\..+)", rest)
    if transform is not None:  # points go from scan to atlas, so images go from atlas to scan
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
        "group": {"Description": "labels of one group are also measured as one structure"},
        "not_annotated_in": {"Description": "atlases in which nobody drew the label"},
    },
}
"""What the columns of tables mean."""


def _sidecars(
    folder: Path, results: Path, scan: Scan, summary: TargetSummary, desc: str, derivative: Derivative
) -> dict[str, dict[str, Any]]:
    """Name to content of every JSON file of a scan's results."""
    stem, raw = f"{scan.stem}_{desc}", derivative.uri(scan)
    image = f"bids::{scan.folder}/{stem}_dseg.nii.gz"
    placed = {"Sources": [raw], "SpatialReference": raw}
    made = {**io.read_json(results / f"{scan.id}_{desc}_dseg.json"), "Warnings": summary.warnings}
    said = {
        "dseg": {**made, **placed, **COLUMNS["dseg"], "Description": "labels fused from atlases", "Manual": False},
        "entropy": {
            "Description": "entropy of the label probabilities",
            "Units": "bit",
            **placed,
        },
        "disagreement": {
            "Description": "share of the atlases that say another label",
            **placed,
        },
        "volumes": {"Description": "volumes of the labels", "Sources": [image], **COLUMNS["volumes"]},
    }
    order = results / f"{scan.id}_{desc}_probseg.json"
    if order.is_file():
        description = "probability of each label, one a volume, in the order of LabelMap"
        said["probseg"] = {"Description": description, **io.read_json(order), **placed, "Manual": False}
    beside = {name: [*folder.glob(f"{stem}_{name}.nii.gz"), *folder.glob(f"{stem}_{name}.tsv")] for name in said}
    return {f"{stem}_{name}.json": content for name, content in said.items() if beside[name]}


def write_report(scan: Scan, out: Path, dataset: Path) -> None:
    """Make the page on a scan again, from its results in the derivative: nothing is computed anew.

    How long the stages took and what was warned of meanwhile is not among them, and not on the page.

    Raises
    ------
    InputError
        There are no results of this scan, or a file of them cannot be read.
    """
    from atlasseg.report.figures import contact
    from atlasseg.report.page import TargetReport, render

    derivative = Derivative(out, dataset)
    found = _results(out / scan.folder, scan)
    if found is None:
        raise InputError(f"{out / scan.folder}: there are no results of {scan.path.name} to report on")
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
    """What the paths of a scan's results begin with, and the sidecar of its segmentation; None where there are none."""
    for path in sorted(folder.glob("*_dseg.json")):
        if is_result(path.name, scan):
            return str(path).removesuffix("_dseg.json"), io.read_json(path)
    return None


# -- all of them ------------------------------------------------------------------------------------------------------


def group_level(dataset: Path, out: Path, scans: Sequence[Scan]) -> list[Scan]:
    """Write the table of all volumes and the page of all scans, from the results in the derivative.

    Parameters
    ----------
    dataset, out : path
        The scans' dataset, and its derivative.
    scans : sequence of Scan
        Those to tell of; one without results is told of as failed.

    Returns
    -------
    list of Scan
        Those without results.

    Raises
    ------
    InputError
        None of them has results, or a file of results cannot be read.
    """
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
        judged = _read_table(f"{stem}_atlases.tsv")
        voted = judged["voted"] == "yes"
        page, picture = derivative.report(scan), derivative.picture(scan)
        summaries.append(
            TargetSummary(
                scan.stem,
                page.relative_to(out).as_posix() if page.is_file() else "",
                picture=picture.read_text("utf-8") if picture.is_file() else "",
                warnings=made["Warnings"],
                volumes=volumes,
                predicted=_predicted(stem),
                similarity=float(judged.loc[voted, "similarity"].mean()),
                atlases=len(judged),
                voted=int(voted.sum()),
            )
        )
        rows.append((scan, made, volumes))
        table = table if len(table) else read_label_table(f"{stem}_dseg.tsv")
        atlases = max(atlases, len(judged))
    if not rows:
        raise InputError(f"{out}: there are no results of {len(scans)} scans; run the participant level first")
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
    """Dice that each label is likely to have."""
    known = _read_table(f"{stem}_prediction.tsv").dropna(subset="predicted_dice")
    return dict(zip(known["label"].tolist(), known["predicted_dice"].tolist(), strict=True))


def _read_table(path: str) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False)


def _write_volumes(rows: Sequence[tuple[Scan, Mapping[str, Any], pd.DataFrame]], out: Path) -> None:
    """One row a scan, one column a structure, and a sidecar that says which is which."""
    import pandas as pd

    names = {int(label): str(name) for _, _, v in rows for label, name in zip(v["label"], v["name"], strict=True)}
    often = Counter(names.values())
    columns = {label: f"{name} {label}" if often[name] > 1 else name for label, name in sorted(names.items())}
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
    said: dict[str, Any] = {
        "participant_id": {"Description": "participant"},
        "session_id": {"Description": "session, where there are any"},
        "scan": {"Description": "the scan that was segmented"},
        "fusion": {"Description": "method by which its atlases were fused"},
    }
    said |= {c: {"Description": f"volume of label {label}", "Units": "mm^3"} for label, c in columns.items()}
    io.write_json({"GeneratedBy": {"Name": "atlasseg", "Version": __version__}, **said}, out / "group_volumes.json")
