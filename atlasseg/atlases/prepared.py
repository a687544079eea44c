"""Prepared library: a groupwise template, and the transforms from it to every atlas.

The time to register N atlases to a target grows with N. Most of that work is the same for every target, because the
differences between the atlases do not depend on it. Therefore a template of mean shape and mean intensity is made from
the library once, with a transform from it to every atlas. A new target is registered to the template only, the
transforms are composed, and each is refined in a few iterations at the finest levels.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from atlasseg import io
from atlasseg.atlases.library import AtlasLibrary
from atlasseg.errors import InputError
from atlasseg.files import atomic_directory, check_seal, seal
from atlasseg.recipe.tables import Registration, Step
from atlasseg.registration import diffeomorphic
from atlasseg.registration.template import Engine, Progress, coarsen, compose_through_template, groupwise_template
from atlasseg.transforms import Affine, Chain, DisplacementField, Transform
from atlasseg.version import __version__
from atlasseg.volume import Image, Mask

__all__ = ["PreparedLibrary", "prepare", "read_prepared", "register_prepared", "write_prepared"]

FORMAT = 1
"""Format of the folder of a prepared library. It is increased when older versions could not read it correctly."""

TEMPLATE_ITERATIONS = 60
"""Maximum number of iterations per level of the registration to the template, down to its resolution."""

HEADER, TEMPLATE, MASK, TRANSFORMS = "preparation.json", "template.nii.gz", "template_mask.nii.gz", "transforms"


@dataclass(frozen=True, eq=False)
class PreparedLibrary:
    """Prepared library: the template of a library, and the transforms from it to every atlas.

    Parameters
    ----------
    template : Image
        Mean intensity (each atlas scaled to 0..1) on the mean shape.
    mask : Mask or None
        Voxels of the template where at least half of the atlases are valid; None if that is everywhere.
    transforms : mapping of str to Transform
        Transform from points of the template to points of each atlas, by atlas id: a displacement field on the grid of
        the template, followed by an affine.
    hashes : mapping of str to str
        Digest of the scan and mask of each atlas, by atlas id, see `fingerprints`. Empty if the template was not made
        from files.
    settings : mapping
        Settings of the template, for information only.
    """

    template: Image
    mask: Mask | None
    transforms: Mapping[str, Transform]
    hashes: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ids(self) -> tuple[str, ...]:
        """Id of every atlas, ascending."""
        return tuple(sorted(self.transforms))

    def changes(self, library: AtlasLibrary) -> list[str]:
        """Describe the changes of the library since the preparation.

        Parameters
        ----------
        library : AtlasLibrary
            The library now.

        Returns
        -------
        list of str
            One text per changed atlas; empty without changes.
        """
        now = fingerprints(library)
        gone, new = sorted(self.hashes.keys() - now.keys()), sorted(now.keys() - self.hashes.keys())
        changed = sorted(i for i in now.keys() & self.hashes.keys() if now[i] != self.hashes[i])
        return [
            *(f"atlas {i!r} was removed" for i in gone),
            *(f"atlas {i!r} is new" for i in new),
            *(f"the scan or mask of atlas {i!r} has other contents" for i in changed),
        ]

    def check(self, library: AtlasLibrary) -> None:
        """Check that the library has not changed since the preparation.

        Parameters
        ----------
        library : AtlasLibrary
            The library now.

        Raises
        ------
        InputError
            An atlas was added or removed, or its scan or mask changed. The message names each one.
        """
        changes = self.changes(library)
        if changes:
            raise InputError(
                f"the prepared library does not match {library.root}: {'; '.join(changes)}. "
                "Prepare it again, or run without it."
            )


_SIZES = {"sform": "", "pixdim": " voxel sizes of pixdim"}


def fingerprints(library: AtlasLibrary) -> dict[str, str]:
    """SHA-256 digest of the scan and mask files of each atlas, by id. Labels do not count: a template ignores them."""
    return {
        files.id: hashlib.sha256(
            f"{_file_hash(files.image)} {_file_hash(files.mask)}{_SIZES[files.spacing_from]}"
            f"{''.join(f' {_file_hash(each)}' for each in files.channels)}".encode()
        ).hexdigest()
        for files in library.atlases
    }


def _file_hash(path: Path | None) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files (a DICOM series)."""
    if path is None:
        return "none"
    digest = hashlib.sha256()
    folder, series = io.split_series(path)
    for part in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
        if part.is_file():
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
            digest.update(part.name.encode() if folder.is_dir() else b"")
    digest.update((series or "").encode())
    return digest.hexdigest()


