"""The only place where files become volumes, and volumes files.

NIfTI 1 and 2 (and FreeSurfer's MGH) go through nibabel, everything else (NRRD, MetaImage, a folder that is a DICOM
series) through SimpleITK, whose LPS coordinates and reversed axes end here. What is written appears whole or not at
all, and the same volume always becomes the same bytes.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import GeometryError, InputError
from atlasseg.files import written_whole
from atlasseg.labels import LabelTable, TableFormat, format_label_table
from atlasseg.volume import Float64, Grid, Image, LabelMap, Mask, Origin, ProbabilityMap

log = logging.getLogger(__name__)

T = TypeVar("T")
Volume = Image | LabelMap | Mask | ProbabilityMap
Like = Image | LabelMap | Mask | Origin | None
"""What a file can be written like: a volume on its grid, or the origin of one."""

_NIFTI_SUFFIXES = (".nii.gz", ".nii")
_NIBABEL_SUFFIXES = (*_NIFTI_SUFFIXES, ".hdr", ".img", ".hdr.gz", ".img.gz", ".mgz", ".mgh")
_ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".gipl.gz", ".dcm")
_WRITTEN_BY_ITK = (".nrrd", ".mha")
VOLUME_SUFFIXES = (*(suffix for suffix in _NIBABEL_SUFFIXES if not suffix.startswith(".img")), *_ITK_SUFFIXES)
"""How the names of files that hold a volume end."""

_GZIP_LEVEL = 4
_LARGEST_NIFTI1_AXIS = 32767
_LABEL_TYPES = ("uint8", "int16", "uint16", "int32")
_WHOLE_IN_FLOAT32 = 2**24
_EVEN_SLICES_TOLERANCE = 0.02  # of the distance between slices; scanners write positions with 2 to 6 decimals
_PROBABILITY_TOLERANCE = 0.01  # scaled 8-bit fractions miss 1 by 1/255
_SUM_ROUNDING = 1e-5  # what a sum of some hundred float32 fractions misses 1 by


def volume_id(path: str | Path) -> str:
    """Name of a volume's file without its suffixes: ``scan`` of ``folder/scan.nii.gz``."""
    name = Path(path).name
    suffix = _suffix(name)
    return name.removesuffix(name[-len(suffix) :]) if suffix else name


def is_volume(path: str | Path) -> bool:
    """Whether the name of a file is that of a volume; hidden files are not."""
    name = Path(path).name
    return not name.startswith(".") and bool(_suffix(name)) and name.lower().endswith(VOLUME_SUFFIXES)


def _suffix(name: str) -> str:
    known = (*_NIBABEL_SUFFIXES, *_ITK_SUFFIXES)
    return max((suffix for suffix in known if name.lower().endswith(suffix)), key=len, default="")


# ---------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, eq=False)
class _Raw:
    """An array as it lies in a file, 3-D or more, values scaled as the header says, with its place in space."""

    array: NDArray[Any]
    affine: Float64
    origin: Origin


def read_image(path: str | Path, *, nonfinite: Literal["mask", "refuse"] = "mask") -> Image:
    """Read a scan.

    Parameters
    ----------
    path : path
        A volume's file, or the folder of a DICOM series.
    nonfinite : {"mask", "refuse"}
        What becomes of NaN and infinite intensities: replaced by the lowest finite one with a warning
        (:func:`read_scan` says where), or refused.

    Raises
    ------
    InputError
        The file is absent, damaged, in no known format, of colours, not 3-D (4-D with one volume is), without any
        finite intensity, or has non-finite ones that are refused. The message names the file.
    GeometryError
        Its affine is not finite or not invertible.
    """
    return read_scan(path, nonfinite=nonfinite)[0]


def read_scan(
    path: str | Path, *, nonfinite: Literal["mask", "refuse"] = "mask", channels: bool = False
) -> tuple[Image, Mask | None]:
    """As :func:`read_image`, with a mask of the voxels whose intensities were finite, or None where all were.

    With `channels`, a 4-D file is a scan of several channels.
    """
    path = Path(path)
    raw = _read_3d(path, channels=channels)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is dealt with as such
        array = np.asarray(raw.array, dtype=np.float32)
    finite = np.isfinite(array)
    count = int(finite.size - finite.sum())
    mask = None
    if count:
        where = np.argwhere(~finite)[0].tolist()
        found = f"{count} of {finite.size} intensities are NaN or infinite, the first at voxel {where}"
        if nonfinite == "refuse" or count == finite.size:
            raise InputError(f"{path}: {found}")
        lowest = array[finite].min()
        log.warning("%s: %s; they are masked and set to the lowest finite intensity, %g", path, found, lowest)
        array = np.where(finite, array, lowest)
        known = np.asarray(finite if finite.ndim == 3 else finite.all(axis=3))
        mask = _named(path, lambda: Mask(known, raw.affine, volume_id(path), raw.origin))
    return _named(path, lambda: Image(array, raw.affine, volume_id(path), raw.origin)), mask


