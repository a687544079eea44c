"""The worked examples of CONTRIBUTING.md, word for word: each is written to its file and used."""

import hashlib
import importlib
import io as bytes_io
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atlasseg import io, methods, phantoms
from atlasseg.atlases import fetching
from atlasseg.atlases.library import read_library, read_targets
from atlasseg.atlases.selection import select
from atlasseg.io import _writing
from atlasseg.labels import LabelTable
from atlasseg.methods import registry
from atlasseg.pipeline import segment
from atlasseg.recipe import parse_recipe
from atlasseg.report import page
from atlasseg.similarity import metric
from atlasseg.volume import Image, LabelMap

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
EXAMPLES = {
    title: (Path(re.findall(r"`(atlasseg/[\w/]+\.py)`:", before)[-1]), code)
    for title, before, code in re.findall(r"### (An? [\w ]+)\n(.*?)```python\n(.*?)```", TEXT, flags=re.DOTALL)
}
LONGEST_LINES = 70
"""A page."""
SIMILARITY = "tests/similarity/test_derivatives.py"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    metric.metric_names()
    monkeypatch.setattr(registry, "_registered", {stage: dict(found) for stage, found in registry._registered.items()})
    monkeypatch.setattr(metric, "METRICS", dict(metric.METRICS))
    monkeypatch.setattr(page, "SECTIONS", list(page.SECTIONS))
    monkeypatch.setattr(fetching, "DATASETS", dict(fetching.DATASETS))
    monkeypatch.setattr(_writing, "WRITERS", dict(_writing.WRITERS))


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Writes the file of an example, and imports it."""
    monkeypatch.syspath_prepend(tmp_path)

    def add(title):
        path, code = EXAMPLES[title]
        (tmp_path / path.name).write_text(code)
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
        return importlib.import_module(path.stem)

    return add


@pytest.fixture
def scans(dataset):
    library = read_library(dataset / "atlases")
    target, _ = read_targets([dataset / "targets"])[0].read()
    return target, [library.read(name) for name in library.ids]


def executed(title, module, monkeypatch):
    """An example that goes into a file that is there: its names are gone after the test."""
    scope = vars(module)
    for name in re.findall(r"(?m)^def (\w+)", EXAMPLES[title][1]):
        monkeypatch.setitem(scope, name, None)
    exec(compile(EXAMPLES[title][1], title, "exec"), scope)


def test_there_is_an_example_of_everything_and_none_takes_more_than_a_page():
    assert set(EXAMPLES) == {
        "A fusion",
        "A similarity metric",
        "A registration",
        "A refinement",
        "A section of the report",
        "A dataset",
        "An output format",
    }
    for title, (path, code) in EXAMPLES.items():
        assert code.count("\n") <= LONGEST_LINES, title
        assert (ROOT / path).parent.is_dir(), path


def test_the_contract_suites_hold_for_the_examples(tmp_path):
    """The examples are a package of their own, which entry points announce."""
    announced = {}
    for title in ("A fusion", "A registration", "A refinement", "A similarity metric"):
        path, code = EXAMPLES[title]
        (tmp_path / path.name).write_text(code)
        announced[path.stem] = path.parent.name
    information = tmp_path / "examples-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: examples\nVersion: 1.0\n")
    lines = [f"[atlasseg.{stage}]\n{name} = {name}\n" for name, stage in announced.items()]
    (information / "entry_points.txt").write_text("".join(lines))
    suites = [*(f"tests/{stage}/test_contract.py" for stage in ("fusion", "registration", "refinement")), SIMILARITY]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *suites, "-k", " or ".join(announced)]
    places = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": places}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 4 * len(announced)


def test_the_methods_segment_a_scan_together(added, scans):
    for title in ("A fusion", "A registration", "A refinement", "A similarity metric"):
        added(title)
    target, atlases = scans
    recipe = parse_recipe(
        {
            "registration": {"steps": ["centres", "affine"], "affine": {"finest_shrink": 4}},
            "fusion": {"method": "closest", "closest": {"width": 1.0}},
            "refinement": {"method": "neighbourhood", "neighbourhood": {"sigma_mm": 0.8}},
        }
    )
    result = segment(target, atlases, recipe)
    plain = segment(target, atlases, replace(recipe, refinement=replace(recipe.refinement, method=None)))
    assert set(result.labels.values.tolist()) <= set(atlases[0].segmentation.values.tolist()) | {0}
    assert (result.labels.array != 0).any()
    assert (result.labels.array == plain.labels.array).mean() > 0.9
    assert not np.array_equal(result.probabilities.dense(), plain.probabilities.dense())


def test_the_registration_brings_the_centres_on_each_other(added, scans):
    register = added("A registration").register
    image = scans[0]
    moved = image.affine.copy()
    moved[:3, 3] += (30, -50, 12)
    (found,) = register(image, [Image(image.array, moved)])
    np.testing.assert_allclose(found(np.zeros((1, 3)))[0], (30, -50, 12), atol=1e-6)
    assert register(image, [image], initial=[found]) == [found]


def test_the_metric_is_in_registration_selection_and_fusion(added, scans):
    added("A similarity metric")
    target, atlases = scans
    assert len(select(target, atlases, count=2, metric="charbonnier")) == 2
    rigid = methods.get("registration", "rigid").function
    transforms = rigid(target, [atlases[0].image], metric="charbonnier", finest_shrink=4)
    assert len(transforms) == 1
    recipe = parse_recipe({"fusion": {"method": "global_weighted", "global_weighted": {"similarity": "charbonnier"}}})
    assert recipe.fusion.method.arguments == {"similarity": "charbonnier"}


def test_the_section_is_on_the_page(monkeypatch):
    executed("A section of the report", page, monkeypatch)
    grid = phantoms.tilted_grid((12, 14, 10), spacing_mm=(1.0, 1.5, 2.0), angles_degrees=(5, -3, 8), axes="LAS")
    rng = np.random.default_rng(0)
    image = Image(rng.normal(size=grid.shape), grid.affine)
    labels = LabelMap(rng.integers(0, 3, image.shape), image.affine)
    volumes = pd.DataFrame({"label": [1, 2], "name": ["one <1>", "two"], "voxels": [3, 1], "volume_mm3": [30.0, 10.0]})
    report = page.TargetReport("t", image, labels, LabelTable(), "majority", volumes=volumes, viewer=False)
    text = page.render(report)
    assert text.index('id="shares"') < text.index("</main>") and "one &lt;1&gt;" in text and "75.0" in text
    assert 'id="shares"' not in page.render(replace(report, volumes=None))


def test_the_dataset_is_fetched(monkeypatch, tmp_path):
    executed("A dataset", fetching, monkeypatch)
    grid = phantoms.tilted_grid((7, 9, 5), spacing_mm=(1.0, 1.5, 2.0), angles_degrees=(5, -3, 8), axes="LAS")
    out = bytes_io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("a", "b"):
            for kind in ("images", "labels"):
                made = tmp_path / f"{name}.nii.gz"
                values = np.random.default_rng(0).integers(0, 3, grid.shape)
                if kind == "images":
                    io.write_image(Image(values.astype(np.float32), grid.affine), made)
                else:
                    io.write_label_map(LabelMap(values, grid.affine), made)
                tar.add(made, f"cord/{kind}/{name}.nii.gz")
    body = out.getvalue()

    def retrieve(url, known_hash, *, fname, path, downloader):
        assert url == "https://example.org/cord.tar" and hashlib.sha256(body).hexdigest() in known_hash
        (Path(path) / fname).write_bytes(body)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    checksum = f"sha256:{hashlib.sha256(body).hexdigest()}"
    fetching.fetch(replace(fetching.known("cord"), checksum=checksum), tmp_path / "cord")
    assert read_library(tmp_path / "cord/atlases").ids == ("a", "b")
    assert "CC0 1.0" in (tmp_path / "cord/LICENSE.txt").read_text()


def test_the_output_format_is_written(added, tmp_path):
    added("An output format")
    grid = phantoms.tilted_grid((7, 9, 5), spacing_mm=(1.0, 1.5, 2.0), angles_degrees=(5, -3, 8), axes="LAS")
    values = np.random.default_rng(0).integers(0, 3, grid.shape)
    io.write_label_map(LabelMap(values, grid.affine), tmp_path / "labels.npz")
    io.write_image(Image(np.stack([values, -values], -1).astype(np.float32), grid.affine), tmp_path / "scan.npz")
    with np.load(tmp_path / "labels.npz") as stored:
        np.testing.assert_array_equal(stored["channels"], values)
        np.testing.assert_array_equal(stored["affine"], grid.affine)
    with np.load(tmp_path / "scan.npz") as stored:
        assert stored["channels"].shape == (7, 9, 5, 2)
    assert sorted(p.name for p in tmp_path.glob("*.npz")) == ["labels.npz", "scan.npz"]
