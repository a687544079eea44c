"""Cases of the network: scan and fused map along the patient's axes, cropped around the uncertain voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlasseg.refinement.examples import Example, patient_spacing_mm
from atlasseg.volume import Bool, Float32, Image, Int64, LabelMap, ProbabilityMap

MARGIN_VOXELS = 8
"""Margin of the network's box around the voxels that are not certain background."""

IGNORED = -1
"""Code of unknown labels."""

Int16 = NDArray[np.int16]


@dataclass(frozen=True)
class LabelEncoding:
    """Codes of the labels: outputs and inputs of the network.

    Parameters
    ----------
    labels : tuple of int
        Label of each output, background (0) first.
    groups : tuple of int
        Input channel of each label. Labels without a common uncertain voxel may share a channel.
    """

    labels: tuple[int, ...]
    groups: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Number of input channels of the fused probabilities."""
        return max(self.groups) + 1

    def codes(self, labels: NDArray[np.integer]) -> NDArray[np.int64]:
        """Code of each of `labels`; all must be labels of the encoding."""
        table = np.array(self.labels)
        order = np.argsort(table)
        found: NDArray[np.int64] = order[np.searchsorted(table[order], labels)]
        return found


@dataclass(frozen=True, eq=False)
class Frame:
    """The box of a grid that the network processes, flipped to the patient's axes.

    `order[a]` is the array axis along patient axis a; `flipped` is whether its direction is opposite.
    """

    shape: tuple[int, int, int]
    start: tuple[int, int, int]
    stop: tuple[int, int, int]
    order: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    @classmethod
    def around(cls, fused: ProbabilityMap) -> Frame:
        """Make the frame of a fused map."""
        from nibabel.orientations import io_orientation

        orientation = io_orientation(fused.affine)
        order = tuple(int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in range(3))
        flipped = tuple(bool(orientation[axis, 1] < 0) for axis in order)
        asked = fused.mode != 0
        asked.reshape(-1)[fused.voxels] = True
        shape = np.array(fused.shape)
        start, stop = np.zeros(3, int), shape
        if asked.any():
            spans = [np.flatnonzero(asked.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
            start = np.maximum([span[0] - MARGIN_VOXELS for span in spans], 0)
            stop = np.minimum([span[-1] + 1 + MARGIN_VOXELS for span in spans], shape)
        corners = tuple(map(int, start)), tuple(map(int, stop))
        return cls(fused.shape, *corners, order, flipped)  # type: ignore[arg-type]

    @property
    def size(self) -> tuple[int, int, int]:
        """Shape of the box along the patient's axes."""
        size = np.array(self.stop) - self.start
        return tuple(int(size[axis]) for axis in self.order)  # type: ignore[return-value]

    def taken(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Crop an array (I, J, K, ...) on the grid to the box, along the patient's axes."""
        box = array[tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))]
        box = np.moveaxis(box, self.order, (0, 1, 2))
        return np.ascontiguousarray(box[tuple(slice(None, None, -1 if t else 1) for t in self.flipped)])

    def flat(self, index: NDArray[np.integer]) -> Int64:
        """Convert indices (n, 3) in the box to flat voxels of the grid."""
        out = np.empty(index.shape, np.int64)
        for axis, (where, flipped) in enumerate(zip(self.order, self.flipped, strict=True)):
            along = self.size[axis] - 1 - index[:, axis] if flipped else index[:, axis]
            out[:, where] = along + self.start[where]
        flat: Int64 = np.ravel_multi_index(tuple(out.T), self.shape).astype(np.int64)
        return flat


@dataclass(frozen=True, eq=False)
class Case:
    """Input of the network for one scan. All arrays are along the patient's axes R, A, S.

    Parameters
    ----------
    id : str
    scan : (C, I, J, K) float32
        Mean 0 and standard deviation 1 in each channel.
    codes : (k, I, J, K) int16
        Codes of the k most probable fused labels, the most probable first.
    shares : (k, I, J, K) float32
        Probabilities of these labels; their sum is 1.
    truth : (I, J, K) int16, optional
        Codes of the true labels; `IGNORED` where unknown.
    outside : (L,) int64
        Number of voxels of each label outside the box.
    unknown : tuple of int
        Codes of the labels that are not annotated in this case.
    spacing_mm : (3,) float
    """

    id: str
    frame: Frame
    scan: Float32
    codes: Int16
    shares: Float32
    truth: Int16 | None = None
    outside: Int64 | None = None
    unknown: tuple[int, ...] = ()
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def doubt(self) -> Float32:
        """(I, J, K) one minus the probability of the most probable label."""
        out: Float32 = 1 - self.shares[0]
        return out


