"""What stands in an output folder is of the run that the folder describes; what is of earlier ones is kept apart."""

import pytest

from atlasseg import io
from atlasseg.app.earlier import EARLIER, EarlierResults

RECIPE = '[data]\natlases = ["lib"]\ntargets = ["{targets}"]\n[fusion]\nmethod = "{method}"\n'


def description(method="majority", targets="t", version="1"):
    return {"GeneratedBy": [{"Version": version}], "Recipe": RECIPE.format(method=method, targets=targets)}


@pytest.fixture
def out(tmp_path):
    """Of a run over t1 and t2; and a folder and a file of the user's own."""
    for name in ("t1", "t2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}_volumes.tsv").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    (tmp_path / "metrics.tsv").touch()
    io.write_json(description(), tmp_path / "dataset_description.json")
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_the_same_again_leaves_everything_in_place(out):
    before = names(out)
    EarlierResults(out, "now").begin(description(targets="elsewhere"), ["t1", "t2", "t3"])
    assert names(out) == before


def test_a_target_that_is_not_asked_for_goes_with_the_tables_over_all(out):
    earlier = EarlierResults(out, "now")
    earlier.begin(description(), ["t1"])
    assert names(out) == ["earlier", "mine", "t1"]
    assert names(earlier.folder) == ["dataset_description.json", "metrics.tsv", "t2"]


@pytest.mark.parametrize("other", [description("joint"), description(version="2"), {}])
def test_other_settings_set_all_results_aside_and_nothing_of_the_users(out, other):
    earlier = EarlierResults(out, "now")
    earlier.begin(other, ["t1", "t2"])
    assert names(out) == ["earlier", "mine"]
    assert names(earlier.folder) == ["dataset_description.json", "metrics.tsv", "t1", "t2"]


def test_a_result_with_a_successor_is_removed_and_the_folder_with_the_last(out):
    earlier = EarlierResults(out, "now")
    earlier.set_aside("t1")
    earlier.set_aside("t2")
    earlier.discard("t1")
    assert names(earlier.folder) == ["t2"]
    earlier.discard("t2")
    earlier.discard("t2")
    assert not (out / EARLIER).exists()


def test_set_aside_twice_in_one_run_the_later_one_stays(out):
    earlier = EarlierResults(out, "now")
    earlier.set_aside("t1")
    (out / "t1").mkdir()
    (out / "t1" / "new").touch()
    earlier.set_aside("t1")
    assert names(earlier.folder / "t1") == ["new"]
