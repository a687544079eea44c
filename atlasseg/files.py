"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from atlasseg.errors import InputError, OutputError


def checked_path(path: object, what: str = "path") -> Path:
    """A path, of text or of a path-like object that is not empty.

    Raises
    ------
    InputError
        It is something else: the message names `what`.

    Examples
    --------
    >>> checked_path("scan.nii.gz").suffixes
    ['.nii', '.gz']
    """
    if not isinstance(path, str | os.PathLike) or not str(path).strip():
        shown = repr(path) if isinstance(path, str) else "None" if path is None else f"a {type(path).__name__}"
        raise InputError(f"{what}: expected the path of a file or folder, got {shown}.")
    return Path(path)


def checked_content(value: object, kind: type, path: str | Path) -> None:
    """Refuse to write what is not of the `kind` that the file is for.

    Raises
    ------
    InputError
        The message names file, expected and actual type.
    """
    if not isinstance(value, kind):
        name, got = kind.__name__, "None" if value is None else type(value).__name__
        article = "an" if name[0] in "AEIOU" else "a"
        raise InputError(f"{path}: expected {article} {name} to write, got {got}.")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; on leaving it becomes `path`, unless anything went wrong: then nothing remains.

    Raises
    ------
    OutputError
        For any OSError inside (disk full, read-only folder): the message names `path` and the reason.
    """
    path = Path(path)
    temporary = path.with_name(f".{_owner()}.partial.{path.name}")  # its suffixes tell writers the format
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
    """Remove what processes that are gone have left beside `final`: of this machine, or for longer than a day."""
    for path in final.parent.glob(f".{glob.escape(final.name)}.*.partial"):
        _discard_abandoned(path)


def sweep(folder: Path) -> None:
    """Remove all files and folders in `folder` that processes which are gone were writing there when they ended."""
    for path in folder.glob(".*.partial*"):
        _discard_abandoned(path)


def _discard_abandoned(path: Path) -> None:
    import psutil

    owner = re.search(r"\.([\w-]*)-(\d+)-[0-9a-f]{8}\.partial", path.name)
    if owner is None:
        return
    with suppress(OSError):
        here = owner[1] == _host()
        if psutil.pid_exists(int(owner[2])) if here else time.time() - path.stat().st_mtime < ABANDONED_S:
            return
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


ABANDONED_S = 24 * 3600
"""What another machine began to write and has not touched for so long is not being written any more."""

ATTEMPTS = 100
"""So often a folder is put in its place anew, where another process keeps being faster."""


def partial_path(final: Path) -> Path:
    """A path beside `final` that this process alone writes to, and that `sweep` removes once the process is gone."""
    return final.parent / f".{final.name}.{_owner()}.partial"


def _owner() -> str:
    """Name this process, and what it writes, so that no other has the name."""
    return f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"


def _host() -> str:
    return re.sub(r"\W", "_", platform.node())


@contextmanager
def atomic_directory(final: Path) -> Iterator[Path]:
    """A folder to write into that takes the name `final` when the block ends well, and vanishes when it does not.

    A folder of that name from an earlier run is replaced in one step, and kept if the block fails. Two processes may
    write the same folder at once: it is then whole, and the one's that ended last.

    Raises
    ------
    OutputError
        The folder cannot be made or written; the message names it and the cause.
    """
    aside = partial_path(final)
    try:
        discard_partial(final)
        aside.mkdir(parents=True)
        yield aside
        _put_in_place(aside, final)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise OutputError(f"{final}: cannot be written: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


@contextmanager
def files_together(folder: Path, name: str, *, replaced: Callable[[str], bool], seal: str) -> Iterator[Path]:
    """A folder to write into whose files move into `folder` when the block ends well, and vanish when it does not.

    For results that share a folder with others', which other processes may be writing. The file whose name ends with
    `seal` says that the others are whole: of an earlier result it goes first, of this one it comes last.

    Parameters
    ----------
    folder : path
        Made where it is absent.
    name : str
        Of the result.
    replaced : callable
        Whether a file of that name in `folder` belongs to an earlier result, and goes.
    seal : str

    Raises
    ------
    OutputError
        As of `atomic_directory`.
    """
    aside = partial_path(folder / name)
    try:
        aside.mkdir(parents=True)
        discard_partial(folder / name)
        yield aside

        def sealing(path: Path) -> bool:
            return path.name.endswith(seal)

        made = sorted(aside.iterdir(), key=sealing)
        for old in sorted(filter(lambda path: replaced(path.name), folder.iterdir()), key=sealing, reverse=True):
            old.unlink(missing_ok=True)
        for path in made:
            path.replace(folder / path.name)
    except OSError as error:
        raise OutputError(f"{folder / name}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _put_in_place(aside: Path, final: Path) -> None:
    """Let `aside` take the name `final`; a folder of that name makes way, and comes back if that fails."""
    old = partial_path(final)
    for attempt in range(ATTEMPTS):
        with suppress(FileNotFoundError):
            final.rename(old)
        try:
            aside.rename(final)
        except OSError:
            if old.exists() and not final.exists():
                old.rename(final)
            if not final.exists() or attempt == ATTEMPTS - 1:
                raise
        else:
            break
        finally:
            shutil.rmtree(old, ignore_errors=True)


SEAL = "SHA256SUMS"
"""In a folder that is read again: the digests of its files, as ``sha256sum --check`` takes them."""


def seal(folder: Path, names: Iterable[str]) -> None:
    """Write the SHA-256 of some files of a folder, by their paths in it, into its file `SEAL`."""
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in sorted(names)]
    with atomic_write(folder / SEAL) as aside:
        aside.write_text("".join(lines), encoding="utf-8", newline="\n")


def check_seal(folder: Path, names: Iterable[str], *, remedy: str) -> None:
    """Check that files of a folder hold what they held when the folder was sealed.

    Parameters
    ----------
    folder : path
    names : iterable of str
        Paths in the folder that must be among those sealed.
    remedy : str
        What the user can do about damage: "train the model again".

    Raises
    ------
    InputError
        A file is missing, was changed, or was never sealed; the message names it.
    """
    path = folder / SEAL
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read, so the folder cannot be checked for damage: {remedy}") from error
    sealed = {}
    for line in lines:
        digest, gap, name = line.partition("  ")
        if not gap or not re.fullmatch("[0-9a-f]{64}", digest):
            raise InputError(f"{path}: damaged, a line is no digest with a file's name: {remedy}")
        sealed[name] = digest
    for name in names:
        if name not in sealed:
            raise InputError(f"{folder / name}: not among the files named in {SEAL}: {remedy}")
    for name, digest in sealed.items():
        try:
            found = _sha256(folder / name)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder / name}: missing or unreadable: {remedy}") from error
        if found != digest:
            raise InputError(f"{folder / name}: damaged, its bytes are not those that were written: {remedy}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
