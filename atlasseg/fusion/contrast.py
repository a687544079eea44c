"""Contrast of target and atlases: detect a difference, and map the atlases' intensities to the target's contrast.

Fusions that compare intensities assume that a tissue has equal intensities in target and atlases. With T1 atlases
and a T2 target this is wrong, and the result is worse than without weights. `match_contrast` finds such atlases and
replaces their images by estimates in the target's contrast. Atlases with the same contrast are returned unchanged, as
the same objects.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numba import njit

from atlasseg.errors import InputError
from atlasseg.fusion._encoded_votes import find_disagreement
from atlasseg.fusion._patches import dilate
from atlasseg.fusion._votes import Votes, check_candidates
from atlasseg.threads import run_slices
from atlasseg.volume import Atlas, Bool, Float32, Float64, Image, Int32, Int64, LabelMap, check_channels

__all__ = ["ContrastMatch", "match_contrast", "measure_agreement"]

log = logging.getLogger(__name__)

Contrast = Literal["auto", "same", "different"]
"""Whether candidates have the target's contrast: tested, assumed, or assumed to be different."""

BY_INTENSITY, BY_LABEL, IGNORED = "intensity", "label and intensity", "ignored"

MAX_WINDOWS = 8000
"""Maximum number of windows in which correlations with the target are measured, spread over the disagreement."""
PAIR_WINDOWS = 1000
"""Maximum number of windows for the correlations of candidates with each other."""
WINDOW_RADIUS = 2
"""Radius of a window in voxels: a window has 5 voxels per axis."""
FLAT_WINDOW = 1e-3
"""A window whose variance is below this fraction of the mean variance of all windows is flat, and is not used."""
LEAST_CORRELATION = 0.3
"""Minimum absolute correlation of a window that is used: noise has about 0.09 in a window of 125 voxels."""
AGREEMENT_RATIO = 0.9
"""A candidate differs if its agreement with the target is below this fraction of its best with a candidate."""
RIM_VOXELS = 4
"""Maps are estimated on the voxels of disagreement and on those up to this distance."""
BINS = 24
"""Intensity bins of a candidate, between which the map is linear."""
SHRINKAGE_VOXELS = 10.0
"""Weight of a label's mean in each of its bins, in voxels."""
LABEL_BIAS = 0.8
"""Labels matter if the mean error of one of them, without labels, is above this fraction of the residual's sd..."""
BIAS_RATIO = 2.0
"""...and above this multiple of the same between candidates."""
BIAS_VOXELS = 20_000
"""Voxels at which it is measured."""
BIAS_PAIRS = 3
"""Other candidates that each candidate is compared with."""
LEAST_EXPLAINED = 0.05
"""Fraction of the target's variance that a map must explain; otherwise the candidate's intensities are ignored."""


@dataclass(frozen=True, eq=False)
class ContrastMatch:
    """Candidates in the target's contrast.

    Parameters
    ----------
    candidates : tuple of Atlas
        In the given order. A candidate of the same contrast is the same object; the others have mapped images.
    agreement : (N, C) float64
        Result of `measure_agreement` for each candidate and channel; NaN if not measured.
    maps : tuple of N tuples of C str
        How each channel was mapped: "" (unchanged), `BY_INTENSITY`, `BY_LABEL`, or `IGNORED` if neither its
        intensities nor its labels explain the target: it is then constant.
    """

    candidates: tuple[Atlas, ...]
    agreement: Float64
    maps: tuple[tuple[str, ...], ...]

    @property
    def changed(self) -> tuple[int, ...]:
        """Positions of the candidates whose images were mapped."""
        return tuple(n for n, kinds in enumerate(self.maps) if any(kinds))

    @property
    def message(self) -> str:
        """Summary for log and report; empty if all candidates are unchanged."""
        if not self.changed:
            return ""
        every = [kind for kinds in self.maps for kind in kinds]
        told = self.agreement[list(self.changed)]
        told = told[np.isfinite(told)]
        text = f"{len(self.changed)} of {len(self.maps)} atlases differ from the scan in contrast"
        if told.size:
            text += f" (agreement {np.median(told):.2f}; 1 is the same contrast"
            text += ", here within labels, not between them)" if np.median(told) > AGREEMENT_RATIO else ")"
        ways = ", ".join(f"{every.count(kind)} by {kind}" for kind in (BY_INTENSITY, BY_LABEL) if kind in every)
        if ways:
            text += f"; atlas intensities were mapped to the scan's contrast: {ways}"
        if IGNORED in every:
            text += f"; channels ignored, since their intensities are unrelated to the scan's: {every.count(IGNORED)}"
        return text