def read_label_map(path: str | Path) -> LabelMap:
    """Read a label map; labels are kept exactly, whatever the type on disk.

    Raises
    ------
    InputError
        As :func:`read_image`; and a value is not whole or beyond 32 bits. The message names the file.
    """
    path = Path(path)
    raw = _read_3d(path)
    array = raw.array
    if array.dtype.kind == "f":
        not_whole = ~(array == np.round(array)) | ~np.isfinite(array)
        if not_whole.any():
            where = np.argwhere(not_whole)[0].tolist()
            raise InputError(
                f"{path}: labels must be whole numbers, found {array[tuple(where)]} at voxel {where} "
                f"({int(not_whole.sum())} voxels in all)"
            )
        if array.dtype.itemsize <= 4 and np.abs(array).max() > _WHOLE_IN_FLOAT32:
            log.warning(
                "%s: labels beyond %d are stored as float32, which rounds them: largest found %d; they may have been "
                "other numbers once",
                path,
                _WHOLE_IN_FLOAT32,
                int(np.abs(array).max()),
            )
    return _named(path, lambda: LabelMap(array, raw.affine, volume_id(path), raw.origin))


def read_mask(path: str | Path) -> Mask:
    """Read a mask: inside is where the value is not 0.

    Raises
    ------
    InputError
        As :func:`read_image`; and a value is not finite, or none lies inside.
    """
    path = Path(path)
    raw = _read_3d(path)
    if not np.isfinite(raw.array).all():
        raise InputError(f"{path}: a mask must be finite, found NaN or infinite values")
    inside = raw.array != 0
    if not inside.any():
        raise InputError(f"{path}: the mask is empty: every value is 0")
    return _named(path, lambda: Mask(inside, raw.affine, volume_id(path), raw.origin))


