"""Registrations and fused maps kept by the content of what they were made from: made once, used many times.

The key is made of the voxels and grids of scan, atlases and masks, the tables of the recipe that come before (for a
fused map, the one of fusion too), and the version of atlasseg: a file that changed under the same name is never taken
for the old one. An entry is a folder or a file that appears whole or not at all; one that cannot be read is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from atlasseg import __version__, io
from atlasseg.errors import InputError
from atlasseg.files import whole_folder, written_whole
from atlasseg.itk import read_transform, write_transform
from atlasseg.pipeline import Registered
from atlasseg.preparation import HEADER
from atlasseg.recipe import Recipe
from atlasseg.refinement.examples import Example
from atlasseg.volume import Atlas, Image, LabelMap, Mask, ProbabilityMap

log = logging.getLogger(__name__)


REGISTRATION = ("preprocessing", "selection", "registration")
"""The tables of a recipe that registrations depend on."""

FUSION = (*REGISTRATION, "propagation", "fusion")
"""Those that a fused map depends on."""


def registration_key(
    scan: Image, mask: Mask | None, atlases: Sequence[Atlas], recipe: Recipe, *, stages: Sequence[str] = REGISTRATION
) -> str:
    """Hexadecimal digest of everything that the registrations of `scan` depend on, or what `stages` make of it."""
    tables = tomllib.loads(recipe.text)
    parts = [__version__, json.dumps([tables.get(name) for name in stages], sort_keys=True)]
    if recipe.registration.prepared is not None:
        parts.append((recipe.registration.prepared / HEADER).read_text(encoding="utf-8"))
    for image, other, labels in ((scan, mask, None), *((a.image, a.mask, a.segmentation) for a in atlases)):
        parts += [io.content_hash(volume) if volume is not None else "none" for volume in (image, other, labels)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def kept_registrations(folder: Path, ids: Sequence[str], compute: Callable[[], Registered], scan: Image) -> Registered:
    """The registrations in `folder`, computed and stored there first where they are not.

    What is returned was read from the folder either way, so that a first and a second run give the same result.
    """
    if folder.is_dir():
        try:
            return _read(folder, ids)
        except (InputError, OSError, ValueError, KeyError) as error:
            log.warning("%s: the kept registrations cannot be read (%s) and are made again", folder, error)
    registered = compute()
    with whole_folder(folder) as aside:
        for id_, transform in zip(ids, registered.transforms, strict=True):
            write_transform(transform, aside / f"{id_}.h5", grid=scan.grid)
        io.write_json({"start": registered.start, "stop": registered.stop}, aside / "box.json")
    return _read(folder, ids)


def kept_example(file: Path, compute: Callable[[], Example]) -> Example:
    """The example in `file`, computed and stored there first where it is not; read from there either way.

    Raises
    ------
    OutputError
        It cannot be stored.
    """
    if file.is_file():
        try:
            return _read_example(file)
        except (InputError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s: the kept fusion cannot be read (%s) and is made again", file, error)
    made = compute()
    fused = made.fused
    with written_whole(file) as aside, aside.open("wb") as stream:
        np.savez_compressed(
            stream,
            id=np.array(made.id),
            image=made.target.array,
            affine=made.target.affine,
            truth=made.truth.array,
            not_annotated=np.array(sorted(made.not_annotated), np.int32),
            **{name: getattr(fused, name) for name in _FUSED},
        )
    return _read_example(file)


_FUSED = ("mode", "voxels", "offsets", "labels", "values", "label_values")


def _read_example(file: Path) -> Example:
    with np.load(file, allow_pickle=False) as kept:
        affine, id_ = kept["affine"], str(kept["id"])
        fused = ProbabilityMap(**{name: kept[name] for name in _FUSED}, affine=affine, name=id_)
        not_annotated = frozenset(int(v) for v in kept["not_annotated"])
        image = Image(kept["image"], affine, id_)
        return Example(id_, image, fused, LabelMap(kept["truth"], affine, id_), not_annotated)


def _read(folder: Path, ids: Sequence[str]) -> Registered:
    box = io.read_json(folder / "box.json")
    start, stop = (tuple(int(n) for n in box[name]) for name in ("start", "stop"))
    return Registered(tuple(read_transform(folder / f"{id_}.h5") for id_ in ids), start, stop)  # type: ignore[arg-type]
