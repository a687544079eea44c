"""Results kept by what they were made from: computed once, found again by any run, process or machine.

The key of a result is made of the content of its inputs, its parameters, and the version of its method: the source that
it runs through, and the versions of the libraries. A file that changed under the same name is never taken for the old
one, and a changed atlas or parameter makes anew what depends on it and nothing else: registrations are kept atlas by
atlas. What was itself made by a kept function stands with its key, so that only scans and atlases are ever hashed.

An entry is one file, ``STAGE.METHOD/KEY.entry``: written aside and renamed, so that it appears whole or not at all, on
network file systems too. There are no locks, and so none that outlive a process: two that make the same entry at once
both make it, and the last one's name stays. An entry ends with a digest of its stage, its key and all its bytes, which
is checked whenever it is read: one that was damaged, cut short or put in the place of another is made anew, with a
warning. Nothing waits for the disk: what a power cut takes is made again.
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
from atlasseg.store.serialisation import digest, joined, memoise_digest, named_like, pack, unpack
from atlasseg.volume import Image

log = logging.getLogger(__name__)

NOT_KEPT = (foreground,)
"""Functions that take no longer than reading what they return."""

SUFFIX = ".entry"

DIGEST_BYTES = 32

BLOCK_BYTES = 1 << 20


class DamagedEntryError(Exception):
    """An entry of the cache is not what was written under its name."""


UNREADABLE = (DamagedEntryError, OSError, KeyError, TypeError, ValueError)
"""What reading an entry may raise: damage, no access, or a value that this version does not know."""

SLACK = 0.1
"""Removal goes on until this share of the limit is free again; it is looked at after every half of it was written."""

PARTIAL = ".unfinished"
"""Folder of a cache in which entries are written before they get their names."""

HEADER = "header"

SMALL = ("target",)
"""Stages whose results are small, and kept whatever the limit: what is known of finished targets."""


@dataclass(frozen=True)
class Entry:
    """A kept result: which stage's, where, how large, and when it was last used (seconds since 1970)."""

    stage: str
    path: Path
    size: int
    used: float


class Cache:
    """Calls functions of the pipeline, or finds what they returned before.

    Parameters
    ----------
    folder : path
        Made when the first result is kept. Any number of processes may use it at once.
    limit_bytes : int, optional
        Beyond this the results that were used longest ago are removed. With 0 only `SMALL` results are kept.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._writable = True
        self._written: float = np.inf  # since it was last looked how much there is: in a new process never

    @property
    def writable(self) -> bool:
        """Whether results are kept: that is wanted, and nothing has yet kept this process from writing."""
        return self._writable and self.limit_bytes != 0

    def __call__(self, function: Callable[..., Any], /, *data: Any, **given: Any) -> Any:
        """``function(*data, **given)``, computed or kept."""
        if isinstance(function, Step):
            given = {name: value for name, value in given.items() if function.method.takes(name)}
            if function.method.stage == "registration":
                return self._registrations(function, *data, **given)
        key = joined(digest(function), digest(data), digest(given))
        if function in NOT_KEPT:
            result = function(*data, **given)
        else:
            (result,) = self.each(stage_of(function), [key], lambda _: [function(*data, **given)])
            result = named_like(result, next(iter(data), None))
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
        """Each atlas's own: a registration method gives it the same transform whatever others are in the call."""
        starts = initial or [None] * len(moving)
        masks = moving_masks or [None] * len(moving)
        whole = digest((step, fixed, fixed_mask))
        keys = [joined(whole, digest(parts)) for parts in zip(moving, starts, masks, strict=True)]

        def register(absent: Sequence[int]) -> list[Any]:
            begun = None if initial is None else [initial[n] for n in absent]
            chosen = [moving[n] for n in absent], [masks[n] for n in absent]
            found: list[Any] = step(fixed, chosen[0], initial=begun, fixed_mask=fixed_mask, moving_masks=chosen[1])
            return found

        return self.each(stage_of(step), keys, register)

    def each(self, stage: str, keys: Sequence[str], compute: Callable[[Sequence[int]], Sequence[Any]]) -> list[Any]:
        """The results of several keys; those that are not kept are computed together.

        Parameters
        ----------
        stage : str
            What kind of results they are: a folder of the cache.
        keys : sequence of str
        compute : callable
            Given the positions of those to compute, returns their results.
        """
        found = {n: value for n, key in enumerate(keys) for value in self._read(stage, key)}
        absent = [n for n in range(len(keys)) if n not in found]
        if absent:
            begun = time.perf_counter()
            for n, value in zip(absent, self._made(stage, absent, compute), strict=True):
                found[n] = value
            seconds = (time.perf_counter() - begun) / len(absent)
            for n in absent:
                self.put(stage, keys[n], found[n], seconds=seconds)
        for n, key in enumerate(keys):
            memoise_digest(found[n], key)
        return [found[n] for n in range(len(keys))]

    def _made(
        self, stage: str, absent: Sequence[int], compute: Callable[[Sequence[int]], Sequence[Any]]
    ) -> Sequence[Any]:
        return compute(absent)

    def get(self, stage: str, key: str) -> Any:
        """What is kept under a key, or None."""
        return next(iter(self._read(stage, key)), None)

    def _read(self, stage: str, key: str) -> list[Any]:
        """What is kept under a key, if anything is, as the only item."""
        path = self._path(stage, key)
        try:
            header, arrays = read_entry(path)
            value = unpack(header["value"], arrays)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except UNREADABLE as error:
            log.warning("kept result %s cannot be read (%s) and is made again", path, error)
            return []
        with contextlib.suppress(OSError):
            os.utime(path)  # read and modified times are all that every file system keeps; used last is kept longest
        return [value]

    def put(self, stage: str, key: str, value: Any, *, seconds: float = 0.0) -> None:
        """Keep a value, if it can be written; if not, that is said once, and the work goes on without keeping."""
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
            log.warning("%s: results cannot be kept here (%s): going on without", self.folder, error.strerror or error)
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            return
        self._written += size
        if self.limit_bytes and self._written > SLACK * self.limit_bytes / 2:
            shrink(self.folder, self.limit_bytes)
            self._written = 0

    def _path(self, stage: str, key: str) -> Path:
        return self.folder / stage / f"{key[:40]}{SUFFIX}"