def engine_of(steps: Sequence[Step]) -> Engine:
    """Make `diffeomorphic.register` with the parameters of a recipe's steps, except those per level.

    The template has its own levels and iterations. If the recipe sets levels, the template also has its own smoothing
    of the field, which is set per level.
    """
    given = next((step.arguments for step in reversed(steps) if step.method.function is diffeomorphic.register), {})
    own = {"shrink_factors", "iterations"} | ({"total_field_sigma_voxels"} if "shrink_factors" in given else set())
    return partial(diffeomorphic.register, **{name: value for name, value in given.items() if name not in own})


def prepare(
    library: AtlasLibrary,
    *,
    preprocess: Callable[[Image], Image] | None = None,
    engine: Engine = diffeomorphic.register,
    rounds: int = 3,
    shrink: int | None = None,
    sharpening: float = 0.0,
    progress: Progress | None = None,
) -> PreparedLibrary:
    """Prepare a library: compute its template, and the transforms from it to every atlas.

    Parameters
    ----------
    library : AtlasLibrary
        Library with at least 2 atlases.
    preprocess : callable, optional
        Preprocessing of every scan; use the same as for the targets.
    engine, rounds, shrink, sharpening, progress
        As for `groupwise_template`.

    Returns
    -------
    PreparedLibrary

    Raises
    ------
    InputError
        The library has fewer than 2 atlases, a file of it cannot be read, or a scan cannot be registered.
    """
    images, masks = [], []
    for files in library.atlases:
        atlas = library.read(files.id)
        images.append(replace(atlas.image if preprocess is None else preprocess(atlas.image), name=files.id))
        masks.append(atlas.mask)
    template, mask, transforms = groupwise_template(
        images,
        masks=masks,
        engine=engine,
        rounds=rounds,
        shrink=shrink,
        sharpening=sharpening,
        progress=progress,
    )
    settings = {"version": __version__, "rounds": rounds, "shrink": shrink, "sharpening": sharpening}
    named = dict(zip(library.ids, transforms, strict=True))
    return PreparedLibrary(template, mask, named, fingerprints(library), settings)


def register_prepared(
    target: Image,
    prepared: PreparedLibrary,
    moving: Sequence[Image],
    *,
    ids: Sequence[str] | None = None,
    fixed_mask: Mask | None = None,
    moving_masks: Sequence[Mask | None] | None = None,
    engine: Engine = diffeomorphic.register,
    refine_iterations: tuple[int, ...] = Registration.refine_iterations,
) -> list[Transform]:
    """Register atlases to a target through their template, then refine each transform.

    Parameters
    ----------
    target : Image
        The scan.
    prepared : PreparedLibrary
        Template and transforms of the library.
    moving : sequence of Image
        The atlases' images.
    ids : sequence of str, optional
        Atlas id of each image, from `prepared.ids`. Default: all of them in their order.
    fixed_mask : Mask, optional
        Mask on the target's grid. Voxels outside are ignored.
    moving_masks : sequence of Mask or None, optional
        Field of view of each atlas.
    engine : callable
        As for `groupwise_template`.
    refine_iterations : tuple of int
        Maximum number of iterations of the refinement at each level of the method `diffeomorphic`, from coarse to full
        resolution. If all are 0, the composed transforms are returned unchanged.

    Returns
    -------
    list of Transform
        atlas_from_target, in the order of `moving`.

    Raises
    ------
    InputError
        An id is not in the prepared library, numbers differ, or images cannot be registered.
    GeometryError
        A mask is not on its image's grid, or the fields of view do not overlap.
    """
    wanted = prepared.ids if ids is None else tuple(ids)
    absent = [i for i in wanted if i not in prepared.transforms]
    if absent or len(wanted) != len(moving):
        raise InputError(
            f"expected one image for each of {len(wanted)} atlases, got {len(moving)}"
            + (f"; not in the prepared library: {', '.join(map(repr, absent))}" if absent else "")
        )
    finest = max(1, round(float(prepared.template.spacing_mm.min() / target.spacing_mm.min())))
    (template_from_target,) = engine(
        target,
        [prepared.template],
        fixed_mask=fixed_mask,
        moving_masks=[prepared.mask],
        iterations=tuple(TEMPLATE_ITERATIONS if shrink >= finest else 0 for shrink in (8, 4, 2, 1)),
    )
    through = coarsen(target.grid, finest * float(target.spacing_mm.min()))
    transforms = compose_through_template([prepared.transforms[i] for i in wanted], template_from_target, through)
    if not any(refine_iterations):
        return transforms
    return engine(
        target,
        moving,
        initial=transforms,
        fixed_mask=fixed_mask,
        moving_masks=moving_masks,
        iterations=refine_iterations,
    )


