"""Border of an organ by its appearance: a classifier of voxels near the border, learned from the registered atlases.

Registration leaves the border a fraction of a voxel off, to the same side for most atlases, and a vote keeps the error.
The scan itself shows where the border is. An atlas that lies on the grid of the scan, image and organ alike, is an
exact example of what the border looks like there. From all of them boosted trees [1]_ learn the probability that a
voxel is organ, by the intensities along the normal of the border and beside it, and by its place. It is combined with
the probability of the vote.

References
----------
.. [1] Ke et al. (2017), LightGBM: a highly efficient gradient boosting decision tree, NeurIPS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from atlasseg.atlases.organs import ORGAN
from atlasseg.errors import InputError
from atlasseg.volume import Atlas, Bool, Float32, Float64, Image, Int64, LabelMap, ProbabilityMap

UNCERTAIN = 0.02
"""Voxels with a fused probability between this and its complement are decided, and those beside them."""

ALONG_VOXELS = np.arange(-3.0, 3.01, 0.75)
"""Where intensities are taken along the normal of the border."""

BESIDE_VOXELS = (-1.5, 0.0, 1.5)
"""Where they are taken along the normal, this far to each of four sides."""

REFERENCE_SIGMA_VOXELS, REFERENCE_STRIDE = 10.0, 4
"""Intensities are divided by the mean of the organ around a voxel: standard deviation of a Gaussian, and the stride of
the voxels that are averaged."""

SMOOTHING_VOXELS = 0.7
"""Standard deviation of the Gaussian that smooths the result."""

LEAST = 1e-3
"""Probabilities are kept this far from 0 and 1 before they are combined."""


def refine_border(
    target: Image,
    candidates: Sequence[Atlas],
    fused: ProbabilityMap,
    *,
    weight: float = 0.4,
    examples: int = 40_000,
    iterations: int = 100,
    seed: int = 0,
) -> Float32:
    """Decide the voxels near the border of an organ by what the border looks like in the candidates.

    Parameters
    ----------
    target : Image
        The scan.
    candidates : sequence of Atlas
        On the grid of the scan and of its contrast, with labels 0 and 1 (the organ).
    fused : ProbabilityMap
        Of the organ, on the grid of the scan.
    weight : float
        Weight of the appearance in the log odds, from 0 to 1; the fusion has the others.
    examples : int
        Number of voxels to learn from, drawn at random from all candidates.
    iterations : int
        Number of trees.
    seed : int
        Of the draw.

    Returns
    -------
    (I, J, K) float32
        Probability of the organ.

    Raises
    ------
    InputError
        The weight is not between 0 and 1.
    """
    if not 0 <= weight <= 1:
        raise InputError(f"weight: expected a number from 0 to 1, got {weight!r}")
    before: Float64 = fused.probability(ORGAN).astype(np.float64)
    near = _Border.around(before)
    if near is None:
        return fused.probability(ORGAN)
    x, y = _draw_examples(near, candidates, examples, seed)
    after = before
    if weight > 0 and 0 < y.sum() < y.size:
        from sklearn.ensemble import HistGradientBoostingClassifier
        from threadpoolctl import threadpool_limits

        model = HistGradientBoostingClassifier(max_iter=iterations, early_stopping=False, random_state=seed)
        everywhere = near.features(target, np.arange(len(near.index)))
        with threadpool_limits(1, user_api="openmp"):  # so few examples that threads would mostly wait for each other
            appearance = model.fit(x, y).predict_proba(everywhere)[:, 1]
        combined = weight * _log_odds(appearance) + (1 - weight) * _log_odds(before[near.voxels])
        after = before.copy()
        after[near.voxels] = 1 / (1 + np.exp(-combined))
    smoothed = ndimage.gaussian_filter(after, SMOOTHING_VOXELS, mode="nearest")
    return np.asarray(np.clip(smoothed, 0, 1), np.float32)


def _draw_examples(near: _Border, candidates: Sequence[Atlas], count: int, seed: int) -> tuple[Float32, Bool]:
    """Features (N, F) of random voxels near the border in all candidates, and whether each is organ."""
    rng = np.random.default_rng(seed)
    features, labels = [], []
    for atlas in sorted(candidates, key=lambda each: each.id):
        known = np.flatnonzero(atlas.mask.array[near.voxels]) if atlas.mask is not None else np.arange(len(near.index))
        chosen = rng.choice(known, min(len(known), count // len(candidates)), replace=False)
        if isinstance(atlas.labels, LabelMap):
            inside = atlas.labels.array != 0
        else:
            inside = atlas.labels.probability(ORGAN) > 0.5
        features.append(near.features(atlas.image, chosen))
        labels.append(inside[near.voxels][chosen])
    return np.concatenate(features), np.concatenate(labels)


def _average(values: Float64) -> Float64:
    """Gaussian average around every `REFERENCE_STRIDE`-th voxel."""
    few = values[::REFERENCE_STRIDE, ::REFERENCE_STRIDE, ::REFERENCE_STRIDE]
    return np.asarray(ndimage.gaussian_filter(few.astype(np.float64), REFERENCE_SIGMA_VOXELS / REFERENCE_STRIDE))


def _log_odds(probability: Float64) -> Float64:
    kept = np.clip(probability, LEAST, 1 - LEAST)
    return np.asarray(np.log(kept / (1 - kept)))


@dataclass(frozen=True, eq=False)
class _Border:
    """Voxels near the border of a fused organ, and the frame in which their surroundings are described.

    Parameters
    ----------
    voxels : (I, J, K) bool
    index : (M, 3) int64
        Of these voxels.
    frame : (M, 3, 3) float64
        Unit vectors in voxels: the normal, inwards, and two directions along the border.
    core : (I, J, K) bool
        Certain organ.
    core_share : (i, j, k) float64
        Its share around every `REFERENCE_STRIDE`-th voxel.
    """

    voxels: Bool
    index: Int64
    frame: Float64
    core: Bool
    core_share: Float64

    @classmethod
    def around(cls, probability: Float64) -> _Border | None:
        """Find the voxels near the border; None where there is no border, or no voxel that is certainly organ."""
        uncertain = (probability > UNCERTAIN) & (probability < 1 - UNCERTAIN)
        core = ndimage.binary_erosion(probability > 1 - UNCERTAIN)
        if not uncertain.any() or not core.any():
            return None
        voxels = ndimage.binary_dilation(uncertain)
        smooth = ndimage.gaussian_filter(probability, 1.0, mode="nearest")
        gradient = np.stack([np.gradient(smooth, axis=a)[voxels] if smooth.shape[a] > 1 else 0 * smooth[voxels]
                             for a in range(3)], axis=1)  # fmt: skip
        normal = gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-6)
        least = np.eye(3)[np.abs(normal).argmin(axis=1)]
        first = np.cross(normal, least)
        first /= np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-6)
        frame = np.stack([normal, first, np.cross(normal, first)], axis=1)
        return cls(voxels, np.argwhere(voxels), frame, core, _average(core.astype(np.float64)))

    def features(self, image: Image, chosen: Int64) -> Float32:
        """Describe some of the voxels (N, F): intensities around each, and its place."""
        index, frame = self.index[chosen], self.frame[chosen]
        steps = [(float(along), 0.0, 0.0) for along in ALONG_VOXELS]
        for along in BESIDE_VOXELS:
            steps += [(along, a, b) for a, b in ((1.5, 0.0), (-1.5, 0.0), (0.0, 1.5), (0.0, -1.5))]
        offsets = np.einsum("sa,nad->nsd", np.array(steps), frame)
        places = (index[:, None] + offsets).reshape(-1, 3).T
        columns = [index.astype(np.float64)]
        for channel in np.moveaxis(image.channels, 3, 0):
            values = np.ascontiguousarray(channel, np.float32)
            mean = _average(np.where(self.core, channel, 0)) / np.maximum(self.core_share, 1e-4)
            reference = ndimage.map_coordinates(mean, index.T / REFERENCE_STRIDE, order=1, mode="nearest")[:, None]
            least = 1e-3 * max(float(np.abs(reference).max(initial=0)), 1e-12)
            reference = np.where(np.abs(reference) > least, reference, least)
            around = ndimage.map_coordinates(values, places, order=1, mode="nearest").reshape(len(index), -1)
            columns.append(around / reference)
            for sigma in (1.0, 2.0):
                smooth = ndimage.gaussian_filter(values, sigma, truncate=3.0)
                columns.append(smooth[self.voxels][chosen, None] / reference)
        return np.concatenate(columns, axis=1).astype(np.float32)
