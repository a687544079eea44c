"""Generative model of Sabuncu: each voxel is a noisy copy of one atlas, weighted by intensity and distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numba import njit

from atlasseg.errors import InputError
from atlasseg.fusion._intensities import Standardised
from atlasseg.fusion._staple import find_neighbours
from atlasseg.fusion._votes import Votes
from atlasseg.fusion.contrast import Contrast, in_contrast
from atlasseg.methods import method
from atlasseg.threads import run_slices
from atlasseg.volume import Atlas, Bool, Float64, Image, Int64, ProbabilityMap

MARGIN_VOXELS = 2
TOLERANCE = 1e-3
"""Largest change of a membership probability at which the iterations stop."""
REACH = 4.0
"""Maximum distance to voxels across a label's border, in voxels. Larger distances are set to it."""


@method("fusion")
def fuse(
    target: Image,
    candidates: Sequence[Atlas],
    *,
    mode: Literal["local", "semi_local", "global"] = "local",
    rho: float = 1.0,
    sigma: float = 0.5,
    beta: float = 0.75,
    max_iterations: int = 20,
    contrast: Contrast = "auto",
) -> ProbabilityMap:
    r"""Fuse by the generative model of Sabuncu et al. [1]_.

    The target :math:`T` and its labels :math:`L` are modelled as a copy: at each voxel :math:`x` they come from the
    atlas of index :math:`M(x)`. The label prior, the image likelihood and the prior of the index are

    .. math::

        p(L(x) = l \mid L_i) &= \frac{\exp(\rho D_i^l(x))}{\sum_k \exp(\rho D_i^k(x))} \\
        p(T(x) \mid A_i) &= \mathcal{N}\left( T(x);\, A_i(x), \sigma^2 \right) \\
        p(M) &\propto \exp\Big( \beta \sum_{x \sim y} [M(x) = M(y)] \Big)

    :math:`D_i^l` is the signed distance transform of label :math:`l` in candidate :math:`i`, positive inside, and
    :math:`x \sim y` are neighbours. :math:`|D_i^l(x)|` is the distance in voxels to the nearest centre of a voxel
    across the label's border, as distance transforms of label maps have it: about half a voxel more than the distance
    to the border. With distances to the border (the faces of the voxels) the mean Dice of five hippocampus scans was
    0.0015 lower for ``local``, 0.004 lower for ``semi_local`` and the same for ``global``.

    ``local`` (:math:`\beta = 0`) lets every voxel choose its atlas on its own:

    .. math::

        p(l \mid x) \propto \sum_i p(T(x) \mid A_i) \, p(l \mid L_i)

    ``semi_local`` (finite :math:`\beta`) uses variational expectation maximisation, mean field over the six
    neighbours:

    .. math::

        q_x(i) &\propto p(T(x) \mid A_i) \, p(L(x) \mid L_i) \exp\Big( \beta \sum_{y \sim x} q_y(i) \Big) \\
        L(x) &= \operatorname*{argmax}_l \sum_i q_x(i) \log p(l \mid L_i)

    ``global`` (infinite :math:`\beta`) has one :math:`q` for all voxels, the product of the first two factors over
    all :math:`x`. In a volume of usual size one atlas gets nearly all the weight. An atlas with a mask is known only
    inside it; the logarithm of its product is scaled by (all voxels) / (voxels inside the mask), because an atlas
    that covers little would win otherwise.

    For ``semi_local`` and ``global`` the result is proportional to :math:`\exp(\sum_i q_x(i) \log p(l \mid L_i))`,
    whose largest value is at :math:`L`. :math:`x` runs over the voxels where the candidates disagree, and :math:`l`
    over the labels that they vote for there. Intensities are standardised first (clipped to percentiles, mean 0,
    standard deviation 1), so :math:`\sigma` has no unit.

    Parameters
    ----------
    target : Image
        The scan, of one or several channels.
    candidates : sequence of Atlas
        On the target's grid, with as many channels; fractions count as their most probable label. Outside its mask a
        candidate is not copied.
    mode : str
        How the index of the copied atlas varies in space: `local`, `semi_local` or `global`.
    rho : float
        Slope of the log odds, per voxel of distance (geometric mean of the spacings), above 0.
    sigma : float
        Standard deviation of the intensity noise, relative to that of the target, above 0.
    beta : float
        Strength of the Markov random field on the index, for `semi_local`, 0 or more.
    max_iterations : int
        Maximum number of iterations, for `semi_local` and `global`.
    contrast : {"auto", "same", "different"}
        Whether the candidates have the contrast of the target. "auto": test it; "same": assume it; "different": assume
        another contrast. Candidates of another contrast are first mapped to that of the target, see
        `atlasseg.fusion.contrast.match_contrast`.

    Returns
    -------
    ProbabilityMap
        On the target's grid.

    Raises
    ------
    InputError
        There is no candidate, channels differ, or a parameter is out of range.
    GeometryError
        A candidate is not on the target's grid.

    References
    ----------
    .. [1] Sabuncu et al. (2010), A generative model for image segmentation based on label fusion, IEEE TMI
       29(10):1714-1729.
    """
    if mode not in ("local", "semi_local", "global"):
        raise InputError(f"generative: mode: expected local, semi_local or global, got {mode!r}")
    if not (rho > 0 and sigma > 0 and beta >= 0 and max_iterations >= 1):
        raise InputError(
            "generative: expected rho and sigma above 0, beta of 0 or more and max_iterations of at least 1, got "
            f"{rho}, {sigma}, {beta} and {max_iterations}"
        )
    candidates = in_contrast(target, candidates, contrast)
    votes = Votes.gather(target, candidates, hard=True)
    if votes.voxels.size == 0:
        return votes.cast(name=target.name)
    images = Standardised.around(target, candidates, votes.voxels, margin_voxels=MARGIN_VOXELS)
    intensity = compute_log_likelihood(images, sigma)
    covered = images.covered
    labels = compute_label_probabilities(votes, candidates, covered, rho)
    slots = np.repeat(np.arange(votes.voxels.size), np.diff(votes.slot_offsets))
    if mode == "local":
        weight = np.exp(intensity - intensity.max(axis=0))
        return votes.to_map((weight[:, slots] * labels).sum(axis=0), name=target.name)
    log_labels = np.log(labels)
    membership = np.exp(intensity - intensity.max(axis=0))
    membership /= membership.sum(axis=0)
    best = np.full(votes.voxels.size, -1, np.int64)
    near = find_neighbours(votes, beta)
    for _ in range(max_iterations):
        evidence = (membership[:, slots] * log_labels).sum(axis=0)
        before, best = best, _find_first_largest(evidence, votes.slot_offsets)
        held = membership
        agreement = intensity + log_labels[:, best]
        if mode == "global":
            whole = np.where(covered, agreement, 0).sum(axis=1)
            whole *= votes.voxels.size / np.maximum(covered.sum(axis=1), 1)
            known = np.where(covered, whole[:, None], -np.inf)
            membership = np.exp(known - known.max(axis=0))
            membership /= membership.sum(axis=0)
        else:
            for colour in (False, True):
                before_colour, membership = membership, membership.copy()
                given = agreement, before_colour, near.rows, near.odd == colour, beta
                run_slices(_mean_field, near.odd.size, *given, membership)
        if np.array_equal(before, best) and np.abs(membership - held).max() < TOLERANCE:
            break
    level = np.maximum.reduceat(evidence, votes.slot_offsets[:-1])
    return votes.to_map(np.exp(evidence - level[slots]), name=target.name)


