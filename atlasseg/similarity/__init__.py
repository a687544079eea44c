"""Similarity metrics of two images on one grid, one file per metric.

Registration maximises them, atlas selection ranks by them, and fusion weights votes by them.
"""

from atlasseg.similarity.metric import (
    METRICS,
    MetricName,
    SimilarityMetric,
    create_metric,
    metric_class,
    metric_names,
    register_metric,
    windowed_metric,
)

__all__ = [
    "METRICS",
    "MetricName",
    "SimilarityMetric",
    "create_metric",
    "metric_class",
    "metric_names",
    "register_metric",
    "windowed_metric",
]
