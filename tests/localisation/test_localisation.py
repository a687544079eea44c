"""Localisation of a small organ: correlation against brute force, phantoms against their truth, messages."""

import logging
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

import atlasseg
from atlasseg.errors import InputError
from atlasseg.localisation import _views, agreement, combined, template_search, voting_forest
from atlasseg.localisation._correlation import CorrelationMap
from atlasseg.localisation._views import View, list_bases, list_linear_parts, list_views, thick_axis
from atlasseg.localisation.result import describe_view
from atlasseg.phantoms import small_organ, tilted_grid
from atlasseg.pipeline import align, segment
from atlasseg.recipe import parse_recipe
from atlasseg.report import page
from atlasseg.transforms import Affine
from atlasseg.volume import Atlas, Grid, Image, LabelMap, Mask

SMALL = {"shape": (44, 40, 8), "spacing_mm": (5.4, 5.4, 12.0)}


@pytest.fixture(scope="module")
def atlases():
    return [small_organ(f"atlas{n}", seed=10 + n, **SMALL) for n in range(4)]


@pytest.fixture(scope="module")
def target():
    return small_organ("target", seed=3, off_centre_mm=55, **SMALL)


@pytest.fixture(scope="module")
def found(target, atlases):
    return template_search.localise(target.image, atlases, places=2, quarter_turns=False)


def centre_mm(atlas):
    where = np.array(ndimage.center_of_mass(atlas.segmentation.array > 0))
    return atlas.image.affine[:3, :3] @ where + atlas.image.affine[:3, 3]


def recipe(**tables):
    return parse_recipe(
        {
            "registration": {"steps": ["affine"]},
            "fusion": {"method": "majority"},
            "localisation": {"method": "template_search", "template_search": {"places": 1, "quarter_turns": False}},
            **tables,
        }
    )


def test_correlation_equals_that_of_every_overlap():
    rng = np.random.default_rng(0)
    image, template = rng.normal(size=(9, 7, 6)), rng.normal(size=(5, 3, 3))
    weight = rng.uniform(size=template.shape) * (rng.uniform(size=template.shape) > 0.2)
    known = rng.uniform(size=image.shape) > 0.1
    images = CorrelationMap(image.astype(np.float32), known, template.shape)
    result = images.correlate(template.astype(np.float32), weight.astype(np.float32), least_overlap=0.5)
    wide = [np.pad(array, [(2, 2), (1, 1), (1, 1)]) for array in (image, known.astype(float))]
    expected = np.full(image.shape, -1.0)
    for at in np.ndindex(image.shape):
        part, there = (array[tuple(slice(a, a + n) for a, n in zip(at, template.shape, strict=True))] for array in wide)
        w = weight * there
        if w.sum() >= 0.5 * weight.sum():
            a, b = part - np.average(part, weights=w), template - np.average(template, weights=w)
            apart = np.average(part, weights=w) - np.average(template, weights=w)
            both, var_a, var_b = (np.average(x * y, weights=w) for x, y in ((a, b), (a, a), (b, b)))
            expected[at] = (both / np.sqrt(var_a * var_b) + 2 * both / (var_a + var_b + apart**2)) / 2
    assert (expected > -1).mean() > 0.5
    np.testing.assert_allclose(result, expected, atol=2e-4)


def test_the_organ_is_found_where_it_is(target, found, atlases):
    assert found.found and not found.message
    assert np.linalg.norm(np.array(found.places[0].centre_mm) - centre_mm(target)) < 12
    assert found.places[0].votes >= 3 and found.places[0].similarity == max(p.similarity for p in found.places)
    inside = target.segmentation.array[tuple(slice(a, b) for a, b in zip(found.start, found.stop, strict=True))] > 0
    assert inside.sum() == (target.segmentation.array > 0).sum()  # the box holds all of it
    assert (found.region.array & inside).sum() > 0.97 * inside.sum()
    assert inside.size < 0.6 * target.segmentation.array.size
    for pose, atlas, transform in zip(found.poses, atlases, found.transforms, strict=True):
        assert pose.keep and pose.atlas == atlas.id and 0.6 < pose.scale < 1.6
        assert np.linalg.norm(transform(centre_mm(target)) - centre_mm(atlas)) < 22


