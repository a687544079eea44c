"""Agreement of propagated atlases about the organ: Dice of each one's labels with the vote of the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atlasseg.registration.outliers import find_failures
from atlasseg.volume import Atlas, Float32, LabelMap

SMALLEST_LIBRARY = 4
"""With fewer atlases no one can be told to be the one that is wrong."""

LEAST_DICE, LEAST_SPREAD = 0.1, 0.1
"""Dice below which an atlas disagrees, and lower limit of the spread of the Dice as a fraction of the median."""


def find_disagreeing(candidates: Sequence[Atlas]) -> list[str]:
    """Find the propagated atlases whose labels lie elsewhere than those of the others.

    Parameters
    ----------
    candidates : sequence of Atlas
        On one grid. All labels above 0 count as one.

    Returns
    -------
    list of str
        For each atlas the reason to drop it; empty if its labels agree with those of the others.
    """
    if len(candidates) < SMALLEST_LIBRARY:
        return [""] * len(candidates)
    shares = np.stack([_organ(atlas) for atlas in candidates])
    total = shares.sum(axis=0)
    scores = []
    for share in shares:
        others = (total - share) / (len(shares) - 1) > 0.5
        size = float(share.sum() + others.sum())
        scores.append(2 * float(share[others].sum()) / size if size > 0 else 0.0)
    checks = find_failures(scores, floor=LEAST_DICE, least_spread=LEAST_SPREAD)
    middle = float(np.median(scores))
    return [
        ""
        if check.keep
        else f"its labels have a Dice of {score:.2f} with the vote of the other atlases, whose median is {middle:.2f}"
        for check, score in zip(checks, scores, strict=True)
    ]


def _organ(atlas: Atlas) -> Float32:
    """Probability (I, J, K) of any label above 0."""
    labels = atlas.labels
    if isinstance(labels, LabelMap):
        share: Float32 = (labels.array != 0).astype(np.float32)
    else:
        share = 1 - labels.probability(0)
    return share
