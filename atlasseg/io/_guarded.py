"""Child process of :mod:`atlasseg.io._guard`: reads files with ITK and returns plain arrays."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.itk import transform_from_sitk
from atlasseg.transforms import Affine, BSplineField, Chain, DisplacementField, Transform

Arrays = dict[str, NDArray[Any]]


def pack_transform(transform: Transform) -> Arrays:
    """Convert a transform into arrays, named by the number of the part and the name of the array.

    Raises
    ------
    InputError
        The class of a part has no file format.
    """
    parts = transform.transforms if isinstance(transform, Chain) else (transform,)
    out: Arrays = {}
    for n, part in enumerate(parts):
        if isinstance(part, Affine):
            out[f"{n} matrix"] = part.matrix
        elif isinstance(part, DisplacementField):
            out[f"{n} displacement_mm"], out[f"{n} affine"] = part.displacement_mm, part.affine
        elif isinstance(part, BSplineField):
            out[f"{n} coefficients_mm"], out[f"{n} affine"] = part.coefficients_mm, part.affine
        else:
            raise InputError(f"a transform of the class {type(part).__name__} cannot be packed")
    return out


def unpack_transform(arrays: Arrays) -> Transform:
    """Convert the arrays of :func:`pack_transform` back into the transform."""
    parts: list[Transform] = []
    for n in sorted({int(name.split()[0]) for name in arrays}):
        if f"{n} matrix" in arrays:
            parts.append(Affine(arrays[f"{n} matrix"]))
        elif f"{n} displacement_mm" in arrays:
            parts.append(DisplacementField(arrays[f"{n} displacement_mm"], arrays[f"{n} affine"]))
        else:
            parts.append(BSplineField(arrays[f"{n} coefficients_mm"], arrays[f"{n} affine"]))
    composed = parts[0]
    for part in parts[1:]:
        composed = composed @ part
    return composed


def _transform(paths: Sequence[Path]) -> Arrays:
    import SimpleITK as sitk

    return pack_transform(transform_from_sitk(sitk.ReadTransform(str(paths[0]))))


def _image(paths: Sequence[Path]) -> Arrays:
    from atlasseg.io.itk_formats import read_in_place

    source = read_in_place(paths[0])
    return {"array": source.data, "affine": source.affine}


def _dicom(paths: Sequence[Path]) -> Arrays:
    import SimpleITK as sitk

    return {str(n): sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0] for n, path in enumerate(paths)}


_TASKS: dict[str, Callable[[Sequence[Path]], Arrays]] = {"transform": _transform, "image": _image, "dicom": _dicom}


def _limit(memory: int) -> None:
    """Limit the memory that this process may still allocate, in bytes, and turn off core dumps."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))


def main(task: str, memory: str, out: str) -> None:
    """Read the files whose paths are on standard input, and write their arrays to `out`."""
    import SimpleITK as sitk

    sitk.ProcessObject.GlobalWarningDisplayOff()
    given = sys.stdin.buffer.read().decode(errors="surrogateescape").split("\0")
    _limit(int(memory))
    try:
        arrays = _TASKS[task]([Path(path) for path in given])
        np.savez(out, **arrays)  # type: ignore[arg-type]
    except Exception as error:  # the parent raises it
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        print(lines[-1] if lines else type(error).__name__)
        raise SystemExit(3) from None


if __name__ == "__main__":
    main(*sys.argv[1:])
