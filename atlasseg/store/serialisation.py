"""Serialisation of the data types to a JSON tree and named arrays, bit for bit; and digests of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from atlasseg import io
from atlasseg.device import resolve_device
from atlasseg.localisation import AtlasPose, OrganLocation, Place
from atlasseg.recipe import Step
from atlasseg.regions.consistency import Change, Consistent
from atlasseg.registration.fit import RegistrationFit
from atlasseg.registration.quality import RegistrationQuality
from atlasseg.store.fingerprints import fingerprint
from atlasseg.transforms import Affine, BSplineField, Chain, DisplacementField, Inverse, Transform
from atlasseg.volume import Atlas, Image, LabelMap, Mask, ProbabilityMap

KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(Image, Mask, LabelMap, ProbabilityMap, Atlas),
        *(Affine, DisplacementField, BSplineField, Inverse, Chain),
        *(RegistrationFit, RegistrationQuality, Consistent, Change, OrganLocation, Place, AtlasPose),
    )
}
"""Classes that can be packed, besides numbers, strings, arrays, tables, and tuples and mappings of these."""


def pack(value: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    """Pack a value into a JSON tree. Its arrays are added to `arrays` under the names that the tree refers to.

    Raises
    ------
    TypeError
        The class of the value is not in `KINDS`.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        name = f"a{len(arrays)}"
        arrays[name] = value
        return {"array": name}
    if isinstance(value, tuple | list):
        return {"tuple": [pack(each, arrays) for each in value]}
    if isinstance(value, frozenset):
        return {"set": sorted(value)}
    if isinstance(value, Mapping):
        return {"mapping": [[pack(key, arrays), pack(each, arrays)] for key, each in value.items()]}
    if type(value).__name__ == "DataFrame":
        return {"table": {name: [str(c.dtype), _plain(c)] for name, c in value.items()}}
    if not is_dataclass(value) or KINDS.get(type(value).__name__) is not type(value):
        raise TypeError(f"a {type(value).__name__} cannot be packed")
    parts = {f.name: pack(getattr(value, f.name), arrays) for f in fields(value) if f.name != "source_header"}
    return {"kind": type(value).__name__, "fields": parts}


def unpack(tree: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Unpack the value from a tree of `pack`. The source headers of volumes are not stored.

    Raises
    ------
    KeyError, TypeError, ValueError
        The tree was not made by `pack`.
    """
    if not isinstance(tree, dict):
        return tree
    match tree:
        case {"array": name}:
            return arrays[name]
        case {"tuple": items}:
            return tuple(unpack(each, arrays) for each in items)
        case {"set": items}:
            return frozenset(items)
        case {"mapping": items}:
            return {unpack(key, arrays): unpack(each, arrays) for key, each in items}
        case {"table": columns}:
            import pandas as pd

            return pd.DataFrame({n: pd.Series(values, dtype=dtype) for n, (dtype, values) in columns.items()})
        case {"kind": kind, "fields": parts}:
            return KINDS[kind](**{name: unpack(each, arrays) for name, each in parts.items()})
    raise ValueError(f"expected a tree of packed values, got the keys {sorted(tree)}")


def _plain(column: Any) -> list[Any]:
    known: list[Any] = column.astype(object).where(column.notna(), None).tolist()
    return known


# -- digests ----------------------------------------------------------------------------------------------------------

_known: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def memoise_digest(value: Any, digest_: str) -> None:
    """Store the digest of a value, so that `digest` need not compute it."""
    if isinstance(value, Transform | Image | Mask | LabelMap | ProbabilityMap | Atlas):
        _known[value] = digest_


def digest(value: Any) -> str:
    """Compute the SHA-256 digest of a value in hexadecimal.

    Names and source files of volumes do not count; of a file, its content counts. Functions and methods count with the
    fingerprint of their source, and the device 'auto' counts as the resolved one.

    Raises
    ------
    TypeError
        Values of this class have no digest.
    """
    if isinstance(value, Transform | Image | Mask | LabelMap | ProbabilityMap | Atlas):
        if value not in _known:
            _known[value] = _digest_data_type(value)
        return _known[value]
    if value is None or isinstance(value, bool | int | float | str | np.generic):
        return combine_digests(type(value).__name__, repr(value))
    if isinstance(value, np.ndarray):
        return combine_digests(
            value.dtype.str, repr(value.shape), hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()
        )
    if isinstance(value, Path):
        return _digest_path(value)
    if isinstance(value, tuple | list):
        return combine_digests("tuple", *map(digest, value))
    if isinstance(value, frozenset):
        return combine_digests("set", *map(digest, sorted(value)))
    if isinstance(value, Mapping):
        return combine_digests("mapping", *(part for name in sorted(value) for part in (name, digest(value[name]))))
    if isinstance(value, Step):
        given = dict(value.arguments)
        if value.method.has_device:
            given["device"] = resolve_device(given.get("device", "auto"))
        code = fingerprint(value.method.function, value.method.module)
        chosen = [fingerprint(each) for each in value.method.chosen(value.arguments)]
        return combine_digests(value.method.stage, value.name, code, *chosen, digest(given))
    if isinstance(value, partial):
        return combine_digests("partial", digest(value.func), digest(value.args), digest(value.keywords))
    if is_dataclass(value) and not isinstance(value, type):
        return combine_digests(type(value).__name__, *(digest(getattr(value, f.name)) for f in fields(value)))
    if callable(value) and hasattr(value, "__qualname__"):
        return combine_digests(value.__module__, value.__qualname__, fingerprint(value))
    raise TypeError(f"a {type(value).__name__} has no digest")


def combine_digests(*parts: str) -> str:
    """Combine several strings into one digest; ``("ab", "c")`` and ``("a", "bc")`` differ."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _digest_data_type(value: Any) -> str:
    if isinstance(value, Atlas):
        return combine_digests(
            "Atlas", *(digest(part) for part in (value.image, value.labels, value.mask, value.not_annotated))
        )
    if isinstance(value, Transform):
        return combine_digests(type(value).__name__, *(digest(getattr(value, f.name)) for f in fields(value)))  # type: ignore[arg-type]
    return io.content_hash(value)


def copy_name(value: Any, source: Any) -> Any:
    """Give an image the name and source header of the image that it was computed from; other values are unchanged."""
    if isinstance(value, Image) and isinstance(source, Image):
        return replace(value, name=source.name, source_header=source.source_header)
    return value


def _digest_path(path: Path) -> str:
    """Digest of a file's content, or of the names and contents of all files in a folder (perhaps ``FOLDER#2``)."""
    folder, series = io.split_series(path)
    if series is not None:
        return combine_digests("series", series, _digest_path(folder))
    if not path.is_dir():
        return _digest_file(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return combine_digests("folder", *(part for p in files for part in (str(p.relative_to(path)), _digest_file(p))))


def _digest_file(path: Path) -> str:
    state = path.stat()
    return _hashed(path, state.st_mtime_ns, state.st_size)


@cache
def _hashed(path: Path, modified_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
