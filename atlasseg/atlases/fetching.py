"""Public datasets: download them, verify their checksum, and convert them to the layout of a library.

::

    DIR/atlases/images, labels, labels.tsv    the labelled scans, a library
    DIR/targets/images                        scans without labels, if the dataset has any
    DIR/LICENSE.txt                           authors, source and licence

An interrupted download is resumed. The folder is written atomically.
"""

from __future__ import annotations

import logging
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from atlasseg import io
from atlasseg.errors import InputError, OutputError
from atlasseg.files import atomic_directory
from atlasseg.labels import Label, LabelTable
from atlasseg.methods import suggestion

__all__ = ["DATASETS", "Dataset", "fetch", "known"]

log = logging.getLogger(__name__)

Told = Callable[[int, int], None]
"""Function that is called with (bytes downloaded, total bytes or 0 if unknown) during a download."""

DECATHLON = "Medical Segmentation Decathlon"


@dataclass(frozen=True)
class Dataset:
    """Public dataset.

    Parameters
    ----------
    name : str
        Name for `fetch`.
    about : str
        Contents, in one line.
    url : str
        Address of the archive.
    checksum : str
        ``md5:...`` or ``sha256:...`` of the archive.
    checksum_from : str
        Publisher of the checksum.
    licence, licence_url : str
        Name and address of the licence.
    cite : str
        Reference to cite.
    megabytes : int
        Approximate size of the archive.
    lay_out : callable, optional
        ``lay_out(archive, dataset, folder)`` unpacks the archive into the layout of a library. Default: for an archive
        of the Decathlon.
    """

    name: str
    about: str
    url: str
    checksum: str
    checksum_from: str
    licence: str
    licence_url: str
    cite: str
    megabytes: int
    lay_out: Callable[[Path, Dataset, Path], None] | None = None


def _decathlon(name: str, task: str, md5: str, megabytes: int, about: str) -> Dataset:
    return Dataset(
        name,
        f"{about} ({DECATHLON}, {task})",
        f"https://msd-for-monai.s3-us-west-2.amazonaws.com/{task}.tar",
        f"md5:{md5}",
        "MONAI, monai/apps/datasets.py (DecathlonDataset)",
        "CC BY-SA 4.0",
        "https://creativecommons.org/licenses/by-sa/4.0/",
        "Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13, 4128 (2022); "
        "Simpson et al., arXiv:1902.09063 (2019)",
        megabytes,
    )


DATASETS = {
    dataset.name: dataset
    for dataset in (
        _decathlon(
            "hippocampus",
            "Task04_Hippocampus",
            "9d24dba78a72977dbd1d2e110310f31b",
            28,
            "260 labelled MRI crops of the hippocampus, anterior and posterior",
        ),
        _decathlon(
            "heart", "Task02_Heart", "06ee59366e1e5124267b774dbd654057", 435, "20 labelled MRI of the left atrium"
        ),
        _decathlon("spleen", "Task09_Spleen", "410d4a301da4e5b2f6f86ec3ddba524e", 1500, "41 labelled CT of the spleen"),
    )
}
"""Datasets that anyone may download, with a published checksum of the archive."""


def known(name: str) -> Dataset:
    """Find a dataset by name.

    Parameters
    ----------
    name : str
        Name, a key of `DATASETS`.

    Returns
    -------
    Dataset

    Raises
    ------
    InputError
        The name is unknown.
    """
    if name not in DATASETS:
        raise InputError(f"expected a known dataset, got {name!r}{suggestion(name, DATASETS)}")
    return DATASETS[name]


def fetch(dataset: Dataset, folder: Path, *, told: Told | None = None) -> None:
    """Download a dataset and convert it to the layout of a library.

    Parameters
    ----------
    dataset : Dataset
        Dataset, from `known`.
    folder : path
        New folder.
    told : callable, optional
        See `Told`.

    Raises
    ------
    InputError
        The folder exists, the download fails (the downloaded part is kept, and the next call resumes
        it), the checksum of the archive is wrong, or its content is not as expected.
    OutputError
        The folder cannot be written.
    """
    import pooch
    import requests

    if folder.exists():
        raise InputError(f"{folder}: expected a new folder, got one that exists. Remove it, or give another folder.")
    archive = folder.with_name(f".{folder.name}.tar")
    begun = folder.with_name(f".{folder.name}.tar.begun")
    pooch.get_logger().setLevel(logging.WARNING)
    with _as_errors(folder):
        try:
            pooch.retrieve(
                dataset.url,
                dataset.checksum,
                fname=archive.name,
                path=folder.parent,
                downloader=_Resuming(begun, told),
            )
        except requests.RequestException as error:
            kept = begun.stat().st_size if begun.is_file() else 0
            further = f"; {kept / 1e6:.1f} MB are kept. Run the same command to resume" if kept else ""
            raise InputError(f"{dataset.url}: expected a download, got: {error}{further}") from error
        except ValueError as error:  # of pooch, which has removed the file
            raise InputError(
                f"{dataset.url}: expected the dataset {dataset.name} with {dataset.checksum} "
                f"({dataset.checksum_from}), got another file. It was removed. {error}"
            ) from error
        try:
            with atomic_directory(folder) as made:
                (dataset.lay_out or _lay_out_decathlon)(archive, dataset, made)
                io.write_text(licence_text(dataset), made / "LICENSE.txt")
        finally:
            archive.unlink()


