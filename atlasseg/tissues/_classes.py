"""Helpers of all tissue models: intensities of the region, and assembly of the result."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.statistics import gaussian_mixture
from atlasseg.statistics.gaussians import Gaussians, estimate
from atlasseg.volume import Bool, Float32, Float64, Image, LabelMap, Mask, ProbabilityMap

log = logging.getLogger(__name__)

LEAST = 1e-4
"""Minimum probability that is stored. The others of the voxel are scaled to sum 1."""


@dataclass(frozen=True, eq=False)
class Tissues:
    """Tissues of one scan on its grid: K classes, C modalities.

    Parameters
    ----------
    labels : LabelMap
        The most probable class: 1 to K in the region, 0 outside.
    probabilities : ProbabilityMap
        Probability of each class; background outside the region. With partial volume, the expected fraction of each
        class in a voxel: the probability that a point of the voxel belongs to it.
    corrected : Image
        The bias-corrected scan.
    bias : Image
        Bias field by which the scan was divided, in each modality; 1 outside the region.
    means, sds : (K, C) float64
        Mean and standard deviation of each class in corrected intensities.
    """

    labels: LabelMap
    probabilities: ProbabilityMap
    corrected: Image
    bias: Image
    means: Float64
    sds: Float64


def nonnegative_intensities(image: Image, inside: Mask) -> tuple[Float64, Float64]:
    """Return the intensities (N, C) of the region, shifted to 0 or more as a gain requires, and the shift (C,)."""
    own = image.channels[inside.array].astype(np.float64)
    if not len(own):
        raise InputError(f"{image.name or 'scan'}: expected a mask with voxels, got an empty one")
    shift = np.minimum(own.min(axis=0), 0)
    return own - shift, shift


def adjacent_classes(values: Float64, classes: int, prior: Float64 | None) -> list[tuple[int, int]]:
    """List the pairs of classes that are adjacent in the first modality: a voxel may contain both."""
    if prior is None:
        return list(pairwise(range(classes)))
    means = (prior * values[:, :1]).sum(axis=0) / prior.sum(axis=0)
    return list(pairwise(np.argsort(means, kind="stable").tolist()))


def fit_classes(
    values: Float64,
    inside: Mask,
    prior: Float64 | None,
    *,
    classes: int,
    bias_order: int,
    bias_stiffness: float,
    partial_volume: bool,
    max_iterations: int,
    field: gaussian_mixture.Field | None = None,
    relaxation: float = 0.0,
    relaxation_sigma_voxels: float = 2.0,
) -> gaussian_mixture.Mixture:
    """Fit the mixture of all models; parameters as for the models and `gaussian_mixture.fit`."""
    return gaussian_mixture.fit(
        values,
        classes=classes if prior is None else None,
        prior=prior,
        inside=inside.array,
        mixed=adjacent_classes(values, classes, prior) if partial_volume else (),
        bias="gain" if bias_order else "none",
        bias_order=max(bias_order, 1),
        bias_stiffness=bias_stiffness,
        field=field,
        relaxation=relaxation,
        relaxation_sigma_voxels=relaxation_sigma_voxels,
        max_iterations=max_iterations,
    )


def assemble_tissues(
    image: Image,
    inside: Mask,
    shift: Float64,
    parts: Float64,
    bias: Float64,
    corrected: Float64,
    gaussians: Gaussians,
) -> Tissues:
    """Assemble the result on the scan's grid from fractions, bias and corrected intensities of the region's voxels."""
    region = inside.array
    count = parts.shape[1]

    def on_grid(values: NDArray[Any], outside: NDArray[Any] | float) -> Float32:
        full = np.empty((*region.shape, values.shape[1]), np.float32)
        full[...] = outside
        full[region] = values
        return full

    field, without = on_grid(bias, 1.0), on_grid(corrected + shift, image.channels)
    if image.array.ndim == 3:
        field, without = field[..., 0], without[..., 0]
    probabilities = _probability_map(image, region, parts)
    return Tissues(
        LabelMap(probabilities.mode, image.affine, image.name),
        probabilities,
        Image(without, image.affine, image.name),
        Image(field, image.affine, image.name),
        gaussians.means[:count] + shift,
        np.sqrt(np.einsum("kcc->kc", gaussians.covariances[:count])),
    )


def assemble_without_bias(image: Image, inside: Mask, values: Float64, posterior: Float64) -> Tissues:
    """Assemble the result of a model without bias field from intensities (N, C) and posterior (N, K) of the region."""
    empty = posterior.sum(axis=0) <= 0
    channels = values.shape[1]
    some = Gaussians(np.zeros((empty.size, channels)), np.tile(np.eye(channels), (empty.size, 1, 1)))
    gaussians = estimate(values, posterior, before=some)
    gaussians.means[empty], gaussians.covariances[empty] = np.nan, np.nan  # unknown
    none = np.zeros(values.shape[1])
    return assemble_tissues(image, inside, none, posterior, np.ones_like(values), values, gaussians)


def _probability_map(image: Image, region: Bool, posterior: Float64) -> ProbabilityMap:
    count = posterior.shape[1]
    kept = posterior >= min(LEAST, 0.5 / count)
    weights = np.where(kept, posterior, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    mode = np.zeros(region.shape, np.int32)
    mode[region] = weights.argmax(axis=1) + 1
    listed = kept.sum(axis=1) > 1
    entries = kept & listed[:, None]
    labels = np.broadcast_to(np.arange(1, count + 1, dtype=np.int32), posterior.shape)
    return ProbabilityMap(
        mode,
        np.flatnonzero(region)[listed],
        np.concatenate(([0], np.cumsum(kept[listed].sum(axis=1)))).astype(np.int64),
        labels[entries],
        weights[entries].astype(np.float32),
        image.affine,
        np.arange(count + 1, dtype=np.int32),
        image.name,
    )


def check_prior_map(prior: Float64 | None, classes: int, region: Bool) -> Float64 | None:
    """Check that the prior has a row for each voxel of the region, and log rows that are 0."""
    if prior is None:
        if classes < 2:
            raise InputError(f"classes: expected at least 2, got {classes}")
        return None
    given = gaussian_mixture.check_prior(prior, int(region.sum()))
    nothing = int((prior.sum(axis=1) <= 0).sum())
    if nothing:
        log.warning("the prior is 0 at %d of %d voxels of the region; its mean is used there", nothing, len(prior))
    return given
