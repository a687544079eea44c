"""Data types: volumes on a grid in space.

Arrays are in NIfTI order ``(i, j, k)``; an affine takes voxel indices to RAS+ millimetres.
Nothing here reads files, resamples or computes: see :mod:`atlasseg.io` and :mod:`atlasseg.resampling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atlasseg.errors import GeometryError, InputError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

SAME_GRID_TOLERANCE_VOXELS = 0.01
"""Two grids are the same when no corner of one lies farther than this from the other's, in voxels."""


FLAT = 1e-9
"""A voxel is flat, and an affine singular, whose volume is less than this share of the product of its edges."""


def _is_flat(edges: Float64) -> bool:
    return bool(abs(np.linalg.det(edges)) <= FLAT * np.prod(np.linalg.norm(edges, axis=0)))


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume lie.

    Parameters
    ----------
    shape : (I, J, K)
        Number of voxels along each axis, each at least 1.
    affine : (4, 4) float64
        Voxel indices to RAS+ mm; may shear or be left-handed, must be invertible.

    Raises
    ------
    GeometryError
        The affine is not finite or not invertible.
    """

    shape: tuple[int, int, int]
    affine: Float64

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or _is_flat(affine[:3, :3]):
            raise GeometryError(f"an affine must be a finite, invertible 4x4 matrix, got {self.affine!r}")
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise GeometryError(f"a grid needs three axes of at least one voxel, got shape {self.shape}")
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @property
    def spacing_mm(self) -> Float64:
        """(3,) length of a voxel's step along each axis, in mm."""
        spacing: Float64 = np.linalg.norm(self.affine[:3, :3], axis=0)
        return spacing

    @property
    def corners_mm(self) -> Float64:
        """(8, 3) centres of the eight corner voxels, in RAS+ mm."""
        last = np.array(self.shape) - 1
        corners = np.stack(np.meshgrid(*[(0, n) for n in last], indexing="ij"), -1).reshape(-1, 3)
        return corners @ self.affine[:3, :3].T + self.affine[:3, 3]

    @property
    def centre_mm(self) -> Float64:
        """(3,) middle of the grid in RAS+ mm."""
        return self.affine[:3, :3] @ ((np.array(self.shape) - 1) / 2) + self.affine[:3, 3]

    def matches(self, other: Grid) -> bool:
        """Whether both grids have the same shape and lie within `SAME_GRID_TOLERANCE_VOXELS` of each other."""
        if self.shape != other.shape:
            return False
        apart_mm = np.linalg.norm(self.corners_mm - other.corners_mm, axis=1).max()
        return bool(apart_mm <= SAME_GRID_TOLERANCE_VOXELS * self.spacing_mm.min())

    def cropped(self, start: ArrayLike, stop: ArrayLike) -> Grid:
        """The grid of ``array[start:stop]``, `start` and `stop` being (3,) voxel indices."""
        first, end = np.asarray(start, int), np.asarray(stop, int)
        affine = self.affine.copy()
        affine[:3, 3] += self.affine[:3, :3] @ first
        size = end - first
        return Grid((int(size[0]), int(size[1]), int(size[2])), affine)


@dataclass(frozen=True)
class SourceHeader:
    """What must be kept of the file that a volume came from, so that a result can be written like it.

    `sform_code`, `qform_code`, `qform` (voxel to RAS+ mm) and `version` (1 or 2) are NIfTI's, as is `unit`, the name
    that the header gives to the length that is taken for the millimetre; `dtype` is the type on disk, named as NumPy
    names it.
    """

    path: Path | None = None
    dtype: str | None = None
    sform_code: int = 1
    qform_code: int = 1
    qform: tuple[tuple[float, ...], ...] | None = None
    version: int = 1
    unit: str = "mm"

    def cropped(self, start: ArrayLike) -> SourceHeader:
        """The same for a volume that begins at voxel `start`: its qform moves along."""
        if self.qform is None:
            return self
        qform = np.array(self.qform)
        qform[:3, 3] += qform[:3, :3] @ np.asarray(start)
        return replace(self, qform=tuple(tuple(row) for row in qform.tolist()))


