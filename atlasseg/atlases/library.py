"""Atlas libraries and targets: read them from folders of labelled scans, and from files or folders of scans.

::

    LIBRARY/images/ID.nii.gz          scans, one per atlas (or ID/, a DICOM series)
    LIBRARY/images/ID_CHANNEL.nii.gz  instead: one file per channel, where the channels are named
    LIBRARY/labels/ID.nii.gz          their labels, each on the grid of its own scan (Slicer's ID.seg.nrrd too)
    LIBRARY/labels/ID.json            optional: {"not_annotated": [3, "amygdala"]}, labels not annotated in it
    LIBRARY/masks/ID.nii.gz           optional: foreground masks of the scans
    LIBRARY/labels.tsv                optional: names of the labels (also .csv or .txt: any label table)
    LIBRARY/probabilities/ID.nii.gz   instead of labels/ID: a 4-D map of label probabilities, or
    LIBRARY/probabilities/LABEL.nii.gz   one file per label, named by its value or name, for a single template

A library with one atlas is *single*, one with probabilities is *probabilistic*, any other is *multi*.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from atlasseg import io
from atlasseg.atlases.channels import (
    check_names,
    choose_volumes,
    find_siblings,
    format_hint,
    group_channels,
    read_channels,
    suggest_channels,
)
from atlasseg.atlases.structures import (
    dicom_cases,
    dicom_targets,
    goes_by_names,
    missing_structures,
)
from atlasseg.errors import GeometryError, InputError
from atlasseg.files import checked_path
from atlasseg.io import read_label_table
from atlasseg.labels import Label, LabelTable
from atlasseg.volume import Atlas, Image, LabelMap, Mask, ProbabilityMap

__all__ = ["AtlasFiles", "AtlasLibrary", "Target", "read_library", "read_targets"]

log = logging.getLogger(__name__)

Kind = Literal["single", "probabilistic", "multi"]

_TABLES = ("labels.tsv", "labels.csv", "labels.txt")
_SHOWN = 5


@dataclass(frozen=True)
class AtlasFiles:
    """Files of one atlas.

    Parameters
    ----------
    id : str
        Id of the atlas.
    image : Path
        The scan.
    labels : Path, optional
        Label map; None with `probabilities`.
    probabilities : tuple of Path
        One 4-D file, or one file per label.
    probability_labels : tuple of int, optional
        Labels of their volumes, in order; None if the file itself must hold them.
    mask : Path, optional
        Mask of the scan.
    not_annotated : frozenset of int
        Labels that are not annotated in this atlas.
    spacing_from : {"sform", "pixdim"}
        As of :func:`atlasseg.io.read_image`.
    channels : tuple of Path
        Files of the further channels of the scan.
    """

    id: str
    image: Path
    labels: Path | None = None
    probabilities: tuple[Path, ...] = ()
    probability_labels: tuple[int, ...] | None = None
    mask: Path | None = None
    not_annotated: frozenset[int] = frozenset()
    spacing_from: io.SpacingSource = "sform"
    channels: tuple[Path, ...] = ()


@dataclass(frozen=True)
class AtlasLibrary:
    """Library of atlases, which are read on demand; see :func:`read_library`.

    Parameters
    ----------
    root : Path
        Folder of the library.
    atlases : tuple of AtlasFiles
        Ascending by id.
    table : LabelTable
        Names of the labels; may be empty.
    """

    root: Path
    atlases: tuple[AtlasFiles, ...]
    table: LabelTable = field(default_factory=LabelTable)

    @property
    def ids(self) -> tuple[str, ...]:
        """Id of every atlas, ascending."""
        return tuple(atlas.id for atlas in self.atlases)

    @property
    def kind(self) -> Kind:
        """Kind of the library: "single", "probabilistic" or "multi"."""
        if any(atlas.probabilities for atlas in self.atlases):
            return "probabilistic"
        return "single" if len(self.atlases) == 1 else "multi"

    def __len__(self) -> int:
        return len(self.atlases)

    def without(self, *ids: str) -> AtlasLibrary:
        """Make a library without some atlases.

        Parameters
        ----------
        *ids : str
            Ids of the atlases to leave out. Unknown ids are ignored.

        Returns
        -------
        AtlasLibrary
        """
        return replace(self, atlases=tuple(atlas for atlas in self.atlases if atlas.id not in ids))

    def only(self, ids: Collection[str]) -> AtlasLibrary:
        """Make a library with only some atlases.

        Parameters
        ----------
        ids : collection of str
            Ids of the atlases to keep.

        Returns
        -------
        AtlasLibrary

        Raises
        ------
        InputError
            An id is not in the library.
        """
        for id_ in ids:
            self.files(id_)
        return replace(self, atlases=tuple(atlas for atlas in self.atlases if atlas.id in ids))

    def files(self, id: str) -> AtlasFiles:
        """Get the files of an atlas.

        Parameters
        ----------
        id : str
            Id of the atlas.

        Returns
        -------
        AtlasFiles

        Raises
        ------
        InputError
            There is no such atlas.
        """
        for atlas in self.atlases:
            if atlas.id == id:
                return atlas
        raise InputError(f"{self.root}: expected an atlas of the library ({_some(self.ids, most=20)}), got {id!r}")

    def read(self, id: str) -> Atlas:
        """Read one atlas.

        Intensities that are not finite are masked, with a warning. Warns of labels that the table lacks, and of a label
        map that is all background.

        Parameters
        ----------
        id : str
            Id of the atlas.

        Returns
        -------
        Atlas

        Raises
        ------
        InputError
            There is no such atlas, a file of it cannot be read, or it is a single atlas without any label.
        GeometryError
            Its labels, probabilities or mask are not on the grid of its image.
        """
        files = self.files(id)
        image, mask = _read_scan((files.image, *files.channels), files.mask, files.spacing_from)
        labels: LabelMap | ProbabilityMap
        if files.labels is not None:
            labels = _read_labels(files.labels, files.image, image, self.table, files.spacing_from)
            self._check_values(files.labels, labels, files.not_annotated)
        else:
            labels = _read_probabilities(files, image)
        return Atlas(files.id, image, labels, mask, files.not_annotated)

    def _check_values(self, path: Path, labels: LabelMap, not_annotated: frozenset[int]) -> None:
        values = set(labels.values.tolist()) - {0}
        if not values:
            if self.kind == "single":
                raise InputError(f"{path}: expected labels in the only atlas, got background only")
            log.warning("%s: the label map has only background", path)
        unknown = sorted(values - set(self.table.values))
        if len(self.table) and unknown:
            log.warning("%s: labels %s are not in the label table of %s", path, _some(unknown), self.root)
        drawn = sorted(values & not_annotated)
        if drawn:
            log.warning("%s: labels %s are listed as not annotated, but occur in the label map", path, _some(drawn))


@dataclass(frozen=True)
class Target:
    """Scan to segment, with optional reference `labels` and an optional `mask`; see :func:`read_targets`.

    Parameters
    ----------
    id : str
        Id of the target.
    image : Path
        The scan.
    labels : Path, optional
        Reference segmentation.
    mask : Path, optional
        Mask of the scan.
    spacing_from : {"sform", "pixdim"}
        As of :func:`atlasseg.io.read_image`.
    channels : tuple of Path
        Files of the further channels of the scan.
    """

    id: str
    image: Path
    labels: Path | None = None
    mask: Path | None = None
    spacing_from: io.SpacingSource = "sform"
    channels: tuple[Path, ...] = ()

    def read(self) -> tuple[Image, Mask | None]:
        """Read the scan and its mask. Intensities that are not finite are masked too, with a warning.

        Returns
        -------
        image : Image
            The scan.
        mask : Mask or None
            Its mask.

        Raises
        ------
        InputError
            A file cannot be read.
        GeometryError
            The mask is not on the grid of the scan.
        """
        return _read_scan((self.image, *self.channels), self.mask, self.spacing_from)

    def read_labels(self, scan: Image, table: LabelTable = LabelTable()) -> LabelMap | None:  # noqa: B008 - frozen
        """Read the reference segmentation; None if there is none.

        Parameters
        ----------
        scan : Image
            The scan of the target.
        table : LabelTable
            Values of the structures of an RTSTRUCT or DICOM-SEG by their names.

        Returns
        -------
        LabelMap or None
            Reference segmentation on the grid of the scan.

        Raises
        ------
        InputError
            The file cannot be read.
        GeometryError
            It is not on the grid of `scan`.
        """
        if self.labels is None:
            return None
        if goes_by_names(self.labels) and len(table) and len(self.not_annotated(table)) == len(table):
            log.warning("%s: has no structure of the label table; the result is not evaluated", self.labels)
            return None
        return _read_labels(self.labels, self.image, scan, table, self.spacing_from)

    def not_annotated(self, table: LabelTable) -> frozenset[int]:
        """Find the labels that are not annotated in the reference, if this is an RTSTRUCT or a DICOM-SEG.

        Parameters
        ----------
        table : LabelTable
            Names of the labels.

        Returns
        -------
        frozenset of int
            Values of the structures of the table that the file lacks.
        """
        return missing_structures(self.labels, table)


def read_library(
    folder: str | Path,
    *more: str | Path,
    spacing_from: io.SpacingSource = "sform",
    masks_suffice: bool = False,
    channels: Sequence[str] = (),
    volumes: Sequence[int] = (),
) -> AtlasLibrary:
    """Find the atlases in one or several folders with the layout of this module. Volumes are read later.

    The first folder is the `root` of the library; the label table of the first folder that has one is its `table`.

    Parameters
    ----------
    folder : path
        Folder of a library.
    *more : path
        Further folders, whose atlases are added.
    spacing_from : {"sform", "pixdim"}
        Which voxel size the volumes are read with, as of :func:`atlasseg.io.read_image`.
    masks_suffice : bool
        A scan without labels is an atlas if it has a mask, which then stands for its labels.
    channels : sequence of str
        Names of the channels of each scan, in order: ``["T1", "FLAIR"]`` reads ``images/ID_T1.nii.gz`` and
        ``images/ID_FLAIR.nii.gz`` as one scan with two channels, on the grid of the first. Labels and masks are ``ID``.
    volumes : sequence of int
        Volumes of each 4-D file to read, numbered from 1; with several they are channels.

    Returns
    -------
    AtlasLibrary

    Raises
    ------
    InputError
        A folder is absent or holds no images; an id occurs twice; an image lacks its labels or labels their image; a
        scan lacks a channel; a label table or sidecar is faulty. The message names folder, files and ids.
    """
    named = check_names(channels)
    parts = [_library_in(checked_path(each, "library"), masks_suffice, named, volumes) for each in (folder, *more)]
    found: dict[str, AtlasFiles] = {}
    for atlas in (atlas for part in parts for atlas in part.atlases):
        if atlas.id in found:
            raise InputError(
                f"expected unique ids, got two atlases {atlas.id!r}: {found[atlas.id].image} and {atlas.image}"
            )
        found[atlas.id] = replace(atlas, spacing_from=spacing_from)
    table = next((part.table for part in parts if len(part.table)), LabelTable())
    return AtlasLibrary(parts[0].root, tuple(found[id_] for id_ in sorted(found)), table)


def _library_in(root: Path, masks_suffice: bool, channels: Sequence[str], volumes: Sequence[int]) -> AtlasLibrary:
    """The atlases in one folder."""
    images = _volumes_in(_folder(root) / "images", scans=True)
    scans = group_channels(images, channels, folder=root / "images") if channels and images else {}
    images = {id_: files[0] for id_, files in scans.items()} or images
    labels, masks = _volumes_in(root / "labels"), _volumes_in(root / "masks")
    if not images and not (root / "images").exists():
        found = dicom_cases(root)
        images, labels = (
            {id_: scan for id_, (scan, _) in found.items()},
            {id_: file for id_, (_, file) in found.items()},
        )
    if not images:
        raise InputError(
            f"{root / 'images'}: no images found; an atlas library has images/ID.nii.gz and labels/ID.nii.gz, or a "
            "folder ID/ with a DICOM series and its RTSTRUCT or DICOM-SEG for each atlas"
        )
    table = _read_table(root, labels)
    probabilities = _read_probability_files(root, images, labels, table)
    bare = sorted(images.keys() - labels.keys() - probabilities.keys())
    if masks_suffice:
        labels |= {id_: masks[id_] for id_ in bare if id_ in masks}
        bare = [id_ for id_ in bare if id_ not in masks]
    if bare:
        alike = suggest_channels(images)
        hint = f". {format_hint(alike)}" if alike else ""
        raise InputError(
            f"{root}: {len(bare)} of {len(images)} images have no label file in labels/"
            f"{' and no mask in masks/' if masks_suffice else ''}: {_some(bare)} "
            f"(expected e.g. {root / 'labels' / (bare[0] + '.nii.gz')}){hint}"
        )
    both = sorted(labels.keys() & probabilities.keys())
    if both:
        raise InputError(f"{root}: expected labels or probabilities, got both for {_some(both)}. Remove one.")
    _check_orphans(images, labels, "labels")
    for id_ in sorted(masks.keys() - images.keys()):
        log.warning("%s: a mask without an image of that name", masks[id_])
    sidecars = _not_annotated(root, images, table)
    return AtlasLibrary(
        root,
        tuple(
            AtlasFiles(
                id_,
                choose_volumes(images[id_], volumes),
                labels.get(id_),
                *probabilities.get(id_, ((), None)),
                masks.get(id_),
                table.not_annotated_in(id_)
                | sidecars.get(id_, frozenset())
                | missing_structures(labels.get(id_), table, warn=True),
                channels=tuple(choose_volumes(path, volumes) for path in scans.get(id_, ())[1:]),
            )
            for id_ in sorted(images)
        ),
        table,
    )


def read_targets(
    paths: str | Path | Iterable[str | Path],
    *,
    spacing_from: io.SpacingSource = "sform",
    channels: Sequence[str] = (),
    volumes: Sequence[int] = (),
) -> tuple[Target, ...]:
    """Find the scans to segment. Volumes are read later.

    Parameters
    ----------
    paths : path or iterable of paths
        Files of volumes; folders with ``images/``, and perhaps ``labels/`` and ``masks/``, as a library has them;
        folders of volumes; folders with a DICOM series in them or below them, ``FOLDER#2`` being the second of several.
    spacing_from : {"sform", "pixdim"}
        Which voxel size the volumes are read with, as of :func:`atlasseg.io.read_image`.
    channels, volumes
        As for :func:`read_library`. For a file the other channels are found beside it.

    Returns
    -------
    tuple of Target
        In the order given, those of a folder ascending by id, which is the file's name without its suffixes.

    Raises
    ------
    InputError
        A path is absent, a folder holds no scan, a scan lacks a channel, or an id occurs twice. The message names them.
    """
    targets: dict[str, Target] = {}
    named = check_names(channels)
    for path in _paths(paths):
        for target in _targets_in(path, named):
            if target.id in targets and targets[target.id].image != target.image:
                raise InputError(
                    f"expected unique ids, got two targets {target.id!r}: {targets[target.id].image} and {target.image}"
                )
            targets[target.id] = replace(target, spacing_from=spacing_from)
    targets = {
        id_: replace(
            target,
            image=choose_volumes(target.image, volumes),
            channels=tuple(choose_volumes(path, volumes) for path in target.channels),
        )
        for id_, target in targets.items()
    }
    alike = suggest_channels(targets) if not named else ()
    if alike:
        log.warning("%d targets, each a scan of its own. %s", len(targets), format_hint(alike))
    if not targets:
        raise InputError("expected at least one target, got none")
    return tuple(targets.values())


def _paths(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Check one or several paths."""
    many = isinstance(paths, Iterable) and not isinstance(paths, str | Mapping) and not hasattr(paths, "__array__")
    return [checked_path(path, "targets") for path in (paths if many and not isinstance(paths, Path) else [paths])]