def test_the_same_atlases_in_another_order_give_the_same(target, atlases):
    found, again = (
        template_search.localise(target.image, each, places=1, quarter_turns=False)
        for each in (atlases[:2], atlases[1::-1])
    )
    assert again.places[0].centre_mm == pytest.approx(found.places[0].centre_mm, abs=1e-3)
    assert [p.atlas for p in again.poses] == [p.atlas for p in found.poses][::-1]


def test_segmentation_in_the_box_beats_that_of_the_whole_view(target, atlases):
    dice = {}
    for name, made in {"localised": recipe(), "whole": recipe(localisation={})}.items():
        result = segment(target.image, atlases, made)
        assert result.labels.grid.matches(target.image.grid)
        dice[name] = overlap(result.labels.array > 0, target.segmentation.array > 0)
        assert (result.alignment.localisation is None) == (name == "whole")
    assert dice["localised"] > 0.9 and dice["localised"] > dice["whole"]


def overlap(one, two):
    return 2 * (one & two).sum() / (one.sum() + two.sum())


def test_an_atlas_that_shows_something_else_is_dropped_by_name(target, atlases, caplog):
    rng = np.random.default_rng(4)
    other = atlases[0]
    noise = Image(rng.uniform(size=other.shape).astype(np.float32), other.image.affine, "noise")
    library = [*atlases, replace(other, id="noise", image=noise)]
    with caplog.at_level(logging.WARNING):
        found = align(target.image, library, recipe())
    assert "target: atlas noise left out" in caplog.text
    assert [c.atlas.id for c in found.candidates] == [a.id for a in atlases]
    assert [p.atlas for p in found.localisation.poses if not p.keep] == ["noise"]
    assert found.localisation.poses[-1].reason


def test_a_scan_without_the_organ_is_registered_whole_and_this_is_said(atlases, caplog):
    noise = np.random.default_rng(8).uniform(size=atlases[0].shape).astype(np.float32)
    scan = Image(noise, atlases[0].image.affine, "empty")
    with caplog.at_level(logging.WARNING):
        found = align(scan, atlases, recipe())
    assert "empty: the organ was not localised" in caplog.text and "The whole view is registered instead" in caplog.text
    assert not found.localisation.found and found.start == (0, 0, 0) and found.target.shape == scan.shape


def test_atlases_that_resemble_each_other_more_than_the_scan_are_told(target, found, atlases):
    assert "less similar" not in found.message
    inverted = target.image.with_array(target.image.array.max() - target.image.array)
    other = template_search.localise(inverted, atlases, places=2, quarter_turns=False)
    assert other.found and "less similar to the scan" in other.message and "another contrast" in other.message
    usual = float(other.message.split("each other (")[1][:4])
    own = np.median([pose.similarity for pose in found.poses])
    assert 0.8 * own < usual < 1.25 * own  # atlases of a kind have among themselves what they have with a scan of it


def test_the_page_shows_places_poses_and_doubts(found):
    shown = page._localisation(SimpleNamespace(localisation=replace(found, message="a scan of T2 < T1. Check it")))
    text = " ".join(re.sub(r"<[^>]+>", " ", str(shown)).split())
    assert "A scan of T2 &lt; T1. Check it." in text
    box = " x ".join(f"{a} to {b - 1}" for a, b in zip(found.start, found.stop, strict=True))
    assert f"in the voxels {box} of the scan" in text and "1 (chosen)" in text
    for pose in found.poses:
        assert f"{pose.atlas} {pose.similarity:.2f} {pose.apart_mm:.1f}" in text
    nowhere = replace(found, found=False, places=(), poses=(), message="not found")
    assert "in the voxels" not in str(page._localisation(SimpleNamespace(localisation=nowhere)))


