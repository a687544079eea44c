"""Instances: separate objects of a label, numbered (panoptic segmentation)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from atlasseg.errors import InputError
from atlasseg.volume import Bool, Float32, Float64, Int32, LabelMap, Mask

__all__ = ["Instances", "instances"]

Split = Literal["components", "watershed"]


@dataclass(frozen=True, eq=False)
class Instances:
    """Panoptic segmentation: label and instance number of each voxel.

    Parameters
    ----------
    semantic : LabelMap
        Label of each voxel.
    instance : LabelMap
        Number of the instance, from 1 over all labels, by label and then by first voxel; 0 for background.
    labels : (N,) int32
        Label of instances 1..N.
    """

    semantic: LabelMap
    instance: LabelMap
    labels: Int32

    def masks(self) -> Iterator[tuple[int, Mask]]:
        """Yield one mask per label, ascending."""
        for label in self.semantic.values:
            if label != 0:
                yield int(label), Mask(self.semantic.array == label, self.semantic.affine, f"label {label}")

    def rows(self) -> list[dict[str, Any]]:
        """List one row per instance: number, label, voxels, volume in mm^3 and centre in RAS+ mm.

        Returns
        -------
        list of dict
        """
        flat = self.instance.array.reshape(-1)
        sizes = np.bincount(flat, minlength=self.labels.size + 1)
        affine = self.instance.affine
        voxel_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
        at = np.nonzero(self.instance.array)
        number = self.instance.array[at]
        centres = np.stack([np.bincount(number, axis, self.labels.size + 1) for axis in at], axis=-1)
        rows = []
        for n, label in enumerate(self.labels.tolist(), start=1):
            x, y, z = (affine[:3, :3] @ (centres[n] / sizes[n]) + affine[:3, 3]).tolist()
            rows.append(
                {
                    "instance": n,
                    "label": label,
                    "voxels": int(sizes[n]),
                    "volume_mm3": int(sizes[n]) * voxel_mm3,
                    "x_mm": x,
                    "y_mm": y,
                    "z_mm": z,
                }
            )
        return rows


def instances(
    labels: LabelMap,
    *,
    split: Split = "components",
    depth_mm: float = 1.0,
    smallest_voxels: int = 1,
    stuff: tuple[int, ...] = (),
) -> Instances:
    """Number the instances of each label.

    Parameters
    ----------
    labels : LabelMap
        Segmentation; 0 is background.
    split : {"components", "watershed"}
        "components": connected parts (by faces) are instances. "watershed": parts are also divided at thin places: the
        distance to the surface is flooded from its maxima that are `depth_mm` above the saddle to a higher maximum.
    depth_mm : float
        Minimum height of a maximum above its saddle, in mm, for "watershed"; 0 or more.
    smallest_voxels : int
        Minimum size of an instance. A smaller part keeps its label and gets number 0.
    stuff : tuple of int
        Labels that are one instance each, with any number of parts.

    Returns
    -------
    Instances
        Labels and numbers.

    Raises
    ------
    InputError
        A parameter is out of range.

    Examples
    --------
    >>> found = instances(LabelMap(np.array([[[3, 3, 0, 3, 9, 9]]]), np.eye(4)))
    >>> found.instance.array[0, 0], found.labels
    (array([1, 1, 0, 2, 3, 3], dtype=int32), array([3, 3, 9], dtype=int32))
    """
    if split not in ("components", "watershed"):
        raise InputError(f"split: expected 'components' or 'watershed', got {split!r}")
    if not depth_mm >= 0:
        raise InputError(f"depth_mm: expected 0 or more, got {depth_mm}")
    from scipy.ndimage import find_objects, label

    present = labels.values[labels.values != 0]
    compact = np.searchsorted(present, labels.array).astype(np.int32) + 1
    compact[labels.array == 0] = 0
    numbers = np.zeros(labels.shape, np.int32)
    of: list[int] = []
    for row, box in enumerate(find_objects(compact), start=1):
        value = int(present[row - 1])
        mask = compact[box] == row
        if value in stuff:
            parts = mask.astype(np.int32)
        else:
            parts = label(mask)[0]
            if split == "watershed":
                parts = _cut_where_thin(mask, parts, labels.affine, depth_mm)
            sizes = np.bincount(parts.reshape(-1))
            keep = sizes >= smallest_voxels
            keep[0] = False
            parts = np.where(keep, np.cumsum(keep), 0)[parts]
        numbers[box] += np.where(parts > 0, parts + len(of), 0).astype(np.int32)
        of += [value] * int(parts.max())
    return Instances(labels, LabelMap(numbers, labels.affine, labels.name), np.array(of, np.int32))


def _cut_where_thin(mask: Bool, parts: Int32, affine: Float64, depth_mm: float) -> Int32:
    """Numbers of the watershed basins of the distance to the surface, by first voxel."""
    from scipy.ndimage import distance_transform_edt
    from skimage.morphology import reconstruction
    from skimage.segmentation import watershed

    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    padded = np.pad(mask, [(1, 1) if n > 1 else (0, 0) for n in mask.shape])  # no label beyond the box
    inner = tuple(slice(1, -1) if n > 1 else slice(None) for n in mask.shape)
    distance = distance_transform_edt(padded, sampling=spacing_mm)[inner].astype(np.float32)
    lowered = reconstruction(np.maximum(distance - np.float32(depth_mm), 0), distance, method="dilation")
    markers = _peaks(lowered.astype(np.float32), mask)
    for number in np.setdiff1d(parts[mask], parts[markers > 0]):  # too thin for a peak: one instance
        markers[parts == number] = markers.max() + 1
    cut = watershed(-distance, markers, connectivity=1, mask=mask)
    numbers, first = np.unique(cut[mask], return_index=True)
    rank = np.zeros(int(numbers.max()) + 1, np.int32)
    rank[numbers[np.argsort(first)]] = np.arange(1, numbers.size + 1)
    return np.where(mask, rank[cut], 0).astype(np.int32)


def _peaks(height: Float32, mask: Bool) -> Int32:
    """Number the plateaus of `mask` without a higher face neighbour in it."""
    from scipy.ndimage import generate_binary_structure, maximum_filter
    from skimage.measure import label

    ranks = np.where(mask, np.unique(height, return_inverse=True)[1].reshape(height.shape) + 1, 0)
    plateaus = label(ranks, background=0, connectivity=1)
    overtopped = mask & (maximum_filter(ranks, footprint=generate_binary_structure(3, 1)) > ranks)
    plateaus[np.isin(plateaus, plateaus[overtopped])] = 0
    return np.asarray(plateaus, np.int32)
