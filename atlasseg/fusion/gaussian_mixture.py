"""Gaussian mixture: votes as prior, and the intensities of the target, whose Gaussians are estimated by EM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.ndimage import distance_transform_edt
from scipy.spatial.distance import squareform

from atlasseg.errors import InputError
from atlasseg.fusion._intensities import standardise
from atlasseg.fusion._votes import Votes
from atlasseg.methods import method
from atlasseg.statistics.gaussians import CHUNK, Gaussians, count_moments, from_moments, split, unpack_moments
from atlasseg.threads import run_slices
from atlasseg.volume import Atlas, Float64, Image, Int64, LabelWeights, ProbabilityMap

FLOOR = 1e-2
"""Minimum variance of a label, as a fraction of the variance of all intensities, for labels with few voxels."""
TOLERANCE = 1e-5
"""Relative change of the log-likelihood at which the iterations stop."""


@method("fusion", compares_intensities=False)
def fuse(
    target: Image,
    candidates: Sequence[Atlas],
    *,
    power: float = 0.2,
    merge_distance: float = 0.1,
    background_gaussians: int = 3,
    margin_voxels: int = 3,
    max_iterations: int = 30,
) -> ProbabilityMap:
    r"""Fuse by the votes and a Gaussian mixture of the target's intensities.

    The prior :math:`\pi_l(x)` of label :math:`l` is the mean of the candidates' votes. Where the candidates disagree,
    the intensities of the target :math:`T` count as well, over the Gaussians :math:`g` of the label:

    .. math::

        p(l \mid x) \propto \pi_l(x) \Big( \sum_{g \in l} s_g \, \mathcal{N}(T(x);\, \mu_g, \Sigma_g) \Big)^{\gamma}

    :math:`\gamma` is `power`. The background has `background_gaussians` Gaussians, every other label has one. Labels
    closer than `merge_distance` share theirs: intensities do not decide the border between them. The Gaussians are
    estimated by expectation maximisation [1]_ on the voxels where the candidates disagree and on the voxels around
    them, up to `margin_voxels` away, whose label is certain. With `power` 1 this is a Gaussian mixture with an atlas
    as prior [2]_. A lower power trusts intensities less: neighbouring voxels and partial volume make them less
    informative than independent samples. A candidate that is a probabilistic atlas gives its probabilities as the
    prior.

    Only labels that have a vote at a voxel are considered there, so memory grows with the votes and not with the
    number of labels.

    Parameters
    ----------
    target : Image
        The scan, of one or several channels.
    candidates : sequence of Atlas
        On the target's grid; their intensities are not used. Outside its mask a candidate does not vote.
    power : float
        Weight of the intensities relative to the votes. 0: majority vote; 1: standard mixture.
    merge_distance : float
        Labels share a Gaussian whose Bhattacharyya distances, by the votes alone, are below this in the mean (average
        linkage): 0 is for equal ones, 1 for means 2.8 standard deviations apart. 0: every label has its own.
    background_gaussians : int
        Number of Gaussians of the background, at least 1.
    margin_voxels : int
        Width of the margin around the disagreement from which intensities are learned, 0 or more.
    max_iterations : int
        Maximum number of iterations, at least 1.

    Returns
    -------
    ProbabilityMap
        On the target's grid.

    Raises
    ------
    InputError
        There is no candidate, or a parameter is out of range.
    GeometryError
        A candidate is not on the target's grid.

    References
    ----------
    .. [1] Van Leemput et al. (1999), Automated model-based tissue classification of MR images of the brain, IEEE TMI
       18(10):897-908.
    .. [2] Ledig et al. (2015), Robust whole-brain segmentation: application to traumatic brain injury, Medical Image
       Analysis 21(1):40-58.
    """
    if not (
        power >= 0 and merge_distance >= 0 and background_gaussians >= 1 and margin_voxels >= 0 and max_iterations >= 1
    ):
        raise InputError(
            "gaussian_mixture: expected power, merge_distance and margin_voxels of 0 or more, background_gaussians and "
            f"max_iterations of at least 1, got {power}, {merge_distance}, {margin_voxels}, {background_gaussians} and "
            f"{max_iterations}"
        )
    votes = Votes.gather(target, candidates)
    if votes.voxels.size == 0:
        return votes.cast(name=target.name)
    known = _MixtureData.around(target, votes, margin_voxels)
    posterior = known.posterior(power, merge_distance, background_gaussians, max_iterations)
    return votes.to_map(posterior[: votes.slot_labels.size], name=target.name)


@dataclass(frozen=True, eq=False)
class _MixtureData:
    """Intensities and prior at R voxels: those where the candidates disagree, then certain ones around them.

    Parameters
    ----------
    values : (R, C) float64
        Standardised intensities.
    prior : LabelWeights
        Labels of each voxel (int64), numbered 0 to K - 1 by ascending value among those that occur, and their prior
        (float64), above 0; it sums to 1 at each voxel.
    background : int
        Number of the background, or -1.
    """

    values: Float64
    prior: LabelWeights
    background: int

    @classmethod
    def around(cls, target: Image, votes: Votes, margin_voxels: int) -> _MixtureData:
        place = np.stack(np.unravel_index(votes.voxels, target.shape))
        start = np.maximum(place.min(axis=1) - margin_voxels, 0)
        stop = np.minimum(place.max(axis=1) + 1 + margin_voxels, target.shape)
        box = (slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2]))
        inside = np.ravel_multi_index(tuple(place - start[:, None]), tuple(stop - start))
        far = np.ones(stop - start, bool)
        far.reshape(-1)[inside] = False
        near = far & (distance_transform_edt(far) <= margin_voxels)
        channels = standardise(target.channels[box], None).astype(np.float64)
        values = np.concatenate((channels.reshape(-1, channels.shape[-1])[inside], channels[near]))

        slots = np.repeat(np.arange(votes.voxels.size), np.diff(votes.slot_offsets))
        tally = votes.tally()
        share = tally / np.add.reduceat(tally, votes.slot_offsets[:-1])[slots]
        certain = np.searchsorted(votes.label_values, votes.certain[box][near])
        every, labels = np.unique(np.concatenate((votes.slot_labels, certain)), return_inverse=True)
        offsets = np.concatenate((votes.slot_offsets, votes.slot_offsets[-1] + 1 + np.arange(certain.size)))
        zero = np.flatnonzero(votes.label_values[every] == 0)
        return cls(
            values,
            LabelWeights(
                offsets.astype(np.int64), labels.astype(np.int64), np.concatenate((share, np.ones(certain.size)))
            ),
            int(zero[0]) if zero.size else -1,
        )

    def posterior(self, power: float, merge_distance: float, background_gaussians: int, max_iterations: int) -> Float64:
        """(S,) posterior of each label at each voxel, not normalised."""
        centre = self.values.mean(axis=0)
        number = int(self.prior.labels.max()) + 1
        each = np.arange(number)
        flat = Gaussians(np.tile(centre, (number, 1)), np.tile(np.eye(centre.size), (number, 1, 1)))
        _, _, mass, sums = self._sweep_once(flat, np.ones(number), each, each, 0.0, centre)
        of_label = _merge_labels(
            from_moments(*unpack_moments(sums, centre.size), centre, floor=FLOOR, before=flat),
            merge_distance,
            self.background,
        )
        classes = int(of_label.max()) + 1
        grouped = np.zeros((classes, sums.shape[1]))
        np.add.at(grouped, of_label, sums)
        unheard = Gaussians(flat.means[:classes], flat.covariances[:classes])
        single = from_moments(*unpack_moments(grouped, centre.size), centre, floor=FLOOR, before=unheard)
        counts = np.ones(classes, np.int64)
        if self.background >= 0:
            counts[of_label[self.background]] = background_gaussians
        of_class = np.repeat(np.arange(classes), counts)
        gaussians, shares = split(single, of_class), (1 / counts)[of_class]
        before = -np.inf
        for _ in range(max_iterations):
            posterior, log_likelihood, mass, sums = self._sweep_once(
                gaussians, shares, of_label, of_class, power, centre
            )
            if abs(log_likelihood - before) <= TOLERANCE * max(abs(log_likelihood), len(self.values)):
                break
            before = log_likelihood
            gaussians = from_moments(*unpack_moments(sums, centre.size), centre, floor=FLOOR, before=gaussians)
            whole = np.bincount(of_class, mass)[of_class]
            shares = np.where(whole > 0, mass / np.where(whole > 0, whole, 1), (1 / counts)[of_class])
        return posterior

    def _sweep_once(
        self, gaussians: Gaussians, shares: Float64, of_label: Int64, of_class: Int64, power: float, centre: Float64
    ) -> tuple[Float64, float, Float64, Float64]:
        """Posterior (S,), log-likelihood, and mass (Q,) and moments of each Gaussian."""
        first = np.searchsorted(of_class, np.arange(int(of_label.max()) + 2))
        posterior = np.empty(self.prior.labels.size)
        chunks = -(-len(self.values) // CHUNK)
        packed = np.zeros((chunks, len(gaussians.means), 1 + count_moments(centre.size)))
        run_slices(
            _sweep, chunks, self.values, self.prior.offsets, of_label[self.prior.labels], self.prior.values,
            gaussians.means, gaussians.whitening, gaussians.log_scale, shares, first, power, centre, posterior, packed,
        )  # fmt: skip
        total = packed.sum(axis=0)
        return posterior, float(total[0, 0]), total[:, 1], total[:, 1:]


def _merge_labels(gaussians: Gaussians, merge_distance: float, background: int) -> Int64:
    """(K,) group of each label, the background alone in its own."""
    number = len(gaussians.means)
    rest = np.delete(np.arange(number), background) if background >= 0 else np.arange(number)
    out = np.arange(number)
    if merge_distance > 0 and rest.size > 1:
        mu, sigma = gaussians.means[rest], gaussians.covariances[rest]
        apart = mu[:, None] - mu[None]
        middle = (sigma[:, None] + sigma[None]) / 2
        half = np.linalg.slogdet(sigma)[1] / 2
        distance = np.einsum("ijc,ijcd,ijd->ij", apart, np.linalg.inv(middle), apart) / 8
        distance += (np.linalg.slogdet(middle)[1] - half[:, None] - half[None]) / 2
        condensed = squareform(np.maximum(distance, 0), checks=False)
        out[rest] = rest[0] + number + fcluster(linkage(condensed, "average"), merge_distance, "distance")
    return np.asarray(np.unique(out, return_inverse=True)[1], np.int64)


@njit(cache=True, nogil=True, error_model="numpy")
def _sweep(  # type: ignore[no-untyped-def]
    start,
    stop,
    values,
    offsets,
    labels,
    prior,
    means,
    whitening,
    log_scale,
    shares,
    first,
    power,
    centre,
    posterior,
    out,
):
    """Add log-likelihood (to the first Gaussian), mass and moments to (chunks, Q, 2 + C + C (C + 1) / 2) `out`."""
    number, channels = values.shape
    count = means.shape[0]
    labels_at_most = 0
    for n in range(number):
        labels_at_most = max(labels_at_most, offsets[n + 1] - offsets[n])
    for chunk in range(start, stop):
        density, of_label = np.zeros(count), np.zeros(labels_at_most)
        for n in range(chunk * CHUNK, min((chunk + 1) * CHUNK, number)):
            highest = -np.inf
            for s in range(offsets[n], offsets[n + 1]):
                for g in range(first[labels[s]], first[labels[s] + 1]):
                    square = 0.0
                    for c in range(channels):
                        z = 0.0
                        for d in range(c + 1):
                            z += whitening[g, c, d] * (values[n, d] - means[g, d])
                        square += z * z
                    density[g] = log_scale[g] - 0.5 * square
                    if prior[s] > 0 and shares[g] > 0:
                        highest = max(highest, density[g])
            total = 0.0
            for s in range(offsets[n], offsets[n + 1]):
                of_label[s - offsets[n]] = 0.0
                for g in range(first[labels[s]], first[labels[s] + 1]):
                    of_label[s - offsets[n]] += shares[g] * np.exp(min(density[g] - highest, 0.0))
                posterior[s] = prior[s] * of_label[s - offsets[n]] ** power
                total += posterior[s]
            out[chunk, 0, 0] += power * highest + np.log(total)
            for s in range(offsets[n], offsets[n + 1]):
                posterior[s] /= total
                whole = of_label[s - offsets[n]]
                for g in range(first[labels[s]], first[labels[s] + 1]):
                    r = shares[g] * np.exp(min(density[g] - highest, 0.0)) / whole if whole > 0 else shares[g]
                    r *= posterior[s]
                    if r == 0:
                        continue
                    out[chunk, g, 1] += r
                    at = 2 + channels
                    for c in range(channels):
                        along = r * (values[n, c] - centre[c])
                        out[chunk, g, 2 + c] += along
                        for d in range(c + 1):
                            out[chunk, g, at] += along * (values[n, d] - centre[d])
                            at += 1
