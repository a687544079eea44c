"""Scans of a BIDS dataset: find them with pybids, filter them, and check the dataset for errors."""

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

__all__ = ["Scan", "find_scans"]

log = logging.getLogger(__name__)

OTHER_DATATYPES = "func|dwi|fmap|perf|eeg|meg|ieeg|emg|beh|pet|micr|motion|nirs|mrs|figures"
"""BIDS datatypes without anatomical scans; their folders are skipped."""

SHOWN = 5


@dataclass(frozen=True)
class Scan:
    """Scan of a BIDS dataset; its file name holds its entities.

    Parameters
    ----------
    path : Path
        File of the scan.
    """

    path: Path

    @property
    def id(self) -> str:
        """File name without extensions; the id of the target in a run."""
        return io.volume_id(self.path)

    @property
    def labels(self) -> dict[str, str]:
        """BIDS entities by their short names: ``{"sub": "01", "ses": "1"}``."""
        return dict(part.split("-", 1) for part in self.id.split("_") if "-" in part)

    @property
    def suffix(self) -> str:
        """BIDS suffix, such as ``T1w``."""
        return self.id.split("_")[-1]

    @property
    def stem(self) -> str:
        """Common beginning of the names of its results: all entities but ``desc``, which each result sets itself."""
        return "_".join(f"{name}-{label}" for name, label in self.labels.items() if name != "desc")

    @property
    def folder(self) -> PurePosixPath:
        """Folder of its results in a derivative: ``sub-01/anat`` or ``sub-01/ses-1/anat``."""
        labels = self.labels
        return PurePosixPath(*(f"{name}-{labels[name]}" for name in ("sub", "ses") if name in labels), "anat")


def find_scans(
    dataset: Path,
    *,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    filter_file: Path | None = None,
) -> tuple[Scan, ...]:
    """Find the T1-weighted scans of a BIDS dataset, one per participant and session.

    Parameters
    ----------
    dataset : path
        Root of a raw dataset or of a derivative.
    participants, sessions : sequence of str
        Labels, with or without ``sub-`` and ``ses-``; by default all.
    filter_file : path, optional
        JSON file: ``{"t1w": {ENTITY: VALUE}}``, see `read_filter`.

    Returns
    -------
    tuple of Scan
        Sorted by path.

    Raises
    ------
    InputError
        The folder is not a BIDS dataset; a participant, session or scan is missing; a JSON file is invalid; or several
        scans of one session differ in an entity that is not in the filter. The message names the file and the cause.
    """
    existing = check_dataset(dataset)
    requested = [label.removeprefix("sub-") for label in participants]
    unknown = [label for label in requested if label not in existing]
    if unknown:
        raise InputError(f"{dataset}: there is no participant {unknown[0]!r}. Choose from {_abbreviate(existing)}.")
    chosen = read_filter(filter_file) if filter_file is not None else {}
    layout = read_layout(dataset, requested)
    known = layout.get_entities()
    for entity in chosen:
        if entity not in known:
            raise InputError(f"{filter_file}: BIDS has no entity {entity!r}{suggestion(entity, known)}")
    query = {**_default_query(), **{entity: _to_query(value) for entity, value in chosen.items()}}
    if requested:
        query["subject"] = requested
    if sessions:
        query["session"] = [label.removeprefix("ses-") for label in sessions]
    files = sorted(layout.get(**query), key=lambda file: str(file.path))
    found = {Scan(Path(file.path)): {name: str(value) for name, value in file.get_entities().items()} for file in files}
    _check_found(dataset, list(found), chosen, requested or existing, query, sessions, by_name=bool(requested))
    _check_unambiguous(found, chosen, filter_file)
    for sidecar in layout.get(suffix=sorted({scan.suffix for scan in found}), extension=".json"):
        io.read_json(sidecar.path)
    return tuple(found)


def _default_query() -> dict[str, Any]:
    """Query without a filter: unprocessed T1-weighted scans."""
    query = _bids().layout.Query
    return {
        "suffix": "T1w",
        "datatype": "anat",
        "extension": [".nii.gz", ".nii"],
        "desc": query.NONE,
        "space": query.NONE,
    }


def check_dataset(dataset: Path) -> list[str]:
    """Check that a folder is a BIDS dataset, and list the labels of its participants in sorted order.

    Raises
    ------
    InputError
        The folder does not exist, has no valid ``dataset_description.json``, or has no participant.
    """
    if not dataset.is_dir():
        raise InputError(f"{dataset}: no such folder")
    description = dataset / "dataset_description.json"
    if not description.is_file():
        raise InputError(f"{dataset}: expected a BIDS dataset, got a folder without {description.name}.")
    for key in ("Name", "BIDSVersion"):
        if key not in io.read_json(description):
            raise InputError(f"{description}: expected the key {key!r}, which BIDS requires. Add it.")
    participants = sorted(path.name.removeprefix("sub-") for path in dataset.glob("sub-*") if path.is_dir())
    if not participants:
        raise InputError(f"{dataset}: expected participants in folders sub-LABEL, got none.")
    return participants


