"""Conversion of volumes between file formats."""

from __future__ import annotations

from pathlib import Path

from atlasseg import io
from atlasseg.itk import is_orthonormal, orthonormal_grid
from atlasseg.resampling import resample
from atlasseg.volume import Grid


def convert(
    source: Path,
    out: Path,
    *,
    labels: bool = False,
    orthogonal: bool = False,
    spacing_from: io.SpacingSource = "sform",
    series: str | int | None = None,
) -> Grid:
    """Convert a scan or a label map to another file format.

    Parameters
    ----------
    source : path
        Volume file, or a folder with a DICOM series; ``FOLDER#2`` is the second of several series.
    out : path
        ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha``.
    labels : bool
        Treat the values as labels, which are written exactly and resampled label by label.
    orthogonal : bool
        Resample a sheared volume (tilted gantry) onto a grid with perpendicular axes that covers it, so that ITK can
        open the file. Other volumes are unchanged.
    spacing_from : {"sform", "pixdim"}
        As for :func:`atlasseg.io.read_image`.
    series : str or int, optional
        DICOM series of a folder: number or SeriesInstanceUID.

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
        label_map = io.read_label_map(source, spacing_from=spacing_from)
        if orthogonal and not is_orthonormal(label_map.grid):
            label_map = resample(label_map, orthonormal_grid(label_map.grid))
        io.write_label_map(label_map, out)
        return label_map.grid
    image, _ = io.read_scan(source, channels=True, spacing_from=spacing_from, series=series)
    if orthogonal and not is_orthonormal(image.grid):
        image = resample(image, orthonormal_grid(image.grid))
    io.write_image(image, out)
    return image.grid
