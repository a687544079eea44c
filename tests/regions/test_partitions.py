"""What holds for every method that cuts a volume into regions, and what is special to each."""

import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label as components

from atlasseg import methods
from atlasseg.errors import GeometryError, InputError
from atlasseg.regions import region_growing, split_and_merge, watershed
from atlasseg.volume import Image, LabelMap, Mask

OBLIQUE = np.array([[1.1, 0.2, 0, 5], [-0.3, 1.4, 0.1, -7], [0.0, 0.1, 2.5, 30], [0, 0, 0, 1.0]])
PARTITIONS = {name: methods.get("regions", name).function for name in methods.names("regions")}
FOUND = 0.95  # share of voxels of a structure four noise deviations from its surroundings that is one region


def blobs(shape=(17, 21, 13), channels=1, seed=0):
    """A bright box in a dark volume, the truth as labels 1 and 2."""
    rng = np.random.default_rng(seed)
    truth = np.ones(shape, np.int32)
    truth[shape[0] // 4 : shape[0] // 4 * 3, shape[1] // 3 :, 2:] = 2
    array = rng.normal(0, 1, (*shape, channels)) + 12.0 * (truth == 2)[..., None]
    return Image(array.astype(np.float32), OBLIQUE), truth


def dice(found, truth, label):
    """Dice of a structure and the region that covers most of it."""
    inside = found[truth == label]
    region = np.bincount(inside).argmax()
    return 2 * (inside == region).sum() / ((found == region).sum() + (truth == label).sum()) if region else 0.0


def test_the_issue_has_three_methods():
    assert set(PARTITIONS) == {"split_and_merge", "region_growing", "watershed"}


@pytest.mark.parametrize("name", PARTITIONS)
@pytest.mark.parametrize("channels", [1, 2])
def test_regions_are_connected_and_cover_structures(name, channels):
    image, truth = blobs(channels=channels)
    seeds = np.zeros(truth.shape, np.int32)
    seeds[0, 0, 0], seeds[8, 15, 8] = 1, 2
    given = {"seeds": LabelMap(seeds, OBLIQUE), "global_difference": 4.5} if name == "region_growing" else {}
    found = PARTITIONS[name](image, **given)
    assert found.grid.matches(image.grid)
    for region in found.values[found.values != 0]:
        assert components(found.array == region)[1] == 1, f"region {region} falls apart"
    for label in (1, 2):
        assert dice(found.array, truth, label) > FOUND


@pytest.mark.parametrize("name", PARTITIONS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 1), (6, 1, 7), (2, 1, 1), (5, 4, 3)])
def test_constant_and_thin_volumes_are_one_region(name, shape):
    found = PARTITIONS[name](Image(np.full(shape, 7.5), OBLIQUE))
    assert (found.array == 1).all()


@pytest.mark.parametrize("name", PARTITIONS)
def test_thin_volumes_are_cut_like_thick_ones(name):
    array = np.zeros((12, 1, 14), np.float32)
    array[:6] = 20
    array += np.random.default_rng(1).normal(0, 1, array.shape).astype(np.float32)
    found = PARTITIONS[name](Image(array, OBLIQUE)).array
    assert not set(np.unique(found[:5])) & set(np.unique(found[7:])) - {0}


@pytest.mark.parametrize("name", ["split_and_merge", "watershed"])
def test_a_number_of_regions_can_be_asked_for(name):
    image, truth = blobs()
    found = PARTITIONS[name](image, regions=2)
    np.testing.assert_array_equal(found.values, [1, 2])
    assert min(dice(found.array, truth, 1), dice(found.array, truth, 2)) > FOUND
    with pytest.raises(InputError, match=f"most the {image.array.size} voxels .*got {image.array.size + 1}"):
        PARTITIONS[name](image, regions=image.array.size + 1)
    with pytest.raises(InputError, match="regions: expected at most"):
        PARTITIONS[name](Image(np.zeros((3, 3, 3)), OBLIQUE), regions=9)


def test_split_and_merge_at_zero_gives_components_of_equal_values():
    array = np.random.default_rng(2).integers(0, 3, (7, 9, 5)).astype(np.float32)
    found = split_and_merge.partition(Image(array, OBLIQUE), homogeneity="range", split_threshold=0.0).array
    assert len(np.unique(found)) == sum(components(array == value)[1] for value in range(3))
    assert all(np.ptp(array[found == region]) == 0 for region in np.unique(found))


