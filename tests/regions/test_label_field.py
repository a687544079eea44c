"""Regions that decide together: against the dense solution, and against deciding alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array

from atlasseg.errors import InputError
from atlasseg.regions.adjacency_graph import adjacency_graph, face_areas_mm2
from atlasseg.regions.label_field import random_walk_labels
from atlasseg.volume import Image, LabelMap

OBLIQUE = np.array([[1.1, 0.2, 0, 5], [-0.3, 1.4, 0.1, -7], [0.0, 0.1, 2.5, 30], [0, 0, 0, 1.0]])
FACE_MM2 = float(face_areas_mm2(OBLIQUE).mean())
CLEAR = 0.01  # far above the tolerance of the solution


def drawn(seed, shape=(4, 3, 3), labels=3):
    """A graph of at most 12 regions, all within reach of each other, and a posterior with zeros in it."""
    rng = np.random.default_rng(seed)
    regions = rng.integers(1, 13, shape).astype(np.int32)
    graph = adjacency_graph(Image(rng.normal(0, 2, shape), OBLIQUE), LabelMap(regions, OBLIQUE))
    posterior = rng.dirichlet(np.full(labels, 0.4), graph.labels.size) * graph.sizes[:, None]
    posterior[rng.random(posterior.shape) < 0.3] = 0
    posterior[:, 0] += graph.sizes - posterior.sum(axis=1)
    return graph, posterior


def dense(graph, posterior, weight, edge_contrast):
    """The field from its normal equations, edge by edge."""
    system = np.diag(graph.sizes.astype(float))
    for (a, b), area, contrast in zip(graph.edges, graph.areas_mm2, graph.contrasts, strict=True):
        link = weight * area / FACE_MM2 * np.exp(-((contrast / edge_contrast) ** 2))
        system[[a, b], [a, b]] += link
        system[[a, b], [b, a]] -= link
    return np.linalg.solve(system, posterior)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), weight=st.floats(0.05, 5), edge_contrast=st.floats(0.5, 8))
def test_decision_is_that_of_the_dense_solution(seed, weight, edge_contrast):
    graph, posterior = drawn(seed)
    field = dense(graph, posterior, weight, edge_contrast)
    np.testing.assert_allclose(field.sum(axis=1), 1)
    first, second = np.sort(field, axis=1)[:, :-3:-1].T
    clear = first - second > CLEAR
    chosen = random_walk_labels(
        graph, csc_array(posterior), weight=weight, edge_contrast=edge_contrast, face_mm2=FACE_MM2
    )
    np.testing.assert_array_equal(chosen[clear], field.argmax(axis=1)[clear])


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_at_a_weight_of_0_each_region_takes_the_label_of_its_summed_posterior(seed):
    graph, posterior = drawn(seed)
    chosen = random_walk_labels(graph, csc_array(posterior), weight=0.0, edge_contrast=1.0, face_mm2=FACE_MM2)
    np.testing.assert_array_equal(chosen, (posterior / graph.sizes[:, None]).argmax(axis=1))


def test_ties_go_to_the_smaller_label():
    graph, posterior = drawn(3)
    posterior[:] = graph.sizes[:, None] / 2.0 * np.array([0, 1, 1])
    chosen = random_walk_labels(graph, csc_array(posterior), weight=0.0, edge_contrast=1.0, face_mm2=FACE_MM2)
    assert (chosen == 1).all()


def test_neighbours_persuade_where_intensity_is_even_and_not_across_an_edge():
    """A row of five voxels, the middle one torn: it goes with the side whose intensity is its own."""
    row = np.array([0.0, 0, 0, 9, 9]).reshape(5, 1, 1)
    regions = LabelMap(np.arange(1, 6, dtype=np.int32).reshape(5, 1, 1), np.eye(4))
    torn = csc_array(np.array([[1, 0], [1, 0], [0.4, 0.6], [0, 1], [0, 1.0]]))
    for image, label in ((row, 0), (row[::-1] * 0 + [[[0.0]], [[0]], [[9]], [[9]], [[9]]], 1)):
        graph = adjacency_graph(Image(image, np.eye(4)), regions)
        assert random_walk_labels(graph, torn, weight=2.0, edge_contrast=1.0, face_mm2=1.0)[2] == label


@pytest.mark.parametrize(("weight", "edge_contrast"), [(-1, 1), (np.nan, 1), (np.inf, 1), (1, 0), (1, np.nan)])
def test_what_cannot_be_used_is_refused(weight, edge_contrast):
    graph, posterior = drawn(0)
    with pytest.raises(InputError, match="expected"):
        random_walk_labels(graph, csc_array(posterior), weight=weight, edge_contrast=edge_contrast, face_mm2=1.0)
