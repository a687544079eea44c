"""Registered once, fused every way: the same results as separate runs, and registrations found again by content."""

import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from atlasseg import io
from atlasseg.app.compare import Fused, compare
from atlasseg.app.corrective import correct
from atlasseg.app.run import run
from atlasseg.cli import app
from atlasseg.compute.execution import Outcome
from atlasseg.errors import InputError
from atlasseg.recipe import parse_recipe

TABLES = {
    "data": {"atlases": "atlases", "targets": "targets", "out": "out"},
    "preprocessing": {"steps": ["intensity"]},
    "registration": {"steps": ["affine"]},
    "fusion": {"method": "majority", "local_weighted": {"power": 2.0}},
}


@pytest.fixture
def counted(count_registrations):
    """How many atlases the pipeline registered, call by call."""
    return count_registrations("affine")


def test_comparison(dataset, counted):
    recipe = parse_recipe(TABLES, base=dataset)  # after `counted`: a recipe holds the function itself
    first = compare(recipe, ["majority", "local_weighted"])
    assert counted == [3, 3]
    out = dataset / "out"
    for name in ("comparison.tsv", "comparison_tests.tsv", "comparison_ranks.tsv", "comparison.html"):
        assert (out / name).stat().st_size > 0
    index, page = ((out / name).read_text("utf-8") for name in ("index.html", "head3/head3.html"))
    assert "Methods compared" in index and 'href="head3/head3.html"' in index and "Predicted Dice" in index
    options = re.findall(r'<option value="[^"]*">([^<]*)<', page)
    assert options[:3] == ["the segmentation", "local weighted", "the reference"] and len(options) == 6  # 3 atlases
    written = pd.read_csv(out / "comparison.tsv", sep="\t")
    assert set(written.method) == {"majority", "local_weighted"} and set(written.target) == {"head3", "head4"}
    assert {"dice", "seconds", "peak_memory_mb", "expected_calibration_error"} <= set(written.metric)
    assert first.scores.shape == (2, 2) and first.tests.shape[0] == 1

    second = compare(recipe, ["majority", "local_weighted"])
    assert counted == [3, 3]  # found again
    pd.testing.assert_frame_equal(first.scores, second.scores)

    image = dataset / "atlases/images/head0.nii.gz"
    source = nib.load(image)
    nib.save(nib.Nifti1Image(np.asanyarray(source.dataobj)[::-1], source.affine), image)
    compare(recipe, ["majority", "local_weighted"])
    assert counted == [3, 3, 1, 1]  # the same name with other content is another atlas, and the others are kept

    for path in (out / ".cache").glob("registration.affine/*.entry"):
        path.write_bytes(path.read_bytes()[:-99])
    compare(recipe, ["majority", "local_weighted"])
    assert counted == [3, 3, 1, 1, 3, 3]  # what cannot be read is made again


def measured(target, majority, local_weighted):
    """What a target of these Dice brings to a comparison."""
    rows = [
        {"target": target, "method": method, "label": label, "name": name, "metric": metric, "value": value, "note": ""}
        for method, dice in (("majority", majority), ("local_weighted", local_weighted))
        for label, name, metric, value in ((3, "core", "dice", dice), (np.nan, "all", "seconds", 1.0))
    ]
    return Outcome(target, 1.0, result=Fused(pd.DataFrame(rows), None))


def test_targets_without_a_dice_are_in_no_test(dataset, monkeypatch, caplog):
    recipe = parse_recipe({**TABLES, "output": {"report": False}}, base=dataset)
    done = [
        measured("head3", 0.7, 0.8),
        measured("head5", np.nan, 0.9),
        measured("head4", 0.6, 0.5),
    ]
    monkeypatch.setattr("atlasseg.app.compare.process_targets", lambda *_, **__: done)
    found = compare(recipe, ["majority", "local_weighted"])
    assert list(found.scores.index) == ["head3", "head4"] and list(found.scores) == ["majority", "local_weighted"]
    assert found.tests.targets.tolist() == [2]
    assert "left out of tests and ranks: head5 (majority)" in caplog.text
    out = dataset / "out"
    assert set(pd.read_csv(out / "comparison.tsv", sep="\t").target) == {"head3", "head4", "head5"}
    ranks = pd.read_csv(out / "comparison_ranks.tsv", sep="\t")
    assert list(ranks) == ["method", "mean_rank", "friedman_p", "critical_difference"]
    assert ranks.friedman_p.isna().all()  # two methods alone
    np.testing.assert_allclose(ranks.critical_difference, found.ranking.critical_difference, rtol=1e-5)

    (out / "comparison.tsv").unlink()
    done[:] = [measured("head3", np.nan, np.nan), measured("head4", np.nan, 0.5)]
    with pytest.raises(
        InputError, match=r"expected a target with a Dice of every method, got none: head3 \(majority, local_weighted\)"
    ):
        compare(recipe, ["majority", "local_weighted"])
    assert (out / "comparison.tsv").is_file()


