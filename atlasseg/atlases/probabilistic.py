r"""Probabilistic atlas from labelled scans: the probability of each label at each voxel of their template.

Each atlas votes at a voxel of the template with its label fractions there. Registration is not
exact and there are few atlases, so the votes of neighbouring voxels count too, weighted by a Gaussian :math:`G` of the
distance. The probabilities :math:`p(x)` are the most likely ones under these weighted votes (local likelihood [2]_):

.. math::

    p(x) = \operatorname*{argmax}_p \sum_y G(x - y) \sum_i \log \sum_{m \in S_i(y)} p_m

:math:`S_i(y)` is the set of possible labels of atlas :math:`i` at :math:`y`. If all labels are annotated in all
atlases, the result is the smoothed mean of the votes. If some labels are not annotated in an atlas, its background
may be background or any of these labels. It is distributed among them by the votes of the other atlases, by expectation
maximisation [1]_. An atlas does not vote outside its field of view.

The width of :math:`G` is chosen by leave-one-out [3]_: it is the width under which the labels of a left-out atlas are
most likely given the probabilities of the others.

References
----------
.. [1] Dempster, A. P., Laird, N. M., Rubin, D. B. (1977). Maximum likelihood from incomplete data via the EM algorithm.
   Journal of the Royal Statistical Society B 39(1), 1-38 (section 4.1, multinomial sampling).
.. [2] Tibshirani, R., Hastie, T. (1987). Local likelihood estimation. Journal of the American Statistical Association
   82(398), 559-567.
.. [3] Ashburner, J., Friston, K. J. (2009). Computing average shaped tissue probability templates. NeuroImage 45(2),
   333-341 (smoothing chosen by leaving out).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from atlasseg.errors import InputError
from atlasseg.resampling import coverage, resample_fractions
from atlasseg.transforms import Transform
from atlasseg.volume import Atlas, Bool, Float32, Float64, Grid, ProbabilityMap

__all__ = ["Average", "average"]

Box = tuple[slice, slice, slice]
Patch = tuple[Box, Float32]
"""A box in the template's grid with values; values outside are 0."""

