"""Evaluation of segmentations: overlap, surface distances, calibration, and statistical comparison of methods."""

import lazy_loader as _lazy

from atlasseg.evaluation.result import FOREGROUND, EvaluationResult, Score, mean_over_labels, without_tolerance
from atlasseg.evaluation.table import evaluate

__all__ = ["FOREGROUND", "EvaluationResult", "Score", "evaluate", "mean_over_labels", "without_tolerance"]

__getattr__, _dir, _submodules = _lazy.attach(
    __name__,
    [
        "agreement",
        "calibration",
        "comparison",
        "disagreement",
        "groups",
        "overlap",
        "prediction",
        "result",
        "surface",
        "surfels",
        "table",
    ],
)


def __dir__() -> list[str]:
    return [*__all__, *_submodules]