def read_probability_map(
    path: str | Path | Sequence[str | Path], *, labels: Sequence[int] | Literal["numbered"] | None = None
) -> ProbabilityMap:
    """Read label probabilities from a 4-D volume (I, J, K, L), or from L 3-D volumes.

    Parameters
    ----------
    path : path, or sequence of L paths
        One volume is read at a time, so that memory grows with what is uncertain.
    labels : sequence of L int, or "numbered", optional
        The labels in their order; "numbered" is 1 to L. A 4-D file may say them itself, and is believed first: in its
        header, where :func:`write_probability_map` puts them, or in the ``LabelMap`` of its JSON sidecar (BIDS), as
        numbers. Where 0 has no volume, background gets what is left of 1.

    Returns
    -------
    ProbabilityMap
        Scaled to sum 1, with a warning where the sum is more than 0.01 off; where all are 0 is certain background, with
        a warning where background has a volume of its own.

    Raises
    ------
    InputError
        As :func:`read_image`; the labels are unknown, repeated, or not as many as the volumes; a value is not finite,
        negative, or above 1 (above 100 where most voxels say that they are percent, or 255 that they are bytes).
    GeometryError
        Several volumes are not on one grid.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
    first = paths[0]
    parts: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
    values: list[int] = []
    grid: Grid | None = None
    for index, one in enumerate(paths):
        with _reading(one) as source:
            shape = source.shape if len(source.shape) != 3 else (*source.shape, 1)
            if len(shape) != 4 or 0 in shape or (len(paths) > 1 and shape[3] != 1):
                wanted = "(I, J, K, labels)" if len(paths) == 1 else "(I, J, K)"
                raise InputError(f"{one}: a volume of shape {wanted} is wanted, got shape {source.shape}")
            found = Grid((shape[0], shape[1], shape[2]), source.affine)
            if grid is not None and not found.matches(grid):
                raise GeometryError(f"{one}: not on the grid of {first}: shapes {found.shape} and {grid.shape}")
            grid = grid or found
            given = range(1, max(len(paths), shape[3]) + 1) if labels == "numbered" else labels
            if len(paths) > 1 and given is not None:
                own = list(given[index : index + 1])
            else:
                own = _labels_of(one, source, given, shape[3])
            parts += [_fractions(one, source.volume(at), label) for at, label in enumerate(own)]
            values += own
    if len(set(values)) != len(values) or len(values) != len(parts):
        raise InputError(f"{first}: {len(parts)} volumes of probabilities need as many different labels, got {values}")
    assert grid is not None
    return _probabilities(first, grid, values, parts)


def _labels_of(path: Path, source: _Source, given: Sequence[int] | None, count: int) -> list[int]:
    values = source.labels or _sidecar_labels(path) or (None if given is None else [int(value) for value in given])
    if values is None:
        sidecar = path.with_name(volume_id(path) + ".json").name
        raise InputError(
            f"{path}: which label each of its {count} volumes is for is not known: "
            f"give a label table, or the list 'LabelMap' in {sidecar}"
        )
    if len(values) == count + 1 and 0 in values:
        values = [value for value in values if value != 0]  # a table that names background, which has no volume
    if len(values) != count or len(set(values)) != count:
        raise InputError(f"{path}: {count} volumes need as many different labels, got {values}")
    return values


def _probabilities(
    path: Path, grid: Grid, values: Sequence[int], parts: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]]
) -> ProbabilityMap:
    """One map of the voxels and probabilities of each label."""
    voxels = np.concatenate([where for where, _ in parts])
    weights = np.concatenate([weights for _, weights in parts]).astype(np.float64)
    weights *= _unit_of_probability(
        path, np.bincount(voxels, weights).astype(np.float64), float(weights.max(initial=0))
    )
    entries = np.repeat(np.array(values, np.int64), [where.size for where, _ in parts])
    total = np.bincount(voxels, weights, minlength=math.prod(grid.shape))
    if 0 not in values:
        short = np.flatnonzero((total > 0) & (total < 1 - _SUM_ROUNDING))
        voxels = np.concatenate([voxels, short])
        weights = np.concatenate([weights, 1 - total[short]])
        entries = np.concatenate([entries, np.zeros(short.size, np.int64)])
        total[short] = 1
    elif (nothing := int((total == 0).sum())) > 0:
        log.warning("%s: all probabilities are 0 at %d voxels; they are background", path, nothing)
    off = np.abs(total[total > 0] - 1)
    if off.size and off.max() > _PROBABILITY_TOLERANCE:
        count = int((off > _PROBABILITY_TOLERANCE).sum())
        log.warning(
            "%s: probabilities miss the sum 1 by up to %.3g, at %d voxels; they are scaled", path, off.max(), count
        )
    return ProbabilityMap.from_entries(
        np.zeros(grid.shape, np.int32),
        grid.affine,
        voxels,
        entries,
        weights,
        label_values=np.union1d(np.asarray(values, np.int64), 0),
        name=volume_id(path),
    )


def _unit_of_probability(path: Path, total: Float64, largest: float) -> float:
    """What probabilities are to be multiplied by: they may be parts of 1, percent, or bytes (0 to 255)."""
    if largest <= 1 + _PROBABILITY_TOLERANCE:
        return 1.0
    of_this_scale = (total > 1 + _PROBABILITY_TOLERANCE).sum() > (total > 0).sum() / 2
    for highest, name in ((100, "percent"), (255, "bytes, parts of 255")):
        if of_this_scale and 2 <= largest <= highest * (1 + _PROBABILITY_TOLERANCE):
            log.warning("%s: the largest value is %g, so the values are taken as %s", path, largest, name)
            return 1 / highest
    raise InputError(
        f"{path}: probabilities must lie in 0..1, or be percent in 0..100, or bytes in 0..255; "
        f"the largest is {largest:g}"
    )


def _sidecar_labels(path: Path) -> list[int] | None:
    sidecar = path.with_name(volume_id(path) + ".json")
    if not sidecar.is_file():
        return None
    values = read_json(sidecar).get("LabelMap")
    return values if isinstance(values, list) and all(isinstance(value, int) for value in values) else None


def _fractions(path: Path, array: NDArray[Any], label: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Flat (C order) voxels where one label's probability is not 0, and the probability there."""
    flat = np.asarray(array, dtype=np.float32).reshape(-1)
    if not np.isfinite(flat).all():
        raise InputError(f"{path}: the probabilities of label {label} are not all finite")
    if flat.min() < -_PROBABILITY_TOLERANCE:
        raise InputError(f"{path}: the probabilities of label {label} are negative: {flat.min():g}")
    voxels = np.flatnonzero(flat > 0)
    return voxels, flat[voxels]


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    InputError
        The file is absent, or is not a JSON object. The message names the file, and the line of the fault.
    """
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: a JSON object is wanted, got {type(found).__name__}")
    return found


def _named(path: Path, make: Callable[[], T]) -> T:
    """What `make` makes; where it refuses, the message begins with the file."""
    try:
        return make()
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error


def _read_3d(path: Path, *, channels: bool = False) -> _Raw:
    with _reading(path) as source:
        shape = source.shape
        more = [n for n in shape[3:] if n != 1]
        if len(shape) < 3 or len(more) > channels:
            wanted = "a 3-D volume, or a 4-D one of channels," if channels else "one 3-D volume"
            raise InputError(f"{path}: {wanted} is wanted, got {len(shape)}-D data of shape {shape}")
        if 0 in shape:
            raise InputError(f"{path}: the volume has no voxels, its shape is {shape}")
        return _Raw(source.array().reshape(*shape[:3], *more), source.affine, source.origin)


@dataclass(frozen=True, eq=False)
class _Source:
    """An opened file: its shape and place are known, its values (`data`, array or nibabel's proxy) read on demand."""

    data: Any
    affine: Float64
    origin: Origin
    labels: list[int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.data.shape)

    def array(self) -> NDArray[Any]:
        """Every value."""
        return self._plain(np.asanyarray(self.data))

    def volume(self, index: int) -> NDArray[Any]:
        """(I, J, K) values of one volume of a 4-D file; to be asked for in ascending order."""
        return self._plain(np.asanyarray(self.data[..., index] if len(self.shape) > 3 else self.data))

    @staticmethod
    def _plain(array: NDArray[Any]) -> NDArray[Any]:
        if array.dtype.kind not in "biuf":
            raise InputError(f"the values must be plain numbers, got {array.dtype} (colours or complex numbers)")
        return np.ascontiguousarray(array)


@contextmanager
def _reading(path: Path) -> Iterator[_Source]:
    """Open a volume; whatever goes wrong inside becomes an InputError that names the file."""
    try:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if path.is_dir():
            yield _dicom_series(path)
        elif _suffix(path.name) in _NIBABEL_SUFFIXES:
            with _nifti(path) as source:
                yield source
        else:
            yield _itk_file(path)
    except InputError as error:
        raise error if str(path) in str(error) else type(error)(f"{path}: {error}") from error
    except Exception as error:  # a parser may raise anything on bytes that it was not made for
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, EOFError | MemoryError) or "Expected" in reason:
            reason = f"the file is truncated or damaged ({reason})"
        raise InputError(f"{path}: cannot be read as a volume: {reason}") from error