def match_contrast(target: Image, candidates: Sequence[Atlas], *, contrast: Contrast = "auto") -> ContrastMatch:
    """Map the intensities of candidates with another contrast to the target's contrast.

    A candidate differs if its agreement with the target, `measure_agreement`, is below `AGREEMENT_RATIO` of its largest
    agreement with another candidate: a candidate that is only badly registered agrees with none. It also differs if
    its intensities, by a map that is the same everywhere, predict those of the target with a mean error in some label
    that is above `LABEL_BIAS` sd, and above `BIAS_RATIO` times that between candidates. Its image A then is
    replaced by the conditional expectation of the target T given the label of each voxel,

        A'(x) = sum over l of p_i(l | x) E[T | A(x), l],

    or E[T | A(x)] where this is biased for no label. The expectations are learned on the voxels where candidates
    disagree and those near them, l being the label of most candidates and a voxel's weight the fourth power of its
    share of votes. They are piecewise linear in A; the bins of each label are shrunk to the label's mean. This is the
    regression of the joint histogram that the correlation ratio [1]_ is based on, for each label separately.

    Parameters
    ----------
    target : Image
        The scan, of one or several channels. Each is matched to the same channel of a candidate.
    candidates : sequence of Atlas
        On the target's grid, with as many channels.
    contrast : {"auto", "same", "different"}
        "auto" decides for each candidate and channel; "same" returns all unchanged, "different" maps all.

    Returns
    -------
    ContrastMatch

    Raises
    ------
    InputError
        There is no candidate, the numbers of channels differ, or `contrast` is unknown.
    GeometryError
        A candidate is not on the target's grid.

    References
    ----------
    .. [1] Roche et al. (1998), The correlation ratio as a new similarity measure for multimodal image registration,
       MICCAI, LNCS 1496:1115-1124.
    """
    if contrast not in ("auto", "same", "different"):
        raise InputError(f"contrast: expected auto, same or different, got {contrast!r}")
    check_candidates(target, candidates)
    check_channels(target, candidates)
    channels = target.channels.shape[-1]
    unknown = np.full((len(candidates), channels), np.nan)
    unchanged = ContrastMatch(tuple(candidates), unknown, (("",) * channels,) * len(candidates))
    if contrast == "same":
        return unchanged
    disagreement = find_disagreement(candidates)[1]
    if not disagreement.any():
        return unchanged
    agreement = measure_agreement(target, candidates, disagreement)
    biased = _find_biased(target, candidates, disagreement)
    differs = np.ones(agreement.shape, bool)
    if contrast == "auto":
        differs = _find_differing(agreement, candidates, disagreement) | biased
    if not differs.any():
        return replace(unchanged, agreement=agreement)
    learning = _Learning.around(target, candidates, disagreement)
    matched, maps = [], []
    for atlas, mapped, by_label in zip(candidates, differs, biased, strict=True):
        kinds = [""] * channels
        image = atlas.image.channels.copy() if mapped.any() else atlas.image.channels
        for c in np.flatnonzero(mapped):
            image[..., c], kinds[c] = learning.map_channel(atlas, int(c), bool(by_label[c]))
        shaped = atlas.image.with_array(image.reshape(atlas.image.array.shape))
        matched.append(replace(atlas, image=shaped) if mapped.any() else atlas)
        maps.append(tuple(kinds))
    return ContrastMatch(tuple(matched), agreement, tuple(maps))


def in_contrast(target: Image, candidates: Sequence[Atlas], contrast: Contrast) -> tuple[Atlas, ...]:
    """Return the candidates of `match_contrast`, and log changes as a warning."""
    match = match_contrast(target, candidates, contrast=contrast)
    if match.message:
        log.warning("%s: %s", target.name or "scan", match.message)
    return match.candidates