@cache
def kept_in(folder: Path, limit_bytes: int | None) -> Cache:
    """The cache of this process in a folder."""
    return Cache(folder, limit_bytes)


def stage_of(function: Callable[..., Any]) -> str:
    """The folder of a function's results: stage and method, or the function's name."""
    if isinstance(function, Step):
        return f"{function.method.stage}.{function.name}"
    return getattr(function, "__name__", "other")


def write_entry(file: IO[bytes], path: Path, header: bytes, arrays: Mapping[str, NDArray[Any]]) -> int:
    """Write an entry that will be named `path`: its arrays, then their digest; returns its size in bytes."""
    np.savez(file, **{HEADER: np.frombuffer(header, np.uint8)}, **arrays)  # type: ignore[arg-type]
    size = file.tell()
    file.write(_digest(path, file, size))
    return size + DIGEST_BYTES


def read_entry(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and arrays of an entry, its digest verified; raises one of `UNREADABLE` where it is not whole."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END) - DIGEST_BYTES
        found = _digest(path, file, size)
        if size < 0 or file.read() != found:
            raise DamagedEntryError("damaged: its bytes are not those that were written under this name")
        file.seek(0)
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    return json.loads(arrays.pop(HEADER).tobytes()), arrays


def _digest(path: Path, file: IO[bytes], size: int) -> bytes:
    """BLAKE2b of an entry's stage and name and the first `size` bytes of a file, which is left standing after them."""
    found = hashlib.blake2b(f"{path.parent.name}/{path.name}\n".encode(), digest_size=DIGEST_BYTES)
    file.seek(0)
    while size > 0 and (part := file.read(min(size, BLOCK_BYTES))):
        found.update(part)
        size -= len(part)
    return found.digest()


def entries(folder: Path) -> Iterator[Entry]:
    """Every entry of a cache, in no order; those that vanish meanwhile are left out."""
    for stage in _folders(folder):
        with contextlib.suppress(FileNotFoundError), os.scandir(stage) as found:
            for item in found:
                if item.name.endswith(SUFFIX):
                    with contextlib.suppress(FileNotFoundError):
                        state = item.stat()
                        yield Entry(stage.name, Path(item.path), state.st_size, state.st_mtime)


def shrink(folder: Path, limit_bytes: int) -> int:
    """Remove what was used longest ago until a cache is below its limit again; returns the number removed."""
    sweep(folder / PARTIAL)
    kept = sorted(entries(folder), key=lambda entry: entry.used)
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
    log.info("%s: %d results that were used longest ago removed", folder, removed)
    return removed


def clear(folder: Path, stages: Sequence[str] = ()) -> int:
    """Remove every entry, or those of some stages, and what killed processes left; returns how many entries."""
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


def damaged(folder: Path) -> Iterator[tuple[Entry, str]]:
    """Every entry that cannot be read, and why."""
    for entry in entries(folder):
        try:
            header, arrays = read_entry(entry.path)
            unpack(header["value"], arrays)
        except FileNotFoundError:
            continue
        except UNREADABLE as error:
            yield entry, str(error) or type(error).__name__


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
