"""Result of a localisation: where the organ of the atlases' labels lies in a scan, and from where each atlas starts."""

from __future__ import annotations

from dataclasses import dataclass

from atlasseg.transforms import Transform
from atlasseg.volume import Mask


@dataclass(frozen=True)
class Place:
    """Candidate place of the organ in a scan.

    Parameters
    ----------
    centre_mm : (3,) float
        Centre of the organ there, RAS+ mm.
    votes : int
        Number of atlases that find this place best by themselves.
    score : float
        Accumulated evidence of the atlases, as the method defines it; higher is better.
    similarity : float
        Median similarity of the atlases after they were aligned there, -1 to 1; NaN if this was not tried. It is the
        mean of correlation and concordance, of intensities and of the magnitude of their gradient.
    turned_degrees : float
        Quarter turns of the field of view, in the slice, from the atlases' to this scan.
    mirrored : bool
        Whether the organ appears as the mirror image of the atlases' there.
    """

    centre_mm: tuple[float, float, float]
    votes: int
    score: float
    similarity: float = float("nan")
    turned_degrees: float = 0.0
    mirrored: bool = False


@dataclass(frozen=True)
class AtlasPose:
    """How one atlas was aligned at the place of the organ.

    Parameters
    ----------
    atlas : str
        Id of the atlas.
    keep : bool
        False if it misses the place, or resembles the scan much less than the others there.
    similarity : float
        Similarity around the organ, -1 to 1, as for `Place`.
    apart_mm : float
        Distance of its organ's centre from the place.
    turned_degrees, scale : float
        Angle of its rotation, and its size relative to the scan.
    reason : str
        Why it was dropped; empty if it is kept.
    """

    atlas: str
    keep: bool
    similarity: float
    apart_mm: float
    turned_degrees: float
    scale: float
    reason: str = ""


@dataclass(frozen=True, eq=False)
class OrganLocation:
    """Where the organ lies in a scan.

    Parameters
    ----------
    found : bool
        Whether the atlases agree on a place. If not, `transforms` and `region` are not to be used.
    message : str
        What should be told to the user: why there is no place, or what is unusual about it. Empty if nothing is.
    places : tuple of Place
        Candidate places, the chosen one first.
    poses : tuple of AtlasPose
        One for each atlas.
    transforms : tuple of Transform
        From points of the scan to points of each atlas, RAS+ mm.
    start, stop : (3,) int
        Box of voxels of the scan around the organ.
    region : Mask
        Voxels of that box in which the registration is to be measured, on the grid of the box.
    """

    found: bool
    message: str
    places: tuple[Place, ...]
    poses: tuple[AtlasPose, ...]
    transforms: tuple[Transform, ...]
    start: tuple[int, int, int]
    stop: tuple[int, int, int]
    region: Mask | None


def describe_view(turned_degrees: float, mirrored: bool) -> str:
    """Describe how a view differs from that of the atlases; empty if it does not.

    Examples
    --------
    >>> describe_view(90, True)
    'mirrored and turned by 90 degrees'
    """
    parts = ["mirrored"] if mirrored else []
    parts += [f"turned by {turned_degrees:.0f} degrees"] if turned_degrees else []
    return " and ".join(parts)
