"""NIfTI 1 and 2: geometry by sform, qform and units, labels in the header, and the same bytes every time."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import GeometryError, InputError
from atlasseg.io._source import Source, Volume, log, name_file
from atlasseg.volume import Float64, Grid, Image, SourceHeader

_GZIP_LEVEL = 4
_LARGEST_NIFTI1_AXIS = 32767


@contextmanager
def open_nifti(path: Path) -> Iterator[Source]:
    """Open a NIfTI file of one part; its values are read from the stream."""
    import nibabel

    with path.open("rb") as file:
        compressed = file.peek(2)[:2] == b"\x1f\x8b"
        stream: Any = gzip.GzipFile(fileobj=file) if compressed else file
        size = stream.read(4)
        stream.seek(0)
        sizes = {int.from_bytes(size, "little"), int.from_bytes(size, "big")}
        if not sizes & {348, 540}:
            raise InputError(f"{path}: not a NIfTI file: it begins with {size!r}")
        kind = nibabel.Nifti2Image if 540 in sizes else nibabel.Nifti1Image
        header = kind.header_class.from_fileobj(stream)
        affine, source = read_geometry(path, header)
        yield Source(kind.ImageArrayProxy(stream, header, mmap=False), affine, source, _read_embedded_labels(header))
        while compressed and stream.read(1 << 20):  # to its end, where gzip compares its checksum
            pass


def read_geometry(path: Path, header: Any) -> tuple[Float64, SourceHeader]:
    """Voxel to RAS+ mm, and what the header says of it, by the rule of NIfTI: sform, else qform, else voxel sizes."""
    dtype = np.dtype(header.get_data_dtype()).name
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    qform, flaw = _qform(header) if qform_code > 0 else (None, "")
    unit = _unit(header)
    if unit not in ("mm", "unknown"):
        log.warning("%s: the header gives lengths in %s; its numbers are taken as millimetres", path, unit)
    if sform_code > 0:
        affine = header.get_sform()
        if qform is None and qform_code > 0:
            log.warning("%s: the qform is faulty (%s); the sform is used", path, flaw)
        elif qform is not None:
            apart_mm = _apart_mm(path, header.get_data_shape(), affine, qform)
            if apart_mm is not None:
                log.warning(
                    "%s: sform and qform disagree by up to %.3g mm; the sform (code %d) is used, as NIfTI rules",
                    path,
                    apart_mm,
                    sform_code,
                )
    elif qform_code > 0:
        if qform is None:
            raise GeometryError(
                f"{path}: its place in space is unknown: there is no sform, and the qform is faulty ({flaw})"
            )
        affine = qform
    else:
        affine = header.get_base_affine()
        log.warning(
            "%s: neither sform nor qform is set; orientation and place are guessed from the voxel sizes %s mm",
            path,
            [round(float(zoom), 4) for zoom in header.get_zooms()[:3]],
        )
    kept = None if qform is None else tuple(tuple(row) for row in qform.tolist())
    version = 2 if int(header["sizeof_hdr"]) == 540 else 1
    return affine, SourceHeader(path, dtype, sform_code, qform_code if kept is not None else 0, kept, version, unit)


def _qform(header: Any) -> tuple[Float64 | None, str]:
    try:
        qform = np.asarray(header.get_qform(), np.float64)
    except ValueError as error:
        return None, f"its quaternion is not of length 1: {error}"
    if not np.isfinite(qform).all() or np.linalg.det(qform[:3, :3]) == 0:
        return None, "it is not finite or not invertible"
    return qform, ""


def _unit(header: Any) -> str:
    try:
        return str(header.get_xyzt_units()[0])
    except KeyError:
        return "unknown"


def _apart_mm(path: Path, shape: tuple[int, ...], affine: Float64, other: Float64) -> float | None:
    """How far the corners of two grids lie apart, or None where they are the same grid."""
    padded = (*shape, 1, 1, 1)
    box = (padded[0], padded[1], padded[2])
    first, second = name_file(path, lambda: Grid(box, affine)), Grid(box, other)
    if first.matches(second):
        return None
    return float(np.linalg.norm(first.corners_mm - second.corners_mm, axis=1).max())


def write_nifti(
    path: Path,
    volumes: Iterable[NDArray[Any]],
    dtype: np.dtype[Any],
    volume: Volume,
    affine: Float64,
    source: SourceHeader,
    labels: Sequence[int] | None,
    compress: bool,
) -> None:
    """Write `volumes`, (I, J, K) each, one after the other, as the last axis of one file."""
    count = len(labels) if labels is not None else volume.channels.shape[3] if isinstance(volume, Image) else 1
    header = _make_header(volume.shape if count == 1 else (*volume.shape, count), dtype, affine, source)
    if labels is not None:
        _embed_labels(header, labels)
    with path.open("xb") as file, _compressed(file) if compress else nullcontext(file) as stream:
        header.write_to(stream)
        for values in volumes:
            stream.write(np.asarray(values, dtype=dtype).tobytes(order="F"))


def _compressed(file: IO[bytes]) -> Any:
    return gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0)  # no name and no time: the same bytes every time


def _make_header(shape: tuple[int, ...], dtype: np.dtype[Any], affine: Float64, source: SourceHeader) -> Any:
    """NIfTI header that places voxels at `affine`, in the way that `source` did where that is possible."""
    import nibabel

    version = 2 if source.version == 2 or max(shape) > _LARGEST_NIFTI1_AXIS else 1
    header = nibabel.Nifti2Header() if version == 2 else nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_xyzt_units(source.unit)
    header.set_slope_inter(1, 0)
    grid = Grid((shape[0], shape[1], shape[2]), affine)
    header.set_zooms((*grid.spacing_mm, *(1.0 for _ in shape[3:])))
    if source.qform_code > 0:
        header.set_qform(
            affine if source.qform is None else np.array(source.qform), source.qform_code, strip_shears=True
        )
    if source.sform_code > 0:
        header.set_sform(affine, source.sform_code)
        if source.qform is None and not _same_place(grid, header.get_qform()):
            header["qform_code"] = 0  # a qform cannot shear
    elif not _same_place(grid, header.get_best_affine()):
        header.set_sform(affine, max(source.qform_code, 1))
    return header


def _same_place(grid: Grid, affine: Float64) -> bool:
    return np.linalg.det(affine[:3, :3]) != 0 and grid.matches(Grid(grid.shape, affine))


def _embed_labels(header: Any, labels: Sequence[int]) -> None:
    import nibabel

    text = json.dumps({"LabelMap": list(labels)})
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", text.encode()))


def _read_embedded_labels(header: Any) -> list[int] | None:
    for extension in header.extensions:
        if extension.get_code() == 6:  # comment
            with suppress(ValueError, AttributeError):
                content = extension.get_content()
                text = content.decode() if isinstance(content, bytes) else str(content)
                values = json.loads(text.rstrip("\0")).get("LabelMap")
                if isinstance(values, list) and all(isinstance(value, int) for value in values):
                    return values
    return None