def test_doubts_do_not_hide_each_other(target, atlases):
    mirrored = Image(target.image.array[::-1].copy(), target.image.affine, "mirrored")
    labels = target.segmentation.with_array(target.segmentation.array[::-1].copy())
    centre = centre_mm(replace(target, labels=labels))
    search = template_search.prepare_search(mirrored, atlases, None, None, 0.5)
    places = [(template_search.Place(tuple(centre), 0, 0.0), View(mirrored=True))]
    told = template_search.settle(search, mirrored, atlases, places, [centre + 200.0] * len(atlases)).message
    assert "0 of 4 atlases find the organ at this place" in told and "Check left and right" in told


@pytest.mark.parametrize("part", ["slice", "corner", "mask"])
@pytest.mark.parametrize("way", [template_search, combined])
def test_a_view_that_cannot_hold_the_organ_is_registered_whole(target, atlases, part, way):
    image, mask = target.image, None
    if part == "slice":
        image = image.cropped((0, 0, 3), (44, 40, 4))
    elif part == "corner":
        image = image.cropped((0, 0, 0), (6, 6, 3))
    else:
        known = np.zeros(image.shape, bool)
        known[:3, :3, :2] = True
        mask = Mask(known, image.affine)
    trees = {"trees": 2} if way is combined else {}
    told = way.localise(image, atlases, target_mask=mask, places=1, quarter_turns=False, **trees)
    assert not told.found and told.message.startswith("the organ was not localised")


def test_a_view_turned_in_the_slice_is_found_and_said(atlases):
    turn = 90
    scan = small_organ("turned", seed=3, contrast=0.1, **SMALL)
    affine = scan.image.affine.copy()
    normal = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    matrix = np.eye(4)
    matrix[:3, :3] = _views.rotation_about(normal, turn)
    image = Image(scan.image.array, matrix @ affine, "turned")
    found = template_search.localise(image, atlases, places=2)
    truth = matrix[:3, :3] @ centre_mm(scan)
    assert found.found and np.linalg.norm(np.array(found.places[0].centre_mm) - truth) < 25
    if found.places[0].turned_degrees:
        assert f"turned by {found.places[0].turned_degrees:.0f} degrees" in found.message


def test_a_mirror_image_is_found_only_if_asked(atlases):
    scan = small_organ("mirrored", seed=3, contrast=0.1, **SMALL)
    image = Image(scan.image.array[::-1].copy(), scan.image.affine, "mirrored")
    truth = np.array(ndimage.center_of_mass(scan.segmentation.array[::-1] > 0))
    truth = image.affine[:3, :3] @ truth + image.affine[:3, 3]
    found = template_search.localise(image, atlases, mirrored=True, quarter_turns=False, places=2)
    assert np.linalg.norm(np.array(found.places[0].centre_mm) - truth) < 25
    assert found.places[0].mirrored and "mirrored" in found.message and "Check left and right" in found.message
    usual = template_search.localise(image, atlases, quarter_turns=False, places=1)
    assert not any(place.mirrored for place in usual.places)


def test_views_and_poses():
    thick, cubic = tilted_grid((20, 22, 6), spacing_mm=(1, 1, 5)), tilted_grid((20, 22, 24), spacing_mm=(1, 1, 1.2))
    assert thick_axis(thick) == 2 and thick_axis(cubic) is None
    assert len(list_views(thick, quarter_turns=True, mirrored=True)) == 8
    assert list_views(cubic, quarter_turns=True, mirrored=False) == [View()]
    assert describe_view(0, False) == "" and describe_view(270, False) == "turned by 270 degrees"
    for view in list_views(thick, quarter_turns=True, mirrored=True):
        parts = np.array(list_linear_parts(thick, thick, view))
        assert np.sign(np.linalg.det(parts)).tolist() == [-1 if view.mirrored else 1] * len(parts)
        normal = thick.affine[:3, 2] / 5
        np.testing.assert_allclose(np.abs(parts @ normal @ normal) / np.linalg.det(parts).__abs__() ** (1 / 3), 1)


def test_slices_of_other_obliqueness_correspond():
    one = tilted_grid((20, 22, 6), spacing_mm=(1, 1, 5), angles_degrees=(40, 0, 0))
    other = tilted_grid((20, 22, 6), spacing_mm=(1, 1, 5), angles_degrees=(0, 35, 10))
    header, slices = list_bases(one, other)
    np.testing.assert_array_equal(header, np.eye(3))
    np.testing.assert_allclose(slices @ one.affine[:3, 2], other.affine[:3, 2], atol=1e-9)
    assert np.linalg.det(slices) == pytest.approx(1)
    assert len(list_bases(one, one)) == 1


