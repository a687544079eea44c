"""How good a segmentation is: overlap, surface distances, calibration, and tests of one method against another."""

from atlasseg.evaluation.result import FOREGROUND, EvaluationResult, Score, mean_over_labels
from atlasseg.evaluation.table import evaluate

__all__ = ["FOREGROUND", "EvaluationResult", "Score", "evaluate", "mean_over_labels"]