@dataclass(frozen=True, eq=False)
class _Volume:
    array: Any
    affine: Float64
    name: str = ""
    source_header: SourceHeader = field(default_factory=SourceHeader)

    def __post_init__(self) -> None:
        grid = Grid(self.array.shape[:3], self.affine)
        object.__setattr__(self, "affine", grid.affine)

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        return Grid(self.array.shape[:3], self.affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(I, J, K), without channels."""
        shape = self.array.shape
        return shape[0], shape[1], shape[2]

    @property
    def spacing_mm(self) -> Float64:
        """(3,) voxel size in mm."""
        return self.grid.spacing_mm

    def with_array(self, array: ArrayLike) -> Self:
        """The same volume with other values on the same grid."""
        new = replace(self, array=np.asarray(array))
        if new.shape != self.shape:
            raise GeometryError(
                f"{self.name or 'volume'}: values of shape {new.shape} do not fit the grid {self.shape}"
            )
        return new

    def cropped(self, start: ArrayLike, stop: ArrayLike) -> Self:
        """The part ``[start:stop]``, on its own grid; indices are voxels.

        Raises
        ------
        GeometryError
            The part is empty or does not lie inside.
        """
        first, end = np.asarray(start, int), np.asarray(stop, int)
        if (first < 0).any() or (end > self.shape).any():
            raise GeometryError(f"{self.name or 'volume'}: {first} to {end} do not lie inside shape {self.shape}")
        box = tuple(slice(int(a), int(b)) for a, b in zip(first, end, strict=True))
        affine = self.grid.cropped(start, stop).affine
        return replace(self, array=self.array[box], affine=affine, source_header=self.source_header.cropped(start))


@dataclass(frozen=True, eq=False)
class Image(_Volume):
    """Intensities: float32 of shape (I, J, K), or (I, J, K, C) with C channels (modalities), all finite.

    Raises
    ------
    InputError
        The array is not 3-D or 4-D, or holds NaN or infinity.
    """

    array: Float32

    def __post_init__(self) -> None:
        array = np.asarray(self.array, dtype=np.float32)
        where = f"image {self.name!r}: " if self.name else "image: "
        if array.ndim not in (3, 4):
            raise InputError(f"{where}a 3-D volume is wanted (channels last), got shape {array.shape}")
        if not np.isfinite(array).all():
            raise InputError(f"{where}{int((~np.isfinite(array)).sum())} intensities are NaN or infinite")
        object.__setattr__(self, "array", array)
        super().__post_init__()

    @property
    def channels(self) -> Float32:
        """(I, J, K, C) view, C = 1 for a plain image."""
        return self.array if self.array.ndim == 4 else self.array[..., None]


@dataclass(frozen=True, eq=False)
class Mask(_Volume):
    """Where something is: bool of shape (I, J, K)."""

    array: Bool

    def __post_init__(self) -> None:
        array = np.asarray(self.array)
        if array.ndim != 3:
            raise InputError(f"mask {self.name!r}: a 3-D volume is wanted, got shape {array.shape}")
        object.__setattr__(self, "array", array.astype(bool))
        super().__post_init__()


@dataclass(frozen=True, eq=False)
class LabelMap(_Volume):
    """One label a voxel: int32 of shape (I, J, K); 0 is background; values need not be contiguous.

    Raises
    ------
    InputError
        The array is not 3-D, a value is not whole, or it does not fit int32.
    """

    array: Int32

    def __post_init__(self) -> None:
        given = np.asarray(self.array)
        where = f"label map {self.name!r}: " if self.name else "label map: "
        if given.ndim != 3:
            raise InputError(f"{where}a 3-D volume is wanted, got shape {given.shape}")
        if given.dtype.kind not in "biuf":
            raise InputError(f"{where}labels must be whole numbers, got values of type {given.dtype}")
        if given.dtype != np.int32:
            if given.dtype.kind == "f":
                off = given != np.round(given)  # NaN differs from itself, so it is caught here too
                if off.any():
                    raise InputError(f"{where}labels must be whole numbers, found {given[off].flat[0]!r}")
            limits = np.iinfo(np.int32)
            if given.size and (given.min() < limits.min or given.max() > limits.max):
                raise InputError(f"{where}labels must fit 32 bits, found {given.min()!r} to {given.max()!r}")
        object.__setattr__(self, "array", given.astype(np.int32, copy=False))
        super().__post_init__()

    @property
    def values(self) -> Int32:
        """Labels present, ascending, background (0) included where it is present."""
        return np.unique(self.array)


@dataclass(frozen=True, eq=False)
class ProbabilityMap:
    """Label probabilities on a grid, stored only where they are not certain.

    A voxel that is not listed in `voxels` has the label in `mode` with probability 1. The listed ones
    have their entries ``offsets[m]:offsets[m + 1]`` of `labels` and `values`, as in a CSR matrix, so memory
    grows with the number of uncertain voxels and not with voxels times labels.

    Parameters
    ----------
    mode : (I, J, K) int32
        The most probable label everywhere; on a tie the smallest value.
    voxels : (M,) int64
        Ascending flat (C order) indices of the voxels that are not certain.
    offsets : (M + 1,) int64
        Where each voxel's entries begin and end.
    labels : (E,) int32
        Label of each entry, ascending within a voxel.
    values : (E,) float32
        Its probability, above 0; they sum to 1 within a voxel.
    affine : (4, 4) float64
        Voxel to RAS+ mm.
    label_values : (L,) int32
        Every label the map speaks of, ascending; may hold labels that have probability nowhere.
    """

    mode: Int32
    voxels: Int64
    offsets: Int64
    labels: Int32
    values: Float32
    affine: Float64
    label_values: Int32
    name: str = ""

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        return Grid(self.mode.shape, self.affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(I, J, K)."""
        return self.grid.shape

    @classmethod
    def from_entries(
        cls,
        background: Int32,
        affine: Float64,
        voxels: NDArray[np.integer[Any]],
        labels: NDArray[np.integer[Any]],
        values: NDArray[np.floating[Any]],
        *,
        label_values: ArrayLike = (),
        name: str = "",
    ) -> ProbabilityMap:
        """From entries in any order; repeated (voxel, label) pairs add up, and each voxel is scaled to sum 1.

        Parameters
        ----------
        background : (I, J, K) int
            The certain label of every voxel that has no entry.
        voxels, labels, values : (E,)
            Flat voxel index, label, and weight of each entry; weights of 0 and below are left out, and a voxel that
            has no other keeps `background`.
        label_values : sequence of int
            Labels to list beside those that occur.

        Raises
        ------
        InputError
            A weight is NaN or infinite.
        """
        if not np.isfinite(values).all():
            raise InputError(
                f"{name or 'probabilities'}: {int((~np.isfinite(values)).sum())} weights are NaN or infinite"
            )
        keep = values > 0
        order = np.lexsort((labels[keep], voxels[keep]))
        v, lab, w = voxels[keep][order], labels[keep][order], values[keep][order].astype(np.float64)
        mode = np.array(background, dtype=np.int32, order="C")
        if v.size == 0:
            return cls.from_labels(LabelMap(mode, affine), label_values=label_values, name=name)
        new_pair = np.concatenate(([True], (v[1:] != v[:-1]) | (lab[1:] != lab[:-1])))
        starts = np.flatnonzero(new_pair)
        v, lab, w = v[starts], lab[starts], np.add.reduceat(w, starts)
        first = np.flatnonzero(np.concatenate(([True], v[1:] != v[:-1])))
        count = np.diff(np.append(first, v.size))
        w /= np.repeat(np.add.reduceat(w, first), count)
        w = w.astype(np.float32)
        if not w.all():  # some are too small for float32
            v, lab, w = v[w > 0], lab[w > 0], w[w > 0]
            first = np.flatnonzero(np.concatenate(([True], v[1:] != v[:-1])))
            count = np.diff(np.append(first, v.size))
        best = np.repeat(np.maximum.reduceat(w, first), count)
        at_best = np.flatnonzero(w == best)
        _, first_best = np.unique(v[at_best], return_index=True)
        flat = mode.reshape(-1)
        flat[v[first]] = lab[at_best[first_best]]
        listed = np.repeat(count > 1, count)
        counts = count[count > 1]
        every = np.union1d(np.unique(mode), np.union1d(lab, np.asarray(label_values, dtype=np.int64)))
        return cls(
            mode,
            v[first][count > 1].astype(np.int64),
            np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
            lab[listed].astype(np.int32),
            w[listed],
            np.asarray(affine, np.float64),
            every.astype(np.int32),
            name,
        )

    @classmethod
    def from_dense(
        cls, probabilities: NDArray[np.floating[Any]], labels: ArrayLike, affine: Float64, *, name: str = ""
    ) -> ProbabilityMap:
        """From (I, J, K, L) weights, 0 or more, of the L `labels` in their order; each voxel is scaled to sum 1.

        A voxel whose weights are all 0 becomes certain background (0).

        Raises
        ------
        InputError
            A weight is NaN or infinite.
        """
        label_values = np.asarray(labels, dtype=np.int64)
        shape = probabilities.shape[:3]
        flat = probabilities.reshape(-1, label_values.size)
        voxels, columns = np.nonzero(flat != 0)
        background = np.zeros(shape, np.int32)
        return cls.from_entries(
            background,
            affine,
            voxels,
            label_values[columns],
            flat[voxels, columns],
            label_values=label_values,
            name=name,
        )

    @classmethod
    def from_labels(cls, labels: LabelMap, *, label_values: ArrayLike = (), name: str = "") -> ProbabilityMap:
        """A map that is certain of `labels` everywhere."""
        every = np.union1d(labels.values, np.asarray(label_values, dtype=np.int64)).astype(np.int32)
        nothing = np.zeros(0, np.int64)
        return cls(
            labels.array.copy(),
            nothing,
            np.zeros(1, np.int64),
            np.zeros(0, np.int32),
            np.zeros(0, np.float32),
            labels.affine,
            every,
            name or labels.name,
        )

    @property
    def entry_voxels(self) -> Int64:
        """(E,) flat voxel index of every entry."""
        return np.repeat(self.voxels, np.diff(self.offsets))

    def label_map(self) -> LabelMap:
        """The most probable label everywhere (maximum a posteriori)."""
        return LabelMap(self.mode, self.affine, self.name)

    def probability(self, label: int) -> Float32:
        """(I, J, K) float32 probability of one label."""
        out: Float32 = (self.mode == label).astype(np.float32).reshape(-1)
        out[self.voxels] = 0
        chosen = self.labels == label
        out[self.entry_voxels[chosen]] = self.values[chosen]
        return out.reshape(self.mode.shape)

    def dense(self) -> Float32:
        """(I, J, K, L) float32 in the order of `label_values`: for small maps, since memory is voxels times labels."""
        return np.stack([self.probability(int(label)) for label in self.label_values], axis=-1)

    def padded_to(self, grid: Grid, start: ArrayLike) -> ProbabilityMap:
        """The same map as the part, from voxel `start` on, of a larger `grid` that is certain background elsewhere."""
        begin = np.asarray(start, dtype=np.int64)
        mode = np.zeros(grid.shape, np.int32)
        mode[tuple(slice(b, b + n) for b, n in zip(begin, self.shape, strict=True))] = self.mode
        moved = np.stack(np.unravel_index(self.voxels, self.shape)) + begin[:, None]
        voxels = np.ravel_multi_index(tuple(moved), grid.shape).astype(np.int64)
        every = np.union1d(self.label_values, 0).astype(np.int32)
        return replace(self, mode=mode, voxels=voxels, affine=grid.affine, label_values=every)

    def confidence(self) -> Float32:
        """(I, J, K) float32 probability of the label in `mode`."""
        out = np.ones(self.mode.size, np.float32)
        if self.voxels.size:
            out[self.voxels] = np.maximum.reduceat(self.values, self.offsets[:-1])
        return out.reshape(self.mode.shape)

    def entropy(self) -> Float32:
        """(I, J, K) float32 Shannon entropy in bits: 0 where certain, 1 where two labels are even."""
        out = np.zeros(self.mode.size, np.float32)
        if self.voxels.size:
            p = self.values.astype(np.float64)
            out[self.voxels] = np.add.reduceat(-p * np.log2(p), self.offsets[:-1])
        return np.maximum(out, 0).reshape(self.mode.shape)


@dataclass(frozen=True, eq=False)
class Atlas:
    """A labelled scan, or a template with label probabilities.

    Parameters
    ----------
    id : str
        Unique within a library.
    image : Image
        The scan or template.
    labels : LabelMap or ProbabilityMap
        On the image's grid: hard labels, or fractions (a propagated or probabilistic atlas).
    mask : Mask, optional
        Where the image is known: of a propagated atlas, where its field of view covers the target's grid;
        of an atlas as read, the foreground that its user drew. None means everywhere.
    not_annotated : frozenset of int
        Labels that nobody drew in this atlas: where it says background it may be any of them.
    """

    id: str
    image: Image
    labels: LabelMap | ProbabilityMap
    mask: Mask | None = None
    not_annotated: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for volume, kind in ((self.labels, "labels"), (self.mask, "mask")):
            if volume is not None and not self.image.grid.matches(volume.grid):
                raise GeometryError(
                    f"atlas {self.id!r}: its {kind} are not on the grid of its image: shape {volume.shape} and "
                    f"{self.image.shape}, affines {volume.affine.tolist()} and {self.image.affine.tolist()}"
                )

    @property
    def segmentation(self) -> LabelMap:
        """Its labels as one label a voxel, the most probable where they are fractions."""
        return self.labels if isinstance(self.labels, LabelMap) else self.labels.label_map()

    @property
    def label_values(self) -> Int32:
        """Labels it speaks of, ascending."""
        return self.labels.values if isinstance(self.labels, LabelMap) else self.labels.label_values


def check_channels(target: Image, candidates: Sequence[Atlas]) -> None:
    """Refuse candidates whose intensities cannot be compared with the target's.

    Raises
    ------
    InputError
        A candidate has not as many channels as the target: the message names it.
    """
    channels = target.channels.shape[-1]
    for atlas in candidates:
        if atlas.image.channels.shape[-1] != channels:
            raise InputError(
                f"atlas {atlas.id!r} has {atlas.image.channels.shape[-1]} channels, "
                f"the target {target.name!r} has {channels}"
            )
