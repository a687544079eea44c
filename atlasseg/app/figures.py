"""Figures for a paper from the results of a run, a comparison or a BIDS derivative."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from atlasseg import io
from atlasseg.app.outputs import write_table
from atlasseg.errors import InputError, OutputError
from atlasseg.labels import LabelTable
from atlasseg.methods.stages import suggestion
from atlasseg.report.paper import plot_agreement, plot_groups, plot_scores
from atlasseg.report.plotting import plot_slices
from atlasseg.volume import Float64, LabelMap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["draw_agreement", "draw_groups", "draw_scores", "draw_slices"]

log = logging.getLogger(__name__)

VOLUMES, GROUP_VOLUMES = "volumes.tsv", "group_volumes.tsv"
"""Volumes of all targets: of a run, and of the group level of a BIDS derivative."""

KEYS = ("participant_id", "session_id", "scan", "fusion")
"""Columns of `GROUP_VOLUMES` that are no structure."""

DOTS_PER_INCH = 300
EXPECTED_METRICS = "the folder of a run on targets with labels/, or of a comparison"


def draw_scores(
    results: Path, out: Path, *, metric: str = "dice", structures: Sequence[str] = (), groups: bool = False
) -> pd.DataFrame:
    """Draw a measure of every structure over the targets of a run or a comparison.

    Parameters
    ----------
    results : path
        Output folder of ``atlasseg run`` (with ``metrics.tsv``) or ``atlasseg compare`` (``comparison.tsv``).
    out : path
        File of the figure: ``.pdf``, ``.svg``, ``.png`` or ``.tif``. The numbers are written beside it, as ``.tsv``.
    metric : str
        Measure to draw.
    structures : sequence of str
        Structures to draw, in this order. Default: all.
    groups : bool
        Draw the groups of labels, too (``foreground`` and those of the label table).

    Returns
    -------
    DataFrame
        One row per method and structure: number of targets, mean, standard deviation, median, smallest, largest.

    Raises
    ------
    InputError
        The folder has no metrics, or there is no such measure or structure.
    OutputError
        The figure cannot be written.
    """
    found = next((results / name for name in ("metrics.tsv", "comparison.tsv") if (results / name).is_file()), None)
    if found is None:
        raise InputError(f"{results}: expected {EXPECTED_METRICS}, got no metrics.tsv and no comparison.tsv in it.")
    table = _read(found)
    table = table[table["name"] != "all"]  # time and memory of a comparison
    if not groups and not structures:
        table = table[table["label"].notna()]
    table = _chosen(table, structures, found)
    _save(plot_scores(table, metric=metric), out)
    values = table[table["metric"] == metric].groupby(["method", "name"], sort=False)["value"]
    numbers = values.agg(["count", "mean", "std", "median", "min", "max"]).reset_index()
    return _write_numbers(numbers.rename(columns={"name": "structure", "count": "targets", "std": "sd"}), out)


def draw_agreement(results: Path, out: Path, *, structures: Sequence[str] = (), percent: bool = False) -> pd.DataFrame:
    """Draw the agreement of the volumes of a run with those of the reference (Bland and Altman).

    Parameters
    ----------
    results : path
        Output folder of ``atlasseg run`` on targets with reference labels.
    out, structures
        As for `draw_scores`; at most 12 structures.
    percent : bool
        Differences as a percentage of the mean of the two volumes.

    Returns
    -------
    DataFrame
        See `report.paper.plot_agreement`.

    Raises
    ------
    InputError
        The folder has no volumes with references, or there is no such structure.
    OutputError
        The figure cannot be written.
    """
    path = results / VOLUMES if results.is_dir() else results
    if not path.is_file():
        raise InputError(f"{results}: expected the output folder of a run, got no {VOLUMES} in it.")
    figure, numbers = plot_agreement(_chosen(_read(path), structures, path), percent=percent)
    _save(figure, out)
    return _write_numbers(numbers, out)


def draw_groups(
    results: Path,
    out: Path,
    *,
    participants: Path,
    column: str,
    structures: Sequence[str] = (),
    session: str | None = None,
) -> pd.DataFrame:
    """Draw the volumes of structures by group of participants, and test whether the groups differ.

    Parameters
    ----------
    results : path
        Output folder of ``atlasseg run``, or of both levels of ``atlasseg bids``.
    out, structures
        As for `draw_agreement`.
    participants : path
        Table (TSV or CSV) with the participants, or the ids of the targets, in the first column.
    column : str
        Column of this table with the groups.
    session : str, optional
        Session to take, if a BIDS participant has several.

    Returns
    -------
    DataFrame
        See `evaluation.groups.compare_groups`.

    Raises
    ------
    InputError
        Results, participants or groups are missing or do not match.
    OutputError
        The figure cannot be written.
    """
    volumes = _read_volumes(results, session)
    unknown = [name for name in structures if name not in volumes]
    if unknown:
        raise InputError(f"{results}: no structure {unknown[0]!r}{suggestion(unknown[0], volumes.columns)}")
    groups = _read_groups(participants, column, [str(id_) for id_ in volumes.index])
    figure, numbers = plot_groups(volumes[list(structures)] if structures else volumes, groups)
    _save(figure, out)
    return _write_numbers(numbers, out)


def draw_slices(
    segmentation: Path, out: Path, *, scan: Path | None = None, reference: Path | None = None, filled: bool = False
) -> None:
    """Draw three slices of a scan with the outlines of a segmentation and, below it, of a reference.

    Parameters
    ----------
    segmentation : path
        Label map. The label table beside it (``.tsv``) gives the colours.
    out : path
        As for `draw_scores`.
    scan : path, optional
        The scan. Default: the first of the sources in the ``.json`` beside the segmentation.
    reference : path, optional
        Label map on the same grid, RTSTRUCT or DICOM-SEG.
    filled : bool
        Fill the labels instead of outlining them.

    Raises
    ------
    InputError
        The scan is not known, or a file cannot be read.
    OutputError
        The figure cannot be written.
    """
    from matplotlib.figure import Figure

    from atlasseg.api.pairs import read_pair

    stem = io.volume_id(segmentation)
    names = segmentation.with_name(f"{stem}.tsv")
    table = io.read_label_table(names) if names.is_file() else LabelTable()
    image = io.read_image(scan if scan is not None else _source_of(segmentation))
    if reference is None:
        rows = [("", io.read_label_map(segmentation))]
    else:
        pair = read_pair(segmentation, reference, table=table if len(table) else None)
        rows = [("segmentation", pair.segmentation), ("reference", pair.reference)]
    figure = Figure(figsize=(7.1, 2.5 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 3, squeeze=False)
    at_mm = _middle_mm(rows[0][1])
    for axes, (title, labels) in zip(panels, rows, strict=True):
        shown = labels if image.grid.matches(labels.grid) else labels.reoriented_to(image.grid)
        plot_slices(image, shown, table=table, axes=list(axes), title=title, filled=filled, at_mm=at_mm)
    _save(figure, out)


def _read(path: Path) -> pd.DataFrame:
    """Read a table of structures. Labels of one name are told apart by their values."""
    import pandas as pd

    table = pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False)
    if {"label", "name"} <= set(table.columns):
        labels = table.dropna(subset="label").groupby("name")["label"].nunique()
        shared = table["name"].isin(labels.index[labels > 1]) & table["label"].notna()
        table.loc[shared, "name"] += " " + table.loc[shared, "label"].astype(int).astype(str)
    return table


def _chosen(table: pd.DataFrame, structures: Sequence[str], path: Path) -> pd.DataFrame:
    """The rows of the structures, in the order in which they are given."""
    import pandas as pd

    known = list(dict.fromkeys(table["name"]))
    for name in structures:
        if name not in known:
            raise InputError(f"{path}: no structure {name!r}{suggestion(name, known)}")
    return pd.concat([table[table["name"] == name] for name in structures]) if structures else table


def _read_volumes(results: Path, session: str | None) -> pd.DataFrame:
    """Volumes in mm^3: one row per scan, one column per structure."""
    of_bids, of_run = results / GROUP_VOLUMES, results / VOLUMES
    if of_bids.is_file():
        table = _read(of_bids)
        if "session_id" in table and session is not None:
            wanted = f"ses-{session.removeprefix('ses-')}"
            known = sorted(table["session_id"].dropna().unique())
            table = table[table["session_id"] == wanted]
            if table.empty:
                raise InputError(f"{of_bids}: no session {wanted!r}. There are: {', '.join(known)}")
        several = table["participant_id"][table["participant_id"].duplicated()]
        if len(several):
            raise InputError(
                f"{of_bids}: expected one scan per participant, got several of {several.iloc[0]}. "
                "Choose a session with --session."
            )
        return table.set_index("participant_id").drop(columns=[key for key in KEYS[1:] if key in table])
    if not of_run.is_file():
        raise InputError(
            f"{results}: expected the output folder of a run, or of the group level of a BIDS derivative, got neither "
            f"{VOLUMES} nor {GROUP_VOLUMES} in it."
        )
    table = _read(of_run)
    wide = table.pivot(index="target", columns="name", values="volume_mm3")
    return wide.loc[list(dict.fromkeys(table["target"])), list(dict.fromkeys(table["name"]))]


def _read_groups(path: Path, column: str, ids: Sequence[str]) -> pd.Series[str]:
    """Group of each scan, from a table of participants whose first column are their ids."""
    import pandas as pd

    if not path.is_file():
        raise InputError(f"{path}: expected a table of participants, got no file")
    table = pd.read_csv(path, sep="," if path.suffix == ".csv" else "\t", dtype=str, keep_default_na=False)
    if column not in table.columns[1:]:
        raise InputError(f"{path}: no column {column!r}{suggestion(column, table.columns[1:])}")
    groups = table.set_index(table.columns[0])[column]
    if groups.index.has_duplicates:
        twice = groups.index[groups.index.duplicated()][0]
        raise InputError(f"{path}: expected one row per participant, got several of {twice}")
    without = [id_ for id_ in ids if id_ not in groups.index]
    if len(without) == len(ids):
        got = ", ".join(groups.index[:3])
        raise InputError(f"{path}: expected ids of the scans in the first column, such as {ids[0]}, got {got}")
    if without:
        raise InputError(f"{path}: no row for {len(without)} of {len(ids)} scans: {', '.join(without[:5])}")
    known = groups[~groups.isin(["", "n/a"])]
    unknown = [id_ for id_ in ids if id_ not in known.index]
    if unknown:
        log.warning("%s: scans without %s are left out: %s", path, column, ", ".join(unknown))
    return known


def _source_of(segmentation: Path) -> Path:
    """The scan of a segmentation, as the sidecar names it."""
    sidecar = segmentation.with_name(f"{io.volume_id(segmentation)}.json")
    sources = io.read_json(sidecar).get("Sources") if sidecar.is_file() else None
    path = Path(str(sources[0])) if sources else None
    if path is None or not path.exists():
        raise InputError(f"{segmentation}: its scan is not known, or no longer at {path}. Give it with --scan.")
    return path


def _middle_mm(labels: LabelMap) -> Float64 | None:
    """The labelled voxel's middle in RAS+ mm; None without labels."""
    places = np.argwhere(labels.array != 0)
    if not len(places):
        return None
    middle: Float64 = labels.affine @ np.append(np.round(np.median(places, axis=0)), 1.0)
    return middle[:3]


def _save(figure: Figure, out: Path) -> None:
    """Write a figure in the format of its suffix."""
    known = sorted(figure.canvas.get_supported_filetypes())
    if out.suffix.lstrip(".").lower() not in known:
        raise InputError(
            f"{out}: expected a figure in one of the formats {', '.join(known)}, got {out.suffix or 'none'}"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=DOTS_PER_INCH)
    except OSError as error:
        raise OutputError(f"{out}: the figure cannot be written: {error.strerror or error}") from error


def _write_numbers(table: pd.DataFrame, out: Path) -> pd.DataFrame:
    write_table(table, out.with_suffix(".tsv"))
    return table