def encode_labels(
    fused: Sequence[ProbabilityMap], labels: Sequence[int], *, channels: int, unsure: float = 0.02
) -> LabelEncoding:
    """Assign codes to labels, and distribute the labels over at most `channels` inputs.

    Labels with a common uncertain voxel (both probabilities above `unsure`) get different inputs if
    there are enough: the labels with most neighbours choose first, each the input that it shares with its neighbours
    least.
    """
    every = (0, *sorted({int(v) for v in labels} - {0}))
    if len(every) <= channels:
        return LabelEncoding(every, tuple(range(len(every))))
    plain = LabelEncoding(every, tuple(range(len(every))))
    together = np.zeros((len(every), len(every)))
    for each in fused:
        keep = each.values > unsure
        codes, voxels = plain.codes(each.labels[keep]), each.entry_voxels[keep]
        for apart in range(1, 4):  # entries of a voxel are adjacent
            same = voxels[apart:] == voxels[:-apart]
            np.add.at(together, (codes[:-apart][same], codes[apart:][same]), 1)
    together += together.T
    groups = np.full(len(every), -1)
    groups[0] = 0
    for code in sorted(range(1, len(every)), key=lambda c: (-int((together[c] > 0).sum()), c)):
        meets = np.array([together[code][groups == g].sum() for g in range(1, channels)])
        filled = np.array([(groups == g).sum() for g in range(1, channels)])
        groups[code] = 1 + int(np.lexsort((filled, meets))[0])
    return LabelEncoding(every, tuple(int(g) for g in np.unique(groups, return_inverse=True)[1]))


def case_of(
    target: Image,
    fused: ProbabilityMap,
    coding: LabelEncoding,
    *,
    candidates: int,
    example: Example | None = None,
) -> Case:
    """Make the case of a scan and its fused map, with the true labels of `example` if given."""
    frame = Frame.around(fused)
    scan = _scale(frame.taken(target.channels))
    codes, shares = _keep_most_probable(fused, coding, min(candidates, len(coding)))
    packed = (
        np.ascontiguousarray(np.moveaxis(frame.taken(codes), 3, 0)),
        np.ascontiguousarray(np.moveaxis(frame.taken(shares), 3, 0)),
    )
    if example is None:
        return Case(target.name, frame, scan, *packed)
    truth = coding.codes(example.truth.array).astype(np.int16)
    inside = frame.taken(truth)
    count = len(coding)
    outside = np.bincount(truth.ravel(), minlength=count) - np.bincount(inside.ravel(), minlength=count)
    unknown = tuple(int(c) for c in coding.codes(np.array(sorted(set(coding.labels) & example.not_annotated), int)))
    spacing_mm = patient_spacing_mm(target.affine)
    return Case(example.id, frame, scan, *packed, inside, outside, unknown, spacing_mm)  # type: ignore[arg-type]


def standardise(image: Image) -> Float32:
    """Standardise a whole scan (C, I, J, K): patient's axes, mean 0 and standard deviation 1 in each channel."""
    everything = ProbabilityMap.from_labels(LabelMap(np.ones(image.shape, np.int32), image.affine))
    return _scale(Frame.around(everything).taken(image.channels))


def _scale(channels: NDArray[np.generic]) -> Float32:
    """Scale (I, J, K, C) to (C, I, J, K) with mean 0 and standard deviation 1 in each channel."""
    scan = np.moveaxis(channels, 3, 0).astype(np.float32)
    mean, spread = scan.mean(axis=(1, 2, 3), keepdims=True), scan.std(axis=(1, 2, 3), keepdims=True)
    return np.ascontiguousarray((scan - mean) / np.where(spread > 0, spread, 1))


def _keep_most_probable(fused: ProbabilityMap, coding: LabelEncoding, count: int) -> tuple[Int16, Float32]:
    """(I, J, K, k) codes and probabilities of the `count` most probable labels of each voxel."""
    size = fused.mode.size
    codes = np.zeros((size, count), np.int16)
    shares = np.zeros((size, count), np.float32)
    codes[:, 0] = coding.codes(fused.mode.reshape(-1))
    shares[:, 0] = 1
    voxels = fused.entry_voxels
    order = np.lexsort((fused.labels, -fused.values, voxels))
    rank = np.arange(order.size) - np.repeat(fused.offsets[:-1], np.diff(fused.offsets))
    first = order[rank < count]
    rank = rank[rank < count]
    codes[voxels[first], rank] = coding.codes(fused.labels[first])
    shares[voxels[first], rank] = fused.values[first]
    shares /= shares.sum(axis=1, keepdims=True)
    return codes.reshape(*fused.shape, count), shares.reshape(*fused.shape, count)


def foreground_or_uncertain(case: Case) -> Bool:
    """Mask (I, J, K) of the voxels that are not certain background."""
    asked: Bool = (case.codes[0] != 0) | (case.shares[0] < 1)
    return asked
