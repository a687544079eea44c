"""Candidate settings for a library: registrations with preprocessing, and fusions, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from atlasseg.recommendation.properties import LibraryProperties

__all__ = ["Setting", "list_fusions", "list_registrations"]

ANISOTROPIC = 2.0
"""Ratio of the sides of a voxel from which windows and patches of fewer slices are tried."""

SMALL_BOX = 0.5
"""Share of the field of view in the box around the labels below which cropping is tried."""

CROP_MARGIN = 0.15
"""Margin of the crop, as a fraction of the longest side of the field of view, at least `CROP_VOXELS` voxels."""
CROP_VOXELS = 8

Tables = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Setting:
    """Candidate setting of a recipe.

    Parameters
    ----------
    name : str
        Short name in tables.
    tables : mapping
        Tables of the recipe that it sets.
    reason : str
        Why it may suit this library.
    """

    name: str
    tables: Tables = field(hash=False)
    reason: str


def list_registrations(library: LibraryProperties) -> list[Setting]:
    """List the candidate registrations with their preprocessing, the default first.

    Parameters
    ----------
    library : LibraryProperties
        Sizes of the library.

    Returns
    -------
    list of Setting
        In the order in which they are tried.
    """

    def setting(name: str, reason: str, *, steps: tuple[str, ...] = ("intensity",), **given: Any) -> Setting:
        crop = {"crop_margin_mm": given.pop("crop_mm")} if "crop_mm" in given else {}
        method = given.pop("method", "diffeomorphic")
        registration: dict[str, Any] = {"steps": ["affine", *([method] if method else [])]}
        if "metric" in given:
            registration["affine"] = {"metric": given["metric"]}
        if given:
            registration[method] = given
        return Setting(name, {"preprocessing": {"steps": list(steps), **crop}, "registration": registration}, reason)

    found = [
        setting("diffeomorphic", "the default: a smooth, invertible displacement after an affine transform"),
        setting(
            "affine", "no deformation: it cannot deform wrongly where scans show little contrast or detail", method=""
        ),
        setting(
            "smooth",
            "a wide window and smooth displacements: for low contrast and noise",
            iterations=[60, 60, 60, 20],
            radius_voxels=3,
            update_sigma_voxels=2.5,
            total_field_sigma_voxels=[1.5, 1.5, 1.5, 1.5],
        ),
        setting("wide window", "a wide window averages noise, small displacements are allowed", radius_voxels=3),
        setting("detailed", "little smoothing: for thin structures and clear borders", update_sigma_voxels=1.2),
        setting("ffd", "free-form deformation: regular, and faster than the default", method="ffd"),
        setting("n4", "correction of the bias field before the default", steps=("n4", "intensity")),
    ]
    if library.anisotropy >= ANISOTROPIC:
        found.append(
            setting(
                "narrow window",
                f"voxels are {library.anisotropy:.1f} times as long across slices: a window of 3 slices",
                radius_voxels=1,
            )
        )
    if library.box_share < SMALL_BOX:
        extent = max(n * mm for n, mm in zip(library.shape, library.spacing_mm, strict=True))
        margin = max(CROP_MARGIN * extent, CROP_VOXELS * min(library.spacing_mm))
        found.append(
            setting(
                "crop",
                f"the labels take {library.box_share:.0%} of the field of view: the rest is cut off after the affine "
                "transform",
                crop_mm=round(margin, 1),
            )
        )
    found.append(
        setting(
            "mutual information",
            "a similarity metric for scans whose contrasts differ",
            metric="mutual_information",
        )
    )
    return found


def list_fusions(library: LibraryProperties) -> list[Setting]:
    """List the candidate fusions with their post-processing, the default first.

    Parameters
    ----------
    library : LibraryProperties
        Sizes of the library.

    Returns
    -------
    list of Setting
        In the order in which they are tried.
    """
    found = [
        Setting("joint", {"fusion": {"method": "joint"}}, "the default: accounts for errors that atlases share"),
        Setting(
            "joint small",
            {"fusion": {"method": "joint", "joint": {"patch_radius_voxels": 1, "search_radius_voxels": 1}}},
            f"small patches: for labels of few voxels (here {library.smallest_label_voxels:.0f}) and large voxels",
        ),
        Setting(
            "local_weighted", {"fusion": {"method": "local_weighted"}}, "nearly as good as joint, many times faster"
        ),
        Setting("majority", {"fusion": {"method": "majority"}}, "one vote an atlas: safe where intensities mislead"),
        Setting(
            "nearest_patches",
            {"fusion": {"method": "nearest_patches"}},
            "votes from patches near by: for imperfect registrations and thin structures",
        ),
        Setting(
            "joint + markov_field",
            {"fusion": {"method": "joint"}, "refinement": {"method": "markov_field"}},
            "labels smoothed by a random field after joint",
        ),
        Setting(
            "joint + regions",
            {"fusion": {"method": "joint"}, "regions": {}},
            "borders sharpened by the scan's own intensities after joint",
        ),
    ]
    if library.anisotropy >= ANISOTROPIC:
        patch, window = [2, 2, 2], [3, 3, 3]
        patch[library.coarse_axis], window[library.coarse_axis] = 1, 1
        found.insert(
            2,
            Setting(
                "joint in plane",
                {
                    "fusion": {
                        "method": "joint",
                        "joint": {"patch_radius_voxels": patch, "search_radius_voxels": window},
                    }
                },
                f"voxels are {library.anisotropy:.1f} times as long across slices: patches of 3 slices",
            ),
        )
    return found
