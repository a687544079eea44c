"""Synthetic anatomies with known truth and known deformation.

One anatomy, a small head of closed formulas, is defined at every point of a *canonical* space in mm. A scan of it is
that anatomy seen through a known transform, `canonical_from_scan`, sampled straight onto the scan's own grid: its
labels are exact and nothing is ever interpolated. Two scans are therefore related by a known transform too, in both
directions (:func:`moving_from_fixed`), and labels, intensities and registrations can all be checked against the truth.

The phantom `whole_head` has the same brain inside a skull, a scalp, a face and a neck. Another phantom, `tissue`, is a
folded brain of three tissues whose fractions in every voxel are known.

``python -m atlasseg.phantoms FOLDER`` writes the small data set that `sample_data/` holds.
"""

from atlasseg.phantoms.heads import HEAD_SEMI_AXES_MM, STRUCTURES, Phantom, Structure, anatomy, head, moving_from_fixed
from atlasseg.phantoms.samples import LABEL_TABLE, SAMPLE_ATLASES, SAMPLE_TARGETS, sample, sample_files
from atlasseg.phantoms.scanning import bias_field, rician, smooth_deformation, tilted_grid
from atlasseg.phantoms.small_organs import small_organ
from atlasseg.phantoms.tissues import TISSUES, TissuePhantom, tissue
from atlasseg.phantoms.whole_heads import CONTRASTS, whole_head, whole_head_anatomy, whole_head_grid

__all__ = [
    "CONTRASTS",
    "HEAD_SEMI_AXES_MM",
    "LABEL_TABLE",
    "SAMPLE_ATLASES",
    "SAMPLE_TARGETS",
    "STRUCTURES",
    "TISSUES",
    "Phantom",
    "Structure",
    "TissuePhantom",
    "anatomy",
    "bias_field",
    "head",
    "moving_from_fixed",
    "rician",
    "sample",
    "sample_files",
    "small_organ",
    "smooth_deformation",
    "tilted_grid",
    "tissue",
    "whole_head",
    "whole_head_anatomy",
    "whole_head_grid",
]
