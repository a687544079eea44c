"""What is implausible about a scan or its registrations is told, and what is not is left alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from atlasseg import io, plausibility
from atlasseg.plausibility import Geometry, LibraryReference, check
from atlasseg.registration import affine
from atlasseg.transforms import Affine, DisplacementField
from atlasseg.volume import Atlas, Grid, Image, LabelMap, Mask

SHAPE, SPACING_MM = (44, 52, 40), (1.6, 1.5, 1.9)


def anatomy(seed: int, *, mirror: bool = False, other: int = 0) -> Image:
    """A lopsided egg of blobs, its own shape for each seed; `other` makes it of other blobs."""
    affine_ = np.diag([*SPACING_MM, 1.0])
    affine_[:3, 3] = -(np.array(SHAPE) - 1) / 2 * SPACING_MM
    at = np.moveaxis(np.indices(SHAPE), 0, -1) * SPACING_MM + affine_[:3, 3]
    if mirror:
        at = at * (-1, 1, 1)
    own = np.random.default_rng(seed)
    bend = np.stack([ndimage.gaussian_filter(own.normal(size=SHAPE), 5) for _ in range(3)], -1)
    at = at + bend / np.abs(bend).max() * 1.5
    rng = np.random.default_rng(100 + other)
    out = np.full(SHAPE, 0.6)
    for centre, size, height in zip(
        rng.uniform(-26, 26, (90, 3)), rng.uniform(3, 6, 90), rng.uniform(-0.6, 0.6, 90), strict=True
    ):
        out += height * np.exp(-((at - centre) ** 2).sum(axis=-1) / (2 * size**2))
    inside = (at[..., 0] / 24) ** 2 + (at[..., 1] / 30) ** 2 + (at[..., 2] / 26) ** 2 < 1
    noisy = np.maximum(out + own.normal(0, 0.02, SHAPE), 0.05)
    return Image(np.where(inside, noisy, 0).astype(np.float32), affine_, f"s{seed}")


def atlas(image: Image) -> Atlas:
    return Atlas(image.name, image, LabelMap((image.array > 0).astype(np.int32), image.affine))


@pytest.fixture(scope="module")
def library() -> list[Atlas]:
    return [atlas(anatomy(seed)) for seed in range(4)]


def kinds(scan: Image, library: list[Atlas], transforms: list[Affine] | None = None) -> set[str]:
    if transforms is None:
        transforms = affine.register(scan, [each.image for each in library])  # type: ignore[assignment]
    assert transforms is not None
    findings = check(scan, library, transforms)
    assert all(scan.name in finding.message and "got" in finding.message for finding in findings)
    return {finding.kind for finding in findings}


def test_nothing_is_said_of_a_scan_of_the_same_kind(library: list[Atlas]) -> None:
    assert kinds(anatomy(11), library) == set()


def test_a_header_ten_times_too_large(library: list[Atlas]) -> None:
    scan = anatomy(11)
    large = Image(scan.array, np.diag([10.0, 10, 10, 1]) @ scan.affine, "large")
    assert kinds(large, library, [Affine.identity()] * 4) >= {"voxel size", "field of view", "foreground"}


def test_a_mirrored_scan(library: list[Atlas]) -> None:
    assert kinds(anatomy(11, mirror=True), library) & {"left-right", "similarity"}
    scan, small = anatomy(11, mirror=True), library[0].image
    plain, mirror = plausibility.mirror_similarities(scan, small, Affine.identity())
    assert mirror > 1.3 * plain


def test_left_and_right_are_compared_with_several_atlases() -> None:
    clear = [(0.5, 0.6), (0.55, 0.6), (0.5, 0.52)]
    (finding,) = plausibility.check_sides("s", clear)
    assert finding.kind == "left-right"
    assert plausibility.check_sides("s", [*clear, (0.6, 0.45), (0.6, 0.46)]) == []  # two atlases say the contrary
    assert plausibility.check_sides("s", [(0.5, 0.5005), (0.5, 0.502), (0.5, 0.499)]) == []  # too little to tell
    assert plausibility.check_sides("s", [*clear[:2], (0.5, float("nan"))]) == []
    assert plausibility.check_sides("s", clear[:2]) == []
    assert plausibility.check_sides("s", []) == []


def test_symmetric_anatomies_have_no_sides(library: list[Atlas]) -> None:
    """Where mirrored atlases are as similar to each other as plain ones, a mirrored scan is not looked for."""

    def compare(images: list[Image]) -> list[tuple[float, float]]:
        pairs = plausibility.pairs_of(len(images))
        return [plausibility.pair_mirror_similarities(images[a], images[b], None, None) for a, b in pairs]

    plain = [each.image for each in library]
    even = [
        Image((image.array + anatomy(seed, mirror=True).array) / 2, image.affine) for seed, image in enumerate(plain)
    ]
    assert plausibility.shows_sides(compare(plain)) and not plausibility.shows_sides(compare(even))


@pytest.mark.parametrize("motion", ["upside down", "far off"])
def test_registrations_that_failed_all_alike(library: list[Atlas], motion: str) -> None:
    matrix = np.eye(4)
    if motion == "upside down":
        matrix[:3, :3] = np.diag([1, -1, -1])
    else:
        matrix[:3, 3] = (14, -12, 16)
    found = kinds(anatomy(11), library, [Affine(matrix)] * 4)
    assert "similarity" in found
    assert ("orientation" in found) == (motion == "upside down")


def test_deformations_are_judged_by_their_linear_part(library: list[Atlas]) -> None:
    scan = anatomy(11)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("x", 170, degrees=True).as_matrix()
    field = np.random.default_rng(0).normal(0, 0.5, (*SHAPE, 3)).astype(np.float32)
    bent = Affine(matrix) @ DisplacementField(field, scan.affine)
    points = scan.grid.corners_mm
    np.testing.assert_allclose(
        plausibility.linear_part(bent, np.random.default_rng(1).uniform(-20, 20, (4000, 3))).matrix, matrix, atol=0.05
    )
    assert plausibility.linear_part(Affine(matrix), points).matrix is not None
    assert {f.kind for f in check(scan, library, [bent] * 4)} >= {"similarity", "orientation"}


def test_a_half_is_no_finding_and_a_thin_part_is(library: list[Atlas]) -> None:
    scan = anatomy(11)
    assert kinds(scan.cropped((0, 0, 0), (44, 52, 20)), library, [Affine.identity()] * 4) == set()
    assert "foreground" in kinds(scan.cropped((0, 0, 0), (44, 52, 8)), library, [Affine.identity()] * 4)


def test_another_organ_and_noise(library: list[Atlas]) -> None:
    assert "similarity" in kinds(anatomy(11, other=1), library)
    rng = np.random.default_rng(3)
    noise = Image(rng.normal(size=SHAPE).astype(np.float32), anatomy(0).affine, "noise")
    assert "similarity" in kinds(noise, library, [Affine.identity()] * 4)


def test_the_scale_of_intensities_makes_no_finding(library: list[Atlas]) -> None:
    scan = anatomy(11)
    assert kinds(scan.with_array(scan.array * 4000), library, [Affine.identity()] * 4) == set()


def test_an_anatomy_of_another_size_and_an_atlas_that_covers_little(library: list[Atlas]) -> None:
    (finding,) = plausibility.check_transforms("s", [Affine(np.diag([1.9, 1.9, 1.9, 1]))], [1.0])
    assert finding.kind == "size"
    (finding,) = plausibility.check_transforms("s", [Affine.identity()], [0.4])
    assert finding.kind == "overlap"
    assert plausibility.check_transforms("s", [Affine(np.diag([1.2, 0.9, 1.1, 1]))], [0.9]) == []


def test_half_of_the_atlases_must_be_far_off() -> None:
    known = LibraryReference((Geometry(1, 1, 1),), 1.0, (0.5, 0.52, 0.48))
    assert plausibility.check_similarity("s", [0.5, 0.49, 0.1], known) == []
    (finding,) = plausibility.check_similarity("s", [0.1, 0.12, 0.5], known)
    assert "0.50" in finding.message and "2 of 3" in finding.message
    assert plausibility.check_similarity("s", [float("nan")], known) != []
    alone = LibraryReference((Geometry(1, 1, 1),), 1.0, ())
    assert plausibility.check_similarity("s", [0.01], alone) == []


def test_a_mask_says_where_to_compare(library: list[Atlas]) -> None:
    scan = anatomy(11)
    mask = Mask(ndimage.binary_erosion(scan.array > 0, iterations=3), scan.affine)
    clutter = np.random.default_rng(2).uniform(0, 2, SHAPE).astype(np.float32)
    cluttered = Image(np.where(scan.array > 0, scan.array, clutter), scan.affine, "cluttered")
    assert "similarity" not in {f.kind for f in check(cluttered, library, [Affine.identity()] * 4, mask=mask)}


def test_coarse_images_keep_their_place() -> None:
    rng = np.random.default_rng(5)
    affine_ = np.diag([-0.9, 1.1, 2.0, 1.0])
    affine_[:3, 3] = (4, 5, 6)
    image = Image(rng.normal(size=(13, 12, 9, 2)).astype(np.float32), affine_)
    small = plausibility.coarsen(image, 4.0)
    assert small.shape == (3, 3, 4)
    np.testing.assert_allclose(small.array[1, 2, 3], image.array[4:8, 8:12, 6:8].mean(axis=(0, 1, 2)), rtol=1e-5)
    corner = image.affine @ [1.5, 1.5, 0.5, 1]
    np.testing.assert_allclose(small.affine[:, 3], corner)
    assert Grid(small.shape, small.affine).spacing_mm == pytest.approx((3.6, 4.4, 4.0))


def test_thin_and_constant_scans_are_compared_by_geometry_alone(library: list[Atlas]) -> None:
    scan = anatomy(11).cropped((0, 0, 20), (44, 52, 21))
    assert check(scan, library, [Affine.identity()] * 4) is not None
    flat = Image(np.ones(SHAPE, np.float32), anatomy(0).affine, "flat")
    assert {f.kind for f in check(flat, library, [Affine.identity()] * 4)} == {"foreground"}


def test_hippocampus_targets_raise_no_alarm(real_data) -> None:  # type: ignore[no-untyped-def]
    folder = real_data / "hippocampus"
    library = [
        Atlas(path.stem, io.read_image(path), io.read_label_map(folder / "atlases/labels" / path.name))
        for path in sorted((folder / "atlases" / "images").glob("*.nii.gz"))[:6]
    ]
    scan = io.read_image(sorted((folder / "targets" / "images").glob("*.nii.gz"))[0])
    assert kinds(scan, library) == set()
    upside_down = np.eye(4)
    upside_down[:3, :3] = np.diag([1, -1, -1])
    upside_down[:3, 3] = scan.grid.centre_mm - upside_down[:3, :3] @ scan.grid.centre_mm
    assert kinds(scan, library, [Affine(upside_down)] * 6) >= {"similarity", "orientation"}


def test_sides_are_shown_only_beyond_chance() -> None:
    """Ratios measured on brains, which show their sides, and on masked mouse brains, which do not."""
    brains = [(1.0, gain) for gain in (0.992, 1.01, 0.994, 0.99, 0.984, 0.982, 0.986, 0.996)]
    mice = [(1.0, gain) for gain in (1.003, 0.977, 0.983, 0.973, 1.002)]
    assert np.mean(mice, axis=0)[1] < np.mean(brains, axis=0)[1] < 0.995
    assert plausibility.shows_sides(brains) and not plausibility.shows_sides(mice)
    assert plausibility.shows_sides([*brains, (1.0, float("nan"))])
    assert not plausibility.shows_sides(brains[4:6]) and not plausibility.shows_sides([])
