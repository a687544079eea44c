"""Label probabilities, stored only where they are not certain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atlasseg import interop
from atlasseg.errors import InputError
from atlasseg.volume import display
from atlasseg.volume.dense import LabelMap
from atlasseg.volume.grid import Float32, Float64, Grid, Int32, Int64
from atlasseg.volume.label_weights import LabelWeights

if TYPE_CHECKING:
    import SimpleITK as sitk

PROBABILITY_TOLERANCE = 0.01
"""How far a probability may lie outside 0..1: scaled 8-bit fractions are off by 1/255."""


@dataclass(frozen=True, eq=False, repr=False)
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
    name : str
        What messages call it; the path where it was read from a file.
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

    @classmethod
    def from_nibabel(cls, image: Any, *, labels: Sequence[int] | None = None, name: str = "") -> ProbabilityMap:
        """From an image of nibabel with a volume a label, (I, J, K, L), of probabilities in 0..1.

        Parameters
        ----------
        image : nibabel.spatialimages.SpatialImage
        labels : sequence of L int, optional
            The label of each volume; by default as noted in its header, where `to_nibabel` puts them.
        name : str, optional

        Raises
        ------
        InputError
            The labels are not known or not as many as the volumes, or a value is no probability.
        """
        found = labels if labels is not None else interop.embedded_labels(image.header)
        if found is None:
            raise InputError(f"{name or 'probabilities'}: expected the label of each volume. Give labels=[...].")
        return cls._from_volumes(interop.array_from_nibabel(image), found, interop.affine_from_nibabel(image), name)

    @classmethod
    def from_sitk(cls, image: sitk.Image, labels: Sequence[int], *, name: str = "") -> ProbabilityMap:
        """From a vector image of SimpleITK with a component a label; see `from_nibabel`."""
        return cls._from_volumes(interop.array_from_sitk(image), labels, interop.affine_from_sitk(image), name)

    @classmethod
    def from_ants(cls, image: Any, labels: Sequence[int], *, name: str = "") -> ProbabilityMap:
        """From an image of ANTs with a component a label; see `from_nibabel`."""
        return cls._from_volumes(interop.array_from_ants(image), labels, interop.affine_from_ants(image), name)

    @classmethod
    def _from_volumes(cls, array: NDArray[Any], labels: Sequence[int], affine: Float64, name: str) -> ProbabilityMap:
        volumes = array if array.ndim == 4 else array[..., None]
        where = name or "probabilities"
        if len(set(labels)) != volumes.shape[3] or len(labels) != volumes.shape[3]:
            raise InputError(
                f"{where}: expected a different label for each of {volumes.shape[3]} volumes, got {list(labels)}"
            )
        low, high = float(volumes.min()), float(volumes.max())
        if not (low >= -PROBABILITY_TOLERANCE and high <= 1 + PROBABILITY_TOLERANCE):  # NaN fails too
            raise InputError(f"{where}: expected probabilities in 0..1, got {low:g} to {high:g}")
        return cls.from_dense(volumes, labels, affine, name=name)

    def to_nibabel(self) -> Any:
        """The map as a NIfTI image of nibabel, float32 (I, J, K, L), its labels noted in the header.

        Memory is voxels times labels, as of `dense`; the same holds for `to_sitk` and `to_ants`.
        """
        return interop.array_to_nibabel(self.dense(), self.affine, labels=self.label_values.tolist())

    def to_sitk(self) -> sitk.Image:
        """The map as a vector image of SimpleITK, a component a label in the order of `label_values`."""
        return interop.array_to_sitk(self.dense(), self.affine, vector=True)

    def to_ants(self) -> Any:
        """The map as an image of ANTs (antspyx), a component a label in the order of `label_values`."""
        return interop.array_to_ants(self.dense(), self.affine)

    def __repr__(self) -> str:
        name = f"name: {self.name}; " if self.name else ""
        uncertain = 100 * self.voxels.size / self.mode.size
        described = f"{self.grid.described()}; {display.listed_labels(self.label_values)}"
        return f"ProbabilityMap({name}{described}; uncertain: {uncertain:.3g} % of the voxels)"

    def _repr_html_(self) -> str:
        return display.html(self, display.slices(self.grid, None, self.mode, self.confidence()))

    @property
    def entries(self) -> LabelWeights:
        """The labels and their probabilities at each of `voxels`; the arrays are those of the map."""
        return LabelWeights(self.offsets, self.labels, self.values)

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

    def cropped(self, start: ArrayLike, stop: ArrayLike) -> ProbabilityMap:
        """The voxels from `start` up to `stop` (exclusive), in place; both (3,) voxel indices inside the grid.

        All labels stay listed in `label_values`.
        """
        first, last = np.asarray(start, dtype=np.int64), np.asarray(stop, dtype=np.int64)
        grid = self.grid.cropped(first, last)
        index = np.stack(np.unravel_index(self.voxels, self.shape))
        inside = np.flatnonzero(((index >= first[:, None]) & (index < last[:, None])).all(axis=0))
        entries = self.entries.take(inside)
        return replace(
            self,
            mode=np.ascontiguousarray(self.mode[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]),
            voxels=np.ravel_multi_index(tuple(index[:, inside] - first[:, None]), grid.shape).astype(np.int64),
            offsets=entries.offsets,
            labels=entries.labels,
            values=entries.values,
            affine=grid.affine,
        )

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
