"""Synthetic anatomies with known truth and known deformation.

One anatomy, a small head of closed formulas, is defined at every point of a *canonical* space in mm. A scan of it is
that anatomy seen through a known transform, `canonical_from_scan`, sampled straight onto the scan's own grid: its
labels are exact and nothing is ever interpolated. Two scans are therefore related by a known transform too, in both
directions (:func:`moving_from_fixed`), and labels, intensities and registrations can all be checked against the truth.

``python -m atlasseg.phantoms FOLDER`` writes the small data set that `sample_data/` holds.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atlasseg.errors import InputError
from atlasseg.transforms import Affine, DisplacementField, Transform
from atlasseg.volume import Atlas, Float64, Grid, Image, Int32, LabelMap


@dataclass(frozen=True)
class Structure:
    """A labelled part of the anatomy: value, names, colour, group, and how bright its tissue is (white matter: 1)."""

    value: int
    name: str
    abbreviation: str
    colour: str
    group: str
    brightness: float


CEREBROSPINAL_FLUID = Structure(24, "Cerebrospinal-Fluid", "CSF", "#3c3c7a", "fluid", 0.22)
_PAIRS = (  # left value, right value, name, abbreviation, colours, group, brightness
    (2, 41, "Cerebral-White-Matter", "WM", "#f5f5f5", "#dcdcdc", "white matter", 1.0),
    (3, 42, "Cerebral-Cortex", "CTX", "#cd3e4e", "#a8324a", "cortex", 0.60),
    (4, 43, "Lateral-Ventricle", "LV", "#781286", "#9b3fa8", "fluid", 0.22),
    (10, 49, "Thalamus", "TH", "#00760e", "#2f9a3d", "deep grey matter", 0.80),
    (11, 50, "Caudate", "CA", "#7abadc", "#4f93bd", "deep grey matter", 0.62),
    (12, 51, "Putamen", "PU", "#ec0db0", "#b30a86", "deep grey matter", 0.70),
    (17, 53, "Hippocampus", "HI", "#dcd814", "#a9a60f", "deep grey matter", 0.57),
)
STRUCTURES: tuple[Structure, ...] = (
    *(
        Structure(left, f"Left-{name}", f"L{abbr}", hue, group, bright)
        for left, _, name, abbr, hue, _, group, bright in _PAIRS
    ),
    CEREBROSPINAL_FLUID,
    *(
        Structure(right, f"Right-{name}", f"R{abbr}", hue, group, bright)
        for _, right, name, abbr, _, hue, group, bright in _PAIRS
    ),
)
"""The labels of the anatomy, ascending: seven pairs and the fluid around them, in FreeSurfer's numbers."""

HEAD_SEMI_AXES_MM = np.array([20.0, 25.0, 17.5])
"""Of the ellipsoid that holds the whole canonical anatomy, along R, A and S."""

_VENTRICLE = (((3.0, 9.5, 3.4), (3.3, 2, 5.6), (3.8, -6, 5.6), (5.5, -12, 2.0)), (1.7, 2.3, 2.5, 1.7))
_CAUDATE = (
    ((6.6, 10.0, 1.2), (7.2, 6.5, 5.4), (8.0, 0, 7.4), (9.2, -7, 6.4), (10.6, -11, 2.0), (10.8, -8.5, -2.6)),
    (3.0, 2.7, 2.0, 1.6, 1.4, 1.3),
)
_HIPPOCAMPUS = (((7.6, 2.5, -7.4), (9.4, -3, -7.6), (9.4, -8.5, -5.6), (7.0, -12.5, -2.4)), (2.7, 2.5, 2.1, 1.6))
_THALAMUS = ((4.9, -3.4, -0.6), (3.9, 6.0, 3.7))
_PUTAMEN = ((12.2, 2.6, -0.2), (2.4, 6.6, 4.6))