def measure_agreement(target: Image, candidates: Sequence[Atlas], where: Bool) -> Float64:
    r"""Measure the agreement in contrast of target and each candidate, from -1 (inverted) to 1 (the same).

    With :math:`r_n` the correlation of target and candidate in a window around each of the voxels `where`, the
    agreement is

    .. math::

        \frac{\sum_n r_n |r_n|}{\sum_n r_n^2}

    over the windows with :math:`|r_n|` of at least `LEAST_CORRELATION`, so that noise and windows with unrelated images
    do not count. NaN without such a window.

    Parameters
    ----------
    target : Image
        The scan.
    candidates : sequence of Atlas
        On the target's grid, with as many channels.
    where : (I, J, K) bool
        Up to `MAX_WINDOWS` of these voxels are used, evenly spread over the list of them.

    Returns
    -------
    (N, C) float64
        Of each candidate and channel.
    """
    voxels = _spread(np.flatnonzero(where), MAX_WINDOWS)
    whole = np.ones(target.shape, bool)
    return np.stack([_agreement(target.channels, whole, atlas, voxels) for atlas in candidates])


def _find_differing(agreement: Float64, candidates: Sequence[Atlas], where: Bool) -> Bool:
    """(N, C) whether the contrast of each candidate differs from the target's."""
    voxels = _spread(np.flatnonzero(where), PAIR_WINDOWS)
    best = np.ones(agreement.shape)
    for n in np.flatnonzero((agreement < AGREEMENT_RATIO).any(axis=1)):
        image, known = candidates[n].image.channels, _get_coverage(candidates[n])
        pairs = [_agreement(image, known, other, voxels) for m, other in enumerate(candidates) if m != n]
        if pairs:
            best[n] = np.nanmax(np.vstack([np.full(agreement.shape[1], -1.0), *pairs]), axis=0)
    return np.asarray(agreement < AGREEMENT_RATIO * best)


def _find_biased(target: Image, candidates: Sequence[Atlas], disagreement: Bool) -> Bool:
    """(N, C) whether intensities of each candidate predict the target with a bias of some label.

    Within each label the contrast may be the same, so that windows agree, and the contrast between labels another. A
    bias counts if candidates among themselves have less than half of it.
    """
    channels = target.channels.shape[-1]
    out = np.zeros((len(candidates), channels), bool)
    voxels = _spread(np.flatnonzero(dilate(disagreement, np.full(3, RIM_VOXELS))), BIAS_VOXELS)
    if len(candidates) < 2 or voxels.size == 0:
        return out
    votes = np.stack([atlas.segmentation.array.reshape(-1)[voxels] for atlas in candidates])
    known = np.stack([_get_coverage(atlas).reshape(-1)[voxels] for atlas in candidates])
    counts = np.stack([((votes == own) & known).sum(axis=0) for own in votes])
    most = np.where(counts == counts.max(axis=0), votes, np.iinfo(votes.dtype).max).min(axis=0)
    values, labels = np.unique(most, return_inverse=True)
    weights = (counts.max(axis=0) / np.maximum(known.sum(axis=0), 1)) ** 4.0
    images = [atlas.image.channels.reshape(-1, channels)[voxels] for atlas in candidates]
    aims = target.channels.reshape(-1, channels)[voxels]
    for n, own in enumerate(images):
        others = [(n + step) % len(images) for step in range(1, min(BIAS_PAIRS, len(images) - 1) + 1)]
        for c in range(channels):
            if not (weights * known[n]).any():
                continue
            bias = _label_bias(own[:, c], aims[:, c], labels, weights * known[n], values.size)
            out[n, c] = bias > LABEL_BIAS and all(
                bias > BIAS_RATIO * _label_bias(own[:, c], images[m][:, c], labels, both, values.size)
                for m in others
                if (both := weights * known[n] * known[m]).any()
            )
    return out


def _label_bias(own: Float32, aim: Float32, labels: Int64, weights: Float64, number: int) -> float:
    """Largest mean error of a label, in sd of what labels leave unexplained, where intensities alone predict `aim`."""
    bins, wanted = _Bins.of(own[weights > 0]), aim.astype(np.float64)
    by_bin, by_label = bins.expectations(own, labels, weights, wanted, number)
    missed = wanted - bins.look_up(by_bin, own, labels)
    left = np.average((wanted - bins.look_up(by_label, own, labels)) ** 2, weights=weights)
    sums = np.abs(np.bincount(labels, weights * missed, number))
    bias = (sums / (np.bincount(labels, weights, number) + SHRINKAGE_VOXELS)).max()
    return float(bias / np.sqrt(max(left, np.finfo(float).tiny)))


def _spread(voxels: Int64, count: int) -> Int64:
    """At most `count` of the voxels, evenly spread over the list."""
    if voxels.size <= count:
        return voxels
    return np.asarray(voxels[np.linspace(0, voxels.size - 1, count).round().astype(np.int64)])


