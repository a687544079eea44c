"""The graph against faces counted one by one, and against scikit-image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlasseg.errors import GeometryError, InputError
from atlasseg.regions.adjacency_graph import adjacency_graph, face_areas_mm2
from atlasseg.volume import Image, LabelMap

OBLIQUE = np.array([[1.1, 0.2, 0, 5], [-0.3, 1.4, 0.1, -7], [0.0, 0.1, 2.5, 30], [0, 0, 0, 1.0]])
ROUNDING = 1e-9


def brute_force(array, labels, areas, background):
    """Every face, one by one."""
    found = {}
    for axis in range(3):
        for at in np.ndindex(labels.shape):
            to = list(at)
            to[axis] += 1
            if to[axis] == labels.shape[axis]:
                continue
            a, b = int(labels[at]), int(labels[tuple(to)])
            if a != b and (background or (a and b)):
                area, total = found.get((min(a, b), max(a, b)), (0, 0))
                step = np.linalg.norm(array[at].astype(float) - array[tuple(to)].astype(float))
                found[min(a, b), max(a, b)] = (area + areas[axis], total + areas[axis] * step)
    return {pair: (area, total / area) for pair, (area, total) in found.items()}


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.integers(1, 6)] * 3),
    st.integers(0, 10**6),
    st.sampled_from([(0, 1, 2, 3), (0, 7, 300, -4), (5, 6), (1, 2, 4)]),
    st.booleans(),
    st.integers(1, 3),
)
def test_edges_areas_and_contrasts_are_those_of_the_faces(shape, seed, values, background, channels):
    rng = np.random.default_rng(seed)
    labels = rng.choice(values, shape).astype(np.int32)
    array = rng.normal(0, 1, (*shape, channels)).astype(np.float32)
    image, regions = Image(array, OBLIQUE), LabelMap(labels, OBLIQUE)
    if not background and not labels.any():
        with pytest.raises(InputError, match="no region"):
            adjacency_graph(image, regions)
        return
    graph = adjacency_graph(image, regions, background=background)
    expected = brute_force(array, labels, face_areas_mm2(OBLIQUE), background)
    pairs = [tuple(pair) for pair in graph.labels[graph.edges].tolist()]
    assert pairs == sorted(expected)
    np.testing.assert_allclose(graph.areas_mm2, [expected[p][0] for p in pairs], rtol=ROUNDING)
    np.testing.assert_allclose(graph.contrasts, [expected[p][1] for p in pairs], rtol=ROUNDING)
    for n, label in enumerate(graph.labels):
        inside = array[labels == label].astype(np.float64)
        assert graph.sizes[n] == len(inside)
        np.testing.assert_allclose(graph.means[n], inside.mean(0), atol=1e-12)
        np.testing.assert_allclose(graph.sds[n], inside.std(0), atol=1e-9)
        assert set(graph.neighbours(int(label))) == {b if a == label else a for a, b in pairs if label in (a, b)}


def test_many_edges_grow_the_table():
    labels = np.arange(1, 17 * 13 * 11 + 1, dtype=np.int32).reshape(17, 13, 11)
    graph = adjacency_graph(Image(np.zeros(labels.shape), np.eye(4)), LabelMap(labels, np.eye(4)))
    assert len(graph.edges) == 16 * 13 * 11 + 17 * 12 * 11 + 17 * 13 * 10
    assert (graph.areas_mm2 == 1).all() and (np.diff(graph.edges[:, 0]) >= 0).all()


def test_networkx_and_scikit_image_have_the_same_graph():
    from skimage.graph import rag_mean_color

    rng = np.random.default_rng(4)
    labels = rng.integers(1, 9, (7, 9, 5)).astype(np.int32)
    array = rng.normal(0, 1, (7, 9, 5, 3)).astype(np.float32)
    ours = adjacency_graph(Image(array, OBLIQUE), LabelMap(labels, OBLIQUE)).to_networkx()
    theirs = rag_mean_color(array.astype(np.float64), labels, connectivity=1)
    assert {frozenset(e) for e in ours.edges} == {frozenset(e) for e in theirs.edges}
    for node in theirs.nodes:
        assert ours.nodes[node]["size"] == theirs.nodes[node]["pixel count"]
        np.testing.assert_allclose(ours.nodes[node]["mean"], theirs.nodes[node]["mean color"], atol=1e-9)


def test_face_areas_are_those_of_oblique_and_sheared_voxels():
    assert face_areas_mm2(np.diag([2.0, 3.0, 5.0, 1.0])) == pytest.approx([15, 10, 6])
    assert np.prod(face_areas_mm2(OBLIQUE)) >= np.linalg.det(OBLIQUE[:3, :3]) ** 2  # equal only without shear


def test_table_lists_the_neighbours():
    labels = LabelMap(np.array([[[1, 1, 4], [2, 2, 4]]]), np.eye(4))
    table = adjacency_graph(Image(np.arange(6.0).reshape(1, 2, 3), np.eye(4)), labels).table()
    assert table.columns.tolist() == ["region", "voxels", "mean", "sd", "neighbours", "neighbour_regions"]
    assert table.values.tolist()[0] == [1, 2, 0.5, 0.5, 2, "2 4"]


def test_grids_that_differ_are_refused():
    image = Image(np.zeros((3, 4, 2)), OBLIQUE)
    with pytest.raises(GeometryError, match=r"\(3, 4, 2\) and \(3, 4, 3\)"):
        adjacency_graph(image, LabelMap(np.ones((3, 4, 3)), OBLIQUE))
    with pytest.raises(InputError, match="region: expected one of 1, up to 1, got 9"):
        adjacency_graph(image, LabelMap(np.ones((3, 4, 2)), OBLIQUE)).neighbours(9)