def test_atlases_that_put_their_labels_elsewhere_disagree():
    grid = Grid((12, 10, 8), np.diag([1.0, 1.1, 2, 1]))
    candidates = []
    for n in range(5):
        labels = np.zeros(grid.shape, np.int32)
        labels[(slice(7, 11) if n == 3 else slice(1, 6)), 2 + n % 2 : 8, 2:6] = 1 + n % 2
        candidates.append(Atlas(str(n), Image(labels.astype(float), grid.affine), LabelMap(labels, grid.affine)))
    reasons = agreement.find_disagreeing(candidates)
    assert [bool(reason) for reason in reasons] == [False, False, False, True, False]
    assert "Dice of 0.00 with the vote of the other atlases" in reasons[3]
    assert agreement.find_disagreeing(candidates[1:4]) == ["", "", ""]


def test_bad_input_is_named(target, atlases):
    with pytest.raises(InputError, match=r"target: expected at least one atlas"):
        template_search.localise(target.image, [])
    nothing = replace(atlases[0], labels=LabelMap(np.zeros(atlases[0].shape), atlases[0].image.affine))
    with pytest.raises(InputError, match=r"expected a label above 0 in atlas 'atlas0'"):
        template_search.localise(target.image, [nothing])
    two = Image(np.repeat(target.image.channels, 2, axis=3), target.image.affine, "target")
    with pytest.raises(InputError, match=r"atlas0: expected 2 channels like target, got 1"):
        template_search.localise(two, atlases)


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        ({"registration": {"prepared": "x", "steps": ["affine"]}}, r"\[registration\] prepared"),
        ({"registration": {"initial": "{target}_{atlas}.h5", "steps": ["affine"]}}, r"\[registration\] initial"),
        ({"preprocessing": {"mask": "brain"}}, r"\[preprocessing\] mask"),
    ],
)
def test_a_recipe_has_one_place_to_start_from(tables, named):
    with pytest.raises(InputError, match=rf"\[localisation\] method and {named}"):
        recipe(**tables)


def test_masks_of_scans_count(target, atlases):
    inside = np.ones(target.shape, bool)
    inside[:4] = False
    mask = Mask(inside, target.image.affine)
    found = align(target.image, atlases, recipe(), mask=mask)
    assert found.localisation.found
    start, stop = found.localisation.start, found.localisation.stop
    assert not (found.target_mask.array & ~mask.cropped(start, stop).array).any()


def test_selection_starts_from_the_place(target, atlases):
    with_first = align(target.image, atlases, recipe(selection={"before": 2, "by": "first_step"}))
    assert len(with_first.candidates) == 2


def test_python_takes_localise(target, atlases):
    result = atlasseg.segment(
        target.image,
        atlases[:2],
        "majority",
        localise=True,
        overrides=[
            'registration.steps=["rigid"]',
            "localisation.places=1",
            "localisation.forest_places=1",
            "localisation.trees=10",
        ],
    )
    assert result.alignment.localisation.found


def test_a_forest_finds_the_place(target, atlases):
    found = voting_forest.localise(target.image, atlases, places=1, trees=20)
    assert found.found and found.places[0].votes == 4 and 0.2 < found.places[0].score <= 1
    assert np.linalg.norm(np.array(found.places[0].centre_mm) - centre_mm(target)) < 12


def test_both_ways_give_candidates(target, atlases):
    found = combined.localise(target.image, atlases[:2], places=2, forest_places=2, trees=10, quarter_turns=False)
    assert found.found and len(found.places) == 4
    assert np.linalg.norm(np.array(found.places[0].centre_mm) - centre_mm(target)) < 15


def test_known_place(target, atlases):
    found = template_search.localise_at(target.image, atlases[:2], centre_mm(target))
    assert found.found and len(found.places) == 1
    assert all(isinstance(transform, Affine) for transform in found.transforms)
