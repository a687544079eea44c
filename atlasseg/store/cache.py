"""Content-addressed cache: results are computed once and reused by any run, process or machine.

The key of a result is a digest of the content of its inputs, its parameters, and the version of its method: the source
code that it runs and the versions of the libraries. A changed file is never mistaken for the old one of the same name.
A changed atlas or parameter recomputes only the results that depend on it; registrations are cached for each atlas
separately. A cached result that is the input of another function is represented by its key, so only scans and atlases
are hashed.

An entry is one file, ``STAGE.METHOD/KEY.entry``. It is written under a temporary name and renamed, so it appears whole
or not at all, also on network file systems. There are no locks: two processes that compute the same entry at the same
time both write it, and the last one stays. An entry ends with a digest of its stage, its key and all its bytes, which
is checked at every read. An entry that is damaged, truncated or misplaced is computed again, with a warning. Writes are
not synchronised to the disk; entries lost in a power cut are computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.files import partial_path, sweep
from atlasseg.preprocessing.foreground import foreground
from atlasseg.recipe import Step
from atlasseg.store.serialisation import combine_digests, copy_name, digest, memoise_digest, pack, unpack
from atlasseg.volume import Image

log = logging.getLogger(__name__)

NOT_CACHED = (foreground,)
"""Functions that take no longer than reading their result from the cache."""

SUFFIX = ".entry"

DIGEST_BYTES = 32

BLOCK_BYTES = 1 << 20


class DamagedEntryError(Exception):
    """The bytes of a cache entry do not match its digest."""


UNREADABLE = (DamagedEntryError, OSError, KeyError, TypeError, ValueError)
"""Exceptions of reading an entry: damage, no access, or a value that this version does not know."""

SLACK = 0.1
"""Eviction frees this fraction of the limit. The size is checked each time half of this fraction was written."""

PARTIAL = ".unfinished"
"""Folder of a cache for entries that are being written."""

HEADER = "header"

SMALL = ("target",)
"""Stages with small results that are cached even with a limit of 0: summaries of finished targets."""


@dataclass(frozen=True)
class Entry:
    """Cache entry: its stage, path, size in bytes, and time of last use in seconds since 1970."""

    stage: str
    path: Path
    size: int
    used: float


class Cache:
    """Cache of function calls of the pipeline: calls a function, or returns its earlier result.

    Parameters
    ----------
    folder : path
        Cache folder, created with the first entry. Any number of processes may use it at the same time.
    limit_bytes : int, optional
        Size limit. Beyond it the least recently used entries are removed. With 0 only `SMALL` results are cached.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._writable = True
        self._written: float = np.inf  # bytes since the last size check; a new process has not checked yet

    @property
    def writable(self) -> bool:
        """Whether results are cached: the limit is not 0, and no write of this process has failed."""
        return self._writable and self.limit_bytes != 0

    def __call__(self, function: Callable[..., Any], /, *data: Any, **given: Any) -> Any:
        """Return ``function(*data, **given)``, computed or from the cache."""
        if isinstance(function, Step):
            given = {name: value for name, value in given.items() if function.method.takes(name)}
            if function.method.stage == "registration":
                return self._registrations(function, *data, **given)
        key = combine_digests(digest(function), digest(data), digest(given))
        if function in NOT_CACHED:
            result = function(*data, **given)
        else:
            (result,) = self.each(stage_name(function), [key], lambda _: [function(*data, **given)])
            result = copy_name(result, next(iter(data), None))
        memoise_digest(result, key)
        return result

    def _registrations(
        self,
        step: Step,
        fixed: Image,
        moving: Sequence[Image],
        *,
        initial: Sequence[Any] | None = None,
        fixed_mask: Any = None,
        moving_masks: Sequence[Any] | None = None,
    ) -> list[Any]:
        """Cache each atlas separately: its transform does not depend on the other atlases of the call."""
        starts = initial or [None] * len(moving)
        masks = moving_masks or [None] * len(moving)
        shared = digest((step, fixed, fixed_mask))
        keys = [combine_digests(shared, digest(parts)) for parts in zip(moving, starts, masks, strict=True)]

        def register(absent: Sequence[int]) -> list[Any]:
            start = None if initial is None else [initial[n] for n in absent]
            images, image_masks = [moving[n] for n in absent], [masks[n] for n in absent]
            found: list[Any] = step(fixed, images, initial=start, fixed_mask=fixed_mask, moving_masks=image_masks)
            return found

        return self.each(stage_name(step), keys, register)

    def each(self, stage: str, keys: Sequence[str], compute: Callable[[Sequence[int]], Sequence[Any]]) -> list[Any]:
        """Return the results of several keys, and compute all missing ones in one call.

        Parameters
        ----------
        stage : str
            Kind of the results, the name of a folder of the cache.
        keys : sequence of str
        compute : callable
            Returns the results of the keys at the given positions.
        """
        found = {n: value for n, key in enumerate(keys) for value in self._read(stage, key)}
        absent = [n for n in range(len(keys)) if n not in found]
        if absent:
            start = time.perf_counter()
            for n, value in zip(absent, self._compute(stage, absent, compute), strict=True):
                found[n] = value
            seconds = (time.perf_counter() - start) / len(absent)
            for n in absent:
                self.put(stage, keys[n], found[n], seconds=seconds)
        for n, key in enumerate(keys):
            memoise_digest(found[n], key)
        return [found[n] for n in range(len(keys))]

    def _compute(
        self, stage: str, absent: Sequence[int], compute: Callable[[Sequence[int]], Sequence[Any]]
    ) -> Sequence[Any]:
        return compute(absent)

    def get(self, stage: str, key: str) -> Any:
        """Get the cached value of a key, or None."""
        return next(iter(self._read(stage, key)), None)

    def _read(self, stage: str, key: str) -> list[Any]:
        """Cached value of a key in a list, which is empty without one."""
        path = self._path(stage, key)
        try:
            header, arrays = read_entry(path)
            value = unpack(header["value"], arrays)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except UNREADABLE as error:
            log.warning("cached result %s cannot be read (%s); it is computed again", path, error)
            return []
        with contextlib.suppress(OSError):
            os.utime(path)  # the modification time is the time of last use
        return [value]

    def put(self, stage: str, key: str, value: Any, *, seconds: float = 0.0) -> None:
        """Cache a value. If it cannot be written, warn once and go on without a cache."""
        if not self._writable or (self.limit_bytes == 0 and stage not in SMALL):
            return
        arrays: dict[str, NDArray[Any]] = {}
        header = json.dumps({"stage": stage, "seconds": seconds, "value": pack(value, arrays)}).encode()
        path = self._path(stage, key)
        aside = partial_path(self.folder / PARTIAL / "entry")
        try:
            for folder in (path.parent, aside.parent):
                folder.mkdir(parents=True, exist_ok=True)
            with aside.open("w+b") as file:
                size = write_entry(file, path, header, arrays)
            aside.replace(path)
        except OSError as error:
            self._writable = False
            log.warning(
                "%s: results cannot be cached here (%s); going on without a cache", self.folder, error.strerror or error
            )
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            return
        self._written += size
        if self.limit_bytes and self._written > SLACK * self.limit_bytes / 2:
            evict(self.folder, self.limit_bytes)
            self._written = 0

    def _path(self, stage: str, key: str) -> Path:
        return self.folder / stage / f"{key[:40]}{SUFFIX}"


