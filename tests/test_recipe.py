"""Recipes: what is wrong is named, with the file, the key, what was given and what there is."""

import pickle
from dataclasses import fields
from pathlib import Path

import pytest

from atlasseg.errors import InputError
from atlasseg.recipe import RENAMED_KEYS, SECTIONS, parse_recipe, read_recipe, with_device

PIPELINES = Path(__file__).parents[1] / "pipelines"
LEAST = {"fusion": {"method": "majority"}}


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_that_is_shipped_is_sound(path):
    recipe = read_recipe(path)
    assert recipe.name == path.stem
    assert recipe.data.targets and recipe.data.out is not None
    assert recipe.tissue is not None or (recipe.data.atlases and recipe.registration.steps)


def test_parameters_reach_the_method_and_others_keep_their_defaults():
    recipe = parse_recipe({"fusion": {"method": "local_weighted", "local_weighted": {"power": 3}}})
    assert recipe.fusion.method.name == "local_weighted"
    assert recipe.fusion.method.arguments == {"power": 3.0}


def test_paths_start_from_the_recipe(tmp_path):
    path = tmp_path / "r.toml"
    data = '[data]\natlases = "lib"\ntargets = ["a.nii.gz", "/b"]\nout = "../o"\n'
    path.write_text(data + '[fusion]\nmethod = "majority"\n')
    data = read_recipe(path).data
    assert data.atlases == (tmp_path / "lib",)
    assert data.targets == (tmp_path / "a.nii.gz", Path("/b"))
    assert data.out == tmp_path / "../o"


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"fusoin": {}, **LEAST}, r"no table \[fusoin\]; did you mean 'fusion'\?"),
        ({"fusion": {"method": "majorty"}}, r"\[fusion\] method: .*no method 'majorty'; did you mean 'majority'"),
        ({"fusion": {"methd": "majority"}}, r"\[fusion\] has no key 'methd'; did you mean 'method'"),
        ({"fusion": {}}, r"\[fusion\] lacks the key 'method'"),
        ({}, r"the table \[fusion\]"),
        ({"fusion": "majority"}, r"expected a table \[fusion\], got 'majority'"),
        ({"fusion": {"method": 3}}, "expected the name of a method, got 3"),
        (
            {"fusion": {"method": "local_weighted", "local_weighted": {"pwer": 2}}},
            r"\[fusion.local_weighted\] has no parameter 'pwer'; did you mean 'power'",
        ),
        (
            {"fusion": {"method": "local_weighted", "local_weighted": {"power": "2"}}},
            r"\[fusion.local_weighted\] power: .*valid number.*got '2'",
        ),
        ({"fusion": {"method": "majority", "local_weighted": {"pwer": 2}}}, "no parameter 'pwer'"),
        ({"tissue": {"method": "feild"}}, r"\[tissue\] method: .*no method 'feild'; did you mean 'field'"),
        ({"tissue": {"method": "field", "field": {"bet": 1}}}, r"\[tissue.field\] has no parameter 'bet'"),
        ({"tissue": {"method": "field"}, **LEAST}, r"a recipe with \[tissue\] cannot have .*\[fusion\]"),
        ({**LEAST, "registration": {"steps": "itk_affine"}}, r"\[registration\] steps: .*got 'itk_affine'"),
        ({**LEAST, "registration": {"steps": ["afine"]}}, "no method 'afine'"),
        ({**LEAST, "preprocessing": {"mask": "skull"}}, r"\[preprocessing\] mask: .*'given'.*got 'skull'"),
        ({**LEAST, "evaluation": {"surface_tolerance_mm": float("nan")}}, "surface_tolerance_mm"),
    ],
)
def test_bad_recipes(tables, message):
    with pytest.raises(InputError, match=f"r.toml: .*{message}"):
        parse_recipe(tables, where="r.toml")


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match=r"absent\.toml: there is no such recipe"):
        read_recipe(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("[fusion\n")
    with pytest.raises(InputError, match=r"broken\.toml: expected a recipe in TOML: .*line 1"):
        read_recipe(tmp_path / "broken.toml")


def test_overrides():
    recipe = parse_recipe(
        {"fusion": {"method": "majority"}},
        overrides=[
            "fusion.method=local_weighted",
            "fusion.power=3",
            "output.report=false",
            'registration.steps=["syn"]',
        ],
    )
    assert recipe.fusion.method.name == "local_weighted"
    assert recipe.fusion.method.arguments == {"power": 3.0}
    assert recipe.output.report is False
    assert [step.name for step in recipe.registration.steps] == ["syn"]
    assert "local_weighted" in recipe.text and "power = 3" in recipe.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fusion.method", "stage.key=value"),
        ("fusion=majority", "stage.key=value"),
        ("fusio.method=x", "no stage 'fusio'; did you mean 'fusion'"),
        ("fusion.method.x=3", "expected a table for --set"),
        ("fusion.sft=true", "no parameter 'sft'; did you mean 'soft'"),
    ],
)
def test_bad_overrides(override, message):
    with pytest.raises(InputError, match=message):
        parse_recipe(LEAST, overrides=[override])