def anatomy(points_mm: ArrayLike) -> Int32:
    """Label of the canonical anatomy at each point.

    Parameters
    ----------
    points_mm : (N, 3)
        Points of canonical space, RAS+ mm; the head is centred on the origin, its right side at positive x.

    Returns
    -------
    (N,) int32
        Values of `STRUCTURES`, or 0 outside the head.

    Examples
    --------
    >>> anatomy([[0, 0, 100], [10.4, 2.2, 0.3], [-10.4, 2.2, 0.3]])
    array([ 0, 51, 12], dtype=int32)
    """
    points = np.asarray(points_mm, dtype=np.float64).reshape(-1, 3)
    labels = np.zeros(len(points), np.int32)
    inside = np.flatnonzero(((points / HEAD_SEMI_AXES_MM) ** 2).sum(1) < 1)
    p = points[inside]
    folded = p.copy()
    folded[:, 0] = np.abs(p[:, 0])  # left is the mirror image of right

    radius = np.sqrt(((p / HEAD_SEMI_AXES_MM) ** 2).sum(1))
    turn, height = np.arctan2(folded[:, 0], folded[:, 1]), folded[:, 2] / HEAD_SEMI_AXES_MM[2]
    folds = np.cos(9 * turn) * np.cos(6 * height) + 0.6 * np.cos(5 * turn + 3 * height)  # gyri and sulci
    pial, white = 0.92 + 0.02 * folds, 0.78 + 0.05 * folds

    left = np.full(len(p), CEREBROSPINAL_FLUID.value, np.int32)
    right = left.copy()

    def paint(where: NDArray[np.bool_], left_value: int, right_value: int) -> None:
        left[where], right[where] = left_value, right_value

    paint(radius < pial, 3, 42)
    in_white = radius < white
    paint(in_white, 2, 41)
    fissure = (folded[:, 0] < 0.55) & (radius < pial) & (p[:, 2] > 8.0 - 0.02 * p[:, 1] ** 2)
    paint(fissure, CEREBROSPINAL_FLUID.value, CEREBROSPINAL_FLUID.value)
    paint(in_white & _in_tube(folded, *_VENTRICLE), 4, 43)
    paint(in_white & _in_ellipsoid(folded, *_THALAMUS), 10, 49)
    paint(in_white & _in_ellipsoid(folded, *_PUTAMEN), 12, 51)
    paint(in_white & _in_tube(folded, *_CAUDATE), 11, 50)
    paint(in_white & _in_tube(folded, *_HIPPOCAMPUS), 17, 53)
    labels[inside] = np.where(p[:, 0] > 0, right, left)
    return labels


def _in_ellipsoid(points: Float64, centre_mm: ArrayLike, semi_axes_mm: ArrayLike) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (((points - np.asarray(centre_mm, float)) / np.asarray(semi_axes_mm, float)) ** 2).sum(
        1
    ) < 1
    return inside