def _get_coverage(atlas: Atlas) -> Bool:
    """(I, J, K) the field of view."""
    return np.ones(atlas.image.shape, bool) if atlas.mask is None else np.asarray(atlas.mask.array)


def _agreement(channels: Float32, known: Bool, atlas: Atlas, voxels: Int64) -> Float64:
    """(C,) agreement of an image, where it is `known`, and an atlas in windows around flat `voxels`."""
    both = np.ascontiguousarray(known & _get_coverage(atlas))
    voxels = voxels[both.reshape(-1)[voxels]]
    out = np.full(channels.shape[-1], np.nan)
    if voxels.size == 0:
        return out
    place = np.stack(np.unravel_index(voxels, both.shape), axis=-1)
    first, second = np.ascontiguousarray(channels), np.ascontiguousarray(atlas.image.channels)
    moments = np.zeros((len(place), out.size, 3))
    run_slices(_window_moments, len(place), first, second, both, place, WINDOW_RADIUS, moments)
    for c in range(out.size):
        covariance, variance, other = moments[:, c].T
        varied = (variance > FLAT_WINDOW * variance.mean()) & (other > FLAT_WINDOW * other.mean())
        out[c] = pool_correlations(covariance[varied] / np.sqrt(variance[varied] * other[varied]))
    return out


def pool_correlations(r: Float64) -> float:
    """Agreement of two images, see `measure_agreement`, from their correlations in windows; NaN if all are small."""
    r = r[np.abs(r) >= LEAST_CORRELATION]
    return float((r * np.abs(r)).sum() / (r**2).sum()) if r.size else np.nan


@dataclass(frozen=True, eq=False)
class _Learning:
    """Samples from which the maps are estimated.

    Parameters
    ----------
    target : Image
    voxels : (V,) int64
        Flat indices.
    labels : (V,) int64
        Label of most candidates, as an index into `label_values`.
    weights : (V,) float64
        From 0 to 1.
    label_values : (L,) int32
        Ascending.
    """

    target: Image
    voxels: Int64
    labels: Int64
    weights: Float64
    label_values: Int32

    @classmethod
    def around(cls, target: Image, candidates: Sequence[Atlas], disagreement: Bool) -> _Learning:
        majority = Votes.gather(target, candidates).cast()
        near = dilate(disagreement, np.full(3, RIM_VOXELS))
        covered = np.zeros(target.shape, bool)
        for atlas in candidates:
            covered |= True if atlas.mask is None else atlas.mask.array
        voxels = np.flatnonzero(near & covered)
        labels = np.searchsorted(majority.label_values, majority.mode.reshape(-1)[voxels])
        weights = majority.confidence().reshape(-1)[voxels].astype(np.float64) ** 4
        return cls(target, voxels, labels, weights, majority.label_values)

    def map_channel(self, atlas: Atlas, channel: int, use_labels: bool) -> tuple[Float32, str]:
        """(I, J, K) one channel of an atlas in the target's contrast, and how it was mapped."""
        own = atlas.image.channels[..., channel]
        seen = slice(None) if atlas.mask is None else atlas.mask.array.reshape(-1)[self.voxels]
        voxels, labels, weights = self.voxels[seen], self.labels[seen], self.weights[seen]
        aim = self.target.channels[..., channel].reshape(-1)[voxels].astype(np.float64)
        if voxels.size == 0 or not weights.any():
            return np.zeros(own.shape, np.float32), IGNORED
        mean = np.average(aim, weights=weights)
        total = np.average((aim - mean) ** 2, weights=weights)
        bins = _Bins.of(own.reshape(-1)[voxels])
        by_bin, by_label = bins.expectations(own.reshape(-1)[voxels], labels, weights, aim, self.label_values.size)

        def unexplained(table: Float64) -> float:
            return float(np.average((aim - bins.look_up(table, own.reshape(-1)[voxels], labels)) ** 2, weights=weights))

        left = unexplained(by_bin), unexplained(by_label)
        table, remains = (by_label, left[1]) if use_labels else (by_bin, left[0])
        if remains > (1 - LEAST_EXPLAINED) * total:
            return np.full(own.shape, mean, np.float32), IGNORED
        return self._apply(atlas, own, bins, table), BY_LABEL if use_labels else BY_INTENSITY

    def _apply(self, atlas: Atlas, own: Float32, bins: _Bins, table: Float64) -> Float32:
        """Expectations at every voxel, at the atlas's own labels; where they are fractions, their mean."""
        values = own.reshape(-1)
        mode = np.searchsorted(self.label_values, atlas.segmentation.array.reshape(-1))
        out = bins.look_up(table, values, mode)
        if not isinstance(atlas.labels, LabelMap) and atlas.labels.voxels.size:
            at = atlas.labels.entry_voxels
            entries = bins.look_up(table, values[at], np.searchsorted(self.label_values, atlas.labels.labels))
            out[atlas.labels.voxels] = np.add.reduceat(entries * atlas.labels.values, atlas.labels.offsets[:-1])
        return out.reshape(own.shape).astype(np.float32)