def test_leave_one_out_by_command(dataset):
    path = dataset / "recipe.toml"
    path.write_text(
        '[data]\natlases = "atlases"\nout = "out"\n[registration]\nsteps = ["affine"]\n[fusion]\nmethod = "majority"\n'
    )
    done = CliRunner().invoke(
        app, ["compare", str(path), "--methods", "majority,global_weighted", "--leave-one-out", "--jobs", "1"]
    )
    assert done.exit_code == 0, done.output
    assert set(pd.read_csv(dataset / "out/comparison.tsv", sep="\t").target) == {"head0", "head1", "head2"}


def test_with_and_without_refinement(dataset, caplog):
    tables = {
        **TABLES,
        "refinement": {"method": "corrective_learning", "corrective_learning": {"model": "model"}},
        "output": {"entropy": False},
    }
    recipe = parse_recipe(tables, base=dataset)
    assert recipe.variant == "majority+corrective_learning"
    correct(recipe, dataset / "model", samples_per_label=300)
    found = compare(recipe, ["majority", "local_weighted"])
    assert list(found.scores) == ["majority", "local_weighted", "majority+corrective_learning"]
    assert (found.scores["majority"] != found.scores["majority+corrective_learning"]).all()
    seconds = found.metrics[found.metrics.metric == "seconds"].groupby("method").value.mean()
    assert set(seconds.index) == set(found.scores)

    run(replace(recipe, data=replace(recipe.data, out=dataset / "alone")))
    for target in ("head3", "head4"):
        stem = dataset / "out" / target / f"{target}_desc-majoritycorrectivelearning"
        alone = io.read_label_map(dataset / "alone" / target / f"{target}_desc-majority_dseg.nii.gz")
        np.testing.assert_array_equal(io.read_label_map(f"{stem}_dseg.nii.gz").array, alone.array)
        assert io.read_json(Path(f"{stem}_dseg.json"))["Refinement"] == "corrective_learning"
        volumes = {path.name for path in stem.parent.glob("*_volumes.tsv")}
        ways = ("majority", "localweighted", "majoritycorrectivelearning")
        assert volumes == {f"{target}_desc-{way}_volumes.tsv" for way in ways}

    mixed = compare(recipe, ["majority", "local_weighted+corrective_learning"])  # the model is of another fusion
    assert list(mixed.scores) == ["majority", "majority+corrective_learning"] and len(mixed.scores) == 2
    said = r"weighted\+corrective.learning.*expected a model for this recipe and library.*fusion method: trained with"
    assert re.search(said, caplog.text)
    assert re.search(said, (dataset / "out/comparison.html").read_text("utf-8"))
    with pytest.raises(InputError, match=r"expected at least two methods.*got fewer.*fusion method: trained with"):
        compare(recipe, ["local_weighted+corrective_learning", "global_weighted+corrective_learning"])


def test_bad_requests(dataset):
    recipe = parse_recipe(TABLES, base=dataset)
    with pytest.raises(InputError, match="expected at least two different methods to compare, got majority"):
        compare(recipe, ["majority", "majority"])
    with pytest.raises(InputError, match="did you mean 'majority'"):
        compare(recipe, ["majorty", "local_weighted"])
    with pytest.raises(InputError, match="lacks the parameter 'model'"):
        compare(recipe, ["majority", "majority+corrective_learning"])
    with pytest.raises(InputError, match="did you mean 'corrective_learning'"):
        compare(recipe, ["majority", "majority+corrective_lerning"])
    (dataset / "targets/labels/head4.nii.gz").unlink()
    with pytest.raises(InputError, match="expected labels of every target, got none for: head4"):
        compare(recipe, ["majority", "local_weighted"])