# ------------------------------------------------------------------------------------------------------------ growing


def slow_growing(x, seeds, local, overall):
    """Best first with a sorted list: all of the least difference at once, measured when they were offered."""
    labels = seeds.copy()
    sums = {r: [x[labels == r].sum(), (labels == r).sum()] for r in np.unique(labels[labels > 0])}
    offers = []

    def offer(voxels):
        for at in voxels:
            for axis, step in itertools.product(range(3), (-1, 1)):
                to = list(at)
                to[axis] += step
                to = tuple(to)
                if min(to) < 0 or any(t >= n for t, n in zip(to, x.shape, strict=True)) or labels[to]:
                    continue
                row = labels[at]
                off = abs(x[to] - sums[row][0] / sums[row][1])
                if abs(x[to] - x[at]) <= local and off <= overall:
                    offers.append((off, row, to))

    offer([tuple(at) for at in np.argwhere(labels > 0)])
    while offers:
        offers.sort()
        least = offers[0][0]
        batch = [o for o in offers if o[0] == least]
        offers[:] = [o for o in offers if o[0] != least]
        joined = []
        for _, row, at in batch:
            if labels[at] == 0:
                labels[at] = row
                joined.append(at)
        for at in joined:
            sums[labels[at]][0] += x[at]
            sums[labels[at]][1] += 1
        offer(joined)
    return labels


@pytest.mark.parametrize("whole", [True, False])
def test_growing_is_that_of_the_plain_algorithm(whole):
    rng = np.random.default_rng(6)
    # whole numbers make many ties; sums of eighths are exact, so that the plain algorithm ties where ours does
    x = rng.integers(0, 8, (6, 7, 5)).astype(np.float64) if whole else rng.integers(0, 4096, (6, 7, 5)) / 512
    seeds = np.zeros(x.shape, np.int32)
    seeds[0, 0, 0], seeds[5, 6, 4], seeds[2, 3, 1] = 4, 2, 9
    ours = region_growing.partition(
        Image(x, OBLIQUE),
        seeds=LabelMap(seeds, OBLIQUE),
        local_difference=4.0,
        global_difference=3.0,
        noise_sd=(1.0,),
    )
    expected = slow_growing(x, seeds, 4.0, 3.0)
    assert 20 < (expected > 0).sum() < x.size
    np.testing.assert_array_equal(ours.array, expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.permutations([0, 1, 2]), st.tuples(*[st.booleans()] * 3), st.booleans())
def test_order_independent_growing_does_not_see_axes_or_flips(seed, axes, flips, ties):
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 5, (7, 6, 5)) if ties else rng.normal(0, 2, (7, 6, 5))
    seeds = np.zeros(array.shape, np.int32)
    seeds[1, 1, 1], seeds[5, 4, 3], seeds[3, 5, 0] = 1, 2, 3
    flipped = tuple(slice(None, None, -1) if f else slice(None) for f in flips)

    def grown(values, marks):
        image = Image(np.ascontiguousarray(values), np.eye(4))
        seeded = LabelMap(np.ascontiguousarray(marks), np.eye(4))
        return region_growing.partition(image, seeds=seeded, noise_sd=(1.0,)).array

    straight = grown(array, seeds).transpose(axes)[flipped]
    np.testing.assert_array_equal(straight, grown(array.transpose(axes)[flipped], seeds.transpose(axes)[flipped]))


@pytest.mark.parametrize("first", [1, 2])
def test_a_voxel_between_two_equal_regions_joins_the_smaller_label(first):
    seeds = np.zeros((7, 1, 1), np.int32)
    seeds[0], seeds[6] = first, 3 - first
    grown = region_growing.partition(
        Image(np.full(seeds.shape, 4.0), OBLIQUE), seeds=LabelMap(seeds, OBLIQUE), noise_sd=(1.0,)
    )
    np.testing.assert_array_equal(grown.array.reshape(-1), [first] * 3 + [1] + [3 - first] * 3)


def test_queue_growing_keeps_both_limits():
    image, _ = blobs()
    seeds = np.zeros(image.shape, np.int32)
    seeds[0, 0, 0] = 3
    grown = region_growing.partition(
        image, seeds=LabelMap(seeds, OBLIQUE), order="queue", global_difference=3.0, local_difference=None
    )
    inside = image.array[..., 0][grown.array == 3]
    assert inside.size > 100 and np.ptp(inside) < 2 * 3.5 and set(np.unique(grown.array)) == {0, 3}