def _targets_in(path: Path, channels: Sequence[str] = ()) -> list[Target]:
    folder, series = io.split_series(path)
    if not folder.exists():
        raise InputError(f"{path}: no such file or folder")
    if channels and series is None and not path.is_dir():
        id_, files = find_siblings(path, channels)
        return [Target(id_, files[0], channels=files[1:])]
    if series is not None or not path.is_dir():
        return [Target(io.volume_id(path), path)]
    if not (path / "images").is_dir():
        images = _volumes_in(path, folders=False, scans=True)
        if channels:
            scans = group_channels(images, channels, folder=path)
            return [Target(id_, files[0], channels=files[1:]) for id_, files in scans.items()]
        # a folder of slices is one scan
        if not images or all(io.is_dicom_name(image) for image in images.values()):
            found = dicom_targets(path, nested=not images)
            return [Target(id_, *files) for id_, files in found.items()]
        return [Target(id_, images[id_]) for id_ in sorted(images)]
    images = _volumes_in(path / "images", scans=True)
    if not images:
        raise InputError(f"{path / 'images'}: no images found")
    labels, masks = _volumes_in(path / "labels"), _volumes_in(path / "masks")
    scans = group_channels(images, channels, folder=path / "images") if channels else {}
    images = {id_: files[0] for id_, files in scans.items()} or images
    _check_orphans(images, labels, "labels")
    return [
        Target(id_, images[id_], labels.get(id_), masks.get(id_), channels=scans.get(id_, ())[1:])
        for id_ in sorted(images)
    ]