def read_layout(dataset: Path, participants: Sequence[str] = ()) -> Any:
    """Read the pybids layout of a dataset: anatomical files only, of some participants or of all."""
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
    """Read the filter of T1-weighted scans from a BIDS filter file.

    The format is that of fMRIPrep: ``{"t1w": {ENTITY: VALUE}}`` with the long names of entities. A list matches any of
    its values, ``null`` matches scans without the entity, ``"*"`` matches any value. Other top-level keys are ignored.

    Raises
    ------
    InputError
        The file cannot be read, is not JSON, or does not have this format.
    """
    found = io.read_json(path)
    chosen = found.get("t1w", {})
    if not isinstance(chosen, dict):
        raise InputError(f'{path}: "t1w": expected an object such as {{"acquisition": "highres"}}, got {chosen!r}')
    if "t1w" not in found and found:
        log.warning("%s: no scan is filtered: expected the key 't1w', got %s", path, _abbreviate(found))
    for entity, value in chosen.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, bool) or not isinstance(each, str | int | None):
                raise InputError(f"{path}: {entity}: expected a text, a whole number, null or a list, got {value!r}")
    return dict(chosen)


def _to_query(value: Any) -> Any:
    query = _bids().layout.Query
    if isinstance(value, list):
        return [_to_query(each) for each in value]
    return {None: query.NONE, "*": query.ANY}.get(value, value)


def _check_found(
    dataset: Path,
    found: Sequence[Scan],
    chosen: Mapping[str, Any],
    participants: Sequence[str],
    query: Mapping[str, Any],
    sessions: Sequence[str],
    *,
    by_name: bool,
) -> None:
    """Raise an error if a scan is missing; only warn of participants without scans that were not given by name."""
    conditions = [f"{entity} {value!r}" for entity, value in chosen.items()]
    conditions += [f"session {' or '.join(map(repr, query['session']))}"] if sessions else []
    what = f"{query['suffix']} scan" + (f" with {', '.join(conditions)}" if conditions else "")
    if not found:
        whose = f"participant {_abbreviate(participants)}" if by_name else "any of its participants"
        raise InputError(
            f"{dataset}: there is no {what} of {whose}. Expected e.g. sub-LABEL/anat/sub-LABEL_T1w.nii.gz."
        )
    without = sorted(set(participants) - {scan.labels["sub"] for scan in found})
    if without and by_name:
        raise InputError(f"{dataset}: participant {without[0]!r} has no {what} in {dataset / f'sub-{without[0]}'}")
    if without:
        log.warning("%s: %d participants have no %s: %s", dataset, len(without), what, _abbreviate(without))
    absent = sorted(set(query.get("session", ())) - {scan.labels.get("ses") for scan in found}, key=str)
    if sessions and absent:
        raise InputError(f"{dataset}: there is no session {absent[0]!r} with a {query['suffix']} scan")


def _check_unambiguous(
    found: Mapping[Scan, Mapping[str, str]], chosen: Mapping[str, Any], filter_file: Path | None
) -> None:
    """Raise an error if scans of one session differ in an entity that is not in the filter."""
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
                f"{scans[0].path.parent}: expected one {scans[0].suffix} scan per session, got {len(scans)} in "
                f"{folder.parent}, which differ in {' and '.join(open_)}: {files}. Choose one with --bids-filter-file"
                + (f" (now {filter_file})" if filter_file else "")
                + f", e.g. {json.dumps({'t1w': {open_[0]: value}})}."
            )


def validate(dataset: Path) -> None:
    """Run the BIDS validator over a dataset, if it is installed.

    Raises
    ------
    InputError
        The validator finds errors. The message names the first ones with their files.
    """
    program = find_validator()
    if program is None:
        log.info("%s: not validated: bids-validator-deno is not installed", dataset)
        return
    errors = list_validation_errors(dataset, program)
    if errors:
        raise InputError(
            f"{dataset}: the BIDS validator finds {len(errors)} errors: {'; '.join(errors[:SHOWN])}"
            f"{' ...' if len(errors) > SHOWN else ''}. Correct them, or give --skip-bids-validation."
        )


def find_validator() -> Path | None:
    """Find the BIDS validator beside this Python or on the PATH."""
    beside = Path(sys.executable).with_name("bids-validator-deno")
    found = str(beside) if beside.is_file() else shutil.which("bids-validator-deno")
    return None if found is None else Path(found)


def list_validation_errors(dataset: Path, program: Path) -> list[str]:
    """Run the BIDS validator over a dataset and list its errors, one line each.

    Raises
    ------
    InputError
        The validator fails.
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


def _abbreviate(items: Any) -> str:
    every = [str(item) for item in items]
    return ", ".join(every[:SHOWN]) + (f" and {len(every) - SHOWN} more" if len(every) > SHOWN else "")
