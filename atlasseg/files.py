"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from atlasseg.errors import OutputError


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; on leaving it becomes `path`, unless anything went wrong: then nothing remains.

    Raises
    ------
    OutputError
        For any OSError inside (disk full, read-only folder): the message names `path` and the reason.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def discard_partial(final: Path) -> None:
    """Remove what an interrupted `whole_folder` may have left beside `final`."""
    shutil.rmtree(_aside(final), ignore_errors=True)


def _aside(final: Path) -> Path:
    return final.parent / f".{final.name}.partial"


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder to write into that takes the name `final` when the block ends well, and vanishes when it does not.

    A folder of that name from an earlier run is replaced in one step, and kept if the block fails.

    Raises
    ------
    OutputError
        The folder cannot be made or written; the message names it and the cause.
    """
    aside = _aside(final)
    old = final.parent / f".{final.name}.old"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        aside.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        if old.exists() and not final.exists():
            old.rename(final)
        raise OutputError(f"{final}: cannot be written: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