def write_prepared(prepared: PreparedLibrary, folder: str | Path) -> None:
    """Write a prepared library to a folder atomically; an earlier one is replaced.

    ``preparation.json`` (format, hashes of atlases and template, settings), ``template.nii.gz``,
    ``template_mask.nii.gz`` where there is one,
    ``transforms/ID.npz`` with ``matrix`` (4, 4), ``displacement_mm`` (I, J, K, 3) float32 and its ``affine``.

    Parameters
    ----------
    prepared : PreparedLibrary
        Template and transforms of a library.
    folder : path
        New folder, or that of an earlier prepared library.

    Raises
    ------
    InputError
        The folder holds other files, or a transform is not a displacement field followed by an affine.
    OutputError
        The folder cannot be written. Its earlier content is unchanged.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / HEADER).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: expected a new folder or a prepared library, got other files. Give another folder")
    header = {
        "format": FORMAT,
        "atlases": dict(prepared.hashes),
        "settings": dict(prepared.settings),
        "template": io.content_hash(prepared.template, place=False),
    }
    with atomic_directory(folder) as aside:
        (aside / TRANSFORMS).mkdir()
        io.write_image(prepared.template, aside / TEMPLATE)
        if prepared.mask is not None:
            io.write_mask(prepared.mask, aside / MASK)
        for n, id_ in enumerate(prepared.ids):
            matrix, moved = _parts(id_, prepared.transforms[id_])
            np.savez(
                aside / TRANSFORMS / f"{n}.npz",
                id=np.array(id_),
                matrix=matrix.matrix,
                displacement_mm=moved.displacement_mm,
                affine=moved.affine,
            )
        io.write_json(header, aside / HEADER)
        seal(aside, [str(path.relative_to(aside).as_posix()) for path in aside.rglob("*") if path.is_file()])


def _parts(id_: str, transform: Transform) -> tuple[Affine, DisplacementField]:
    match transform:
        case Chain(transforms=(Affine() as matrix, DisplacementField() as moved)):
            return matrix, moved
        case DisplacementField():
            return Affine.identity(), transform
    raise InputError(f"atlas {id_!r}: expected a displacement field followed by an affine, got {transform!r}")


def read_prepared(folder: str | Path) -> PreparedLibrary:
    """Read a prepared library that was written by `write_prepared`.

    Parameters
    ----------
    folder : path
        Folder of the prepared library.

    Returns
    -------
    PreparedLibrary

    Raises
    ------
    InputError
        There is none, a file of it is missing or damaged, or its format is unknown.
    """
    folder = Path(folder)
    if not (folder / HEADER).is_file():
        raise InputError(f"{folder}: expected a prepared library, got a folder without {HEADER}")
    check_seal(folder, [HEADER, TEMPLATE], remedy="prepare the library again")
    header = io.read_json(folder / HEADER)
    if header.get("format") != FORMAT:
        raise InputError(
            f"{folder}: expected format {FORMAT}, got {header.get('format')!r}. Prepare the library again."
        )
    template = io.read_image(folder / TEMPLATE)
    if io.content_hash(template, place=False) != header.get("template"):
        raise InputError(
            f"{folder / TEMPLATE}: expected the template of {HEADER}, got another one. Prepare the library again."
        )
    mask = io.read_mask(folder / MASK) if (folder / MASK).is_file() else None
    transforms: dict[str, Transform] = {}
    for path in sorted((folder / TRANSFORMS).glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as stored:
                moved = DisplacementField(stored["displacement_mm"], stored["affine"])
                transforms[str(stored["id"])] = Affine(stored["matrix"]) @ moved
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: damaged, prepare the library again: {error}") from error
    hashes = header.get("atlases", {})
    if hashes and set(hashes) != set(transforms):
        lost = ", ".join(sorted(set(hashes) ^ set(transforms)))
        raise InputError(f"{folder}: transforms and {HEADER} differ in the atlases {lost}: prepare the library again")
    return PreparedLibrary(template, mask, transforms, hashes, header.get("settings", {}))
