"""Majority vote: every candidate has one equal vote; fast and safe, but it ignores how well a candidate fits."""

from __future__ import annotations

from collections.abc import Sequence

from atlasseg.fusion._votes import Votes
from atlasseg.methods import method
from atlasseg.volume import Atlas, Image, ProbabilityMap


@method("fusion", compares_intensities=False)
def fuse(target: Image, candidates: Sequence[Atlas], *, soft: bool = True) -> ProbabilityMap:
    r"""Fuse by majority vote.

    The probability of label :math:`l` at voxel :math:`x` is the mean, over the :math:`N` candidates, of the fraction
    of the voxel that each candidate gives to the label:

    .. math::

        p(l \mid x) = \frac{1}{N} \sum_{i=1}^{N} p(l \mid L_i, x)

    A hard candidate gives 1 to its own label and 0 to the others; this is majority voting [1]_. With fractions it is
    the sum rule of classifier combination [2]_. In a tie the smallest label value wins, whatever the order of the
    candidates.

    Parameters
    ----------
    target : Image
        The scan; only its grid is used.
    candidates : sequence of Atlas
        On the target's grid. Outside its mask a candidate does not vote.
    soft : bool
        Use the label fractions of candidates that have them; otherwise each candidate votes for its most probable
        label.

    Returns
    -------
    ProbabilityMap
        On the target's grid.

    Raises
    ------
    InputError
        There is no candidate.
    GeometryError
        A candidate is not on the target's grid.

    References
    ----------
    .. [1] Heckemann et al. (2006), Automatic anatomical brain MRI segmentation combining label propagation and
       decision fusion, NeuroImage 33(1):115-126.
    .. [2] Kittler et al. (1998), On combining classifiers, IEEE TPAMI 20(3):226-239 (the sum rule).
    """
    return Votes.gather(target, candidates, hard=not soft).cast(name=target.name)
