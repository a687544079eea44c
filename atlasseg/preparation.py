"""A library prepared once: a groupwise template, and the way from it to every atlas.

What it costs to register N atlases to a target grows with N. Most of that work is the same for every target: how the
atlases differ from each other does not depend on it. So a template of mean shape and mean intensity is made from the
library once, with a transform from it to every atlas. A new target is registered to the template alone, the
transforms are composed, and each is refined in a few iterations at the finest levels.

References
----------
.. [1] Guimond, A., Meunier, J., Thirion, J.-P. (2000). Average brain models: a convergence study. Computer Vision and
   Image Understanding 77(2), 192-210 (mean intensity on the inverse of the mean deformation).
.. [2] Avants, B. B., et al. (2010). The optimal template effect in hippocampus studies of diseased populations.
   NeuroImage 49(3), 2457-2466.
.. [3] Arsigny, V., et al. (2009). A fast and log-Euclidean polyaffine framework for locally linear registration.
   Journal of Mathematical Imaging and Vision 33, 222-238 (the mean of affine transforms).
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import linalg, ndimage

from atlasseg import io
from atlasseg.atlases.library import AtlasLibrary
from atlasseg.errors import InputError
from atlasseg.files import whole_folder
from atlasseg.recipe import Step
from atlasseg.registration import affine, diffeomorphic
from atlasseg.registration._coarse import coarser
from atlasseg.registration._engine.pyramid import prepare as scaled_and_cut
from atlasseg.resampling import coverage, resample
from atlasseg.transforms import Affine, Chain, DisplacementField, Transform, grid_points
from atlasseg.volume import Float64, Grid, Image, Mask

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]
"""Told what is being done, in a few words, as it begins."""

Engine = Callable[..., list[Transform]]
"""Registers as `diffeomorphic.register` does, some of its parameters perhaps given already."""

FORMAT = 1
"""Of a prepared library's folder; raised when an older program could not read it rightly."""

LARGE_VOXELS = 1_000_000
"""Above this many voxels the template has voxels of twice the reference's, unless asked otherwise."""

MARGIN_SHARE = 0.08
"""The template's grid is wider than the reference's by this share of it on every side: others reach farther."""

TEMPLATE_ITERATIONS = 60
"""Of the registration to the template, at most so many a level, down to the template's own resolution."""

WIDER_SHARE = 0.25
"""Fields go on beyond the template's grid by this share of its size before they end."""

HEADER, TEMPLATE, MASK, TRANSFORMS = "preparation.json", "template.nii.gz", "template_mask.nii.gz", "transforms"


@dataclass(frozen=True, eq=False)
class PreparedLibrary:
    """A template of a library, and the way from it to every atlas.

    Parameters
    ----------
    template : Image
        Mean intensity (each atlas scaled to 0..1) on the mean shape.
    mask : Mask or None
        Where at least half of the atlases are known, on the template's grid; None where that is everywhere.
    transforms : mapping of str to Transform
        Atlas id to atlas_from_template: an affine after a displacement field on the template's grid.
    hashes : mapping of str to str
        Atlas id to a digest of its scan and mask as they were: see `fingerprints`. Empty where the template was not
        made from files.
    settings : mapping
        What it was made with, for the record; does not enter any computation.
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
        """What is different in the library now, in plain words; empty where it is as it was."""
        now = fingerprints(library)
        gone, new = sorted(self.hashes.keys() - now.keys()), sorted(now.keys() - self.hashes.keys())
        changed = sorted(i for i in now.keys() & self.hashes.keys() if now[i] != self.hashes[i])
        return [
            *(f"atlas {i!r} is gone" for i in gone),
            *(f"atlas {i!r} is new" for i in new),
            *(f"the scan or mask of atlas {i!r} has other contents" for i in changed),
        ]

    def check(self, library: AtlasLibrary) -> None:
        """Make sure that it was made from this library as it is now.

        Raises
        ------
        InputError
            An atlas was added, taken away, or its scan or mask changed; the message names each.
        """
        changes = self.changes(library)
        if changes:
            raise InputError(
                f"the prepared library does not fit {library.root}: {'; '.join(changes)}. "
                "Prepare it again, or run without it"
            )


def fingerprints(library: AtlasLibrary) -> dict[str, str]:
    """Atlas id to SHA-256 of the files of its scan and its mask: what a template depends on. Labels do not enter."""
    return {
        files.id: hashlib.sha256(f"{_file_hash(files.image)} {_file_hash(files.mask)}".encode()).hexdigest()
        for files in library.atlases
    }


def _file_hash(path: Path | None) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files (a DICOM series)."""
    if path is None:
        return "none"
    digest = hashlib.sha256()
    for part in sorted(path.iterdir()) if path.is_dir() else [path]:
        if part.is_file():
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
            digest.update(part.name.encode() if path.is_dir() else b"")
    return digest.hexdigest()


