"""Validation of a network: mean Dice, and calibration by temperature scaling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from atlasseg.refinement.network.cases import Case, LabelEncoding, foreground_or_uncertain
from atlasseg.volume import Float32, Int64

MOST_SAMPLES = 200_000
"""Maximum number of voxels for the fit of the temperature."""


def mean_dice(found: Sequence[NDArray[np.integer]], cases: Sequence[Case], coding: LabelEncoding) -> float:
    """Compute the mean over cases of the mean Dice of the labels without background.

    A label counts if it is in the truth or in the result. Voxels outside the network's box count as missed. Labels
    that were not annotated do not count.
    """
    scores = []
    for codes, case in zip(found, cases, strict=True):
        assert case.truth is not None and case.outside is not None
        count = len(coding)
        truth = case.truth.astype(np.int64)
        met = np.bincount(truth[truth == codes], minlength=count)
        both = np.bincount(truth.ravel(), minlength=count) + np.bincount(codes.ravel(), minlength=count)
        both = both + case.outside
        counted = both > 0
        counted[[0, *case.unknown]] = False
        if counted.any():
            scores.append(float(np.mean(2 * met[counted] / both[counted])))
    return float(np.mean(scores)) if scores else 0.0


def reliable_logits(found: Iterable[Float32], cases: Sequence[Case]) -> tuple[Float32, Int64]:
    """Collect log-probabilities (n, L) and codes (n,) of the voxels that the fusion does not call certain background.

    `found` yields the (L, I, J, K) maps one after the other, so that they need not all be in memory.
    """
    share = max(1, MOST_SAMPLES // max(len(cases), 1))
    logits, codes = [], []
    for p, case in zip(found, cases, strict=True):
        assert case.truth is not None
        voxels = np.flatnonzero(foreground_or_uncertain(case) & ~np.isin(case.truth, [0] if case.unknown else []))
        voxels = voxels[:: max(1, -(-voxels.size // share))]
        logits.append(np.log(np.maximum(p.reshape(p.shape[0], -1)[:, voxels].T, 1e-7)))
        codes.append(case.truth.reshape(-1)[voxels].astype(np.int64))
    return np.concatenate(logits), np.concatenate(codes)


def fit_temperature(logits: Float32, codes: Int64) -> float:
    """Fit the temperature T that minimises the negative log-likelihood of the codes under softmax(logits / T) [1]_.

    References
    ----------
    .. [1] Guo, C., Pleiss, G., Sun, Y., Weinberger, K. Q. (2017). On calibration of modern neural networks. ICML.
    """
    if codes.size == 0:
        return 1.0

    def wrong(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        top = scaled.max(axis=1)
        total = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        return float(np.mean(total - scaled[np.arange(codes.size), codes]))

    found = minimize_scalar(wrong, bounds=(np.log(0.2), np.log(5.0)), method="bounded")
    return float(np.exp(found.x))
