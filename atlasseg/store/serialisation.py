"""The data types as a tree for JSON and named arrays, and back, bit for bit; and digests of what they hold."""

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
from atlasseg.recipe import Step
from atlasseg.regions.consistency import Change, Consistent
from atlasseg.registration.fit import Fit
from atlasseg.registration.quality import RegistrationQuality
from atlasseg.store.fingerprints import version_of
from atlasseg.transforms import Affine, BSplineField, Chain, DisplacementField, Inverse, Transform
from atlasseg.volume import Atlas, Image, LabelMap, Mask, ProbabilityMap

KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(Image, Mask, LabelMap, ProbabilityMap, Atlas),
        *(Affine, DisplacementField, BSplineField, Inverse, Chain),
        *(Fit, RegistrationQuality, Consistent, Change),
    )
}
"""What can be packed beside numbers, strings, arrays, tables, and tuples and mappings of these."""


def pack(value: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    """The tree of a value; its arrays are put into `arrays` under the names that the tree calls them by.

    Raises
    ------
    TypeError
        The value is of a kind that is not in `KINDS`.
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
    """What `pack` was given; of a volume's source header nothing is kept.

    Raises
    ------
    KeyError, TypeError, ValueError
        The tree is not one of `pack`'s.
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
    raise ValueError(f"no value is packed as {sorted(tree)}")


def _plain(column: Any) -> list[Any]:
    known: list[Any] = column.astype(object).where(column.notna(), None).tolist()
    return known


# -- digests ----------------------------------------------------------------------------------------------------------

_known: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def memoise_digest(value: Any, digest_: str) -> None:
    """Let `digest_` stand for a value that is known to be what made it: it need not be looked at again."""
    if isinstance(value, Transform | Image | Mask | LabelMap | ProbabilityMap | Atlas):
        _known[value] = digest_


def digest(value: Any) -> str:
    """SHA-256, in hexadecimal, of what a value holds: of volumes without name and file, of files their content.

    Functions and methods stand with the version of their source, and a device for the one that it leads to.

    Raises
    ------
    TypeError
        There is no digest of such a value.
    """
    if isinstance(value, Transform | Image | Mask | LabelMap | ProbabilityMap | Atlas):
        if value not in _known:
            _known[value] = _digest_of_noun(value)
        return _known[value]
    if value is None or isinstance(value, bool | int | float | str | np.generic):
        return joined(type(value).__name__, repr(value))
    if isinstance(value, np.ndarray):
        return joined(value.dtype.str, repr(value.shape), hashlib.sha256(np.ascontiguousarray(value).data).hexdigest())
    if isinstance(value, Path):
        return _digest_of_path(value)
    if isinstance(value, tuple | list):
        return joined("tuple", *map(digest, value))
    if isinstance(value, frozenset):
        return joined("set", *map(digest, sorted(value)))
    if isinstance(value, Mapping):
        return joined("mapping", *(part for name in sorted(value) for part in (name, digest(value[name]))))
    if isinstance(value, Step):
        given = dict(value.arguments)
        if value.method.has_device:
            given["device"] = resolve_device(given.get("device", "auto"))
        code = version_of(value.method.function, value.method.module)
        chosen = [version_of(each) for each in value.method.chosen(value.arguments)]
        return joined(value.method.stage, value.name, code, *chosen, digest(given))
    if isinstance(value, partial):
        return joined("partial", digest(value.func), digest(value.args), digest(value.keywords))
    if is_dataclass(value) and not isinstance(value, type):
        return joined(type(value).__name__, *(digest(getattr(value, f.name)) for f in fields(value)))
    if callable(value) and hasattr(value, "__qualname__"):
        return joined(value.__module__, value.__qualname__, version_of(value))
    raise TypeError(f"there is no digest of a {type(value).__name__}")


def joined(*parts: str) -> str:
    """One digest of several strings, told apart."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _digest_of_noun(value: Any) -> str:
    if isinstance(value, Atlas):
        return joined("Atlas", *(digest(part) for part in (value.image, value.labels, value.mask, value.not_annotated)))
    if isinstance(value, Transform):
        return joined(type(value).__name__, *(digest(getattr(value, f.name)) for f in fields(value)))  # type: ignore[arg-type]
    return io.content_hash(value)


def named_like(value: Any, source: Any) -> Any:
    """A volume with the name and source header of the one that it was made from; anything else as it is."""
    if isinstance(value, Image) and isinstance(source, Image):
        return replace(value, name=source.name, source_header=source.source_header)
    return value


def _digest_of_path(path: Path) -> str:
    """Of a file's content, or of the names and contents of all files in a folder."""
    if not path.is_dir():
        return _digest_of_file(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return joined("folder", *(part for p in files for part in (str(p.relative_to(path)), _digest_of_file(p))))


def _digest_of_file(path: Path) -> str:
    state = path.stat()
    return _hashed(path, state.st_mtime_ns, state.st_size)


@cache
def _hashed(path: Path, modified_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