def _in_tube(points: Float64, knots_mm: ArrayLike, radii_mm: ArrayLike) -> NDArray[np.bool_]:
    """Whether points lie in the tube around a polyline, whose radius changes linearly between its knots."""
    knots, radii = np.asarray(knots_mm, float), np.asarray(radii_mm, float)
    inside = np.zeros(len(points), bool)
    for a, b, radius_a, radius_b in zip(knots[:-1], knots[1:], radii[:-1], radii[1:], strict=True):
        along = np.clip((points - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        apart = points - a - along[:, None] * (b - a)
        inside |= (apart**2).sum(1) < (radius_a + along * (radius_b - radius_a)) ** 2
    return inside


def tilted_grid(
    shape: tuple[int, int, int],
    *,
    spacing_mm: ArrayLike = (1.0, 1.1, 1.3),
    angles_degrees: ArrayLike = (8.0, -5.0, 11.0),
    centre_mm: ArrayLike = (0.0, 0.0, 0.0),
    axes: str = "RAS",
) -> Grid:
    """A grid as scanners make them: anisotropic, oblique, its axes in any order and sense.

    Parameters
    ----------
    shape, spacing_mm
        Voxels, and their size in mm, along i, j and k.
    angles_degrees : (3,)
        Turns about R, then A, then S, that tilt the grid in space.
    centre_mm : (3,)
        Where the middle of the grid lies, RAS+ mm.
    axes : str
        Which way i, j and k run before the tilt, as ``"RAS"``, ``"LAS"`` (left-handed), ``"PIR"``, ...

    Raises
    ------
    InputError
        `axes` does not name each of the three directions once.

    Examples
    --------
    >>> tilted_grid((4, 3, 2), spacing_mm=(1, 2, 3), angles_degrees=(0, 0, 0), axes="LPS").affine
    array([[-1. ,  0. ,  0. ,  1.5],
           [ 0. , -2. ,  0. ,  2. ],
           [ 0. ,  0. ,  3. , -1.5],
           [ 0. ,  0. ,  0. ,  1. ]])
    """
    letters = ("LR", "PA", "IS")
    world = [next((n for n, pair in enumerate(letters) if a in pair), -1) for a in axes]
    if sorted(world) != [0, 1, 2]:
        raise InputError(f"axes must name each of R/L, A/P and S/I once, got {axes!r}")
    directions = np.zeros((3, 3))
    for column, (row, letter) in enumerate(zip(world, axes, strict=True)):
        directions[row, column] = 1.0 if letter in "RAS" else -1.0
    affine = np.eye(4)
    affine[:3, :3] = _turn(angles_degrees) @ directions * np.asarray(spacing_mm, float) + 0.0  # no negative zeros
    affine[:3, 3] = np.asarray(centre_mm, float) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def _turn(angles_degrees: ArrayLike) -> Float64:
    """(3, 3) rotation about x, then y, then z."""
    turns = []
    for axis, angle in enumerate(np.radians(np.asarray(angles_degrees, float))):
        turn, (a, b) = np.eye(3), [n for n in range(3) if n != axis]
        sign = -1.0 if axis == 1 else 1.0
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -sign * np.sin(angle), sign * np.sin(angle)
        turns.append(turn)
    product: Float64 = turns[2] @ turns[1] @ turns[0]
    return product


def smooth_deformation(
    grid: Grid, *, largest_mm: float = 3.0, smoothness_mm: float = 6.0, seed: int = 0
) -> DisplacementField:
    """A random, smooth displacement field that is zero at the edge of its grid.

    White noise under a Gaussian, faded out toward the grid's edge, and scaled to a largest displacement. It can be
    inverted while `largest_mm` stays below about `smoothness_mm`: the larger it is, the more space is squeezed.

    Parameters
    ----------
    grid : Grid
        Where the displacement is given; about `smoothness_mm` / 3 between its points is fine enough.
    largest_mm : float
        Length of the longest displacement, in mm.
    smoothness_mm : float
        Standard deviation of the Gaussian, in mm.
    seed : int
        The same seed gives the same field.
    """
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng([seed, 1])
    noise = rng.standard_normal((*grid.shape, 3))
    sigma = smoothness_mm / grid.spacing_mm
    smooth = np.stack([gaussian_filter(noise[..., c], sigma, mode="reflect") for c in range(3)], axis=-1)
    for axis, n in enumerate(grid.shape):
        fade = np.sin(np.pi * np.arange(n) / max(n - 1, 1)) ** 0.5
        smooth *= fade.reshape([-1 if a == axis else 1 for a in range(3)] + [1])
    longest = np.sqrt((smooth**2).sum(-1)).max()
    displacement_mm = (smooth * (largest_mm / longest if longest > 0 else 0.0)).astype(np.float32)
    return DisplacementField(displacement_mm, grid.affine)


def bias_field(grid: Grid, *, strength: float = 0.25, seed: int = 0) -> Float64:
    """A smooth positive gain, as a coil's: the exponential of a random polynomial of order two.

    Returns
    -------
    (I, J, K) float64
        Between ``1 - strength`` and ``1 + strength`` or so, its logarithm of mean 0 over the grid.
    """
    rng = np.random.default_rng([seed, 2])
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in grid.shape], indexing="ij", sparse=True)
    terms = (x, y, z, x * x, y * y, z * z, x * y, y * z, x * z)
    logarithm = np.zeros(grid.shape)
    for weight, term in zip(rng.standard_normal(len(terms)), terms, strict=True):
        logarithm += weight * term
    logarithm -= logarithm.mean()
    gain: Float64 = np.exp(logarithm * (np.log1p(strength) / np.abs(logarithm).max()))
    return gain


