"""Head phantom: a small head defined by formulas, and scans of random individuals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atlasseg.phantoms.scanning import bias_field, rician, smooth_deformation, tilted_grid, turned
from atlasseg.transforms import Affine, Transform
from atlasseg.volume import Atlas, Float64, Grid, Image, Int32, LabelMap


@dataclass(frozen=True)
class Structure:
    """A labelled part of the anatomy.

    Parameters
    ----------
    value : int
        Label value.
    name, abbreviation : str
        Name, and abbreviation of it.
    colour : str
        Colour as ``#rrggbb``.
    group : str
        Group of the structure.
    brightness : float
        Intensity of its tissue, relative to white matter (1).
    """

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
    """Compute the label of the canonical anatomy at each point.

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


@dataclass(frozen=True, eq=False)
class Phantom:
    """Phantom scan of the anatomy, with its true labels and its true transform.

    Parameters
    ----------
    atlas : Atlas
        Scan and labels.
    canonical_from_scan : Transform
        True transform from points of the scan to points of canonical space, in RAS+ mm.
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
    """Compute the true transform from points of `fixed` to points of `moving`, as a registration returns it.

    Parameters
    ----------
    fixed, moving : Phantom
        Two phantoms of one anatomy.

    Returns
    -------
    Transform
    """
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
    """Make a phantom scan of the head of a random individual.

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
    return scan_anatomy(
        id,
        anatomy,
        {structure.value: structure.brightness for structure in STRUCTURES},
        grid=tilted_grid((44, 50, 30)) if grid is None else grid,
        box=tilted_grid((25, 29, 22), spacing_mm=(2.2, 2.3, 2.2), angles_degrees=(0, 0, 0)),
        seed=seed,
        largest_mm=largest_mm,
        smoothness_mm=smoothness_mm,
        pose=pose,
        bias=bias,
        noise=noise,
        white_matter=white_matter,
        subsamples=subsamples,
    )


def scan_anatomy(
    id: str,
    tissue_at: Callable[[ArrayLike], Int32],
    brightness_of: Mapping[int, float],
    *,
    grid: Grid,
    box: Grid,
    seed: int,
    largest_mm: float,
    smoothness_mm: float,
    pose: bool,
    bias: float,
    noise: float,
    white_matter: float,
    subsamples: int,
    middle_mm: ArrayLike = (0.0, 0.0, 0.0),
    labelled: Sequence[int] | None = None,
) -> Phantom:
    """Make a phantom scan of a random individual of any anatomy that is given by a formula.

    Parameters
    ----------
    id : str
    tissue_at : callable
        Takes points (N, 3) of canonical space to the tissue of each, an int32 of 0 (air) or above.
    brightness_of : mapping of int to float
        Brightness of each tissue, 1 being `white_matter`; that of others is 0.
    grid : Grid
        Voxels of the scan.
    box : Grid
        Points of canonical space where the individual's deformation is given.
    middle_mm : (3,)
        Point of canonical space that is put near the middle of the grid.
    labelled : sequence of int, optional
        Tissues that the label map has; by default all.
    seed, largest_mm, smoothness_mm, pose, bias, noise, white_matter, subsamples
        As for `head`.
    """
    rng = np.random.default_rng([seed, 0])
    turn, move, resize = rng.uniform(-1, 1, (3, 3)) * pose
    placement: Float64 = np.eye(4)
    placement[:3, :3] = turned(6.0 * turn) * (1 + 0.06 * resize)
    placement[:3, 3] = grid.centre_mm + 1.5 * move - placement[:3, :3] @ np.asarray(middle_mm, float)
    canonical_from_scan: Transform = ~Affine(placement)
    if largest_mm > 0:
        field = smooth_deformation(box, largest_mm=largest_mm, smoothness_mm=smoothness_mm, seed=seed)
        canonical_from_scan = field @ canonical_from_scan

    def seen(offset_voxels: ArrayLike) -> Int32:
        voxels = np.indices(grid.shape).reshape(3, -1).T + np.asarray(offset_voxels, float)
        return tissue_at(canonical_from_scan(voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3])).reshape(grid.shape)

    labels = seen((0, 0, 0))
    if labelled is not None:
        labels[~np.isin(labels, labelled)] = 0
    brightness = np.zeros(max(brightness_of) + 1)
    for tissue, bright in brightness_of.items():
        brightness[tissue] = bright
    steps = (np.arange(subsamples) + 0.5) / subsamples - 0.5
    amount = np.zeros(grid.shape)
    for offset in np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3):
        amount += brightness[seen(offset)] / subsamples**3
    signal = amount * bias_field(grid, strength=bias, seed=seed)
    intensities = (white_matter * rician(signal, sigma=noise, seed=seed)).astype(np.float32)
    atlas = Atlas(id, Image(intensities, grid.affine, id), LabelMap(labels, grid.affine, id))
    return Phantom(atlas, canonical_from_scan)
