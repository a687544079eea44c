"""NIfTI 1 and 2: geometry by sform, qform and unit, labels in the header, reproducible bytes."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.io._nifti_header import SpacingSource, make_header, read_geometry
from atlasseg.io._promise import check_gzip_length, check_length, check_shape, promised_bytes
from atlasseg.io._source import Source, Volume, log
from atlasseg.volume import Float64, Image, SourceHeader

_GZIP_LEVEL = 4


@contextmanager
def open_nifti(path: Path, spacing_from: SpacingSource = "sform") -> Iterator[Source]:
    """Open a single NIfTI file, compressed or not; its values are read from the stream."""
    with _open_header(path) as (kind, header, stream):
        affine, source = read_geometry(path, header, spacing_from)
        data = kind.ImageArrayProxy(stream, header, mmap=False)
        yield Source(data, affine, source, _read_embedded_labels(header), _read_step_s(header))
        while isinstance(stream, gzip.GzipFile) and stream.read(
            1 << 20
        ):  # read to the end, where gzip verifies its checksum
            pass


def read_nifti_header(path: Path) -> Any:
    """Read the header of a NIfTI file without interpreting its geometry."""
    with _open_header(path) as (_, header, _):
        return header


def read_nifti_values(path: Path) -> NDArray[Any]:
    """Read the values of a NIfTI file without interpreting its geometry, such as coefficients of FNIRT."""
    with _open_header(path) as (kind, header, stream):
        return np.asarray(kind.ImageArrayProxy(stream, header, mmap=False))


@contextmanager
def _open_header(path: Path) -> Iterator[tuple[Any, Any, Any]]:
    """Open a file and check its length against its header; yields nibabel's image class, the header and the stream."""
    import nibabel

    with path.open("rb") as file:
        compressed = file.peek(2)[:2] == b"\x1f\x8b"
        stream: Any = gzip.GzipFile(fileobj=file) if compressed else file
        size = stream.read(4)
        stream.seek(0)
        sizes = {int.from_bytes(size, "little"), int.from_bytes(size, "big")}
        if not sizes & {348, 540}:
            raise InputError(
                f"{path}: expected a NIfTI file, which begins with the header size 348 or 540, got {size!r}."
            )
        kind = nibabel.Nifti2Image if 540 in sizes else nibabel.Nifti1Image
        header = kind.header_class.from_fileobj(stream, check=False)
        sizes_mm = header["pixdim"][1:4]
        absent = sizes_mm == 0
        sizes_mm[absent] = 1  # nibabel would replace these with a warning, even if the sform is used
        header.check_fix(logger=_Named(log, {"path": path}))  # repairs harmless errors, with a warning
        sizes_mm[absent] = 0
        shape = header.get_data_shape()
        check_shape(path, shape)
        expected = promised_bytes(shape, header.get_data_dtype().itemsize, offset=int(header.get_data_offset()))
        if compressed:
            check_gzip_length(path, expected)
        else:
            check_length(path, expected, path.stat().st_size)
        yield kind, header, stream


class _Named(logging.LoggerAdapter[logging.Logger]):
    """Logger that puts the file name in front of nibabel's messages about headers."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return f"{(self.extra or {})['path']}: {msg}", kwargs


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
    """Write volumes (I, J, K) one after the other, as the last axis of one file."""
    count = len(labels) if labels is not None else volume.channels.shape[3] if isinstance(volume, Image) else 1
    header = make_header(volume.shape if count == 1 else (*volume.shape, count), dtype, affine, source)
    if labels is not None:
        _embed_labels(header, labels)
    with path.open("xb") as file, _compressed(file) if compress else nullcontext(file) as stream:
        header.write_to(stream)
        for values in volumes:
            stream.write(np.asarray(values, dtype=dtype).tobytes(order="F"))


def _compressed(file: IO[bytes]) -> Any:
    return gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0)  # no name and no time, for reproducible bytes


def _embed_labels(header: Any, labels: Sequence[int]) -> None:
    import nibabel

    text = json.dumps({"LabelMap": list(labels)})
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", text.encode()))


def _read_step_s(header: Any) -> float | None:
    """Time between two volumes, if the header states one with its unit."""
    unit_s = {8: 1.0, 16: 1e-3, 24: 1e-6}.get(int(header["xyzt_units"]) & 0x38)
    step = float(header["pixdim"][4])
    return unit_s * step if unit_s is not None and step > 0 else None


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
