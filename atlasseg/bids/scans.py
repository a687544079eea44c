"""Scans of a BIDS dataset, found through pybids: which there are, which are asked for, and what is wrong with it."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from atlasseg import io
from atlasseg.errors import InputError, MissingLibraryError
from atlasseg.methods import suggestion

log = logging.getLogger(__name__)

OTHER_DATATYPES = "func|dwi|fmap|perf|eeg|meg|ieeg|emg|beh|pet|micr|motion|nirs|mrs|figures"
"""Folders that hold no anatomical scans and need not be looked through."""

SHOWN = 5


@dataclass(frozen=True)
class Scan:
    """A scan of a BIDS dataset, which its file's name describes."""

    path: Path

    @property
    def id(self) -> str:
        """Its file's name without suffixes: what a run calls the target."""
        return io.volume_id(self.path)

    @property
    def labels(self) -> dict[str, str]:
        """Its entities by their short names: ``{"sub": "01", "ses": "1"}``."""
        return dict(part.split("-", 1) for part in self.id.split("_") if "-" in part)

    @property
    def suffix(self) -> str:
        """``T1w``, or what else was asked for."""
        return self.id.split("_")[-1]

    @property
    def stem(self) -> str:
        """What the names of its results begin with: its entities but for ``desc``, which results have of their own."""
        return "_".join(f"{name}-{label}" for name, label in self.labels.items() if name != "desc")

    @property
    def folder(self) -> PurePosixPath:
        """Where its results lie in a derivative: ``sub-01/anat`` or ``sub-01/ses-1/anat``."""
        labels = self.labels
        return PurePosixPath(*(f"{name}-{labels[name]}" for name in ("sub", "ses") if name in labels), "anat")


def find_scans(
    dataset: Path,
    *,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    filter_file: Path | None = None,
) -> tuple[Scan, ...]:
    """Find the T1-weighted scans of a BIDS dataset, one a participant and session.

    Parameters
    ----------
    dataset : path
        A raw dataset, or a derivative.
    participants, sessions : sequence of str
        Labels, with or without ``sub-`` and ``ses-``; all where none is given.
    filter_file : path, optional
        JSON: ``{"t1w": {ENTITY: VALUE}}``, as for `read_filter`.

    Returns
    -------
    tuple of Scan
        Ascending by path.

    Raises
    ------
    InputError
        It is no BIDS dataset, has no such participant, session or scan, a JSON file is broken, or several scans of a
        session differ in an entity that the filter does not choose by. The message names the file and the cause.
    """
    everyone = check_dataset(dataset)
    asked = [label.removeprefix("sub-") for label in participants]
    unknown = [label for label in asked if label not in everyone]
    if unknown:
        some = _some(everyone)
        raise InputError(f"{dataset}: there is no participant {unknown[0]!r}; there are {some}")
    chosen = read_filter(filter_file) if filter_file is not None else {}
    layout = read_layout(dataset, asked)
    known = layout.get_entities()
    for entity in chosen:
        if entity not in known:
            raise InputError(f"{filter_file}: BIDS has no entity {entity!r}{suggestion(entity, known)}")
    wanted = {**_usual(), **{entity: _as_query(value) for entity, value in chosen.items()}}
    if asked:
        wanted["subject"] = asked
    if sessions:
        wanted["session"] = [label.removeprefix("ses-") for label in sessions]
    files = sorted(layout.get(**wanted), key=lambda file: str(file.path))
    found = {Scan(Path(file.path)): {name: str(value) for name, value in file.get_entities().items()} for file in files}
    _check_found(dataset, list(found), chosen, asked or everyone, wanted, sessions, asked_for=bool(asked))
    _check_unambiguous(found, chosen, filter_file)
    for sidecar in layout.get(suffix=sorted({scan.suffix for scan in found}), extension=".json"):
        io.read_json(sidecar.path)
    return tuple(found)