def test_without_limits_every_voxel_is_reached():
    image, _ = blobs((5, 7, 4))
    seeds = np.zeros(image.shape, np.int32)
    seeds[0, 0, 0], seeds[4, 6, 3] = 8, 5
    for order in ("independent", "queue"):
        grown = region_growing.partition(
            image, seeds=LabelMap(seeds, OBLIQUE), local_difference=None, global_difference=None, order=order
        )
        assert set(np.unique(grown.array)) == {5, 8}


def test_seeds_that_cannot_be_used_are_refused():
    image, _ = blobs((5, 7, 4))
    grow = partial(region_growing.partition, image)
    with pytest.raises(GeometryError, match=r"seeds: expected the grid of image.*\(5, 7, 5\)"):
        grow(seeds=LabelMap(np.ones((5, 7, 5)), OBLIQUE))
    with pytest.raises(GeometryError, match="seeds: expected the grid of image"):
        grow(seeds=LabelMap(np.ones((5, 7, 4)), np.eye(4)))  # the seeds lie outside the scan
    with pytest.raises(InputError, match="expected labels above 0, got 0 at every voxel"):
        grow(seeds=LabelMap(np.zeros((5, 7, 4)), OBLIQUE))
    with pytest.raises(InputError, match="expected labels above 0, got -1"):
        grow(seeds=LabelMap(np.full((5, 7, 4), -1), OBLIQUE))
    with pytest.raises(InputError, match="local_difference: expected 0 or more, got -2"):
        grow(local_difference=-2.0)
    with pytest.raises(InputError, match="seed_share: expected above 0"):
        grow(seed_share=0.0)
    with pytest.raises(InputError, match="order: expected"):
        grow(order="random")
    with pytest.raises(InputError, match="noise_sd"):
        grow(noise_sd=(1.0, 1.0))


# ---------------------------------------------------------------------------------------------------------- watershed


def test_markers_keep_their_labels_and_fill_the_volume():
    image, truth = blobs()
    markers = np.zeros(image.shape, np.int32)
    markers[0, 0, 0], markers[8, 15, 8] = 40, 7
    found = watershed.partition(image, markers=LabelMap(markers, OBLIQUE)).array
    assert set(np.unique(found)) == {7, 40}
    inside = Mask(truth == 2, OBLIQUE)
    found = watershed.partition(image, markers=LabelMap(np.where(truth == 2, markers, 0), OBLIQUE), inside=inside)
    np.testing.assert_array_equal(found.array, np.where(truth == 2, 7, 0))


def test_markers_without_a_basin_are_named():
    image, truth = blobs()
    markers = np.zeros(image.shape, np.int32)
    markers[0, 0, 0], markers[8, 15, 8] = 40, 7
    inside = Mask(truth == 2, OBLIQUE)
    with pytest.raises(InputError, match=r"got \[40\] outside"):
        watershed.partition(image, markers=LabelMap(markers, OBLIQUE), inside=inside)
    with pytest.raises(InputError, match="expected labels above 0, got 0 at every voxel"):
        watershed.partition(image, markers=LabelMap(np.zeros(image.shape), OBLIQUE))
    with pytest.raises(GeometryError, match="markers: expected the grid of image"):
        watershed.partition(image, markers=LabelMap(markers, np.eye(4)))
    with pytest.raises(GeometryError, match="mask: expected the grid of image"):
        watershed.partition(image, inside=Mask(np.ones((2, 2, 2)), OBLIQUE))
    with pytest.raises(InputError, match="expected voxels inside"):
        watershed.partition(image, inside=Mask(np.zeros(image.shape), OBLIQUE))
    with pytest.raises(InputError, match="depth"):
        watershed.partition(image, depth=-1.0)


def test_deeper_minima_are_fewer_and_smoothing_leaves_fewer_basins():
    image = Image(np.random.default_rng(9).normal(0, 1, (11, 12, 9)), OBLIQUE)
    counts = [watershed.partition(image, depth=d, merge_threshold=0.0).values.size for d in (0.0, 0.3, 1.0)]
    assert counts[0] > counts[1] > counts[2]
    smooth = watershed.partition(image, depth=0.0, merge_threshold=0.0, sigma_mm=2.0)
    assert smooth.values.size < counts[0]