@cache
def open_cache(folder: Path, limit_bytes: int | None) -> Cache:
    """Open the cache in a folder; a process has one `Cache` for each folder and limit."""
    return Cache(folder, limit_bytes)


def stage_name(function: Callable[..., Any]) -> str:
    """Name of the folder for the results of a function: ``STAGE.METHOD``, or the name of the function."""
    if isinstance(function, Step):
        return f"{function.method.stage}.{function.name}"
    return getattr(function, "__name__", "other")


def write_entry(file: IO[bytes], path: Path, header: bytes, arrays: Mapping[str, NDArray[Any]]) -> int:
    """Write an entry that will be named `path`: header and arrays, then their digest. Returns its size in bytes."""
    np.savez(file, **{HEADER: np.frombuffer(header, np.uint8)}, **arrays)  # type: ignore[arg-type]
    size = file.tell()
    file.write(_digest(path, file, size))
    return size + DIGEST_BYTES


def read_entry(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read header and arrays of an entry and verify its digest; raises one of `UNREADABLE` if it is damaged."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END) - DIGEST_BYTES
        found = _digest(path, file, size)
        if size < 0 or file.read() != found:
            raise DamagedEntryError("damaged: its content does not match its checksum")
        file.seek(0)
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    return json.loads(arrays.pop(HEADER).tobytes()), arrays


def _digest(path: Path, file: IO[bytes], size: int) -> bytes:
    """BLAKE2b digest of an entry's stage, its name and the first `size` bytes of its file; moves the file position."""
    found = hashlib.blake2b(f"{path.parent.name}/{path.name}\n".encode(), digest_size=DIGEST_BYTES)
    file.seek(0)
    while size > 0 and (part := file.read(min(size, BLOCK_BYTES))):
        found.update(part)
        size -= len(part)
    return found.digest()


def list_entries(folder: Path) -> Iterator[Entry]:
    """List the entries of a cache in no particular order; skips those that another process removes meanwhile."""
    for stage in _folders(folder):
        with contextlib.suppress(FileNotFoundError), os.scandir(stage) as found:
            for item in found:
                if item.name.endswith(SUFFIX):
                    with contextlib.suppress(FileNotFoundError):
                        state = item.stat()
                        yield Entry(stage.name, Path(item.path), state.st_size, state.st_mtime)


def evict(folder: Path, limit_bytes: int) -> int:
    """Remove the least recently used entries of a cache that is over its limit; returns the number removed."""
    sweep(folder / PARTIAL)
    kept = sorted(list_entries(folder), key=lambda entry: entry.used)
    total, removed = sum(entry.size for entry in kept), 0
    if total <= limit_bytes:
        return 0
    for entry in kept:
        if total <= (1 - SLACK) * limit_bytes:
            break
        with contextlib.suppress(OSError):
            entry.path.unlink(missing_ok=True)
            removed += 1
        total -= entry.size
    log.info("%s: removed the %d least recently used results", folder, removed)
    return removed


def clear(folder: Path, stages: Sequence[str] = ()) -> int:
    """Remove all entries, or those of some stages, and unfinished files of killed processes; returns the number."""
    removed = 0
    sweep(folder / PARTIAL)
    for stage in _folders(folder):
        if stages and not any(stage.name == name or stage.name.startswith(f"{name}.") for name in stages):
            continue
        for path in stage.glob(f"*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                removed += 1
        with contextlib.suppress(OSError):
            stage.rmdir()
    return removed


def find_damaged(folder: Path) -> Iterator[tuple[Entry, str]]:
    """Find the entries that cannot be read, with the reason."""
    for entry in list_entries(folder):
        try:
            header, arrays = read_entry(entry.path)
            unpack(header["value"], arrays)
        except FileNotFoundError:
            continue
        except UNREADABLE as error:
            yield entry, str(error) or type(error).__name__


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
