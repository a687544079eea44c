"""Registrations, and segmentations of atlases, kept by the content of what they were made from.

The key is made of the voxels and grids of scan, atlases and masks, the tables of the recipe that come before fusion,
and the version of atlasseg: a file that changed under the same name is never taken for the old one. An entry is a
folder that appears whole or not at all; one that cannot be read is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from atlasseg import __version__, io
from atlasseg.errors import InputError
from atlasseg.files import whole_folder, written_whole
from atlasseg.itk import read_transform, write_transform
from atlasseg.pipeline import Registered
from atlasseg.preparation import HEADER
from atlasseg.recipe import Recipe
from atlasseg.refinement.corrective_learning import Example
from atlasseg.volume import Atlas, Image, LabelMap, Mask, ProbabilityMap

log = logging.getLogger(__name__)


def registration_key(scan: Image, mask: Mask | None, atlases: Sequence[Atlas], recipe: Recipe) -> str:
    """Hexadecimal digest of everything that the registrations of `scan` depend on."""
    tables = tomllib.loads(recipe.text)
    parts = [
        __version__,
        json.dumps([tables.get(name) for name in ("preprocessing", "selection", "registration")], sort_keys=True),
    ]
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


def kept_example(folder: Path, recipe: Recipe, atlas: Atlas, compute: Callable[[], Example]) -> Example:
    """The segmentation of an atlas from the others, beside their registrations in `folder`; made first where it is not.

    Beside what the registrations depend on it depends on how `recipe` propagates and fuses.
    """
    step, carried = recipe.fusion.method, recipe.propagation
    told = {name: value for name, value in step.arguments.items() if name != "device"}
    made = json.dumps([carried.interpolation, carried.fractions, step.name, told], sort_keys=True, default=str)
    path = folder / f"fused_{hashlib.sha256(made.encode()).hexdigest()[:16]}.npz"
    if path.exists():
        try:
            return _read_example(path, atlas)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning("%s: the kept segmentation cannot be read (%s) and is made again", path, error)
    example = compute()
    fused = {field.name: getattr(example.fused, field.name) for field in fields(ProbabilityMap)}
    with written_whole(path) as aside, aside.open("wb") as file:
        np.savez(file, target=example.target.array, truth=example.truth.array, **fused)
    return example


def _read_example(path: Path, atlas: Atlas) -> Example:
    with np.load(path, allow_pickle=False) as kept:
        arrays = {name: kept[name] for name in kept.files}
    affine = arrays["affine"]
    target = Image(arrays.pop("target"), affine, atlas.image.name)
    truth = LabelMap(arrays.pop("truth"), affine)
    fused = ProbabilityMap(**{**arrays, "name": str(arrays["name"])})
    return Example(atlas.id, target, fused, truth, atlas.not_annotated)


def _read(folder: Path, ids: Sequence[str]) -> Registered:
    box = io.read_json(folder / "box.json")
    start, stop = (tuple(int(n) for n in box[name]) for name in ("start", "stop"))
    return Registered(tuple(read_transform(folder / f"{id_}.h5") for id_ in ids), start, stop)  # type: ignore[arg-type]
