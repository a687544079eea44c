"""Trained leave-one-out in the library: no atlas votes for itself, and no model is used on what it was trained on."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

from atlasseg import io, pipeline
from atlasseg.app.corrective import correct
from atlasseg.atlases.library import read_library
from atlasseg.cli import app
from atlasseg.errors import InputError
from atlasseg.pipeline import register
from atlasseg.recipe import parse_recipe
from atlasseg.training import leave_one_out, train_corrective

TABLES = {
    "data": {"atlases": "atlases", "targets": "targets", "out": "out"},
    "preprocessing": {"steps": ["intensity"]},
    "registration": {"steps": ["rigid"]},
    "fusion": {"method": "majority"},
}


@pytest.fixture
def marked(dataset):
    """The library, with a label of its own (901, 902, 903) in each atlas."""
    for n in range(3):
        path = dataset / f"atlases/labels/head{n}.nii.gz"
        labels = io.read_label_map(path)
        array = labels.array.copy()
        array[array == 3] = 901 + n
        io.write_label_map(labels.with_array(array), path)
    return dataset


def test_no_atlas_votes_for_itself(marked):
    library = read_library(marked / "atlases")
    atlases = [library.read(id_) for id_ in library.ids]
    asked = []
    recipe = parse_recipe(TABLES)

    def watched(scans):
        asked.append([atlas.id for atlas in scans.atlases])
        return register(scans, recipe)

    examples = list(leave_one_out(atlases, recipe, registrar=watched))
    assert asked == [["head1", "head2"], ["head0", "head2"], ["head0", "head1"]]
    for n, example in enumerate(examples):
        assert np.count_nonzero(example.truth.array == 901 + n) > 20
        for label in (901, 902, 903):
            probability = example.fused.probability(label).max()
            assert probability == 0 if label == 901 + n else probability > 0
        assert example.target.grid.matches(example.truth.grid) and example.target.grid.matches(example.fused.grid)


def test_a_copy_under_another_id_does_not_vote_either(marked):
    for kind in ("images", "labels"):
        shutil.copy(marked / f"atlases/{kind}/head0.nii.gz", marked / f"atlases/{kind}/copy.nii.gz")
    library = read_library(marked / "atlases")
    examples = {e.id: e for e in leave_one_out([library.read(i) for i in library.ids], parse_recipe(TABLES))}
    assert set(examples) == {"copy", "head0", "head1", "head2"}
    for twin in ("copy", "head0"):
        assert examples[twin].fused.probability(901).max() == 0
    assert examples["head1"].fused.probability(901).max() > 0


def test_what_is_cropped_in_use_is_cropped_in_training(marked):
    library = read_library(marked / "atlases")
    atlases = [library.read(id_) for id_ in library.ids]
    tables = {**TABLES, "preprocessing": {"steps": ["intensity"], "crop_margin_mm": 2.0}}
    first = next(leave_one_out(atlases, parse_recipe(tables)))
    assert np.prod(first.target.shape) < np.prod(atlases[0].image.shape)
    assert first.truth.grid.matches(first.target.grid)


def test_trained_by_command_and_used_by_a_recipe(marked):
    path = marked / "recipe.toml"
    plain = (
        '[data]\natlases = "atlases"\ntargets = "targets"\nout = "out"\n[preprocessing]\nsteps = ["intensity"]\n'
        '[registration]\nsteps = ["rigid"]\n[fusion]\nmethod = "majority"\n'
    )
    path.write_text(
        f'{plain}[refinement]\nmethod = "corrective_learning"\n[refinement.corrective_learning]\nmodel = "model"\n'
    )
    run = ["run", str(path), "--jobs", "1", "--set", "output.report=false"]
    early = CliRunner().invoke(app, run)
    assert early.exit_code == 1 and "expected a model of corrective" in early.output  # before anything is registered

    train = ["atlases", "correct", str(path), "--out", str(marked / "model"), "--samples", "1500"]
    with threadpool_limits(1):
        done = CliRunner().invoke(app, [*train, "--cache", str(marked / "cache")])
    assert done.exit_code == 0, done.output
    assert "classifiers of" in done.output and len(list((marked / "cache").glob("registration.rigid/*"))) == 6
    header = json.loads((marked / "model/model.json").read_text())
    assert set(header["provenance"]["atlases"]) == {"head0", "head1", "head2"}
    assert header["provenance"]["registration"]["steps"][0]["method"] == "rigid"
    assert "device" not in json.dumps(header["provenance"])
    assert header["versions"]["atlasseg"] and "corrective_learning" in header["recipe"]

    done = CliRunner().invoke(app, run)
    assert done.exit_code == 0, done.output
    assert set(pd.read_csv(marked / "out/metrics.tsv", sep="\t").target) == {"head3", "head4"}
    refined = io.read_label_map(marked / "out/head3/head3_desc-majority_dseg.nii.gz")
    path.write_text(plain)
    CliRunner().invoke(app, [*run, "--out", str(marked / "plain")])
    fused = io.read_label_map(marked / "plain/head3/head3_desc-majority_dseg.nii.gz")
    assert (refined.array != fused.array).any()


def test_goes_on_where_it_was_broken_off(marked, count_registrations, caplog):
    registered = count_registrations("rigid")
    tables = {**TABLES, "selection": {"before": 1}}
    recipe = parse_recipe(tables, base=marked)  # after the patch: a recipe holds the function itself
    options = {"samples_per_label": 300, "cache": marked / "cache"}
    first = correct(recipe, marked / "model", **options)
    once = list(registered)
    assert once
    kept = sorted((marked / "cache").glob("fusion.majority/*.entry"))
    assert len(kept) == 3
    again = parse_recipe({**tables, "fusion": {"method": "local_weighted"}}, base=marked)

    second = correct(recipe, marked / "model", **options)
    for label, trees in first.classifiers.items():
        np.testing.assert_array_equal(trees.value, second.classifiers[label].value)
    correct(again, marked / "model", **options)  # another fusion on the same registrations
    assert len(list((marked / "cache").glob("fusion.*/*.entry"))) == 6
    kept[0].write_bytes(b"PK damaged")
    third = correct(recipe, marked / "model", **options)
    assert "cannot be read" in caplog.text
    assert third.record["samples"] == first.record["samples"]
    assert registered == once


def test_further_cases_are_learned_on_and_do_not_vote(marked):
    recipe = parse_recipe(TABLES, base=marked)
    with threadpool_limits(1):
        more = correct(recipe, marked / "more", cases=marked / "targets", samples_per_label=300)
    header = json.loads((marked / "more/model.json").read_text())
    assert header["cases"] == ["head3", "head4"] and set(header["provenance"]["atlases"]) == {"head0", "head1", "head2"}
    assert max(sum(n.values()) for n in more.record["samples"].values()) == 300  # 60 of each of five
    with pytest.raises(InputError, match="case head0: expected a scan that is no atlas, got atlas head0"):
        correct(recipe, marked / "more", cases=marked / "atlases")


def test_a_model_is_refused_on_what_it_was_trained_on(marked):
    library = read_library(marked / "atlases")
    atlases = [library.read(id_) for id_ in library.ids]
    tables = {**TABLES, "registration": {"steps": ["rigid"]}}
    from atlasseg.refinement.corrective_learning import write_model

    with threadpool_limits(1):
        write_model(train_corrective(atlases, parse_recipe(tables), samples_per_label=300), marked / "model")
    refined = {"method": "corrective_learning", "corrective_learning": {"model": "model"}}
    recipe = parse_recipe({**tables, "refinement": refined}, base=marked)
    assert recipe.refinement.method.arguments == {"model": marked / "model"}
    with pytest.raises(InputError, match="atlases head1 is missing here"):
        pipeline.segment(atlases[1].image, [atlases[0], atlases[2]], recipe)
    other = parse_recipe({**tables, "fusion": {"method": "local_weighted"}, "refinement": refined}, base=marked)
    with pytest.raises(InputError, match=r"fusion method: trained with .*majority.* used with .*local_weighted"):
        pipeline.segment(atlases[1].image, atlases, other)
    with pytest.raises(InputError, match=r"\[refinement.corrective_learning\] lacks the parameter 'model'"):
        parse_recipe({**tables, "refinement": {"method": "corrective_learning"}})
    with pytest.raises(InputError, match="at least 3 atlases, got 2"):
        train_corrective(atlases[:2], recipe)