def test_a_recipe_travels_to_other_processes():
    recipe = parse_recipe({"fusion": {"method": "local_weighted", "local_weighted": {"power": 3}}})
    again = pickle.loads(pickle.dumps(recipe))
    assert again.text == recipe.text and again.fusion.method.arguments == recipe.fusion.method.arguments


def test_the_device_goes_to_those_that_ask_for_one():
    recipe = parse_recipe({"fusion": {"method": "majority"}, "registration": {"steps": ["itk_affine"]}})
    told = with_device(recipe, "cpu")
    for step in (*told.registration.steps, told.fusion.method):
        assert ("device" in step.arguments) == step.method.has_device


@pytest.mark.parametrize("name", sorted(path.stem for path in PIPELINES.glob("*.toml")))
def test_a_recipe_that_comes_with_the_package_is_read_by_its_name_and_writes_into_the_current_folder(name):
    by_name, by_path = read_recipe(name), read_recipe(PIPELINES / f"{name}.toml")
    assert by_name.data.out == Path("out", name) and by_name.name == name
    assert all(path.is_absolute() and path.exists() for path in (*by_name.data.atlases, *by_name.data.targets))
    same = ("preprocessing", "selection", "registration", "fusion", "regions", "tissue", "refiner", "training")
    assert all(getattr(by_name, title) == getattr(by_path, title) for title in same)


def test_paths_set_for_a_recipe_that_is_read_by_name_start_from_the_current_folder():
    recipe = read_recipe("quickstart", overrides=["data.out=here", "refinement.method=unet", "refinement.model=mine"])
    assert recipe.data.out == Path("here")
    assert recipe.refinement.method.arguments == {"model": Path("mine")}
    refined = read_recipe("hippocampus_refined").refinement.method.arguments
    assert refined["model"] == Path("out/hippocampus_refiner")


def test_a_name_that_is_no_recipe():
    with pytest.raises(InputError, match=r"quikstart: expected a recipe file .*did you mean 'quickstart'"):
        read_recipe("quikstart")


@pytest.mark.parametrize(
    ("table", "old", "new"), [(t, o, n) for t, keys in RENAMED_KEYS.items() for o, n in keys.items()]
)
def test_a_former_key_is_an_error_that_names_the_present_one(table, old, new):
    names = {field.name for field in fields(SECTIONS[table])}
    assert new in names and old not in names
    message = rf"^my.toml: \[{table}\] {old} is now called {new}\. Rename the key$"
    with pytest.raises(InputError, match=message):
        parse_recipe({**LEAST, table: {old: 1}}, where="my.toml")
    with pytest.raises(InputError, match=message):
        parse_recipe(LEAST, overrides=[f"{table}.{old}=1"], where="my.toml")