@dataclass(frozen=True)
class _Bins:
    """Equal bins over the range of intensities, their centres being nodes of a piecewise linear map."""

    low: float
    step: float

    @classmethod
    def of(cls, values: Float32) -> _Bins:
        low, high = np.percentile(values.astype(np.float64), (0.5, 99.5))
        if high <= low:
            low, high = float(values.min()), float(values.max())
        return cls(float(low), float(high - low) / (BINS - 1))

    def place(self, values: Float32) -> tuple[Int64, Float64]:
        """The node below each value, and how far it is on the way to the next, from 0 to 1."""
        at = np.zeros(values.shape) if self.step == 0 else (values.astype(np.float64) - self.low) / self.step
        at = np.clip(at, 0, BINS - 1)
        below = np.minimum(at.astype(np.int64), BINS - 2)
        return below, at - below

    def look_up(self, table: Float64, values: Float32, labels: Int64) -> Float64:
        """(V,) value of the map of each label, `table` (L, BINS) or (1, BINS) for all labels."""
        below, part = self.place(values)
        row = labels if len(table) > 1 else np.zeros_like(labels)
        return np.asarray(table[row, below] * (1 - part) + table[row, below + 1] * part)

    def expectations(
        self, values: Float32, labels: Int64, weights: Float64, aim: Float64, number: int
    ) -> tuple[Float64, Float64]:
        """(1, BINS) expectation of `aim` in each bin, and (L, BINS) in each bin of each label."""
        below, part = self.place(values)
        mass, total = np.zeros((2, number * BINS))
        for node, share in ((below, 1 - part), (below + 1, part)):
            cell = labels * BINS + node
            mass += np.bincount(cell, weights * share, number * BINS)
            total += np.bincount(cell, weights * share * aim, number * BINS)
        mass, total = mass.reshape(number, BINS), total.reshape(number, BINS)
        filled = np.flatnonzero(mass.sum(axis=0) > 0)
        of_bin = np.interp(np.arange(BINS), filled, total.sum(axis=0)[filled] / mass.sum(axis=0)[filled])
        # a label that was seen enough falls back on its own mean where it has no such intensity, others on all labels'
        seen = mass.sum(axis=1, keepdims=True)
        fallback = (total.sum(axis=1, keepdims=True) + SHRINKAGE_VOXELS * of_bin) / (seen + SHRINKAGE_VOXELS)
        table = (total + SHRINKAGE_VOXELS * fallback) / (mass + SHRINKAGE_VOXELS)
        return of_bin[None], table


@njit(cache=True, nogil=True)
def _window_moments(start, stop, first, second, known, place, radius, out):  # type: ignore[no-untyped-def]
    """Write (M, C, 3): covariance and variances of two images (I, J, K, C) in windows, cut at the grid and `known`."""
    channels = first.shape[3]
    for m in range(start, stop):
        x, y, z = place[m]
        for c in range(channels):
            base_a, base_b = np.float64(first[x, y, z, c]), np.float64(second[x, y, z, c])
            count, a, b, aa, bb, ab = 0, 0.0, 0.0, 0.0, 0.0, 0.0
            for i in range(max(x - radius, 0), min(x + radius + 1, first.shape[0])):
                for j in range(max(y - radius, 0), min(y + radius + 1, first.shape[1])):
                    for k in range(max(z - radius, 0), min(z + radius + 1, first.shape[2])):
                        if not known[i, j, k]:
                            continue
                        u, v = first[i, j, k, c] - base_a, second[i, j, k, c] - base_b
                        count += 1
                        a += u
                        b += v
                        aa += u * u
                        bb += v * v
                        ab += u * v
            out[m, c, 0] = ab / count - a * b / count**2
            out[m, c, 1] = max(aa / count - a * a / count**2, 0.0)
            out[m, c, 2] = max(bb / count - b * b / count**2, 0.0)