def engine_of(steps: Sequence[Step]) -> Engine:
    """`diffeomorphic.register` with the parameters that a recipe's steps give it, but for those of single levels.

    Levels and iterations are the template's own affair; where the recipe chooses its levels, so is the smoothing of
    the field, which is given level by level.
    """
    given = next((step.arguments for step in reversed(steps) if step.name == "diffeomorphic"), {})
    own = {"shrink_factors", "iterations"} | ({"field_sigma_voxels"} if "shrink_factors" in given else set())
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
    """Make the template of a library, and the transforms from it to every atlas.

    Parameters
    ----------
    library : AtlasLibrary
        At least 2 atlases.
    preprocess : callable, optional
        Applied to every scan as it is read, as it will be applied when targets are segmented.
    engine, rounds, shrink, sharpening, progress
        As for `groupwise_template`.

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
    from atlasseg import __version__

    settings = {"version": __version__, "rounds": rounds, "shrink": shrink, "sharpening": sharpening}
    named = dict(zip(library.ids, transforms, strict=True))
    return PreparedLibrary(template, mask, named, fingerprints(library), settings)


def groupwise_template(
    images: Sequence[Image],
    *,
    masks: Sequence[Mask | None] | None = None,
    engine: Engine = diffeomorphic.register,
    rounds: int = 3,
    shrink: int | None = None,
    sharpening: float = 0.0,
    progress: Progress | None = None,
) -> tuple[Image, Mask | None, list[Transform]]:
    """The mean image on the mean shape, and the transforms from it to each image.

    The first template is the mean of the images after affine registration to one of them (the one of median size), on
    their mean affine shape. In each round all images are registered to the template; each transform T_i is put after
    the inverse of their mean, ``T_i <- T_i M^-1`` with ``M(x) = mean T_i(x)``, so that the template is on the mean
    shape and favours none; and the template becomes the mean of the images seen through them.

    Parameters
    ----------
    images : sequence of Image
        At least 2, of the same channels; intensities of any scale.
    masks : sequence of Mask or None, optional
        Where each image is known, on its grid.
    engine : callable
        `diffeomorphic.register`, with other parameters than its defaults if need be: see `engine_of`.
    rounds : int
        Deformable rounds, at least 1.
    shrink : int, optional
        Voxels of the template as a multiple of the reference's; by default 1, or 2 where that would be more than
        `LARGE_VOXELS` voxels.
    sharpening : float
        Share of the template's difference from its blurred self (one voxel) that is added to it; 0 for none.
    progress : callable, optional
        Told what is being done as it begins.

    Returns
    -------
    template : Image
    mask : Mask or None
        Where at least half of the images are known; None where that is everywhere.
    transforms : list of Transform
        image_from_template, in the order given.

    Raises
    ------
    InputError
        There are fewer than 2 images, `rounds` or `shrink` is below 1, or an image cannot be registered.
    """
    if len(images) < 2 or rounds < 1 or (shrink is not None and shrink < 1):
        raise InputError(
            f"a template needs at least 2 images, 1 round and a shrink of 1 or more; got {len(images)} images, "
            f"{rounds} rounds, shrink {shrink}"
        )
    known = [None] * len(images) if masks is None else list(masks)
    tell = progress or logger.info
    scaled = [_scaled(image, mask) for image, mask in zip(images, known, strict=True)]
    reference = _median_sized(scaled, known)
    if shrink is None:
        shrink = 1 if np.prod(scaled[reference].shape) <= LARGE_VOXELS else 2
    grid = _with_margin(coarser(scaled[reference].grid, shrink * float(scaled[reference].spacing_mm.min())))

    tell(f"template: {len(images)} images, affine, onto {images[reference].name or f'image {reference}'}")
    aligned = affine.register(scaled[reference], scaled, fixed_mask=known[reference], moving_masks=known)
    matrices = _about_their_mean(aligned, grid.centre_mm)
    transforms: list[Transform] = list(matrices)
    template, mask = _mean_image(scaled, known, transforms, grid, sharpening)
    for n in range(rounds):
        tell(f"template: {len(images)} images, deformable, round {n + 1} of {rounds}")
        found = engine(template, scaled, initial=transforms, fixed_mask=mask, moving_masks=known)
        transforms = _deformations_about_their_mean(found, matrices, grid)
        template, mask = _mean_image(scaled, known, transforms, grid, sharpening)
    return template, mask, transforms


def register_prepared(
    target: Image,
    prepared: PreparedLibrary,
    moving: Sequence[Image],
    *,
    ids: Sequence[str] | None = None,
    fixed_mask: Mask | None = None,
    moving_masks: Sequence[Mask | None] | None = None,
    engine: Engine = diffeomorphic.register,
    refine_iterations: tuple[int, ...] = (30, 30, 8),
) -> list[Transform]:
    """Register atlases to a target by way of their template, then refine each.

    Parameters
    ----------
    target : Image
        The scan.
    prepared : PreparedLibrary
    moving : sequence of Image
        The atlases' images.
    ids : sequence of str, optional
        Which atlas each of them is: any of `prepared.ids`; by default these, all in their order.
    fixed_mask : Mask, optional
        Outside it voxels do not count, on the target's grid.
    moving_masks : sequence of Mask or None, optional
        Where each atlas is known.
    engine : callable
        As for `groupwise_template`.
    refine_iterations : tuple of int
        Of the refinement of each atlas, at most so many at each level of the method `diffeomorphic`, coarse to fine and
        ending at full resolution; where all are 0 the composed transforms are returned as they are.

    Returns
    -------
    list of Transform
        atlas_from_target, in the order of `moving`.

    Raises
    ------
    InputError
        An id is not among those prepared, numbers differ, or images cannot be registered.
    GeometryError
        A mask is not on its image's grid, or the fields of view do not overlap.
    """
    wanted = prepared.ids if ids is None else tuple(ids)
    absent = [i for i in wanted if i not in prepared.transforms]
    if absent or len(wanted) != len(moving):
        raise InputError(
            f"{len(moving)} images of atlases for {len(wanted)} ids"
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
    through = coarser(target.grid, finest * float(target.spacing_mm.min()))
    seen_mm = template_from_target.on_grid(through)
    composed = [_composed(prepared.transforms[i], template_from_target, seen_mm, through) for i in wanted]
    if not any(refine_iterations):
        return composed
    return engine(
        target,
        moving,
        initial=composed,
        fixed_mask=fixed_mask,
        moving_masks=moving_masks,
        iterations=refine_iterations,
    )


def _composed(
    atlas_from_template: Transform, template_from_target: Transform, seen_mm: Float64, grid: Grid
) -> Transform:
    """`atlas_from_template` after `template_from_target` as an affine after one displacement field on `grid`.

    `seen_mm` is where the second takes the voxels of `grid`.
    """
    whole = _leading(atlas_from_template) @ _leading(template_from_target)
    displacement_mm = (~whole)(_widened(atlas_from_template)(seen_mm)) - grid_points(grid)
    return whole @ DisplacementField(displacement_mm.astype(np.float32), grid.affine)


def _widened(transform: Transform) -> Transform:
    """A field that goes on as on its edge for `WIDER_SHARE` of its size, where by itself it ends in a step.

    Any affine applied after it stays; other transforms are returned as they are.
    """
    match transform:
        case DisplacementField(displacement_mm=field):
            wider = [int(np.ceil(WIDER_SHARE * n)) for n in field.shape[:3]]
            grid = transform.grid.cropped(
                [-n for n in wider], [n + m for n, m in zip(field.shape[:3], wider, strict=True)]
            )
            return DisplacementField(np.pad(field, [*((n, n) for n in wider), (0, 0)], mode="edge"), grid.affine)
        case Chain(transforms=(Affine() as matrix, DisplacementField() as field)):
            return matrix @ _widened(field)
    return transform


def _leading(transform: Transform) -> Affine:
    """The affine that a transform applies last."""
    last = transform.transforms[0] if isinstance(transform, Chain) else transform
    return last if isinstance(last, Affine) else Affine.identity()


def _scaled(image: Image, mask: Mask | None) -> Image:
    """Intensities from the 1st to the 99th percentile of the foreground brought to 0..1, and clipped."""
    return image.with_array(np.stack(scaled_and_cut(image, mask, cut=False).channels, axis=-1))


def _median_sized(images: Sequence[Image], masks: Sequence[Mask | None]) -> int:
    """Which image has the foreground of median volume; the lower of the two middle ones."""
    volumes = []
    for image, mask in zip(images, masks, strict=True):
        filled = mask.array if mask is not None else (image.channels > 0).any(axis=-1)
        volumes.append(filled.sum() * abs(np.linalg.det(image.affine[:3, :3])))
    return int(np.argsort(volumes, kind="stable")[(len(volumes) - 1) // 2])


def _with_margin(grid: Grid) -> Grid:
    size = np.array(grid.shape)
    margin = np.maximum(np.ceil(MARGIN_SHARE * size).astype(int), 2)
    return grid.cropped(-margin, size + margin)


def _about_their_mean(transforms: Sequence[Transform], centre_mm: Float64) -> list[Affine]:
    """Affines after the inverse of their log-Euclidean mean, which leaves `centre_mm` where it is."""
    matrices = [_leading(t).matrix for t in transforms]
    mean = linalg.expm(np.mean([linalg.logm(m[:3, :3]) for m in matrices], axis=0)).real
    shape = np.eye(4)
    shape[:3, :3] = mean
    shape[:3, 3] = centre_mm - mean @ centre_mm
    return [Affine(m @ (~Affine(shape)).matrix) for m in matrices]


def _deformations_about_their_mean(
    transforms: Sequence[Transform], matrices: Sequence[Affine], grid: Grid
) -> list[Transform]:
    """Each transform after the inverse of the mean displacement beyond the affines, as an affine after a field."""
    points_mm = grid_points(grid)
    fields = [
        DisplacementField(((~matrix)(t.on_grid(grid)) - points_mm).astype(np.float32), grid.affine)
        for t, matrix in zip(transforms, matrices, strict=True)
    ]
    mean_mm = np.mean([f.displacement_mm for f in fields], axis=0)
    before_mm = (~_widened(DisplacementField(mean_mm, grid.affine)))(points_mm)
    return [
        matrix @ DisplacementField((_widened(f)(before_mm) - points_mm).astype(np.float32), grid.affine)
        for f, matrix in zip(fields, matrices, strict=True)
    ]


def _mean_image(
    images: Sequence[Image],
    masks: Sequence[Mask | None],
    transforms: Sequence[Transform],
    grid: Grid,
    sharpening: float,
) -> tuple[Image, Mask | None]:
    """The mean over the images that are known at each voxel, and where at least half of them are."""
    total = np.zeros((*grid.shape, images[0].channels.shape[3]))
    count = np.zeros(grid.shape)
    for image, mask, transform in zip(images, masks, transforms, strict=True):
        known = coverage(image.grid, grid, transform).array
        if mask is not None:
            known = known & resample(mask, grid, transform).array
        total += np.where(known[..., None], resample(image, grid, transform, antialias=True).channels, 0)
        count += known
    mean = total / np.maximum(count, 1)[..., None]
    if sharpening > 0:
        mean += sharpening * (mean - ndimage.gaussian_filter(mean, (1, 1, 1, 0), mode="nearest"))
    half = 2 * count >= len(images)
    values = mean[..., 0] if mean.shape[3] == 1 else mean
    template = Image(values.astype(np.float32), grid.affine, name="template")
    return template, None if half.all() else Mask(half, grid.affine, name="template")


def write_prepared(prepared: PreparedLibrary, folder: str | Path) -> None:
    """Write a prepared library to a folder, whole or not at all; one that is there already is replaced.

    ``preparation.json`` (format, hashes of atlases and template, settings), ``template.nii.gz``,
    ``template_mask.nii.gz`` where there is one,
    ``transforms/ID.npz`` with ``matrix`` (4, 4), ``displacement_mm`` (I, J, K, 3) float32 and its ``affine``.

    Raises
    ------
    InputError
        The folder holds something that is not a prepared library, or a transform is not an affine after a field.
    OutputError
        It cannot be written; what was there before is still there.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / HEADER).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already and is no prepared library; give another folder")
    header = {
        "format": FORMAT,
        "atlases": dict(prepared.hashes),
        "settings": dict(prepared.settings),
        "template": io.content_hash(prepared.template, place=False),
    }
    with whole_folder(folder) as aside:
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


def _parts(id_: str, transform: Transform) -> tuple[Affine, DisplacementField]:
    match transform:
        case Chain(transforms=(Affine() as matrix, DisplacementField() as moved)):
            return matrix, moved
        case DisplacementField():
            return Affine.identity(), transform
    raise InputError(f"atlas {id_!r}: an affine after a displacement field can be stored, not {transform!r}")


def read_prepared(folder: str | Path) -> PreparedLibrary:
    """Read a prepared library that `write_prepared` wrote.

    Raises
    ------
    InputError
        There is none, a file of it is absent or damaged, or it was written in another format.
    """
    folder = Path(folder)
    if not (folder / HEADER).is_file():
        raise InputError(f"{folder}: no prepared library here (no {HEADER})")
    header = io.read_json(folder / HEADER)
    if header.get("format") != FORMAT:
        raise InputError(
            f"{folder}: written in format {header.get('format')!r}, format {FORMAT} is wanted: prepare again"
        )
    template = io.read_image(folder / TEMPLATE)
    if io.content_hash(template, place=False) != header.get("template"):
        raise InputError(f"{folder / TEMPLATE}: not the template that {HEADER} speaks of: prepare the library again")
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
