"""Pictures and pages to check a segmentation by."""

from atlasseg.report.cohort_page import CohortReport, TargetSummary, render_cohort
from atlasseg.report.page import TargetReport, render

__all__ = ["CohortReport", "TargetReport", "TargetSummary", "render", "render_cohort"]