@contextmanager
def _nifti(path: Path) -> Iterator[_Source]:
    import nibabel

    if _suffix(path.name) not in _NIFTI_SUFFIXES:  # a pair of files, or MGH
        image = nibabel.load(path)
        if isinstance(image, nibabel.Nifti1Pair):
            affine, origin = _place_in(path, image.header)
        else:
            affine, origin = np.asarray(image.affine, np.float64), Origin(path, np.dtype(image.get_data_dtype()).name)
            if not isinstance(image, nibabel.MGHImage):
                log.warning("%s: an Analyze header does not tell left from right: orientation is guessed", path)
        yield _Source(image.dataobj, affine, origin)
        return
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
        affine, origin = _place_in(path, header)
        yield _Source(kind.ImageArrayProxy(stream, header, mmap=False), affine, origin, _embedded_labels(header))
        while compressed and stream.read(1 << 20):  # to its end, where gzip compares its checksum
            pass


def _place_in(path: Path, header: Any) -> tuple[Float64, Origin]:
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
    return affine, Origin(path, dtype, sform_code, qform_code if kept is not None else 0, kept, version, unit)


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
    first, second = _named(path, lambda: Grid(box, affine)), Grid(box, other)
    if first.matches(second):
        return None
    return float(np.linalg.norm(first.corners_mm - second.corners_mm, axis=1).max())


