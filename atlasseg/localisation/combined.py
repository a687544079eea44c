"""Find the organ by candidate places of both the template search and the voting forest: they fail on other scans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Gt

from atlasseg.localisation import template_search, voting_forest
from atlasseg.localisation._neighbourhood import MOST_VOXELS
from atlasseg.localisation._settling import prepare_search, settle
from atlasseg.localisation.result import OrganLocation
from atlasseg.methods import Data, method
from atlasseg.volume import Atlas, Image, Mask


@method("localisation")
def localise(
    target: Image,
    atlases: Sequence[Atlas],
    *,
    target_mask: Data[Mask | None] = None,
    atlas_masks: Data[Sequence[Mask | None] | None] = None,
    margin: Annotated[float, Gt(0)] = 0.5,
    places: Annotated[int, Ge(1)] = 4,
    forest_places: Annotated[int, Ge(1)] = 3,
    quarter_turns: bool = True,
    mirrored: bool = False,
    trees: Annotated[int, Ge(1)] = 60,
) -> OrganLocation:
    """Localise the organ that the atlases are labelled in.

    Candidate places are those of `template_search`, which knows turns and mirror images, and those of `voting_forest`,
    which knows what surrounds the organ. At each of them all atlases are aligned, and the place at which they fit best
    is chosen. An atlas votes for the place at which it fits best.

    Parameters
    ----------
    target : Image
        The scan.
    atlases : sequence of Atlas
        Each on its own grid; every label above 0 belongs to the organ.
    target_mask, atlas_masks : Mask, optional
        Voxels with valid intensities.
    margin : float
        Width of the neighbourhood around the labels, as a fraction of the organ's size.
    places, forest_places : int
        Number of candidate places of the template search, and of the voting forest.
    quarter_turns : bool
        Also search views that are turned by 90, 180 and 270 degrees in the slice, in scans with thick slices.
    mirrored : bool
        Also search mirror images of the atlases' views.
    trees : int
        Number of trees of the forest.

    Returns
    -------
    OrganLocation

    Raises
    ------
    InputError
        There is no atlas, an atlas has no label, or numbers of channels differ.

    References
    ----------
    .. [1] Padfield, D. (2012). Masked object registration in the Fourier domain. IEEE Trans Image Process 21(5),
       2706-2718.
    .. [2] Criminisi, A., et al. (2013). Regression forests for efficient anatomy detection and localization in computed
       tomography scans. Medical Image Analysis 17(8), 1293-1303.
    """
    search = prepare_search(target, atlases, target_mask, atlas_masks, margin, most_voxels=MOST_VOXELS)
    found, _ = template_search.search_places(search, places, quarter_turns=quarter_turns, mirrored=mirrored)
    found += voting_forest.find_places(search, atlases, forest_places, trees=trees)
    return settle(prepare_search(target, atlases, target_mask, atlas_masks, margin), target, atlases, found)
