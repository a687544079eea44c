"""Intensity likelihood of the labels at voxels where the fused labels are uncertain."""

from __future__ import annotations

import numpy as np

from atlasseg.errors import InputError
from atlasseg.recipe.tables import Regions
from atlasseg.volume import Float64, Image, ProbabilityMap

__all__ = ["with_intensity"]

_LEAST_VARIANCE = 1e-3  # fraction of the image's variance: a label with constant intensity does not exclude all others
_LEAST_PROBABILITY = 1e-6  # entries below are dropped


def with_intensity(
    image: Image,
    probabilities: ProbabilityMap,
    *,
    exponent: float = Regions.intensity_exponent,
    sigma_voxels: float = Regions.window_voxels,
) -> ProbabilityMap:
    r"""Update each label's probability by the local likelihood of the intensities.

    Around each uncertain voxel each label has a normal distribution of intensities. It is estimated from the voxels
    nearby, weighted by a Gaussian window and by the probability of the label. With :math:`m` the most probable label
    of the voxel, the new probability of label :math:`l` is

    .. math::

        p_l' \propto p_l \left[ \frac{\mathcal{N}(x;\, \mu_l, \sigma_l^2)}{\mathcal{N}(x;\, \mu_m, \sigma_m^2)}
        \right]^{\textit{exponent} \cdot r}, \qquad r = 1 - \exp(-2 B)

    This is one step of expectation maximisation with local parameters [1]_. It is tempered by `exponent`, because the
    intensities of neighbouring voxels are not independent, and the fusion has used them already. :math:`B` is the
    Bhattacharyya distance [2]_ of the two distributions, so :math:`r` is near 0 for labels of similar
    intensity. Probabilities of 0 and 1 do not change.

    Parameters
    ----------
    image : Image
        The scan. The log likelihoods of several channels are averaged.
    probabilities : ProbabilityMap
        Fused labels on the grid of the image.
    exponent : float
        Weight of the intensities, 0 or more; 0: no change.
    sigma_voxels : float
        Standard deviation of the window, above 0.

    Returns
    -------
    ProbabilityMap
        Updated probabilities of the same labels.

    Raises
    ------
    InputError
        A parameter is out of range.

    References
    ----------
    .. [1] Van Leemput et al., Automated model-based tissue classification of MR images of the brain, IEEE TMI 18, 1999,
       equations 4 and 5, with parameters of the neighbourhood in place of the volume's.
    .. [2] Kailath, The divergence and Bhattacharyya distance measures in signal selection, IEEE Trans. Commun. Technol.
       15, 1967.
    """
    if not exponent >= 0:
        raise InputError(f"exponent: expected 0 or more, got {exponent}")
    if not sigma_voxels > 0:
        raise InputError(f"sigma_voxels: expected more than 0, got {sigma_voxels}")
    if exponent == 0 or probabilities.voxels.size == 0:
        return probabilities
    channels = image.channels.astype(np.float64)
    channels -= channels.mean(axis=(0, 1, 2))  # avoids cancellation in the squares
    voxels = probabilities.entry_voxels
    means, variances = _estimate_local_gaussians(channels, probabilities, sigma_voxels)
    starts, counts = probabilities.offsets[:-1], np.diff(probabilities.offsets)
    x = channels.reshape(-1, channels.shape[-1])[voxels]
    log_likelihood = -0.5 * ((x - means) ** 2 / variances + np.log(variances))
    at_mode = np.flatnonzero(probabilities.labels == probabilities.mode.reshape(-1)[voxels])
    mode = np.repeat(at_mode, counts)
    both = variances + variances[mode]
    apart = 0.25 * (means - means[mode]) ** 2 / both + 0.5 * np.log(both / (2 * np.sqrt(variances * variances[mode])))
    reliable = 1 - np.exp(-2 * apart)
    log_likelihood = exponent * ((log_likelihood - log_likelihood[mode]) * reliable).mean(axis=1)
    log_likelihood -= np.repeat(np.maximum.reduceat(log_likelihood, starts), counts)
    values = probabilities.values * np.exp(log_likelihood)
    values /= np.repeat(np.add.reduceat(values, starts), counts)
    values[values < _LEAST_PROBABILITY] = 0
    return ProbabilityMap.from_entries(
        probabilities.mode,
        probabilities.affine,
        voxels,
        probabilities.labels,
        values,
        label_values=probabilities.label_values,
        name=probabilities.name,
    )


def _estimate_local_gaussians(
    channels: Float64, probabilities: ProbabilityMap, sigma_voxels: float
) -> tuple[Float64, Float64]:
    """(E, C) mean and variance of the intensities near each entry's voxel, weighted by its label's probability."""
    from scipy.ndimage import gaussian_filter

    def window(values: Float64) -> Float64:
        out: Float64 = gaussian_filter(values, sigma_voxels, mode="constant", truncate=3.0)
        return out

    least = np.maximum(_LEAST_VARIANCE * channels.var(axis=(0, 1, 2)), np.finfo(np.float32).tiny)
    voxels = probabilities.entry_voxels
    means = np.zeros((voxels.size, channels.shape[-1]))
    variances = np.zeros_like(means)
    at = np.stack(np.unravel_index(voxels, channels.shape[:3]))
    reach = int(np.ceil(3 * sigma_voxels)) + 1
    for label in np.unique(probabilities.labels):
        own = probabilities.labels == label
        first = np.maximum(at[:, own].min(axis=1) - reach, 0)
        box = tuple(slice(int(a), int(b)) for a, b in zip(first, at[:, own].max(axis=1) + reach + 1, strict=True))
        weight = probabilities.probability(int(label))[box].astype(np.float64)
        here = tuple(at[:, own] - first[:, None])
        total = window(weight)[here] + np.finfo(np.float32).tiny
        for c in range(channels.shape[-1]):
            x = channels[box][..., c]
            mean = window(weight * x)[here] / total
            means[own, c] = mean
            variances[own, c] = np.maximum(window(weight * x * x)[here] / total - mean**2, least[c])
    return means, variances