@contextmanager
def _as_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (InputError, OutputError):
        raise
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error


class _Resuming:
    """Downloader for pooch that resumes from a partial file after a broken connection."""

    BLOCK = 1 << 16
    TIMEOUT_S = 30.0
    ATTEMPTS = 5

    def __init__(self, begun: Path, told: Told | None) -> None:
        self.begun, self.told = begun, told or (lambda here, whole: None)

    def __call__(self, url: str, output_file: Any, pooch: Any) -> None:
        """Download `url` and put it into `output_file`."""
        from requests.exceptions import ChunkedEncodingError, ConnectionError, Timeout

        for attempt in range(self.ATTEMPTS):
            before = self._here()
            try:
                self._go_on(url)
                break
            except (ChunkedEncodingError, ConnectionError, Timeout) as error:
                came = self._here() > before
                if attempt == self.ATTEMPTS - 1 or not came:
                    raise
                log.info("%s: connection lost (%s); resuming", url, error)
        self.begun.replace(output_file)

    def _here(self) -> int:
        return self.begun.stat().st_size if self.begun.is_file() else 0

    def _go_on(self, url: str) -> None:
        import requests

        here = self._here()
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={here}-"} if here else {})}
        with requests.get(url, headers=headers, stream=True, timeout=self.TIMEOUT_S) as response:
            if here and response.status_code == requests.codes.requested_range_not_satisfiable:
                said = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
                if said is None or int(said[1]) != here:
                    self.begun.unlink()  # of another file; from the beginning
                    raise requests.ConnectionError("the partial download belongs to another file, and was removed")
                return
            response.raise_for_status()
            if response.status_code != requests.codes.partial_content:
                here = 0  # the server does not resume
            whole = here + int(response.headers.get("Content-Length", 0))
            with self.begun.open("ab" if here else "wb") as file:
                for block in response.iter_content(self.BLOCK):
                    file.write(block)
                    here += len(block)
                    self.told(here, whole)
            if whole and here < whole:
                raise requests.ConnectionError(f"interrupted after {here} of {whole} bytes")


# -- the Decathlon's archives -----------------------------------------------------------------------------------------


def _lay_out_decathlon(archive: Path, dataset: Dataset, folder: Path) -> None:
    """Unpack an archive of the Decathlon into the layout of a library."""
    places = {"imagesTr": "atlases/images", "labelsTr": "atlases/labels", "imagesTs": "targets/images"}
    for place in places.values():
        (folder / place).mkdir(parents=True)
    labels: dict[str, Any] | None = None
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if not member.isfile() or path.name.startswith("."):
                    continue
                if path.name == "dataset.json":
                    labels = _labels_of(tar, member, folder)
                elif len(path.parts) >= 2 and path.parts[-2] in places and io.is_volume(path.name):
                    member.name = f"{places[path.parts[-2]]}/{path.name}"
                    tar.extract(member, folder, filter="data")
    except tarfile.TarError as error:
        raise InputError(f"{dataset.url}: expected a readable archive, got: {error}") from error
    if not labels or not any((folder / "atlases/images").iterdir()):
        raise InputError(f"{dataset.url}: expected an archive of the {DECATHLON}, got no dataset.json or no imagesTr")
    table = LabelTable(tuple(Label(int(value), str(name)) for value, name in labels.items() if int(value) != 0))
    io.write_label_table(table, folder / "atlases/labels.tsv")
    for empty in ("targets/images", "targets"):
        with suppress(OSError):
            (folder / empty).rmdir()


def _labels_of(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> dict[str, Any]:
    tar.extract(member.replace(name="dataset.json"), folder, filter="data")
    labels = io.read_json(folder / "dataset.json").get("labels")
    if not isinstance(labels, dict):
        raise InputError(f"dataset.json: 'labels': expected an object of values and names, got {labels!r}")
    return labels


def licence_text(dataset: Dataset) -> str:
    """Write the text about authors and licence of a dataset."""
    return (
        f"{dataset.about}\n\nLicence: {dataset.licence}, {dataset.licence_url}\nCite: {dataset.cite}\n"
        f"From: {dataset.url}\nChecksum: {dataset.checksum} ({dataset.checksum_from})\n"
        "Converted to the folder layout of atlasseg; scans and labels are unchanged.\n"
    )
