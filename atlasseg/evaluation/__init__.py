"""How good a segmentation is: overlap, surface distances, and both as a table."""

from atlasseg.evaluation.table import FOREGROUND, Score, evaluate, mean_over_labels

__all__ = ["FOREGROUND", "Score", "evaluate", "mean_over_labels"]