def rician(signal: Float64, *, sigma: float, seed: int = 0) -> Float64:
    """The magnitude of `signal` under complex Gaussian noise (Gudbjartsson and Patz 1995, equation 1).

    Parameters
    ----------
    signal : (I, J, K) float64
        Without noise, 0 or more.
    sigma : float
        Standard deviation of the noise in the real and in the imaginary channel, in units of `signal`.
    """
    rng = np.random.default_rng([seed, 3])
    real, imaginary = rng.standard_normal((2, *signal.shape)) * sigma
    magnitude: Float64 = np.hypot(signal + real, imaginary)
    return magnitude


@dataclass(frozen=True, eq=False)
class Phantom:
    """A scan of the anatomy, its true labels, and the transform that it was seen through.

    `canonical_from_scan` takes points of the scan to points of canonical space.
    """

    atlas: Atlas
    canonical_from_scan: Transform

    @property
    def id(self) -> str:
        """Name of the scan."""
        return self.atlas.id

    @property
    def image(self) -> Image:
        """The noisy scan."""
        return self.atlas.image

    @property
    def labels(self) -> LabelMap:
        """The true label at the centre of each voxel."""
        return self.atlas.segmentation


def moving_from_fixed(fixed: Phantom, moving: Phantom) -> Transform:
    """The true transform from points of `fixed` to points of `moving`, as a registration would return it."""
    return ~moving.canonical_from_scan @ fixed.canonical_from_scan


def head(
    id: str = "head",
    *,
    grid: Grid | None = None,
    seed: int = 0,
    largest_mm: float = 2.5,
    smoothness_mm: float = 7.0,
    pose: bool = True,
    bias: float = 0.25,
    noise: float = 0.04,
    white_matter: float = 800.0,
    subsamples: int = 2,
) -> Phantom:
    """A scan of one individual's head.

    Parameters
    ----------
    id : str
        Its name.
    grid : Grid, optional
        Where its voxels lie; the head is put near the middle. By default 44 x 50 x 30 voxels of `tilted_grid`.
    seed : int
        Everything random follows from it: shape, size, pose, bias field and noise.
    largest_mm, smoothness_mm : float
        Of the individual's deformation, see `smooth_deformation`; 0 mm leaves the canonical shape.
    pose : bool
        Whether the head is turned (up to 6 degrees), moved (up to 1.5 mm) and resized (up to 6 %) at random;
        else it lies in the middle of the grid, upright in space.
    bias : float
        Strength of the bias field, see `bias_field`.
    noise : float
        Standard deviation of the Rician noise, as a part of white matter's intensity.
    white_matter : float
        Intensity of white matter.
    subsamples : int
        Points along each axis of a voxel over which tissue is averaged (partial volume); labels are read at its centre.

    Returns
    -------
    Phantom
    """
    where = tilted_grid((44, 50, 30)) if grid is None else grid
    rng = np.random.default_rng([seed, 0])
    turn, move, resize = rng.uniform(-1, 1, (3, 3)) * pose
    placement: Float64 = np.eye(4)
    placement[:3, :3] = _turn(6.0 * turn) * (1 + 0.06 * resize)
    placement[:3, 3] = where.centre_mm + 1.5 * move
    canonical_from_scan: Transform = ~Affine(placement)
    if largest_mm > 0:
        box = tilted_grid((25, 29, 22), spacing_mm=(2.2, 2.3, 2.2), angles_degrees=(0, 0, 0))
        field = smooth_deformation(box, largest_mm=largest_mm, smoothness_mm=smoothness_mm, seed=seed)
        canonical_from_scan = field @ canonical_from_scan

    def seen(offset_voxels: ArrayLike) -> Int32:
        voxels = np.indices(where.shape).reshape(3, -1).T + np.asarray(offset_voxels, float)
        return anatomy(canonical_from_scan(voxels @ where.affine[:3, :3].T + where.affine[:3, 3])).reshape(where.shape)

    labels = seen((0, 0, 0))
    brightness = np.zeros(max(s.value for s in STRUCTURES) + 1)
    for structure in STRUCTURES:
        brightness[structure.value] = structure.brightness
    steps = (np.arange(subsamples) + 0.5) / subsamples - 0.5
    tissue = np.zeros(where.shape)
    for offset in np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3):
        tissue += brightness[seen(offset)] / subsamples**3
    signal = tissue * bias_field(where, strength=bias, seed=seed)
    intensities = (white_matter * rician(signal, sigma=noise, seed=seed)).astype(np.float32)
    atlas = Atlas(id, Image(intensities, where.affine, id), LabelMap(labels, where.affine, id))
    return Phantom(atlas, canonical_from_scan)


