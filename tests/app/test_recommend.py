"""A recipe is recommended from leave-one-out measurements, and says what it was chosen by."""

import math
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import atlasseg
from atlasseg.app import recommend as module
from atlasseg.cli import app
from atlasseg.errors import InputError
from atlasseg.recipe import read_recipe
from atlasseg.recommendation import describe_properties, list_fusions, list_registrations, search


def table_of(dice, calls=None):
    """A measurement that reads a table, Dice by (registration, fusion)."""

    def measure(registration, case, fusions):
        if calls is not None:
            calls.append((registration, case, tuple(fusions)))
        return {fusion: (dice[registration, fusion] + 0.01 * case, 1.0) for fusion in fusions}

    return measure


GRID = {(a, b): 0.5 + 0.02 * n for n, (a, b) in enumerate((a, b) for a in "ABCD" for b in "xyzw")}


def test_halving_finds_the_best_pair_and_measures_fewer_than_the_grid():
    calls = []
    found = search("ABCD", "xyzw", list(range(8)), table_of(GRID, calls))
    assert found.best() == ("D", "w") and found.complete and found.cases == list(range(8))
    assert sum(len(fusions) for _, _, fusions in calls) < 0.6 * 4 * 4 * 8
    assert {name for name, case, _ in calls if case in (0, 1)} == set("ABCD")
    assert {name for name, case, _ in calls if case == 7} == {"C", "D"}


def test_time_decides_only_how_far_the_search_goes():
    calls, part = [], []
    search("ABCD", "xyzw", list(range(8)), table_of(GRID, calls))
    left = iter([True] * 6 + [False])
    found = search("ABCD", "xyzw", list(range(8)), table_of(GRID, part), fits=lambda name: next(left))
    assert part == calls[:6] and not found.complete
    assert found.cases == [0] and found.best() == ("D", "w")
    left = iter([True, True, False])
    found = search("ABCD", "xyzw", [5, 3], table_of(GRID), fits=lambda name: next(left))
    assert found.best() == ("B", "w") and found.cases == [5]
    assert search("A", "x", [0], table_of(GRID), fits=lambda name: False).best() is None


def test_of_equal_pairs_the_fastest_is_chosen_and_the_nested_dice_leaves_the_case_out():
    dice = {"x": [0.9, 0.1, 0.5], "y": [0.4, 0.6, 0.6]}
    found = search("A", "xy", [0, 1, 2], lambda a, n, chosen: {b: (dice[b][n], {"x": 1, "y": 9}[b]) for b in chosen})
    assert found.best() == ("A", "y")
    assert found.nested_dice() == [0.4, 0.1, 0.5]
    same = search("A", "xy", [0], lambda a, n, chosen: {b: (0.5, {"x": 9.0, "y": 1.0}[b]) for b in chosen})
    assert same.best() == ("A", "y") and same.nested_dice() == []


def test_candidates_follow_from_the_library_and_are_valid_recipes(heads):
    known = describe_properties(heads, persons=5)
    assert known.atlases == 5 and known.labels == len(set(np.concatenate([a.label_values for a in heads])) - {0})
    flat = replace(known, spacing_mm=(0.5, 0.5, 4.0), box_share=0.1)
    names = [[setting.name for setting in list_registrations(each)] for each in (known, flat)]
    assert set(names[1]) - set(names[0]) >= {"narrow window"} and "crop" in names[1]
    patch = next(s for s in list_fusions(flat) if s.name == "joint in plane").tables["fusion"]["joint"]
    assert patch == {"patch_radius_voxels": [2, 2, 1], "search_radius_voxels": [3, 3, 1]}
    for registration in list_registrations(flat):
        for fusion in list_fusions(flat):
            module._parse(registration, fusion)
            assert registration.reason and fusion.reason


@pytest.fixture
def heads(_small_heads):
    """Five atlases."""
    return [head.atlas for head in _small_heads]


@pytest.fixture
def few(monkeypatch):
    """Two registrations and two fusions, so that the search is short."""
    monkeypatch.setattr(module, "list_registrations", lambda known: list_registrations(known)[:2])
    monkeypatch.setattr(module, "list_fusions", lambda known: list_fusions(known)[2:4])


def test_the_recipe_is_the_best_of_what_was_tried(few, dataset):
    out, folder = dataset / "recipe.toml", str(dataset / "atlases")
    (dataset / "atlases/subjects.tsv").write_text("id\tsubject\nhead0\ta\nhead1\ta\nhead2\tb\n")
    told = CliRunner().invoke(app, ["recommend", folder, "--minutes", "5", "-o", str(out)])
    assert told.exit_code == 0, told.output
    text = out.read_text()
    recipe = read_recipe(out)
    assert recipe.data.atlases == (dataset / "atlases",) and "Expected Dice" in text and "Chosen: " in text
    words = " ".join(text.replace("#", " ").split())
    assert "by subjects.tsv" in words and "3 atlases of 2 persons" in words
    assert tomllib.loads(text)["fusion"]["method"] in ("local_weighted", "majority")
    again = CliRunner().invoke(app, ["recommend", folder, "-o", str(out)])
    assert again.exit_code == 2 and "expected a new file" in again.stderr


def test_no_other_scan_of_a_person_votes_and_dice_is_that_of_a_run(few, heads):
    heads = heads[:3]
    found = atlasseg.recommend(heads, minutes=5)
    best = found.tried.iloc[0]
    registration = next(
        s for s in list_registrations(describe_properties(heads, persons=3)) if s.name == best["registration"]
    )
    assert found.recipe.registration.steps[-1].name == registration.tables["registration"]["steps"][-1]
    own = atlasseg.compare(heads, heads, ["local_weighted", "majority"], found.recipe).scores.mean()
    assert best["dice"] == pytest.approx(own[best["fusion"]], abs=1e-6)
    trial = module._Trial(heads, [0, 0, 1], {}, {}, None, 0.0, print)
    assert [atlas.id for atlas in trial.voters(0)] == ["head2"]
    assert [atlas.id for atlas in trial.voters(2)] == ["head0", "head1"]


def test_a_library_that_cannot_leave_out_says_so(heads):
    one = atlasseg.recommend(heads[:1])
    assert one.recipe.fusion.method.name == "majority" and math.isnan(one.expected_dice) and one.tried.empty
    assert "nothing was tried" in one.text
    late = atlasseg.recommend(heads[:3], minutes=1e-9)
    assert late.tried.empty and "no time to try" in late.text and "diffeomorphic" in late.not_tried


def test_bad_input_is_refused(dataset):
    for minutes in (0, -1, math.nan, "long"):
        with pytest.raises(InputError, match="minutes: expected a number above 0"):
            atlasseg.recommend(dataset / "atlases", minutes=minutes)
    (dataset / "atlases/images/head1.nii.gz").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"head1\.nii\.gz"):
        atlasseg.recommend(dataset / "atlases")