def _read_labels(
    path: Path, image_path: Path, image: Image, table: LabelTable, spacing_from: io.SpacingSource
) -> LabelMap:
    """Read the labels of a scan on its grid."""
    if goes_by_names(path):
        labels = io.read_label_map(path, reference=image, structures=table if len(table) else None)
    else:
        labels = io.read_label_map(path, spacing_from=spacing_from)
    _check_grid(path, labels, image_path, image)
    return replace(labels, affine=image.affine)


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise InputError(f"{path}: no such folder" if not path.exists() else f"{path}: expected a folder, got a file")
    return path


def _volumes_in(folder: Path, *, folders: bool = True, scans: bool = False) -> dict[str, Path]:
    """Volumes of a folder by id, including DICOM series in subfolders; empty if the folder does not exist.

    With `scans`, 3D Slicer segmentations (``.seg.nrrd``) are left out.
    """
    found: dict[str, Path] = {}
    if not folder.is_dir():
        return found
    for path in sorted(folder.iterdir()):
        if path.is_dir() and folders and not path.name.startswith("."):
            id_ = path.name
        elif path.is_file() and io.is_volume(path) and not (scans and io.is_segmentation(path)):
            id_ = io.volume_id(path)
        else:
            continue
        if id_ in found:
            raise InputError(f"{folder}: two volumes have the id {id_!r}: {found[id_].name} and {path.name}")
        found[id_] = path
    return found


