"""One contract for every refinement that needs no training."""

import numpy as np
import pytest

from atlasseg import methods, pipeline
from atlasseg.errors import GeometryError, InputError
from atlasseg.recipe import parse_recipe
from atlasseg.statistics.markov_field import SOLVERS
from atlasseg.volume import Atlas, Image, LabelMap, ProbabilityMap

METHODS = [
    name
    for name in methods.names("refinement")
    if not any(parameter.required for parameter in methods.get("refinement", name).parameters)
]
AFFINE = np.array([[-0.8, 0.3, 0, 4], [0.3, 1.1, 0, -7], [0, 0, 2.2, 90], [0, 0, 0, 1]])
SHAPE = (9, 11, 7)
LABELS = (0, 4, 900)


@pytest.fixture(params=METHODS)
def refine(request):
    return methods.get("refinement", request.param).function


def case(seed=0):
    """A scan, its labels, and probabilities that blur and mistake them."""
    rng = np.random.default_rng(seed)
    r = np.sqrt((((np.indices(SHAPE).T - 4.2) / np.array([4, 4.5, 3.5])) ** 2).sum(-1)).T
    truth = np.where(r < 0.6, 900, np.where(r < 1, 4, 0))
    scan = Image(np.where(r < 0.6, 3.0, np.where(r < 1, 2.0, 0)) + rng.normal(0, 0.2, SHAPE), AFFINE, "scan")
    share = np.stack([truth == v for v in LABELS], -1) + rng.exponential(0.35, (*SHAPE, 3))
    share[r > 1.3] = (1, 0, 0)
    return scan, truth, ProbabilityMap.from_dense(share, LABELS, AFFINE)


def test_there_are_some():
    assert "markov_field" in METHODS


def test_better_and_still_probabilities(refine):
    scan, truth, fused = case()
    found = refine(scan, fused)
    assert found.grid.matches(fused.grid)
    np.testing.assert_array_equal(found.label_values, fused.label_values)
    np.testing.assert_allclose(found.dense().sum(axis=-1), 1, atol=1e-5)
    assert (found.mode == truth).mean() > (fused.mode == truth).mean()


def test_what_is_certain_stays(refine):
    scan, truth, fused = case()
    sure = ProbabilityMap.from_labels(LabelMap(truth, AFFINE))
    np.testing.assert_array_equal(refine(scan, sure).dense(), sure.dense())
    certain = fused.confidence() == 1
    np.testing.assert_array_equal(refine(scan, fused).dense()[certain], fused.dense()[certain])


def test_same_answer_and_nothing_changed(refine):
    scan, _, fused = case()
    before = scan.array.copy(), fused.values.copy()
    np.testing.assert_array_equal(refine(scan, fused).dense(), refine(scan, fused).dense())
    np.testing.assert_array_equal(scan.array, before[0])
    np.testing.assert_array_equal(fused.values, before[1])


def test_any_scale_several_channels_and_no_contrast(refine):
    scan, _, fused = case()
    loud = Image(scan.array * 1e5, AFFINE)
    assert (refine(loud, fused).mode == refine(scan, fused).mode).mean() > 0.99
    two = Image(np.stack([scan.array, -scan.array], -1), AFFINE)
    flat = Image(np.full(SHAPE, 7.0), AFFINE)
    for image in (two, flat):
        assert np.isfinite(refine(image, fused).values).all()


def test_another_grid(refine):
    scan, _, fused = case()
    moved = AFFINE.copy()
    moved[0, 3] += 5
    with pytest.raises(GeometryError, match="scan"):
        refine(Image(scan.array, moved, "scan"), fused)


@pytest.mark.parametrize("solver", SOLVERS)
def test_field_by_every_solver(solver):
    scan, truth, fused = case()
    refine = methods.get("refinement", "markov_field").function
    found = refine(scan, fused, solver=solver, beta=0.1, neighbours=6)
    assert (found.mode == truth).mean() > (fused.mode == truth).mean()


def test_field_refuses():
    scan, _, fused = case()
    refine = methods.get("refinement", "markov_field").function
    for wrong, said in (
        ({"beta": -1}, "beta"), ({"neighbours": 8}, "6 or 26"), ({"intensity_weight": 2}, "intensity_weight"),
        ({"iterations": 0}, "iterations"), ({"solver": "guess"}, "'guess'"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            refine(scan, fused, **wrong)


def test_a_recipe_puts_a_field_on_any_fusion():
    """A refinement that knows nothing of provenance goes through the pipeline."""
    scans = []
    for n in range(3):
        scan, truth, _ = case(n)
        rolled = np.roll(truth, (n, n), (0, 1))
        scans.append(Atlas(f"a{n}", Image(np.roll(scan.array, (n, n), (0, 1)), AFFINE), LabelMap(rolled, AFFINE)))
    tables = {
        "registration": {"steps": ["rigid"]},
        "fusion": {"method": "majority"},
        "refinement": {"method": "markov_field", "markov_field": {"beta": 0.2, "solver": "graph_cut"}},
    }
    found = pipeline.segment(scans[0].image, scans[1:], parse_recipe(tables))
    assert "refine" in found.seconds
    alone = pipeline.fuse(found.alignment, parse_recipe({"fusion": {"method": "majority"}}).fusion.method)
    assert not np.array_equal(found.probabilities.values, alone.probabilities.values)
    assert found.labels.grid.matches(scans[0].image.grid)
