"""Contract over all methods: the second channel of a scan changes the result, or the method refuses it by name."""

import numpy as np
import pytest
from scipy import ndimage

from atlasseg import methods
from atlasseg.errors import InputError, MissingLibraryError
from atlasseg.pipeline import align
from atlasseg.recipe import parse_recipe
from atlasseg.transforms import grid_points
from atlasseg.volume import Atlas, Image, LabelMap, Mask

SHAPE = (18, 20, 16)
AFFINE = np.diag([1.0, 1.2, 1.4, 1.0])
RANDOM = np.random.default_rng(11)
QUICK = {"diffeomorphic": {"iterations": (8, 4, 2)}, "ffd": {"iterations": (8, 4, 2)}}


def smooth(sigma=2.0):
    values = ndimage.gaussian_filter(RANDOM.standard_normal(SHAPE), sigma)
    return (values - values.min()) / np.ptp(values)


FIRST, SECOND, OTHER = smooth(), smooth(), smooth()
LABELS = np.searchsorted(np.quantile(FIRST, (0.6, 0.85)), FIRST).astype(np.int32)
WEIGHTED = ("rigid", "similarity", "affine", "ffd", "diffeomorphic", "coupled_convex")


def stack(*channels, shift=(0, 0, 0), name="scan"):
    moved = [ndimage.shift(channel, shift, order=1, mode="nearest") for channel in channels]
    return Image(np.stack(moved, axis=-1) if len(moved) > 1 else moved[0], AFFINE, name)


PAIR = stack(FIRST, SECOND), stack(FIRST, SECOND, shift=(1.4, 0.8, -0.7), name="atlas")
"""A target and an atlas that differ by a translation, in both channels."""
CHANGED = stack(FIRST, ndimage.shift(SECOND, (-1.5, 1, 1), order=1, mode="nearest"))
"""The target with its second channel elsewhere."""


def register(name, fixed, moving, **given):
    (found,) = methods.get("registration", name).function(fixed, [moving], **QUICK.get(name, {}), **given)
    return found(grid_points(fixed.grid))


@pytest.mark.parametrize("name", methods.names("registration"))
def test_registrations_use_the_second_channel_or_refuse_it(name):
    needs = methods.get("registration", name).needs
    if needs.channels == "one":
        with pytest.raises((InputError, MissingLibraryError), match=r"expected one channel|pip install"):
            register(name, *PAIR)
        return
    assert needs.channels == "all"
    before = register(name, *PAIR)
    assert np.abs(register(name, CHANGED, PAIR[1]) - before).max() > 0.01


@pytest.mark.parametrize("name", WEIGHTED)
def test_registrations_weigh_channels(name):
    start = {"initial": register_start()}
    alone = register(name, stack(FIRST), stack(FIRST, shift=(1.4, 0.8, -0.7), name="atlas"), **start)
    first_only = register(name, CHANGED, PAIR[1], channel_weights=(2.0, 0.0), **start)
    np.testing.assert_allclose(first_only, alone, atol=1e-3)  # a weight of 0 leaves a channel out
    plain = register(name, CHANGED, PAIR[1], **start)
    np.testing.assert_array_equal(register(name, CHANGED, PAIR[1], channel_weights=(3.0, 3.0), **start), plain)
    assert np.abs(first_only - plain).max() > 0.01
    with pytest.raises(InputError, match="channel_weights: expected 2 weights from 0"):
        register(name, CHANGED, PAIR[1], channel_weights=(1.0,), **start)


def register_start():
    return methods.get("registration", "rigid").function(stack(FIRST), [stack(FIRST, name="atlas")], iterations=1)


@pytest.mark.parametrize("name", methods.names("tissue"))
def test_tissue_models_use_the_second_channel(name):
    prior = 0.01 + 0.97 * np.eye(3)[LABELS.ravel()]
    known = prior / prior.sum(axis=1, keepdims=True) if name == "nearest_neighbours" else None
    inside = Mask(np.ones(SHAPE, bool), AFFINE)
    noisy = [10 * LABELS + RANDOM.normal(0, 2, SHAPE) for _ in range(3)]
    classify = methods.get("tissue", name).function
    before, after = (classify(stack(noisy[0], second), inside, known).probabilities.dense() for second in noisy[1:])
    assert np.abs(before - after).max() > 0.01


@pytest.mark.parametrize("name", methods.names("preprocessing"))
def test_preprocessing_uses_every_channel(name):
    method = methods.get("preprocessing", name)
    given = {"reference": stack(100 * OTHER + 3, 7 * OTHER)} if method.takes("reference") else {}
    out = method.function(stack(100 * FIRST, 50 * SECOND), **given)
    assert out.channels.shape[3] == 2
    assert not np.array_equal(out.channels[..., 1], np.float32(50 * SECOND))


def atlas(image, id_="atlas"):
    return Atlas(id_, image, LabelMap(LABELS, AFFINE))


def test_what_uses_one_channel_is_refused_before_any_work():
    recipe = parse_recipe({"registration": {"steps": ["affine", "thin_plate"]}, "fusion": {"method": "majority"}})
    with pytest.raises(InputError, match="scan: expected one channel for the registration thin_plate, got 2"):
        align(PAIR[0], [atlas(PAIR[1])], recipe)
    with pytest.raises(InputError, match="expected 2 channels, as in the target 'scan', got 1"):
        align(PAIR[0], [atlas(stack(FIRST))], recipe)


def test_a_recipe_weighs_channels_for_all_steps():
    steps = {"steps": ["affine", "ffd"], "channel_weights": [1, 0.5], "ffd": {"channel_weights": [1, 2]}}
    recipe = parse_recipe({"registration": steps, "fusion": {"method": "majority"}})
    assert [step.arguments["channel_weights"] for step in recipe.registration.steps] == [(1, 0.5), (1, 2)]
    with pytest.raises(InputError, match="channel_weights: expected steps that weigh channels, got syn"):
        parse_recipe({"registration": {**steps, "steps": ["syn"]}, "fusion": {"method": "majority"}})
