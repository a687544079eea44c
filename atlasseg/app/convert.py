"""Conversion of volumes between file formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atlasseg import io
from atlasseg.errors import InputError
from atlasseg.itk import is_orthonormal, orthonormal_grid
from atlasseg.labels import LabelTable
from atlasseg.resampling import resample
from atlasseg.volume import Grid

__all__ = ["convert"]


def convert(
    source: Path,
    out: Path,
    *,
    labels: bool = False,
    orthogonal: bool = False,
    spacing_from: io.SpacingSource = "sform",
    series: str | int | None = None,
    reference: Path | None = None,
    structures: Sequence[str] = (),
    overlap: io.Overlap = "refuse",
    between_slices: io.BetweenSlices = "refuse",
    format: io.LabelFormat | None = None,
    table: Path | None = None,
) -> Grid:
    """Convert a scan or a label map to another file format.

    Parameters
    ----------
    source : path
        Volume file, or a folder with a DICOM series; ``FOLDER#2`` is the second of several series. For labels also an
        RTSTRUCT, a DICOM-SEG, or a folder with one.
    out : path
        ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha``; for labels also ``.seg.nrrd``, and ``.dcm`` with a `format`. Names
        and colours that the file cannot hold are written beside it, as a label table ``OUT.tsv``.
    labels : bool
        Treat the values as labels, which are written exactly and resampled label by label.
    orthogonal : bool
        Resample a sheared volume (tilted gantry) onto a grid with perpendicular axes that covers it, so that ITK can
        open the file. Other volumes are unchanged.
    spacing_from : {"sform", "pixdim"}
        As for :func:`atlasseg.io.read_image`.
    series : str or int, optional
        DICOM series of a folder: number or SeriesInstanceUID.
    reference : path, optional
        Scan of the labels: the grid of an RTSTRUCT or DICOM-SEG that is read, the DICOM series of one that is written.
    structures, overlap, between_slices
        As for :func:`atlasseg.io.read_label_map`.
    format : {"nifti", "seg.nrrd", "rtstruct", "dicomseg"}, optional
        As for :func:`atlasseg.io.write_label_map`.
    table : path, optional
        Label table with names, colours and codes, and with the values of an RTSTRUCT or DICOM-SEG by name.

    Returns
    -------
    Grid
        Grid of the written volume.

    Raises
    ------
    InputError
        The source cannot be read.
    OutputError
        `out` cannot be written.
    """
    if labels:
        return _convert_labels(
            source,
            out,
            orthogonal=orthogonal,
            spacing_from=spacing_from,
            reference=reference,
            structures=structures,
            overlap=overlap,
            between_slices=between_slices,
            format=format,
            table=table,
        )
    for name, given in (("reference", reference), ("structures", structures), ("format", format), ("table", table)):
        if given:
            raise InputError(f"{source}: expected --{name} with --labels, got a scan. Add --labels.")
    image, _ = io.read_scan(source, channels=True, spacing_from=spacing_from, series=series)
    if orthogonal and not is_orthonormal(image.grid):
        image = resample(image, orthonormal_grid(image.grid))
    io.write_image(image, out)
    return image.grid


def _convert_labels(
    source: Path,
    out: Path,
    *,
    orthogonal: bool,
    spacing_from: io.SpacingSource,
    reference: Path | None,
    structures: Sequence[str],
    overlap: io.Overlap,
    between_slices: io.BetweenSlices,
    format: io.LabelFormat | None,
    table: Path | None,
) -> Grid:
    named = io.has_structures(source)
    rows = None if table is None else io.read_label_table(table)
    chosen: io.Structures = list(structures) or (rows if named else None)
    label_map = io.read_label_map(
        source,
        spacing_from=spacing_from,
        reference=reference,
        structures=chosen,
        overlap=overlap,
        between_slices=between_slices,
    )
    if rows is None and named:
        rows = io.read_label_table(source)
    if orthogonal and not is_orthonormal(label_map.grid):
        label_map = resample(label_map, orthonormal_grid(label_map.grid))
    kind = io.label_format(out, format)
    like = reference if kind in ("rtstruct", "dicomseg") else None
    io.write_label_map(label_map, out, like=like, format=format, table=rows, algorithm="semiautomatic")
    if named and rows is not None and kind not in ("rtstruct", "dicomseg", "seg.nrrd"):
        present = set(label_map.values.tolist())
        kept = LabelTable(tuple(row for row in rows if row.value in present))
        io.write_label_table(kept, out.with_name(f"{io.volume_id(out)}.tsv"))
    return label_map.grid
