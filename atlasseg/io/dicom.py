"""DICOM scans: a series of slices, read with pydicom, or a multi-frame file, read with highdicom.

Each slice is rescaled by its own slope and intercept and placed by its own position. Slices that do not form one
volume, or lack their position, raise an error that states the reason; missing values are never invented.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import GeometryError, InputError, MissingLibraryError
from atlasseg.io._dicom_geometry import Plane, stack_planes
from atlasseg.io._source import Source, log
from atlasseg.io.dicom_series import check_scan, choose_series, quiet_pydicom, read_header
from atlasseg.volume import Float64, SourceHeader

_GRAY = ("MONOCHROME1", "MONOCHROME2")
_MOST_COMPRESSED = (
    50_000  # ratio of a blank slice in JPEG 2000; a header that announces more per byte is damaged or hostile
)
_ALWAYS_ALLOWED = 1 << 26


def read_dicom(path: Path, series: str | int | None = None) -> Source:
    """Read a DICOM scan from a folder or from a multi-frame file.

    Parameters
    ----------
    path : Path
        Folder with a series in it or below it, or one file.
    series : str or int, optional
        Number in :func:`list_series`, or SeriesInstanceUID, for a folder with several series.

    Raises
    ------
    InputError
        There is no scan, or several, or the slices do not form one volume. The message names the file.
    GeometryError
        The slices are not evenly spaced, differ in orientation or size, or lack their position.
    """
    if path.is_dir():
        files: Sequence[Path] = choose_series(path, series).files
    else:
        files = [path]
    first = _read(files[0], path)
    if int(first.get("NumberOfFrames") or 1) > 1:
        frames, planes = _read_frames(files[0], first)
    else:
        if not path.is_dir():
            _check_alone(path, first)
        frames, planes = _read_slices(path, files)
    array, affine = stack_planes(path, frames, planes)
    return Source(array, affine, SourceHeader(path if series is None else Path(f"{path}#{series}"), array.dtype.name))


def _read(file: Path, path: Path) -> Any:
    """Read the header of a file, and check that it is a scan of grey values."""
    header = read_header(file)
    if header is None:
        raise InputError(f"{file}: expected a DICOM file, got something else.")
    check_scan(file if file == path else path, header)
    if "MOSAIC" in [str(kind).upper() for kind in header.get("ImageType") or ()]:
        raise InputError(
            f"{file}: expected slices, got a Siemens mosaic, which tiles a volume into one picture. "
            "Convert the series with dcm2niix."
        )
    kind = str(header.get("PhotometricInterpretation", ""))
    if int(header.get("SamplesPerPixel") or 1) != 1 or kind not in _GRAY:
        raise InputError(f"{file}: expected grey values, got {kind or 'an unknown kind of pixels'}.")
    return header


def _check_alone(path: Path, header: Any) -> None:
    """Raise an error for a single slice whose series is in the same folder; warn if there is only this slice."""
    uid = header.get("SeriesInstanceUID")
    count = sum(_series_of(other) == uid for other in path.parent.iterdir() if other.is_file()) if uid else 1
    if count > 1:
        raise InputError(
            f"{path}: expected a volume, got one of the {count} slices of its series. Give the folder: {path.parent}"
        )
    log.warning("%s: a single slice of a DICOM series, without the others; it is read as a volume of one slice", path)


def _series_of(path: Path) -> Any:
    try:
        header = read_header(path, tags=["SOPClassUID", "SeriesInstanceUID"])
    except (InputError, OSError):  # a damaged file of another series in the folder
        return None
    return None if header is None else header.get("SeriesInstanceUID")


# ------------------------------------------------------------------------------------------------ one file a slice


def _read_slices(path: Path, files: Sequence[Path]) -> tuple[list[NDArray[Any]], list[Plane]]:
    from pydicom.pixels.processing import apply_modality_lut

    frames: list[NDArray[Any]] = []
    planes: list[Plane] = []
    compressed: list[Path] = []
    for file in files:
        header = _read(file, path)
        planes.append(plane_of_slice(file, header))
        if frames and frames[0].shape != (header.Rows, header.Columns):
            raise GeometryError(
                f"{file}: expected slices of one size, got {header.Columns} x {header.Rows} pixels, where "
                f"{files[0].name} has {frames[0].shape[1]} x {frames[0].shape[0]}."
            )
        stored = _stored_values(file)
        if stored is None:
            compressed.append(file)
            frames.append(np.zeros((header.Rows, header.Columns), np.float32))
            continue
        with quiet_pydicom():
            frames.append(np.asarray(apply_modality_lut(stored, header), np.float32))
    if compressed:
        for file, values in zip(compressed, _decode_by_gdcm(compressed), strict=True):
            frames[files.index(file)] = values
    return frames, planes


def _stored_values(file: Path) -> NDArray[Any] | None:
    """Stored pixel values, or None if pydicom has no decoder for their compression."""
    import pydicom

    with quiet_pydicom():
        dataset = pydicom.dcmread(file, force=True)
        promised = dataset.Rows * dataset.Columns * (int(dataset.get("BitsAllocated") or 16) // 8)
        if promised > max(_ALWAYS_ALLOWED, _MOST_COMPRESSED * file.stat().st_size):
            raise InputError(
                f"{file}: the file is truncated, or its header is damaged: expected {promised} bytes of pixels by its "
                f"header, in a file of {file.stat().st_size}. Copy it again."
            )
        if "PixelData" not in dataset:
            raise InputError(f"{file}: the file is truncated: expected pixels, found none. Copy it again.")
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        if syntax is None:  # a file without the part before the data set
            implicit = dataset.original_encoding[0]
            dataset.file_meta.TransferSyntaxUID = (
                pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
            )
        elif syntax.is_compressed and not _can_decode(syntax):
            return None
        try:
            return np.asarray(dataset.pixel_array)
        except Exception as error:  # a decoder may raise anything on bytes that it was not made for
            reason = " ".join(str(error).split())
            raise InputError(f"{file}: its pixels are truncated or damaged ({reason}). Copy it again.") from error


def _can_decode(syntax: Any) -> bool:
    from pydicom.pixels.decoders.base import get_decoder

    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _decode_by_gdcm(files: Sequence[Path]) -> list[NDArray[Any]]:
    """Decode the rescaled values of each file with ITK in a child process."""
    from atlasseg.io._guard import run_guarded

    found = run_guarded("dicom", files)
    return [found[str(n)] for n in range(len(files))]


def plane_of_slice(file: Path, header: Any) -> Plane:
    """Position of a slice by the header of its file."""
    return Plane(
        str(file.name),
        _numbers(header.get("ImagePositionPatient"), 3),
        _numbers(header.get("ImageOrientationPatient"), 6),
        _numbers(header.get("PixelSpacing"), 2),
        _thickness(header),
    )


# ---------------------------------------------------------------------------------------------- all slices in a file


def _read_frames(file: Path, header: Any) -> tuple[list[NDArray[Any]], list[Plane]]:
    """Read the frames of an enhanced multi-frame file, each with its functional groups."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    count = int(header.NumberOfFrames)
    if per_frame is None or len(per_frame) != count:
        raise GeometryError(
            f"{file}: expected the position of each of its {count} frames, "
            f"found {'none' if per_frame is None else len(per_frame)}. Convert the file with dcm2niix."
        )
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    planes = [plane_of_frame(f"frame {n}", group, shared) for n, group in enumerate(per_frame, start=1)]
    promised = count * header.Rows * header.Columns * (int(header.get("BitsAllocated") or 16) // 8)
    if promised > max(_ALWAYS_ALLOWED, _MOST_COMPRESSED * file.stat().st_size):
        raise InputError(
            f"{file}: the file is truncated, or its header is damaged: expected {promised} bytes of pixels by its "
            f"header, in a file of {file.stat().st_size}. Copy it again."
        )
    try:
        import highdicom
    except ImportError as error:
        raise MissingLibraryError(
            f"{file}: multi-frame DICOM needs highdicom: pip install 'atlasseg[dicom]'"
        ) from error
    try:
        with quiet_pydicom():
            image = highdicom.imread(file)
            frames = image.get_frames(dtype=np.float32, apply_real_world_transform=False, apply_presentation_lut=False)
    except Exception as error:  # a decoder may raise anything on bytes that it was not made for
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: its frames are truncated or damaged ({reason}). Copy it again.") from error
    return list(frames), planes


def plane_of_frame(name: str, group: Any, shared: Any) -> Plane:
    """Position of a frame by its own functional groups and the shared ones."""

    def macro(keyword: str) -> Any:
        found = group.get(keyword) or (shared.get(keyword) if shared is not None else None)
        return found[0] if found else {}

    measures = macro("PixelMeasuresSequence")
    return Plane(
        name,
        _numbers(macro("PlanePositionSequence").get("ImagePositionPatient"), 3),
        _numbers(macro("PlaneOrientationSequence").get("ImageOrientationPatient"), 6),
        _numbers(measures.get("PixelSpacing"), 2),
        _thickness(measures),
    )


def _numbers(values: Any, count: int) -> Float64 | None:
    if values is None or isinstance(values, str) or len(values) != count:
        return None
    numbers = np.array([float(value) for value in values])
    return numbers if np.isfinite(numbers).all() else None


def _thickness(header: Any) -> float | None:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        value = header.get(keyword)
        if value is not None and np.isfinite(float(value)) and float(value) > 0:
            return float(value)
    return None