def _check_orphans(images: Mapping[str, Path], others: Mapping[str, Path], kind: str) -> None:
    orphans = sorted(others.keys() - images.keys())
    if orphans:
        raise InputError(f"{others[orphans[0]].parent}: {kind} without an image of the same id: {_some(orphans)}")


def _read_table(root: Path, labels: Mapping[str, Path]) -> LabelTable:
    """Label table of the library; by default that of the segments in its 3D Slicer segmentations."""
    found = [root / name for name in _TABLES if (root / name).is_file()]
    if len(found) > 1:
        raise InputError(f"{root}: expected one label table, got {', '.join(path.name for path in found)}")
    if found:
        return read_label_table(found[0])
    rows: dict[int, tuple[Label, Path]] = {}
    numbers: dict[str, tuple[int, Path]] = {}
    for path in (labels[id_] for id_ in sorted(labels)):
        by_name = goes_by_names(path)
        if not by_name and not io.is_segmentation(path):
            continue
        remedy = "Give a segment the same label value in every file."
        if by_name:
            remedy = f"Write the structures to use into {root / _TABLES[0]} (columns index and name)."
        for label in read_label_table(path):
            first, where = rows.setdefault(label.value, (label, path))
            if first.name != label.name:
                raise InputError(
                    f"{path}: expected one meaning of label {label.value} in all atlases, got {label.name!r}, where "
                    f"{where if by_name else where.name} has {first.name!r}. {remedy}"
                )
            number, where = numbers.setdefault(label.name, (label.value, path))
            if by_name and number != label.value:
                raise InputError(
                    f"{path}: expected one number of {label.name!r} in all atlases, got {label.value}, where {where} "
                    f"has {number}. {remedy}"
                )
    return LabelTable(tuple(rows[value][0] for value in sorted(rows)))


