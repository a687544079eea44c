"""Mask of one organ, such as the brain in a whole-head scan, from a library in which it is known."""

from atlasseg.organ_mask.extraction import OrganMask, extract_mask, find_organ, widen
from atlasseg.organ_mask.filling import fill_mask

__all__ = ["OrganMask", "extract_mask", "fill_mask", "find_organ", "widen"]