def compute_log_likelihood(images: Standardised, sigma: float) -> Float64:
    """Compute log p(T(x) | A_i) (N, M) up to a constant; -inf where a candidate does not cover the voxel."""
    target = images.target.reshape(-1, images.target.shape[-1])[images.inside].astype(np.float64)
    out = np.empty((len(images.candidates), images.inside.size))
    for i, (candidate, _) in enumerate(images):
        apart = target - candidate.reshape(-1, target.shape[-1])[images.inside]
        out[i] = -(apart**2).sum(axis=1) / (2 * sigma**2)
    return np.where(images.covered, out, -np.inf)


def compute_label_probabilities(votes: Votes, candidates: Sequence[Atlas], covered: Bool, rho: float) -> Float64:
    """Compute p(l | L_i) (N, S) of each slot's label from its signed distance transform in each candidate.

    If some labels were not annotated in a candidate, its background is distributed between background and these labels
    as in the candidates with all labels whose field of view covers the voxel (`covered`, (N, M)).
    """
    spacing = votes.grid.spacing_mm / votes.grid.spacing_mm.prod() ** (1 / 3)
    offsets, distances = _list_ball_offsets(spacing)
    place = np.stack(np.unravel_index(votes.voxels, votes.grid.shape), axis=1)
    out = np.empty((len(candidates), votes.slot_labels.size))
    given = place, offsets, distances, votes.slot_offsets, votes.label_values[votes.slot_labels], rho, REACH
    for i, atlas in enumerate(candidates):
        said = np.ascontiguousarray(atlas.segmentation.array)
        seen = np.ones(said.shape, bool) if atlas.mask is None else np.ascontiguousarray(atlas.mask.array)
        run_slices(_log_odds, len(place), said, seen, *given, out[i])
    return _share_missing_labels(out, votes, covered)


