"""A volume of any format that is read, to a file of a format that is written."""

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
    """Convert a scan or a label map.

    Parameters
    ----------
    source : path
        A volume's file, or a folder with a DICOM series; ``FOLDER#2`` is the second of several.
    out : path
        ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha``.
    labels : bool
        The values are labels: they are written exactly, and resampled label by label.
    orthogonal : bool
        Resample a sheared volume (a tilted gantry) onto perpendicular axes over the same space, which ITK can open. A
        volume without shear stays as it is.
    spacing_from : {"sform", "pixdim"}
        As of :func:`atlasseg.io.read_image`.
    series : str or int, optional
        Which DICOM series of a folder.

    Returns
    -------
    Grid
        Of what was written.

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
