"""Regions that vote are finer than regions that stand alone, unless the recipe says how far to merge."""

import pytest

from atlasseg.recipe import parse_recipe
from atlasseg.regions.consistency import VOTING_THRESHOLD, voting_step


def step(**arguments):
    method = arguments.pop("method", "split_and_merge")
    return parse_recipe(
        {"fusion": {"method": "majority"}, "regions": {"method": method, method: arguments}}
    ).regions.method


def test_votes_have_a_threshold_of_their_own():
    assert voting_step(step(significance=0.01)).arguments == {"significance": 0.01, "merge_threshold": VOTING_THRESHOLD}


@pytest.mark.parametrize(
    "told", [{"merge_threshold": 7.0}, {"regions": 5}, {"method": "region_growing", "order": "queue"}]
)
def test_what_a_recipe_says_stands(told):
    assert voting_step(step(**told)).arguments == {k: v for k, v in told.items() if k != "method"}