def _share_missing_labels(given: Float64, votes: Votes, covered: Bool) -> Float64:
    out = given.copy()
    begin = votes.slot_offsets[:-1]
    slots = np.repeat(np.arange(votes.voxels.size), np.diff(votes.slot_offsets))
    overlap = votes.unknown.astype(np.float32)
    knows = (overlap @ overlap.T) == 0
    background = votes.label_values[votes.slot_labels] == 0
    for i in np.flatnonzero(votes.unknown.any(axis=1)):
        ambiguous = background | votes.unknown[i][votes.slot_labels]
        known = (given * covered[:, slots])[knows[i]].sum(axis=0) * ambiguous
        total = np.add.reduceat(known, begin)[slots]
        mass = np.add.reduceat(given[i] * ambiguous, begin)[slots]
        out[i] = np.where(ambiguous & (total > 0), mass * known / np.where(total > 0, total, 1), given[i])
    return np.maximum(out, np.finfo(np.float64).tiny)


def _list_ball_offsets(spacing: Float64) -> tuple[Int64, Float64]:
    """List the offsets (O, 3) within `REACH` except 0 by increasing distance, and the distances."""
    most = np.floor(REACH / spacing).astype(int)
    grid = np.stack(np.meshgrid(*[np.arange(-n, n + 1) for n in most], indexing="ij"), -1).reshape(-1, 3)
    length = np.linalg.norm(grid * spacing, axis=1)
    order = np.argsort(length, kind="stable")
    order = order[(length[order] <= REACH) & (length[order] > 0)]
    return grid[order], length[order]


def _find_first_largest(values: Float64, offsets: Int64) -> Int64:
    """Index of the first largest value of each voxel."""
    slots = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    at = np.flatnonzero(values == np.maximum.reduceat(values, offsets[:-1])[slots])
    return at[np.unique(slots[at], return_index=True)[1]]


@njit(cache=True, nogil=True)
def _log_odds(  # type: ignore[no-untyped-def]
    start, stop, said, seen_at, place, offsets, distances, slot_offsets, slot_values, rho, reach, out
):
    for m in range(start, stop):
        x, y, z = place[m]
        own = said[x, y, z]
        seen = np.empty(offsets.shape[0] + 1, np.int32)
        signed = np.empty(offsets.shape[0] + 1)
        seen[0] = own
        signed[0] = reach
        n = 1
        for o in range(offsets.shape[0]):
            i, j, k = x + offsets[o, 0], y + offsets[o, 1], z + offsets[o, 2]
            if i < 0 or j < 0 or k < 0 or i >= said.shape[0] or j >= said.shape[1] or k >= said.shape[2]:
                continue
            label = said[i, j, k]
            if label == own or not seen_at[i, j, k]:
                continue
            if n == 1:
                signed[0] = distances[o]
            new = True
            for s in range(1, n):
                if seen[s] == label:
                    new = False
                    break
            if new:
                seen[n] = label
                signed[n] = -distances[o]
                n += 1
        total = 0.0
        for s in range(n):
            total += np.exp(rho * (signed[s] - signed[0]))
        for slot in range(slot_offsets[m], slot_offsets[m + 1]):
            distance = -reach
            for s in range(n):
                if seen[s] == slot_values[slot]:
                    distance = signed[s]
                    break
            out[slot] = np.exp(rho * (distance - signed[0])) / total


@njit(cache=True, nogil=True)
def _mean_field(start, stop, agreement, membership, neighbours, updated, beta, out):  # type: ignore[no-untyped-def]
    n = agreement.shape[0]
    for m in range(start, stop):
        if not updated[m]:
            continue
        largest = -np.inf
        for i in range(n):
            support = 0.0
            for e in range(6):
                if neighbours[m, e] >= 0:
                    support += membership[i, neighbours[m, e]]
            out[i, m] = agreement[i, m] + beta * support
            largest = max(largest, out[i, m])
        total = 0.0
        for i in range(n):
            out[i, m] = np.exp(out[i, m] - largest)
            total += out[i, m]
        for i in range(n):
            out[i, m] /= total