@dataclass(frozen=True)
class _Sample:
    """How one scan of `sample_data/` was made: shape, spacing, tilt, axes, intensity scale and type differ."""

    id: str
    seed: int
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    angles_degrees: tuple[float, float, float]
    centre_mm: tuple[float, float, float]
    axes: str
    white_matter: float
    dtype: str


SAMPLE_ATLASES: tuple[_Sample, ...] = (
    _Sample("atlas1", 11, (46, 52, 40), (1.0, 1.1, 1.15), (4, -3, 6), (2, -8, 11), "RAS", 160, "uint8"),
    _Sample("atlas2", 12, (48, 56, 36), (1.0, 1.0, 1.25), (-7, 2, 3), (-12, 20, -5), "LAS", 820, "int16"),
    _Sample("atlas3", 13, (44, 50, 44), (1.1, 1.15, 1.0), (0, 6, -8), (64, -31, 18), "RAS", 140, "uint8"),
    _Sample("atlas4", 14, (52, 40, 46), (1.1, 1.05, 1.05), (5, 5, -4), (0, 0, 0), "PSR", 95, "uint8"),
    _Sample("atlas5", 15, (45, 54, 30), (1.05, 1.05, 1.4), (-5, -6, 9), (-9, 4, 120), "RAS", 1500, "int16"),
    _Sample("atlas6", 16, (46, 54, 36), (1.0, 1.05, 1.15), (3, 8, 2), (15, 15, -40), "LPS", 180, "uint8"),
)
SAMPLE_TARGETS: tuple[_Sample, ...] = (
    _Sample("target1", 21, (48, 56, 42), (1.0, 1.0, 1.1), (-6, 4, 10), (7, -14, 22), "RAS", 130, "uint8"),
    _Sample("target2", 22, (46, 52, 34), (1.1, 1.1, 1.2), (8, -4, -5), (-30, 9, 3), "LAS", 610, "int16"),
)


def sample(id: str) -> Phantom:
    """A scan of `sample_data/`, made anew from its seed, with the transform that no file holds.

    Raises
    ------
    InputError
        There is no sample of that name.
    """
    for spec in (*SAMPLE_ATLASES, *SAMPLE_TARGETS):
        if spec.id == id:
            grid = tilted_grid(
                spec.shape,
                spacing_mm=spec.spacing_mm,
                angles_degrees=spec.angles_degrees,
                centre_mm=spec.centre_mm,
                axes=spec.axes,
            )
            made = head(id, grid=grid, seed=spec.seed, white_matter=spec.white_matter)
            top = np.iinfo(spec.dtype).max
            whole = np.clip(np.rint(made.image.array), 0, top)
            return Phantom(Atlas(id, made.image.with_array(whole), made.labels), made.canonical_from_scan)
    names = ", ".join(s.id for s in (*SAMPLE_ATLASES, *SAMPLE_TARGETS))
    raise InputError(f"there is no sample {id!r}; there are {names}")


