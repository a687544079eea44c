"""Merging against plain greedy merging that measures every edge anew, and against scikit-image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label as components

from atlasseg.errors import InputError
from atlasseg.regions.adjacency_graph import adjacency_graph
from atlasseg.regions.merging import Merges, merge
from atlasseg.volume import Image, LabelMap

OBLIQUE = np.array([[1.1, 0.2, 0, 5], [-0.3, 1.4, 0.1, -7], [0.0, 0.1, 2.5, 30], [0, 0, 0, 1.0]])
ROUNDING = 1e-9  # relative: sums of a few hundred doubles in another order


def voxels_as_regions(array):
    shape = array.shape[:3]
    image = Image(array, OBLIQUE)
    return image, LabelMap(np.arange(1, np.prod(shape) + 1, dtype=np.int32).reshape(shape), OBLIQUE)


def brute_force(graph, criterion, threshold, regions):
    """Greedy merging with dictionaries, every cost computed at every step."""
    sizes = {i: float(n) for i, n in enumerate(graph.sizes)}
    sums = {i: graph.means[i] * sizes[i] for i in sizes}
    area = {tuple(e): a for e, a in zip(graph.edges.tolist(), graph.areas_mm2, strict=True)}
    member = np.arange(graph.labels.size)
    costs = []

    def cost(pair):
        a, b = pair
        apart = np.linalg.norm(sums[a] / sizes[a] - sums[b] / sizes[b])
        if criterion == "mean_difference":
            return apart
        ward = sizes[a] * sizes[b] / (sizes[a] + sizes[b]) * apart**2
        return ward if criterion == "ward" else ward / area[pair]

    while area and len(sizes) > regions:
        pair = min(area, key=cost)
        if cost(pair) > threshold:
            break
        costs.append(cost(pair))
        a, b = pair
        sizes[a] += sizes.pop(b)
        sums[a] = sums[a] + sums.pop(b)
        member[member == b] = a
        merged = {}
        for (p, q), shared in area.items():
            p, q = sorted((a if p == b else p, a if q == b else q))
            if p != q:
                merged[p, q] = merged.get((p, q), 0) + shared
        area = merged
    return member, costs


def same_partition(one, other):
    pairs = np.unique(np.stack([one.reshape(-1), other.reshape(-1)]), axis=1)
    return pairs.shape[1] == np.unique(one).size == np.unique(other).size


@pytest.mark.parametrize("criterion", ["ward", "mean_difference", "mumford_shah"])
@pytest.mark.parametrize(("shape", "seed"), [((7, 9, 5), 0), ((5, 4, 6, 3), 1), ((13, 11, 1), 2)])
def test_greedy_merging_is_that_of_brute_force(criterion, shape, seed):
    rng = np.random.default_rng(seed)
    array = rng.normal(0, 1, shape)
    array[: shape[0] // 2] += 4  # two halves, so that regions with very many neighbours come about
    image, labels = voxels_as_regions(array)
    graph = adjacency_graph(image, labels)
    merges = merge(graph, criterion=criterion, regions=4)
    member, costs = brute_force(graph, criterion, np.inf, 4)
    np.testing.assert_allclose(merges.costs, costs, rtol=ROUNDING)
    assert same_partition(merges.cut(4), member)


@pytest.mark.parametrize("criterion", ["ward", "mean_difference", "mumford_shah"])
def test_regions_with_hundreds_of_neighbours_keep_the_exact_order(criterion):
    """A background whose mean moves while it swallows some of 600 specks: bounds, balls and lists are all in use."""
    rng = np.random.default_rng(5)
    array = np.zeros((21, 23, 19), np.float32)
    where = rng.choice(array.size, 600, replace=False)
    labels = np.ones(array.shape, np.int32)
    array.reshape(-1)[where] = rng.normal(0.5, 2, 600)
    labels.reshape(-1)[where] = np.arange(2, 602)
    image, regions = Image(array, OBLIQUE), LabelMap(labels, OBLIQUE)
    graph = adjacency_graph(image, regions)
    assert graph.degrees().max() > 500
    merges = merge(graph, criterion=criterion, regions=5)
    member, costs = brute_force(graph, criterion, np.inf, 5)
    np.testing.assert_allclose(merges.costs, costs, rtol=ROUNDING)
    assert same_partition(merges.cut(5), member)


def test_mean_difference_gives_the_regions_of_scikit_image():
    from skimage import graph as skgraph

    rng = np.random.default_rng(3)
    array = rng.normal(0, 1, (9, 8, 7, 3)).cumsum(0)  # its graph always holds three channels
    image, labels = voxels_as_regions(array)
    limit = float(np.quantile(np.linalg.norm(np.diff(array, axis=0), axis=-1), 0.4))

    def forget(graph, src, dst):
        graph.nodes[dst]["total color"] += graph.nodes[src]["total color"]
        graph.nodes[dst]["pixel count"] += graph.nodes[src]["pixel count"]
        graph.nodes[dst]["mean color"] = graph.nodes[dst]["total color"] / graph.nodes[dst]["pixel count"]

    def weight(graph, src, dst, n):
        return {"weight": np.linalg.norm(graph.nodes[dst]["mean color"] - graph.nodes[n]["mean color"])}

    rag = skgraph.rag_mean_color(image.channels.astype(np.float64), labels.array, connectivity=1)
    theirs = skgraph.merge_hierarchical(labels.array, rag, limit, False, True, forget, weight)
    merges = merge(adjacency_graph(image, labels), criterion="mean_difference", threshold=limit)
    ours = merges.cut(merges.count - merges.kept.size)
    assert 5 < np.unique(ours).size < 400
    assert same_partition(ours, theirs)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.integers(2, 4), scale=st.sampled_from([1.0, 0.1, 1e5 + 0.3]))
def test_threshold_zero_gives_the_components_of_equal_values(seed, levels, scale):
    rng = np.random.default_rng(seed)
    array = (rng.integers(0, levels, (6, 7, 5)) * scale).astype(np.float32)
    image, labels = voxels_as_regions(array)
    for criterion in ("ward", "mean_difference", "mumford_shah"):
        merges = merge(adjacency_graph(image, labels), criterion=criterion, threshold=0.0)
        ours = merges.cut(merges.count - merges.kept.size).reshape(array.shape)
        expected, last = np.zeros(array.shape, int), 0
        for value in np.unique(array):
            part, n = components(array == value)
            expected[part > 0] = part[part > 0] + last
            last += n
        assert same_partition(ours, expected)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), axes=st.permutations([0, 1, 2]), flips=st.tuples(*[st.booleans()] * 3))
def test_axis_order_and_flips_do_not_matter(seed, axes, flips):
    array = np.random.default_rng(seed).normal(0, 1, (6, 5, 4)).astype(np.float32)

    def partition(values, criterion):
        image = Image(values, np.eye(4))
        labels = LabelMap(np.arange(1, values.size + 1, dtype=np.int32).reshape(values.shape), np.eye(4))
        merges = merge(adjacency_graph(image, labels), criterion=criterion, regions=9)
        return merges.cut(9).reshape(values.shape)

    flipped = tuple(slice(None, None, -1) if f else slice(None) for f in flips)
    for criterion in ("ward", "mean_difference", "mumford_shah"):
        straight = partition(array, criterion).transpose(axes)[flipped]
        assert same_partition(straight, partition(np.ascontiguousarray(array.transpose(axes)[flipped]), criterion))


def test_hierarchy_can_be_cut_anywhere_and_drawn():
    array = np.random.default_rng(8).normal(0, 1, (4, 5, 3))
    image, labels = voxels_as_regions(array)
    graph = adjacency_graph(image, labels)
    merges = merge(graph, regions=1)
    for regions in (1, 2, 7, 59, 60):
        assert np.unique(merges.cut(regions)).size == regions
        assert same_partition(merges.cut(regions), merge(graph, regions=regions).cut(regions))
    linkage = merges.linkage(8)
    assert linkage.shape == (7, 4) and (np.diff(linkage[:, 2]) >= 0).all() and linkage[-1, 3] == 8
    from scipy.cluster.hierarchy import is_valid_linkage

    assert is_valid_linkage(linkage)


def test_what_cannot_be_done_is_said():
    image, labels = voxels_as_regions(np.zeros((2, 2, 2)))
    graph = adjacency_graph(image, labels)
    with pytest.raises(InputError, match=r"regions: expected at most 8, the number of blocks \(8 voxels\), got 9"):
        merge(graph, regions=9)
    with pytest.raises(InputError, match="expected a threshold, a number of regions"):
        merge(graph)
    with pytest.raises(InputError, match=r"threshold of 0 or more.*-1"):
        merge(graph, threshold=-1.0)
    with pytest.raises(InputError, match="nan"):
        merge(graph, threshold=float("nan"))
    with pytest.raises(InputError, match="at least 1"):
        merge(graph, regions=0)
    with pytest.raises(InputError, match=r"ward, .*'wart'"):
        merge(graph, criterion="wart", regions=2)
    with pytest.raises(InputError, match="noise_sd"):
        merge(graph, regions=2, noise_sd=(0.0,))
    with pytest.raises(InputError, match="1 to 1"):
        Merges(1, np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0)).cut(2)