WIDTHS_VOXELS = (0.0, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
"""Tested standard deviations, in units of the smallest voxel size of the template."""

PATIENCE = 2
"""The search ends after this number of successive widths that are worse than the best."""

TRUNCATE = 4.0
"""Standard deviations at which the Gaussian is cut off."""

UNSEEN = 1e-3
"""Probability, summed over labels, that a held-out atlas has a label at a voxel where no other atlas has it."""

LEAST = 1e-3
"""Minimum probability that is stored. The others of the voxel are scaled to sum 1."""

LEAST_VOTES = 1e-3
"""Minimum number of votes at a voxel, in atlases; otherwise it is background."""

ITERATIONS, TOLERANCE = 200, 1e-5
"""Maximum number of EM iterations, and largest change of a vote at which they end."""


@dataclass(frozen=True, eq=False)
class Average:
    """Probabilistic atlas: label probabilities on a template.

    Parameters
    ----------
    probabilities : ProbabilityMap
        Label probabilities on the grid of the template.
    smoothing_mm : float
        Standard deviation of the Gaussian in mm.
    log_likelihoods : mapping of float to float
        Mean log-likelihood of a voxel of a held-out atlas in nats, by the standard deviation in mm; empty if the
        smoothing was given.
    """

    probabilities: ProbabilityMap
    smoothing_mm: float
    log_likelihoods: Mapping[float, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Votes:
    """Votes of one atlas on the template: fractions of labels and background (0), and its field of view `known`."""

    shares: Mapping[int, Patch]
    known: Bool
    silent: frozenset[int]

    @property
    def vague(self) -> bool:
        """Whether its background may be a label that is not annotated."""
        return bool(self.silent)


def average(
    atlases: Sequence[Atlas],
    transforms: Sequence[Transform],
    grid: Grid,
    *,
    smoothing_mm: float | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Average:
    """Average the labels of atlases on the grid of their template.

    Parameters
    ----------
    atlases : sequence of Atlas
        Atlases with hard labels or label probabilities, each on its own grid.
    transforms : sequence of Transform
        Transform of each atlas, from points of the template to points of the atlas in RAS+ mm.
    grid : Grid
        Grid of the template.
    smoothing_mm : float, optional
        Standard deviation of the Gaussian in mm, 0 for none. By default the one of `WIDTHS_VOXELS` with the highest
        likelihood of held-out atlases, which needs at least 2 atlases.
    progress : callable
        Called with the name of each step when it starts.

    Returns
    -------
    Average

    Raises
    ------
    InputError
        There is no atlas, numbers differ, `smoothing_mm` is negative, there is one atlas without a given width, or no
        label of any atlas is on the grid.
    """
    if not atlases or len(atlases) != len(transforms):
        raise InputError(f"expected one transform for each atlas, got {len(transforms)} for {len(atlases)} atlases")
    if smoothing_mm is not None and not (np.isfinite(smoothing_mm) and smoothing_mm >= 0):
        raise InputError(f"expected a smoothing of 0 mm or more, got {smoothing_mm}")
    if smoothing_mm is None and len(atlases) < 2:
        raise InputError("expected at least 2 atlases to choose the smoothing, got 1. Give it in mm.")
    votes = [_votes(atlas, transform, grid) for atlas, transform in zip(atlases, transforms, strict=True)]
    if not any(set(vote.shares) - {0} for vote in votes):
        raise InputError(f"no label of the {len(atlases)} atlases is inside the template's grid of {grid.shape} voxels")
    scores: dict[float, float] = {}
    if smoothing_mm is None:
        scores = _scores(votes, grid, progress)
        smoothing_mm = max(scores, key=lambda width: scores[width])
    progress(f"average: {len(atlases)} atlases, smoothed by {smoothing_mm:.3g} mm")
    counts = _counts(votes, smoothing_mm, grid)
    values = sorted({int(v) for atlas in atlases for v in atlas.label_values} | {0})
    return Average(_stored(counts, grid, values), smoothing_mm, scores)


def _votes(atlas: Atlas, transform: Transform, grid: Grid) -> _Votes:
    fractions = resample_fractions(atlas.labels, grid, transform)
    known = coverage(atlas.image.grid, grid, transform).array
    shares = {}
    for label in fractions.label_values.tolist():
        share = np.where(known, fractions.probability(label), np.float32(0))
        if share.any():
            box = ndimage.find_objects((share > 0).view(np.uint8))[0]
            shares[label] = box, share[box]
    return _Votes(shares, known, frozenset(atlas.not_annotated) - {0})


def _scores(votes: Sequence[_Votes], grid: Grid, progress: Callable[[str], None]) -> dict[float, float]:
    """Mean log-likelihood of held-out voxels by width in mm, for the widths up to `PATIENCE` beyond the best."""
    scores: dict[float, float] = {}
    for width in WIDTHS_VOXELS:
        width_mm = float(width * grid.spacing_mm.min())
        progress(f"average: smoothing of {width_mm:.3g} mm, each of {len(votes)} atlases held out")
        total, number = 0.0, 0
        for n, held_out in enumerate(votes):
            others = [vote for m, vote in enumerate(votes) if m != n]
            found = _log_likelihood(held_out, _counts(others, width_mm, grid), grid)
            total, number = total + found[0], number + found[1]
        scores[width_mm] = total / max(number, 1)
        if len(scores) - 1 - int(np.argmax(list(scores.values()))) >= PATIENCE:
            break
    return scores


def _log_likelihood(held_out: _Votes, counts: Mapping[int, Patch], grid: Grid) -> tuple[float, int]:
    """Sum of the log-likelihood of the held-out atlas over the voxels that it shares with others, and their number."""
    votes = _all_votes(counts, grid)
    known = held_out.known & (votes > LEAST_VOTES)
    total = 0.0
    for label, (box, share) in held_out.shares.items():
        meant = {label, *held_out.silent} if label == 0 else {label}
        count = sum((_on(counts[each], box) for each in meant if each in counts), start=np.zeros(share.shape))
        probability = np.minimum(count / np.maximum(votes[box], LEAST_VOTES), 1)
        seen = (1 - UNSEEN) * probability + UNSEEN * len(meant) / max(len(counts), 2)
        total += float((share * np.log(seen))[known[box]].sum(dtype=np.float64))
    return total, int(known.sum())


def _counts(votes: Sequence[_Votes], smoothing_mm: float, grid: Grid) -> dict[int, Patch]:
    """Smoothed number of atlases with each label at each voxel; the sum is the number of atlases that cover it."""
    sigma_voxels = smoothing_mm / grid.spacing_mm
    clear: dict[int, list[Patch]] = {}
    vague: dict[frozenset[int], list[Patch]] = {}
    for vote in votes:
        for label, patch in vote.shares.items():
            if label == 0 and vote.vague:
                vague.setdefault(vote.silent, []).append(patch)
            else:
                clear.setdefault(label, []).append(patch)
    counts = {label: _smoothed(_sum(patches), sigma_voxels, grid) for label, patches in sorted(clear.items())}
    if vague:
        whole = _whole(grid)
        background = _on(counts[0], whole) if 0 in counts else np.zeros(grid.shape, np.float32)
        groups = {silent: _on(_smoothed(_sum(patches), sigma_voxels, grid), whole) for silent, patches in vague.items()}
        _share_out(counts, background, groups)
        counts[0] = whole, background
    return counts


def _share_out(counts: dict[int, Patch], background: Float32, groups: Mapping[frozenset[int], Float32]) -> None:
    """Distribute the votes of each group for "background or one of these labels" among them, in place.

    In votes, not in probabilities: ``n_l <- n_l0 + sum over groups g of B_g n_l / (n_0 + sum of n_m, m in g)``, where
    n_l0 are the votes for one label, B_g those of group g.
    """
    involved = sorted({label for silent in groups for label in silent if label in counts})
    undecided = np.zeros(background.shape, bool)
    for label in involved:
        box, count = counts[label]
        undecided[box] |= count > 0
    at = np.flatnonzero(undecided)
    whole = _whole_of(background.shape)
    clear = np.stack([background.reshape(-1)[at], *(_on(counts[m], whole).reshape(-1)[at] for m in involved)], axis=1)
    meant = np.array([[True, *(m in silent for m in involved)] for silent in groups])
    votes = np.stack([found.reshape(-1)[at] for found in groups.values()])
    shared = clear.astype(np.float64)
    for _ in range(ITERATIONS):
        before = shared
        shared = clear.astype(np.float64)
        for g, among in enumerate(meant):
            weights = np.where(among, before, 0)
            total = weights.sum(axis=1, keepdims=True)
            nobody = total[:, 0] <= 0
            weights[nobody, 0] = total[nobody] = 1
            shared += votes[g][:, None] * weights / total
        if not shared.size or np.abs(shared - before).max() < TOLERANCE:
            break
    background += sum(groups.values())
    background.reshape(-1)[at] = shared[:, 0]
    for n, label in enumerate(involved, start=1):
        box, count = counts[label]
        everywhere = np.zeros(background.size, np.float32)
        everywhere[at] = shared[:, n]
        counts[label] = box, np.where(count > 0, everywhere.reshape(background.shape)[box], count)


def _stored(counts: Mapping[int, Patch], grid: Grid, values: Sequence[int]) -> ProbabilityMap:
    """Convert votes to probabilities."""
    votes = _all_votes(counts, grid)
    voxels, labels, probabilities = [], [], []
    index = np.arange(np.prod(grid.shape), dtype=np.int64).reshape(grid.shape)
    for label, (box, count) in counts.items():
        probability = np.where(votes[box] > LEAST_VOTES, count / np.maximum(votes[box], LEAST_VOTES), 0)
        keep = probability >= LEAST
        voxels.append(index[box][keep])
        labels.append(np.full(int(keep.sum()), label, np.int32))
        probabilities.append(probability[keep])
    return ProbabilityMap.from_entries(
        np.zeros(grid.shape, np.int32),
        grid.affine,
        np.concatenate(voxels),
        np.concatenate(labels),
        np.concatenate(probabilities),
        label_values=values,
        name="template",
    )


def _all_votes(counts: Mapping[int, Patch], grid: Grid) -> Float32:
    """Number of atlases that cover each voxel."""
    votes = np.zeros(grid.shape, np.float32)
    for box, count in counts.values():
        votes[box] += count
    return votes


def _smoothed(patch: Patch, sigma_voxels: Float64, grid: Grid) -> Patch:
    """Convolve with the Gaussian, with zeros beyond the grid."""
    if not sigma_voxels.any():
        return patch
    reach = (TRUNCATE * sigma_voxels + 0.5).astype(int)
    box = patch[0]
    wide = [slice(max(b.start - r, 0), min(b.stop + r, n)) for b, r, n in zip(box, reach, grid.shape, strict=True)]
    wider: Box = (wide[0], wide[1], wide[2])
    return wider, ndimage.gaussian_filter(_on(patch, wider), sigma_voxels, mode="constant", truncate=TRUNCATE)


def _sum(patches: Sequence[Patch]) -> Patch:
    hull = [slice(min(box[a].start for box, _ in patches), max(box[a].stop for box, _ in patches)) for a in range(3)]
    box: Box = (hull[0], hull[1], hull[2])
    total = np.zeros([b.stop - b.start for b in box], np.float32)
    for part, values in patches:
        total[tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True))] += values
    return box, total


def _on(patch: Patch, box: Box) -> Float32:
    """The values of a patch on another box."""
    out = np.zeros([b.stop - b.start for b in box], np.float32)
    common = [slice(max(p.start, b.start), min(p.stop, b.stop)) for p, b in zip(patch[0], box, strict=True)]
    if all(c.start < c.stop for c in common):
        there = tuple(slice(c.start - b.start, c.stop - b.start) for c, b in zip(common, box, strict=True))
        here = tuple(slice(c.start - p.start, c.stop - p.start) for c, p in zip(common, patch[0], strict=True))
        out[there] = patch[1][here]
    return out


def _whole(grid: Grid) -> Box:
    return _whole_of(grid.shape)


def _whole_of(shape: tuple[int, ...]) -> Box:
    return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])
