"""A metric is one class: registered once, it is in registration, atlas selection and fusion."""

import importlib
import sys
import textwrap
from dataclasses import dataclass

import numpy as np
import pytest

from atlasseg import methods, phantoms
from atlasseg.atlases.selection import select, similarities, thumbnails
from atlasseg.errors import InputError
from atlasseg.recipe import parse_recipe
from atlasseg.resampling import resample
from atlasseg.similarity import SimilarityMetric, create_metric, metric, metric_names, register_metric
from atlasseg.similarity.metric import checked_images, spread
from atlasseg.store.serialisation import digest
from atlasseg.transforms import Affine
from atlasseg.volume import Atlas, Image, LabelMap

TOY = '''
    from dataclasses import dataclass

    import numpy as np

    from atlasseg.similarity import SimilarityMetric, register_metric
    from atlasseg.similarity.metric import checked_images, spread


    @register_metric
    @dataclass(frozen=True)
    class Charbonnier(SimilarityMetric):
        """Mean of the square root of the squared difference plus a small number: a distance that forgives outliers."""

        epsilon: float = 0.02
        name = "charbonnier"
        greater_is_better = False

        def value_and_gradient(self, fixed, warped, *, mask=None):
            """Mean and derivative."""
            f, w, inside = checked_images(fixed, warped, mask)
            difference = w[inside] - f[inside]
            size = np.sqrt(difference**2 + self.epsilon**2)
            return float(size.mean()), spread(difference / size / size.size, inside, warped)
'''


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    metric_names()
    monkeypatch.setattr(metric, "METRICS", dict(metric.METRICS))
    yield
    metric._import_all.cache_clear()


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """One file, named by an entry point, and nothing else."""
    (tmp_path / "toy_metric.py").write_text(textwrap.dedent(TOY))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_metric", raising=False)
    entry = importlib.metadata.EntryPoint("charbonnier", "toy_metric", "atlasseg.similarity")
    monkeypatch.setattr(metric, "entry_points", lambda group: [entry])
    metric._import_all.cache_clear()
    return tmp_path / "toy_metric.py"


def scene(seed=0, shift_mm=(0.0, 0.0, 0.0), noise=0.02):
    """A smooth pattern on an oblique, anisotropic grid."""
    grid = phantoms.tilted_grid((22, 25, 18), spacing_mm=(1.9, 1.7, 2.2), angles_degrees=(10, -5, 3), axes="LAS")
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    points = index @ grid.affine[:3, :3].T + grid.affine[:3, 3] - grid.centre_mm - shift_mm
    rng = np.random.default_rng(seed)
    value = np.zeros(grid.shape)
    for _ in range(6):
        centre, width = rng.uniform(-10, 10, 3), rng.uniform(4, 7)
        value += np.exp(-((points - centre) ** 2).sum(-1) / (2 * width**2))
    value += np.random.default_rng(seed + 50).normal(0, noise, grid.shape)
    labels = (np.linalg.norm(points, axis=-1) < 9).astype(int)
    return Atlas(f"s{seed}", Image(value, grid.affine, f"s{seed}"), LabelMap(labels, grid.affine))


@pytest.mark.parametrize("device", ["cpu", "torch"])
def test_one_class_registers(toy, device, caplog):
    shift = np.array([3.0, -2.0, 2.5])
    fixed, moving = scene(1).image, scene(1, shift, noise=0.03).image
    if device == "cpu":
        register = methods.get("registration", "rigid").function
        (found,) = register(fixed, [moving], metric="charbonnier", initial=[Affine.identity()], finest_shrink=1)
        np.testing.assert_allclose(found(np.zeros((1, 3)))[0], shift, atol=0.3)
        diffeomorphic = methods.get("registration", "diffeomorphic").function
        (warp,) = diffeomorphic(fixed, [moving], metric="charbonnier", initial=[Affine.identity()], iterations=(20, 10))
        before, after = (
            np.corrcoef(fixed.array.ravel(), resample(moving, fixed.grid, transform).array.ravel())[0, 1]
            for transform in (Affine.identity(), warp)
        )
        assert after > 0.97 > before
    else:
        torch = pytest.importorskip("torch")
        chosen = create_metric("charbonnier")
        images = [np.ascontiguousarray(each.array, np.float32) for each in (fixed, moving)]
        weight = np.ones_like(images[0])
        plain = chosen.derivatives(*images, weight)
        tensors = [torch.from_numpy(each)[None, None] for each in (*images, weight)]
        for here, there in zip(chosen.derivatives_torch(*tensors), plain, strict=True):
            np.testing.assert_array_equal(here.numpy().squeeze(), np.float32(there))
        assert "charbonnier: computed on the CPU" in caplog.text