_ROWS = "".join(f"{s.value}\t{s.name}\t{s.abbreviation}\t{s.colour}\t{s.group}\n" for s in STRUCTURES)
LABEL_TABLE = f"index\tname\tabbreviation\tcolor\tgroup\n{_ROWS}"
"""The structures as a BIDS table (TSV)."""

_SAMPLE_README = """\
# Sample data

Six labelled scans (`atlases/`) and two to segment (`targets/`, with labels, so that the result can be judged): enough
to see the whole chain work in under a minute, and for tests. Nobody was scanned: everything here is made by

    python -m atlasseg.phantoms sample_data

which writes the same files again, byte for byte on the same machine and libraries. Each scan is a small head of closed
formulas (`atlasseg.phantoms.anatomy`: fluid, folded cortex, white matter, ventricles, thalamus, caudate, putamen and
hippocampus, {labels} labels in FreeSurfer's numbers), seen through a smooth random deformation and a random pose,
sampled with partial volume on a grid of its own (oblique, anisotropic, axes in several orders), under a bias field and
Rician noise, on an intensity scale of its own. The true transform between any two follows from the seeds:
`moving_from_fixed(sample("target1"), sample("atlas3"))`, both of `atlasseg.phantoms`.

| scan | voxels | mm | axes | white matter near | type |
|---|---|---|---|---|---|
{rows}

Same licence as the project.
"""


def sample_files() -> dict[str, bytes]:
    """The files of `sample_data/`: path below the folder, and content."""
    files: dict[str, bytes] = {}
    for group, specs in (("atlases", SAMPLE_ATLASES), ("targets", SAMPLE_TARGETS)):
        for spec in specs:
            made = sample(spec.id)
            files[f"{group}/images/{spec.id}.nii.gz"] = _nifti(made.image.array, made.image.affine, spec.dtype)
            files[f"{group}/labels/{spec.id}.nii.gz"] = _nifti(made.labels.array, made.labels.affine, "uint8")
    files["atlases/labels.tsv"] = LABEL_TABLE.encode()
    rows = "\n".join(
        f"| {s.id} | {' x '.join(map(str, s.shape))} | {' x '.join(map(str, s.spacing_mm))} | {s.axes} "
        f"| {s.white_matter:g} | {s.dtype} |"
        for s in (*SAMPLE_ATLASES, *SAMPLE_TARGETS)
    )
    files["README.md"] = _SAMPLE_README.format(labels=len(STRUCTURES), rows=rows).encode()
    return files


def _nifti(array: NDArray[Any], affine: Float64, dtype: str) -> bytes:
    """A gzipped NIfTI-1 file, scanner space in sform and qform, without a time stamp."""
    import nibabel

    volume = nibabel.Nifti1Image(array.astype(dtype), affine)
    volume.set_sform(affine, 1)
    volume.set_qform(affine, 1)
    volume.header.set_xyzt_units("mm")
    return gzip.compress(volume.to_bytes(), compresslevel=9, mtime=0)


def write_sample_data(folder: Path) -> None:
    """Write `sample_files` below `folder`, over what is there."""
    for name, content in sample_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def main(arguments: Sequence[str]) -> int:
    """``python -m atlasseg.phantoms FOLDER``; returns the exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m atlasseg.phantoms FOLDER\n")
        return 0 if arguments in (["-h"], ["--help"]) else 2
    write_sample_data(Path(arguments[0]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