def _itk_file(path: Path) -> _Source:
    import SimpleITK as sitk

    return _from_itk(path, _quietly(path, lambda: sitk.ReadImage(str(path))))


def _dicom_series(folder: Path) -> _Source:
    import SimpleITK as sitk

    from atlasseg.itk import LPS

    found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(found) != 1:
        many = f"{len(found)} series: {', '.join(found)}" if found else "none"
        raise InputError(f"{folder}: a folder with one DICOM series is wanted, found {many}")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), found[0]))
    reader.MetaDataDictionaryArrayUpdateOn()
    image = _quietly(folder, reader.Execute)
    source = _from_itk(folder, image)
    positions = [_position(reader, index) for index in range(image.GetSize()[2])]
    known = [position for position in positions if position is not None]
    if len(known) < max(len(positions), 2):
        return source
    step = _even_step(folder, np.array(known))
    affine = source.affine.copy()
    affine[:3, 2] = LPS[:3, :3] @ step  # ITK takes the slices' normal, which a tilted gantry does not follow
    if np.linalg.norm(affine[:3, 2] - source.affine[:3, 2]) > _EVEN_SLICES_TOLERANCE * np.linalg.norm(step):
        log.warning(
            "%s: the slices are not stacked along their normal (a tilted gantry): the volume is sheared", folder
        )
    return replace(source, affine=affine)


