"""Sparse probability maps: label probabilities, stored only at uncertain voxels."""

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
"""Tolerance of the range 0..1 of probabilities; scaled 8-bit fractions are off by 1/255."""


@dataclass(frozen=True, eq=False, repr=False)
class ProbabilityMap:
    """Sparse map of label probabilities on a grid.

    A voxel that is not in `voxels` has its label in `mode` with probability 1. An uncertain voxel ``voxels[m]`` has the
    entries ``offsets[m]:offsets[m + 1]`` of `labels` and `values`, as in a CSR matrix. Memory therefore grows with the
    number of uncertain voxels, not with voxels times labels.

    Parameters
    ----------
    mode : (I, J, K) int32
        Most probable label of each voxel; on a tie the smallest value.
    voxels : (M,) int64
        Flat indices (C order) of the uncertain voxels, ascending.
    offsets : (M + 1,) int64
        The entries of voxel ``m`` are ``offsets[m]:offsets[m + 1]``.
    labels : (E,) int32
        Label of each entry, ascending within a voxel.
    values : (E,) float32
        Probability of each entry, above 0; the sum within a voxel is 1.
    affine : (4, 4) float64
        Voxel to RAS+ mm.
    label_values : (L,) int32
        All labels of the map, ascending; may include labels whose probability is 0 everywhere.
    name : str
        Name in messages; the path of a map that was read from a file.
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
        """Voxel grid: shape and affine."""
        return Grid(self.mode.shape, self.affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the grid, (I, J, K)."""
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
        """Create a map from entries in any order. Repeated (voxel, label) pairs add up; each voxel is scaled to sum 1.

        Parameters
        ----------
        background : (I, J, K) int
            Label of every voxel without an entry.
        voxels, labels, values : (E,)
            Flat voxel index, label, and weight of each entry. Entries with a weight of 0 or below are ignored.
        label_values : sequence of int
            Additional labels of the map.
        affine : (4, 4) float64
            Affine, voxel to RAS+ mm.
        name : str
            Name of the map.

        Raises
        ------
        InputError
            A weight is NaN or infinite.
        """
        if not np.isfinite(values).all():
            raise InputError(
                f"{name or 'probabilities'}: expected finite weights, got {int((~np.isfinite(values)).sum())} NaN or "
                f"infinite"
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
        if not w.all():  # some weights are too small for float32
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
        """Create a map from dense weights; each voxel is scaled to sum 1.

        A voxel whose weights are all 0 becomes background (0) with probability 1.

        Parameters
        ----------
        probabilities : (I, J, K, L) float
            Weights, 0 or above.
        labels : (L,) int
            Label of each volume.
        affine : (4, 4) float64
            Affine, voxel to RAS+ mm.
        name : str
            Name of the map.

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
        """Create a map with probability 1 for the label of each voxel.

        Parameters
        ----------
        labels : LabelMap
            The labels.
        label_values : sequence of int
            Additional labels of the map.
        name : str
            Name of the map.
        """
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
        """Convert a nibabel image with one volume per label, (I, J, K, L), of probabilities in 0..1.

        Parameters
        ----------
        image : nibabel.spatialimages.SpatialImage
            The image.
        labels : sequence of L int, optional
            Label of each volume; by default read from the header, where `to_nibabel` stores it.
        name : str, optional
            Name of the map.

        Raises
        ------
        InputError
            The labels are unknown, or are not one per volume, or a value is not in 0..1.
        """
        found = labels if labels is not None else interop.embedded_labels(image.header)
        if found is None:
            raise InputError(f"{name or 'probabilities'}: expected the label of each volume. Give labels=[...].")
        return cls._from_volumes(interop.array_from_nibabel(image), found, interop.affine_from_nibabel(image), name)

    @classmethod
    def from_sitk(cls, image: sitk.Image, labels: Sequence[int], *, name: str = "") -> ProbabilityMap:
        """Convert a SimpleITK vector image with one component per label, see `from_nibabel`.

        Parameters
        ----------
        image : SimpleITK.Image
            Vector image of probabilities in 0..1.
        labels : sequence of L int
            Label of each component.
        name : str
            Name of the map.
        """
        return cls._from_volumes(interop.array_from_sitk(image), labels, interop.affine_from_sitk(image), name)

    @classmethod
    def from_ants(cls, image: Any, labels: Sequence[int], *, name: str = "") -> ProbabilityMap:
        """Convert an ANTs image with one component per label, see `from_nibabel`.

        Parameters
        ----------
        image : ants.ANTsImage
            Image of probabilities in 0..1.
        labels : sequence of L int
            Label of each component.
        name : str
            Name of the map.
        """
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
        """Convert to a nibabel NIfTI image, float32 (I, J, K, L), with the labels in its header.

        The image is dense: memory is voxels times labels. The same holds for `to_sitk` and `to_ants`.

        Returns
        -------
        nibabel.Nifti1Image
        """
        return interop.array_to_nibabel(self.dense(), self.affine, labels=self.label_values.tolist())

    def to_sitk(self) -> sitk.Image:
        """Convert to a SimpleITK vector image with one component per label, in the order of `label_values`.

        Returns
        -------
        SimpleITK.Image
        """
        return interop.array_to_sitk(self.dense(), self.affine, vector=True)

    def to_ants(self) -> Any:
        """Convert to an ANTs image (antspyx) with one component per label, in the order of `label_values`.

        Returns
        -------
        ants.ANTsImage
        """
        return interop.array_to_ants(self.dense(), self.affine)

    def __repr__(self) -> str:
        name = f"name: {self.name}; " if self.name else ""
        uncertain = 100 * self.voxels.size / self.mode.size
        described = f"{self.grid.describe()}; {display.format_labels(self.label_values)}"
        return f"ProbabilityMap({name}{described}; uncertain: {uncertain:.3g} % of the voxels)"

    def _repr_html_(self) -> str:
        return display.html(self, display.slices(self.grid, None, self.mode, self.confidence()))

    @property
    def entries(self) -> LabelWeights:
        """Labels and probabilities of the uncertain `voxels`, as a view of the map's arrays."""
        return LabelWeights(self.offsets, self.labels, self.values)

    @property
    def entry_voxels(self) -> Int64:
        """Flat voxel index of each entry, (E,)."""
        return np.repeat(self.voxels, np.diff(self.offsets))

    def label_map(self) -> LabelMap:
        """Choose the most probable label of each voxel (maximum a posteriori).

        Returns
        -------
        LabelMap
        """
        return LabelMap(self.mode, self.affine, self.name)

    def probability(self, label: int) -> Float32:
        """Get the probability of one label at each voxel.

        Parameters
        ----------
        label : int
            Label value.

        Returns
        -------
        (I, J, K) float32
        """
        out: Float32 = (self.mode == label).astype(np.float32).reshape(-1)
        out[self.voxels] = 0
        chosen = self.labels == label
        out[self.entry_voxels[chosen]] = self.values[chosen]
        return out.reshape(self.mode.shape)

    def dense(self) -> Float32:
        """Convert to dense probabilities. Memory is voxels times labels.

        Returns
        -------
        (I, J, K, L) float32
            Probabilities in the order of `label_values`.
        """
        return np.stack([self.probability(int(label)) for label in self.label_values], axis=-1)

    def cropped(self, start: ArrayLike, stop: ArrayLike) -> ProbabilityMap:
        """Crop the map to ``[start:stop]``. `label_values` does not change.

        `label_values` stays the same.

        Parameters
        ----------
        start, stop : (3,) int
            First voxel, and last voxel + 1, along each axis.

        Returns
        -------
        ProbabilityMap
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
        """Pad the map to a larger grid; the new voxels are background.

        Parameters
        ----------
        grid : Grid
            The larger grid.
        start : (3,) int
            Voxel of `grid` at which this map begins.

        Returns
        -------
        ProbabilityMap
        """
        begin = np.asarray(start, dtype=np.int64)
        mode = np.zeros(grid.shape, np.int32)
        mode[tuple(slice(b, b + n) for b, n in zip(begin, self.shape, strict=True))] = self.mode
        moved = np.stack(np.unravel_index(self.voxels, self.shape)) + begin[:, None]
        voxels = np.ravel_multi_index(tuple(moved), grid.shape).astype(np.int64)
        every = np.union1d(self.label_values, 0).astype(np.int32)
        return replace(self, mode=mode, voxels=voxels, affine=grid.affine, label_values=every)

    def confidence(self) -> Float32:
        """Get the probability of the label in `mode` at each voxel.

        Returns
        -------
        (I, J, K) float32
        """
        out = np.ones(self.mode.size, np.float32)
        if self.voxels.size:
            out[self.voxels] = np.maximum.reduceat(self.values, self.offsets[:-1])
        return out.reshape(self.mode.shape)

    def entropy(self) -> Float32:
        """Compute the Shannon entropy at each voxel.

        Returns
        -------
        (I, J, K) float32
            Entropy in bits: 0 if certain, 1 for two equally probable labels.
        """
        out = np.zeros(self.mode.size, np.float32)
        if self.voxels.size:
            p = self.values.astype(np.float64)
            out[self.voxels] = np.add.reduceat(-p * np.log2(p), self.offsets[:-1])
        return np.maximum(out, 0).reshape(self.mode.shape)
