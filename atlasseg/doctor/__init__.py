"""Checks of a library of atlases, or of a folder of targets, before a long computation."""

from atlasseg.doctor.examination import Examination, examine
from atlasseg.doctor.finding import Finding

__all__ = ["Examination", "Finding", "examine"]