def _even_step(folder: Path, positions: Float64) -> Float64:
    """(3,) mm from a slice to the next, of (N, 3) positions that must be evenly spaced."""
    steps = np.diff(positions, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    if lengths.min() == 0:
        raise InputError(f"{folder}: several slices of the series lie at one place: one 3-D volume is wanted")
    step: Float64 = (positions[-1] - positions[0]) / len(steps)
    if np.linalg.norm(steps - step, axis=1).max() > _EVEN_SLICES_TOLERANCE * np.linalg.norm(step):
        raise GeometryError(
            f"{folder}: the slices of the series are unevenly spaced ({lengths.min():.4g} to {lengths.max():.4g} mm): "
            "one may be missing"
        )
    return step


def _position(reader: Any, index: int) -> list[float] | None:
    key = "0020|0032"  # ImagePositionPatient
    if not reader.HasMetaDataKey(index, key):
        return None
    return [float(part) for part in reader.GetMetaData(index, key).split("\\")]


def _quietly(path: Path, read: Callable[[], Any]) -> Any:
    """What ITK reads; of its errors only the last line, which holds the reason."""
    try:
        return read()
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(f"{path}: cannot be read as a volume: {lines[-1] if lines else error}") from error


def _from_itk(path: Path, image: Any) -> _Source:
    import SimpleITK as sitk

    from atlasseg.itk import LPS

    array = sitk.GetArrayFromImage(image)
    array = (np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array).T
    dimension = image.GetDimension()
    if dimension < 3:
        raise InputError(f"{path}: one 3-D volume is wanted, got {dimension}-D data of shape {array.shape}")
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    affine[:3, :3] = direction * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return _Source(array, LPS @ affine, Origin(path, array.dtype.name))


# ---------------------------------------------------------------------------------------------------------- writing


def write_image(image: Image, path: str | Path, *, like: Like = None) -> None:
    """Write intensities as float32; channels become the fourth axis.

    Parameters
    ----------
    image : Image
    path : path
        ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha``; missing folders are made. The file appears whole or not at all,
        and the same volume always gives the same bytes.
    like : volume or Origin, optional
        Whose affine, sform and qform with their codes, unit and NIfTI version the file gets, exactly; a volume must be
        on the same grid. Without it they are those of the file that `image` came from.

    Raises
    ------
    OutputError
        The file cannot be written (no space, no permission); nothing is left of it.
    GeometryError
        `like` is on another grid.
    InputError
        The path has another suffix.
    """
    _write_volume(Path(path), list(np.moveaxis(image.channels, -1, 0)), np.dtype(np.float32), image, like)


def write_label_map(labels: LabelMap, path: str | Path, *, like: Like = None) -> None:
    """Write labels as integers: of the type that `labels`, else `like`, had on disk, else of the smallest that fits.

    Parameters and errors as of :func:`write_image`.
    """
    place = like if isinstance(like, Origin) else like.origin if like is not None else Origin()
    dtype = _label_type(labels, (labels.origin.dtype, place.dtype))
    _write_volume(Path(path), [labels.array], dtype, labels, like)


def write_mask(mask: Mask, path: str | Path, *, like: Like = None) -> None:
    """Write a mask as uint8, 1 inside. Parameters and errors as of :func:`write_image`."""
    _write_volume(Path(path), [mask.array], np.dtype(np.uint8), mask, like)


def write_probability_map(probabilities: ProbabilityMap, path: str | Path, *, like: Like = None) -> None:
    """Write probabilities as float32 (I, J, K, L), in the order of ``probabilities.label_values``.

    The labels are noted in the NIfTI header (a comment extension), so :func:`read_probability_map` knows them. One
    label is expanded at a time. Parameters and errors as of :func:`write_image`; the suffix must be
    ``.nii.gz`` or ``.nii``.
    """
    path = Path(path)
    if _suffix(path.name) not in _NIFTI_SUFFIXES:
        raise InputError(f"{path}: probabilities are written as .nii.gz or .nii")
    values = [int(value) for value in probabilities.label_values]
    volumes = (probabilities.probability(value) for value in values)
    _write_volume(path, volumes, np.dtype(np.float32), probabilities, like, labels=values)


def write_label_table(table: LabelTable, path: str | Path, *, format: TableFormat | None = None) -> None:
    """Write a label table as BIDS TSV, or as CSV where the path ends so; see :func:`.labels.format_label_table`."""
    chosen: TableFormat = format or ("csv" if Path(path).suffix.lower() == ".csv" else "bids")
    write_text(format_label_table(table, chosen), path)


def write_text(text: str, path: str | Path) -> None:
    """Write UTF-8 text, whole or not at all; raises OutputError where it cannot be written."""
    with written_whole(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(data: Mapping[str, Any], path: str | Path) -> None:
    """Write a JSON object, whole or not at all; NaN is refused (ValueError), since JSON has none."""
    write_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_tsv(rows: Iterable[Mapping[str, object]], path: str | Path, *, columns: Sequence[str] | None = None) -> None:
    """Write a BIDS table, whole or not at all: tab-separated, with a header, ``n/a`` for None and NaN.

    `columns` are those of the first row unless given; a row may lack some.
    """
    rows = list(rows)
    header = list(columns) if columns is not None else list(rows[0]) if rows else []
    out = StringIO()
    writer = csv.writer(out, delimiter="\t", lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        cells = [row.get(column) for column in header]
        writer.writerow(["n/a" if cell is None or cell != cell else cell for cell in cells])
    write_text(out.getvalue(), path)


def _label_type(labels: LabelMap, wanted: Iterable[str | None]) -> np.dtype[Any]:
    lowest, highest = int(labels.array.min()), int(labels.array.max())
    for name in (*wanted, *_LABEL_TYPES):
        if name is not None and np.dtype(name).kind in "iu":
            limits = np.iinfo(name)
            if limits.min <= lowest and highest <= limits.max:
                return np.dtype(name)
    raise AssertionError("int32 holds every label")


def _write_volume(
    path: Path,
    volumes: Iterable[NDArray[Any]],
    dtype: np.dtype[Any],
    volume: Volume,
    like: Like,
    *,
    labels: Sequence[int] | None = None,
) -> None:
    suffix = _suffix(path.name)
    if suffix not in (*_NIFTI_SUFFIXES, *_WRITTEN_BY_ITK):
        raise InputError(f"{path}: volumes are written as {', '.join((*_NIFTI_SUFFIXES, *_WRITTEN_BY_ITK))}")
    affine = volume.affine
    if like is None:
        origin = Origin() if isinstance(volume, ProbabilityMap) else volume.origin
    elif isinstance(like, Origin):
        origin = like
    else:
        if not like.grid.matches(volume.grid):
            raise GeometryError(
                f"{path}: the result (shape {volume.shape}) is not on the grid of {like.name or 'the volume'} (shape "
                f"{like.shape}) that it should be written like: affines {affine.tolist()} and {like.affine.tolist()}"
            )
        affine, origin = like.affine, like.origin
    with written_whole(path) as temporary:
        if suffix in _WRITTEN_BY_ITK:
            assert not isinstance(volume, ProbabilityMap)
            _write_itk(temporary, replace(volume, affine=affine), dtype)
        else:
            _write_nifti(temporary, volumes, dtype, volume, affine, origin, labels, suffix.endswith(".gz"))


def _write_itk(path: Path, volume: Image | LabelMap | Mask, dtype: np.dtype[Any]) -> None:
    import SimpleITK as sitk

    from atlasseg.itk import image_to_sitk

    image = image_to_sitk(volume)
    if isinstance(volume, LabelMap):
        image = sitk.Cast(image, getattr(sitk, f"sitk{dtype.name.capitalize().replace('Ui', 'UI')}"))
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise OSError(str(error).strip().splitlines()[-1].strip()) from error


def _write_nifti(
    path: Path,
    volumes: Iterable[NDArray[Any]],
    dtype: np.dtype[Any],
    volume: Volume,
    affine: Float64,
    origin: Origin,
    labels: Sequence[int] | None,
    compress: bool,
) -> None:
    count = len(labels) if labels is not None else volume.channels.shape[3] if isinstance(volume, Image) else 1
    header = _header(volume.shape if count == 1 else (*volume.shape, count), dtype, affine, origin)
    if labels is not None:
        _embed_labels(header, labels)
    with path.open("xb") as file, _compressed(file) if compress else nullcontext(file) as stream:
        header.write_to(stream)
        for values in volumes:
            stream.write(np.asarray(values, dtype=dtype).tobytes(order="F"))


def _compressed(file: IO[bytes]) -> Any:
    return gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0)  # no name and no time: the same bytes every time


def _header(shape: tuple[int, ...], dtype: np.dtype[Any], affine: Float64, origin: Origin) -> Any:
    """NIfTI header that places voxels at `affine`, in the way that `origin` did where that is possible."""
    import nibabel

    version = 2 if origin.version == 2 or max(shape) > _LARGEST_NIFTI1_AXIS else 1
    header = nibabel.Nifti2Header() if version == 2 else nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_xyzt_units(origin.unit)
    header.set_slope_inter(1, 0)
    grid = Grid((shape[0], shape[1], shape[2]), affine)
    header.set_zooms((*grid.spacing_mm, *(1.0 for _ in shape[3:])))
    if origin.qform_code > 0:
        header.set_qform(
            affine if origin.qform is None else np.array(origin.qform), origin.qform_code, strip_shears=True
        )
    if origin.sform_code > 0:
        header.set_sform(affine, origin.sform_code)
        if origin.qform is None and not _same_place(grid, header.get_qform()):
            header["qform_code"] = 0  # a qform cannot shear
    elif not _same_place(grid, header.get_best_affine()):
        header.set_sform(affine, max(origin.qform_code, 1))
    return header


def _same_place(grid: Grid, affine: Float64) -> bool:
    return np.linalg.det(affine[:3, :3]) != 0 and grid.matches(Grid(grid.shape, affine))


def _embed_labels(header: Any, labels: Sequence[int]) -> None:
    import nibabel

    text = json.dumps({"LabelMap": list(labels)})
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", text.encode()))


def _embedded_labels(header: Any) -> list[int] | None:
    for extension in header.extensions:
        if extension.get_code() == 6:  # comment
            with suppress(ValueError, AttributeError):
                content = extension.get_content()
                text = content.decode() if isinstance(content, bytes) else str(content)
                values = json.loads(text.rstrip("\0")).get("LabelMap")
                if isinstance(values, list) and all(isinstance(value, int) for value in values):
                    return values
    return None


# ---------------------------------------------------------------------------------------------------------- content


def content_hash(volume: Volume, *, place: bool = True) -> str:
    """SHA-256, in hexadecimal, of what a volume holds: kind, shape, values, and its affine unless `place` is False.

    Neither name nor file enter, so a copy under another name has the same hash; without `place`, so has a copy whose
    header was changed.
    """
    hashed = hashlib.sha256(f"{type(volume).__name__} {volume.shape}".encode())
    if place:
        hashed.update((volume.affine + 0.0).tobytes())  # no negative zeros
    if isinstance(volume, ProbabilityMap):
        arrays: list[NDArray[Any]] = [
            volume.mode,
            volume.voxels,
            volume.offsets,
            volume.labels,
            volume.values,
            volume.label_values,
        ]
    else:
        arrays = [volume.array]
    for array in arrays:
        hashed.update(f" {array.dtype.name} {array.shape} ".encode())
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()