def test_one_class_selects(toy):
    target, library = scene(1).image, [scene(n, noise=0.03) for n in (5, 3, 1, 7)]
    assert select(target, library, count=1, metric="charbonnier") == (2,)
    scores = similarities(thumbnails(target, library), metric="charbonnier")
    assert scores.argmax() == 2 and (scores < 0).all()
    recipe = parse_recipe({"fusion": {"method": "majority"}, "selection": {"metric": "charbonnier"}})
    assert recipe.selection.metric == "charbonnier"


def test_one_class_weights_votes(toy):
    target = scene(1)
    good, bad = scene(1, noise=0.03), scene(2)
    bad = Atlas(bad.id, bad.image, LabelMap(1 - bad.labels.array, bad.labels.affine))
    recipe = parse_recipe({"fusion": {"method": "global_weighted", "global_weighted": {"similarity": "charbonnier"}}})
    fused = recipe.fusion.method(target.image, [bad, good])
    np.testing.assert_array_equal(fused.mode, good.labels.array)


def test_kept_results_depend_on_the_code_of_the_chosen_metric(toy):
    def key(name):
        tables = {"steps": ["affine"], "affine": {"metric": name}}
        return digest(parse_recipe({"fusion": {"method": "majority"}, "registration": tables}).registration.steps[0])

    from atlasseg.store import fingerprints

    before = {name: key(name) for name in ("charbonnier", "correlation")}
    toy.write_text(toy.read_text().replace("0.02", "0.03"))
    fingerprints._version.cache_clear()
    fingerprints._source_and_imports.cache_clear()
    after = {name: key(name) for name in ("charbonnier", "correlation")}
    assert after["charbonnier"] != before["charbonnier"] and after["correlation"] == before["correlation"]


def test_the_files_of_the_room_are_part_of_a_registrations_version():
    from atlasseg.store import fingerprints

    imported = fingerprints._source_and_imports("atlasseg.similarity.metric")[1]
    assert {f"atlasseg.similarity.{name}" for name in metric_names()} <= imported


class Complete(SimilarityMetric):
    """Nothing."""

    name = "complete"

    def value_and_gradient(self, fixed, warped, *, mask=None):
        f, _, inside = checked_images(fixed, warped, mask)
        return 0.0, spread(np.zeros((inside.sum(), f.shape[-1])), inside, warped)


def test_a_metric_without_parameters_needs_no_dataclass():
    register_metric(Complete)
    assert create_metric("complete").vote_weight(np.ones((2, 3, 4)), np.ones((2, 3, 4))) == 0
    assert str(create_metric("complete")) == "complete"


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (
            lambda: type("X", (SimilarityMetric,), {"name": "x", "__doc__": "X."}),
            "expected a definition of value_and_gradient",
        ),
        (lambda: type("X", (Complete,), {"name": "", "__doc__": "X."}), "expected a class attribute `name`"),
        (lambda: type("X", (Complete,), {"name": "x y", "__doc__": "X."}), "expected a class attribute `name`"),
        (lambda: type("X", (Complete,), {"name": "correlation", "__doc__": "X."}), "another metric has this name"),
        (lambda: type("X", (Complete,), {"name": "x", "__doc__": None}), "expected a docstring"),
        (lambda: dataclass, "expected a subclass of SimilarityMetric"),
    ],
)
def test_an_incomplete_metric_is_an_error_and_no_other_takes_its_place(made, told):
    with pytest.raises(InputError, match=told):
        register_metric(made())
    with pytest.raises(InputError, match="expected one of"):
        create_metric("x")


def test_a_metric_of_an_entry_point_that_cannot_be_loaded_is_named(toy):
    toy.write_text("import no_such_library")
    with pytest.raises(InputError, match=r"entry point charbonnier = toy_metric .*no_such_library"):
        metric_names()