def _not_annotated(root: Path, images: Mapping[str, Path], table: LabelTable) -> dict[str, frozenset[int]]:
    """Labels that are not annotated, by atlas, from sidecars and table; warns of unknown atlas ids in the table."""
    named = {id_ for label in table for id_ in label.not_annotated_in}
    for id_ in sorted(named - images.keys()):
        log.warning("%s: the column not_annotated_in names %s, but there is no atlas with this id", root, id_)
    out: dict[str, frozenset[int]] = {}
    for folder in ("labels", "probabilities"):
        for id_ in images:
            path = root / folder / f"{id_}.json"
            if path.is_file():
                given = io.read_json(path).get("not_annotated", [])
                if not isinstance(given, list):
                    raise InputError(f"{path}: 'not_annotated': expected a list of labels, got {given!r}")
                out[id_] = out.get(id_, frozenset()) | {_label(item, table, path) for item in given}
    return out


def _label(item: object, table: LabelTable, path: Path) -> int:
    if isinstance(item, int) and not isinstance(item, bool):
        return item
    if isinstance(item, str):
        try:
            return table.value(item)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    raise InputError(f"{path}: expected a label as a whole number or a name, got {item!r}")


def _read_probability_files(
    root: Path, images: Mapping[str, Path], labels: Mapping[str, Path], table: LabelTable
) -> dict[str, tuple[tuple[Path, ...], tuple[int, ...] | None]]:
    """Probability files of each atlas, and the labels of their volumes if the file names determine them."""
    files = _volumes_in(root / "probabilities", folders=False)
    if not files or files.keys() <= images.keys():
        rows = table.values or None
        return {id_: ((path,), rows) for id_, path in files.items()}
    template = sorted(images.keys() - labels.keys())
    if len(template) != 1 or len(images) != 1:
        raise InputError(
            f"{root / 'probabilities'}: {_some(sorted(files.keys() - images.keys()))} match no image; one file a label "
            f"needs a single template in images/, which has {_some(sorted(images))}"
        )
    by_name = {label.name: label.value for label in table}
    values: dict[int, Path] = {}
    for name, path in files.items():
        value = by_name.get(name, _integer(name))
        if value is None:
            raise InputError(
                f"{path}: neither a label's value nor a name in the label table ({_some(by_name) or 'none'})"
            )
        if value in values:
            raise InputError(
                f"{path}: expected one file per label, got two of label {value}: also {values[value].name}"
            )
        values[value] = path
    ascending = sorted(values)
    return {template[0]: (tuple(values[value] for value in ascending), tuple(ascending))}


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _read_scan(
    paths: tuple[Path, ...], mask_path: Path | None, spacing_from: io.SpacingSource
) -> tuple[Image, Mask | None]:
    path = paths[0]
    image, finite = read_channels(paths, spacing_from=spacing_from)
    if mask_path is None:
        return image, finite
    mask = io.read_mask(mask_path, spacing_from=spacing_from)
    _check_grid(mask_path, mask, path, image)
    inside = mask.array if finite is None else mask.array & finite.array
    if not inside.any():
        raise InputError(f"{mask_path}: no intensity of {path} is finite inside the mask")
    return image, replace(mask, array=inside, affine=image.affine)


