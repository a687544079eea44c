"""Registered once, fused every way: the same results as separate runs, and registrations found again by content."""

from functools import wraps

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from atlasseg.cli import app
from atlasseg.cohort.compare import compare
from atlasseg.errors import InputError
from atlasseg.recipe import parse_recipe
from atlasseg.registration import affine

TABLES = {
    "data": {"atlases": "atlases", "targets": "targets", "out": "out"},
    "preprocessing": {"steps": ["intensity"]},
    "registration": {"steps": ["affine"]},
    "fusion": {"method": "majority", "local_weighted": {"power": 2.0}},
}


@pytest.fixture
def counted(monkeypatch):
    """How many atlases the pipeline registered, call by call."""
    calls = []
    register = affine.register

    @wraps(register)
    def counting(*arguments, **options):
        calls.append(len(arguments[1]))
        return register(*arguments, **options)

    monkeypatch.setattr(affine, "register", counting)
    return calls


def test_comparison(dataset, counted):
    recipe = parse_recipe(TABLES, base=dataset)  # after `counted`: a recipe holds the function itself
    first = compare(recipe, ["majority", "local_weighted"])
    assert counted == [3, 3]
    out = dataset / "out"
    for name in ("comparison.tsv", "comparison_tests.tsv", "comparison_ranks.tsv", "comparison.html"):
        assert (out / name).stat().st_size > 0
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

    for path in (out / ".cache").glob("registration.affine/*.npz"):
        path.write_bytes(path.read_bytes()[:-99])
    compare(recipe, ["majority", "local_weighted"])
    assert counted == [3, 3, 1, 1, 3, 3]  # what cannot be read is made again


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


def test_bad_requests(dataset):
    recipe = parse_recipe(TABLES, base=dataset)
    with pytest.raises(InputError, match="at least two different methods, got majority"):
        compare(recipe, ["majority", "majority"])
    with pytest.raises(InputError, match="did you mean 'majority'"):
        compare(recipe, ["majorty", "local_weighted"])
    (dataset / "targets/labels/head4.nii.gz").unlink()
    with pytest.raises(InputError, match="no labels to compare with: head4"):
        compare(recipe, ["majority", "local_weighted"])