def _usual() -> dict[str, Any]:
    """What is taken where the filter says nothing else: T1-weighted scans that nobody processed."""
    query = _bids().layout.Query
    return {
        "suffix": "T1w",
        "datatype": "anat",
        "extension": [".nii.gz", ".nii"],
        "desc": query.NONE,
        "space": query.NONE,
    }


def check_dataset(dataset: Path) -> list[str]:
    """The labels of all participants of a dataset, ascending.

    Raises
    ------
    InputError
        The folder is absent, has no sound dataset_description.json, or has no participant.
    """
    if not dataset.is_dir():
        raise InputError(f"{dataset}: no such folder")
    description = dataset / "dataset_description.json"
    if not description.is_file():
        raise InputError(f"{dataset}: no BIDS dataset: there is no {description.name}")
    for key in ("Name", "BIDSVersion"):
        if key not in io.read_json(description):
            raise InputError(f"{description}: it lacks {key!r}, which BIDS requires")
    everyone = sorted(path.name.removeprefix("sub-") for path in dataset.glob("sub-*") if path.is_dir())
    if not everyone:
        raise InputError(f"{dataset}: there is no participant: no folder sub-LABEL")
    return everyone


def read_layout(dataset: Path, participants: Sequence[str] = ()) -> Any:
    """The dataset as pybids has it, anatomical files alone, those of some participants or of all."""
    bids = _bids()
    ignored = [
        re.compile(r"^/(?!sub-[^/]+(/|$)|[^/]+$)"),
        re.compile(rf"^/sub-[^/]+(/ses-[^/]+)?/({OTHER_DATATYPES})(/|$)"),
    ]
    if participants:
        labels = "|".join(re.escape(label) for label in participants)
        ignored.append(re.compile(rf"^/sub-(?!(?:{labels})(/|$))"))
    indexer = bids.layout.BIDSLayoutIndexer(validate=False, ignore=ignored, index_metadata=False)
    return bids.layout.BIDSLayout(dataset, validate=False, indexer=indexer, config=["bids", "derivatives"])


def read_filter(path: Path) -> dict[str, Any]:
    """What a filter file says of the T1-weighted scan.

    As fMRIPrep has it: ``{"t1w": {ENTITY: VALUE}}`` with the long names of entities; a list means any of its values,
    ``null`` that the entity is absent, ``"*"`` that it is there. Other keys are of other programs, and passed over.

    Raises
    ------
    InputError
        It cannot be read, is no JSON, or has not that form.
    """
    found = io.read_json(path)
    chosen = found.get("t1w", {})
    if not isinstance(chosen, dict):
        raise InputError(f'{path}: "t1w" must hold an object such as {{"acquisition": "highres"}}, got {chosen!r}')
    if "t1w" not in found and found:
        log.warning("%s: it has no key 't1w', so nothing is filtered; there are %s", path, _some(found))
    for entity, value in chosen.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, bool) or not isinstance(each, str | int | None):
                raise InputError(f"{path}: {entity}: a text, a whole number, null or a list is wanted, got {value!r}")
    return dict(chosen)


def _as_query(value: Any) -> Any:
    query = _bids().layout.Query
    if isinstance(value, list):
        return [_as_query(each) for each in value]
    return {None: query.NONE, "*": query.ANY}.get(value, value)


