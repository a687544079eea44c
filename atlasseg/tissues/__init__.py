"""Tissues of a scan from its intensities: one file a model, each with a function ``classify``."""

from atlasseg.tissues._classes import Tissues

__all__ = ["Tissues"]