def grid_difference(volume: LabelMap | ProbabilityMap | Mask, image: Image) -> str | None:
    """Describe how the grid of a volume differs from that of its image; None if they match."""
    if image.grid.matches(volume.grid):
        return None
    if image.shape != volume.shape:
        return f"its shape is {volume.shape}, that of the image {image.shape}"
    apart_mm = np.linalg.norm(image.grid.corners_mm - volume.grid.corners_mm, axis=1).max()
    voxel = " x ".join(f"{step:.4g}" for step in image.spacing_mm)
    return f"its corners are up to {apart_mm:.4g} mm from those of the image, whose voxels are {voxel} mm"


def _check_grid(path: Path, volume: LabelMap | ProbabilityMap | Mask, image_path: Path, image: Image) -> None:
    difference = grid_difference(volume, image)
    if difference is not None:
        raise GeometryError(f"{path}: expected the grid of its image {image_path}: {difference}")


def _read_probabilities(files: AtlasFiles, image: Image) -> ProbabilityMap:
    probabilities = io.read_probability_map(
        files.probabilities, labels=files.probability_labels, spacing_from=files.spacing_from
    )
    _check_grid(files.probabilities[0], probabilities, files.image, image)
    return replace(probabilities, affine=image.affine)


def _some(items: Iterable[object], most: int = _SHOWN) -> str:
    every = [str(item) for item in items]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")