def _check_found(
    dataset: Path,
    found: Sequence[Scan],
    chosen: Mapping[str, Any],
    participants: Sequence[str],
    wanted: Mapping[str, Any],
    sessions: Sequence[str],
    *,
    asked_for: bool,
) -> None:
    """Refuse what has no scan; tell of participants that have none, where they were not asked for by name."""
    said = [f"{entity} {value!r}" for entity, value in chosen.items()]
    said += [f"session {' or '.join(map(repr, wanted['session']))}"] if sessions else []
    what = f"{wanted['suffix']} scan" + (f" with {', '.join(said)}" if said else "")
    if not found:
        whose = f"participant {_some(participants)}" if asked_for else "any of its participants"
        raise InputError(f"{dataset}: there is no {what} of {whose} (wanted e.g. sub-LABEL/anat/sub-LABEL_T1w.nii.gz)")
    without = sorted(set(participants) - {scan.labels["sub"] for scan in found})
    if without and asked_for:
        raise InputError(f"{dataset}: participant {without[0]!r} has no {what} in {dataset / f'sub-{without[0]}'}")
    if without:
        log.warning("%s: %d participants have no %s: %s", dataset, len(without), what, _some(without))
    absent = sorted(set(wanted.get("session", ())) - {scan.labels.get("ses") for scan in found}, key=str)
    if sessions and absent:
        raise InputError(f"{dataset}: there is no session {absent[0]!r} with a {wanted['suffix']} scan")


def _check_unambiguous(
    found: Mapping[Scan, Mapping[str, str]], chosen: Mapping[str, Any], filter_file: Path | None
) -> None:
    """Refuse several scans of one session, unless the filter chose by what they differ in."""
    of_session: dict[PurePosixPath, list[Scan]] = defaultdict(list)
    for scan in found:
        of_session[scan.folder].append(scan)
    for folder, scans in of_session.items():
        if len(scans) == 1:
            continue
        entities = [found[scan] for scan in scans]
        names = {name for each in entities for name in each}
        differing = sorted(name for name in names if len({each.get(name) for each in entities}) > 1)
        open_ = [name for name in differing if name not in chosen]
        if open_:
            files = ", ".join(scan.path.name for scan in scans)
            value = next(each[open_[0]] for each in entities if open_[0] in each)
            raise InputError(
                f"{scans[0].path.parent}: {len(scans)} {scans[0].suffix} scans of one session ({folder.parent}), which "
                f"differ in {' and '.join(open_)}: {files}; choose by --bids-filter-file, with "
                f"{json.dumps({'t1w': {open_[0]: value}})} in it" + (f" (now {filter_file})" if filter_file else "")
            )


def validate(dataset: Path) -> None:
    """Run the BIDS validator over a dataset, where it is installed.

    Raises
    ------
    InputError
        It finds errors; the message names the first of them with their files.
    """
    program = validator()
    if program is None:
        log.info("%s: not validated: bids-validator-deno is not installed", dataset)
        return
    errors = validation_errors(dataset, program)
    if errors:
        raise InputError(
            f"{dataset}: the BIDS validator finds {len(errors)} errors: {'; '.join(errors[:SHOWN])}"
            f"{' ...' if len(errors) > SHOWN else ''} (--skip-bids-validation goes on regardless)"
        )


def validator() -> Path | None:
    """The BIDS validator of this Python, or of the PATH."""
    beside = Path(sys.executable).with_name("bids-validator-deno")
    found = str(beside) if beside.is_file() else shutil.which("bids-validator-deno")
    return None if found is None else Path(found)


def validation_errors(dataset: Path, program: Path) -> list[str]:
    """What the BIDS validator calls an error in a dataset, one line each.

    Raises
    ------
    InputError
        It does not come to an answer.
    """
    command = [str(program), str(dataset), "--format", "json", "--ignoreWarnings"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        issues = json.loads(done.stdout)["issues"]["issues"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{dataset}: the BIDS validator failed: {done.stderr.strip() or done.stdout[:200]}") from error
    return [
        " ".join(str(issue[key]) for key in ("location", "code", "subCode", "issueMessage") if issue.get(key))
        for issue in issues
        if issue.get("severity", "error") == "error"
    ]


def _bids() -> Any:
    try:
        import bids
    except ImportError as error:
        raise MissingLibraryError("BIDS datasets need pybids: pip install 'atlasseg[bids]'") from error
    return bids


def _some(items: Any) -> str:
    every = [str(item) for item in items]
    return ", ".join(every[:SHOWN]) + (f" and {len(every) - SHOWN} more" if len(every) > SHOWN else "")
