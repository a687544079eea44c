"""Pictures and pages to check a segmentation by."""

from atlasseg.report.cohort_page import CohortReport, TargetSummary, render_cohort
from atlasseg.report.page import TargetReport, render
from atlasseg.report.paper import plot_agreement, plot_groups, plot_scores
from atlasseg.report.plotting import plot_slices

__all__ = [
    "CohortReport",
    "TargetReport",
    "TargetSummary",
    "plot_agreement",
    "plot_groups",
    "plot_scores",
    "plot_slices",
    "render",
    "render_cohort",
]
