"""Whatever names a volume becomes one, the same from every form; whatever does not is refused by name."""

import re

import numpy as np
import pytest
import SimpleITK as sitk

import atlasseg
from atlasseg.api.coercion import as_candidates, as_step, describe_value, repeat_or_check
from atlasseg.api.recipes import as_recipe, get_kind
from atlasseg.errors import GeometryError, InputError
from atlasseg.methods import get, names
from atlasseg.resources import shipped_recipes
from atlasseg.transforms import Affine, to_displacement_field
from atlasseg.volume import Atlas, Image, LabelMap, ProbabilityMap

FORMS = ["ours", "path", "text", "nibabel", "sitk", "ants"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_volume_at_the_same_place(form, forms):
    scan, labels = forms[form]
    expected, known = forms["ours"]
    image = atlasseg.as_image(scan)
    np.testing.assert_array_equal(image.array, expected.array)
    np.testing.assert_allclose(image.affine, expected.affine, atol=1e-5)
    found = atlasseg.as_label_map(labels)
    np.testing.assert_array_equal(found.array, known.array)
    inside = atlasseg.as_mask(labels)
    np.testing.assert_array_equal(inside.array, known.array != 0)
    assert atlasseg.as_grid(scan).matches(expected.grid)
    atlas = atlasseg.as_atlas((scan, labels))
    assert atlas.image.grid.matches(expected.grid) and isinstance(atlas.labels, LabelMap)


def test_types_that_hold_one_another(tiny):
    fractions = ProbabilityMap.from_labels(tiny["labels"])
    assert atlasseg.as_image(tiny["atlas"]) is tiny["image"]
    np.testing.assert_array_equal(atlasseg.as_label_map(fractions).array, tiny["labels"].array)
    np.testing.assert_array_equal(atlasseg.as_label_map(tiny["mask"]).array, tiny["mask"].array)
    assert atlasseg.as_label_map(tiny["mask"]).array.dtype == np.int32
    assert atlasseg.as_label_map(tiny["atlas"]) is tiny["labels"]
    assert atlasseg.as_probability_map(tiny["labels"]).label_values.tolist() == [0, 3, 7]
    assert atlasseg.as_probability_map(tiny["atlas"]).label_values.tolist() == [0, 3, 7]
    assert atlasseg.as_grid(tiny["labels"]).matches(tiny["image"].grid)


BAD = {
    "None": None,
    "no file": "nowhere.nii.gz",
    "empty text": "",
    "a dictionary": {"image": 1},
    "a list of wrong things": [None, 3],
    "an empty list": [],
    "a NumPy array": np.zeros((4, 5, 6)),
    "a number": 3,
    "a class": Image,
}
AS = {
    "as_image": atlasseg.as_image,
    "as_label_map": atlasseg.as_label_map,
    "as_mask": atlasseg.as_mask,
    "as_probability_map": atlasseg.as_probability_map,
    "as_grid": atlasseg.as_grid,
    "as_transform": atlasseg.as_transform,
    "as_atlas": atlasseg.as_atlas,
    "as_atlases": atlasseg.as_atlases,
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", AS)
def test_what_cannot_be_used_is_refused_by_the_name_of_the_argument(name, bad):
    with pytest.raises(InputError) as caught:
        AS[name](BAD[bad], what="the argument")
    message = str(caught.value)
    assert "the argument" in message or "nowhere.nii.gz" in message
    assert "expected" in message or "no such" in message


def test_messages_say_what_was_got_and_what_to_do(tiny):
    cases = [
        (atlasseg.as_image, tiny["labels"], "got a LabelMap. If its numbers are intensities, give atlasseg.Image("),
        (atlasseg.as_image, np.zeros((2, 3, 4)), "got a NumPy array of shape (2, 3, 4). An array has no position"),
        (atlasseg.as_label_map, tiny["image"], "got an Image. If its intensities are labels, give atlasseg.LabelMap("),
        (
            atlasseg.as_mask,
            tiny["image"],
            "got an Image. Choose the intensities inside the mask: atlasseg.Mask(image.array",
        ),
        (atlasseg.as_transform, np.eye(4), "got a NumPy array of shape (4, 4). If it is a (4, 4) matrix"),
        (atlasseg.as_transform, np.eye(4), "give atlasseg.Affine(matrix)"),
        (atlasseg.as_atlas, [tiny["image"], tiny["labels"]], "got a list of 2. A pair is a tuple"),
        (atlasseg.as_atlas, tiny["image"], "got an Image. Give the image and its labels together: (image, labels)"),
        (atlasseg.as_atlases, ["nowhere"], "number 1: expected an atlas"),
    ]
    for call, value, message in cases:
        with pytest.raises(InputError, match=re.escape(message)):
            call(value)
    four = atlasseg.Image(np.zeros((3, 4, 5, 2)), np.eye(4)).to_nibabel()
    with pytest.raises(InputError, match=r"scan: expected a 3-D image.* \(3, 4, 5, 2\). .*from_nibabel"):
        atlasseg.as_image(four, what="scan")
    nan = sitk.GetImageFromArray(np.full((3, 4, 5), np.nan))
    with pytest.raises(InputError, match=r"scan: .*got 60 NaN"):
        atlasseg.as_image(nan, what="scan")
    assert [describe_value(v) for v in (None, "x", {}, (1,), tiny["atlas"], four)] == [
        "None", "the text 'x'", "a dictionary", "a tuple of 1", "an Atlas", "an image of nibabel",
    ]  # fmt: skip


def test_channels_of_itk_are_channels():
    vector = atlasseg.Image(np.random.default_rng(0).normal(size=(3, 4, 5, 2)), np.eye(4))
    np.testing.assert_array_equal(atlasseg.as_image(vector.to_sitk()).array, vector.array)
    np.testing.assert_array_equal(atlasseg.as_image(vector.to_ants()).array, vector.array)


# ---------------------------------------------------------------------------------------------------------- atlases


def test_a_library_in_every_form_is_the_same_atlases(dataset):
    library = atlasseg.read_library(dataset / "atlases")
    expected = [library.read(id_) for id_ in library.ids]
    pairs = [
        (dataset / f"atlases/images/{id_}.nii.gz", dataset / f"atlases/labels/{id_}.nii.gz") for id_ in library.ids
    ]
    for value in (library, dataset / "atlases", str(dataset / "atlases"), expected, pairs, iter(expected), [library]):
        found = atlasseg.as_atlases(value)
        assert [atlas.id for atlas in found] == list(library.ids)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.image.array, other.image.array)
            np.testing.assert_array_equal(one.segmentation.array, other.segmentation.array)
    both = atlasseg.as_atlases([dataset / "atlases", dataset / "targets"])
    assert [atlas.id for atlas in both] == ["head0", "head1", "head2", "head3", "head4"]
    assert [a.id for a in atlasseg.as_atlases((dataset / "atlases", dataset / "targets"))] == [a.id for a in both]
    assert [a.id for a in atlasseg.as_atlases(pairs[0])] == ["head0"]


def test_pairs_of_one_name_are_numbered_and_ids_of_a_user_are_not_changed(tiny):
    image, labels = tiny["image"], tiny["labels"]
    assert [a.id for a in atlasseg.as_atlases([(image, labels), (image, labels)])] == ["tiny", "tiny_2"]
    assert [a.id for a in atlasseg.as_atlases([tiny["atlas"], (image, labels)])] == ["tiny", "tiny_2"]
    with pytest.raises(InputError, match="a different id for each atlas, got 'tiny' twice"):
        atlasseg.as_atlases([tiny["atlas"], Atlas("tiny", image, labels)])


def test_a_pair_on_two_grids_and_a_file_for_a_library_are_refused(tiny, forms):
    moved = tiny["labels"].affine.copy()
    moved[0, 3] += 1
    with pytest.raises(GeometryError, match="number 1"):
        atlasseg.as_atlases([(tiny["image"], LabelMap(tiny["labels"].array, moved))])
    with pytest.raises(InputError, match=r"library: expected atlases .* got the text .* \(image, labels\)"):
        atlasseg.as_atlases(forms["text"][0], what="library")


def test_labels_alone_are_candidates_where_no_intensities_are_compared(tiny):
    labels = tiny["labels"]
    voters = as_candidates(
        [labels, labels.to_sitk(), ProbabilityMap.from_labels(labels)], tiny["image"], get("fusion", "majority")
    )
    assert len({atlas.id for atlas in voters}) == 3 and all(a.grid.matches(labels.grid) for a in voters)
    with pytest.raises(InputError, match="'joint' compares intensities; got labels without images"):
        as_candidates([labels, labels], tiny["image"], get("fusion", "joint"))
    with pytest.raises(GeometryError, match="number 2: expected labels on the grid of the target"):
        as_candidates([labels, LabelMap(labels.array, np.eye(4))], tiny["image"], get("fusion", "majority"))


# ------------------------------------------------------------------------------------------- transforms and methods


def test_transforms_in_every_form_move_points_alike(tmp_path, tiny):
    matrix = np.array([[1.1, 0.1, 0, 3], [0, 0.9, 0, -2], [0.1, 0, 1, 5], [0, 0, 0, 1]])
    affine = Affine(matrix)
    atlasseg.write_transform(affine, tmp_path / "t.tfm")
    points = np.random.default_rng(0).normal(size=(20, 3)) * 30
    for value in (affine, tmp_path / "t.tfm", str(tmp_path / "t.tfm"), affine.to_sitk()):
        np.testing.assert_allclose(atlasseg.as_transform(value)(points), affine(points), atol=1e-9)
    field = to_displacement_field(affine, tiny["image"].grid)
    inside = tiny["image"].grid.centre_mm[None]
    np.testing.assert_allclose(atlasseg.as_transform(field.to_sitk())(inside), field(inside), atol=1e-6)
    with pytest.raises(InputError, match=r"start: .*order 3"):
        atlasseg.as_transform(sitk.BSplineTransform(3, 2), what="start")


def test_methods_by_name_or_as_listed_and_their_parameters_checked():
    joint = next(m for m in atlasseg.list_methods("fusion") if m.name == "joint")
    assert as_step("fusion", joint, {"beta": np.float32(3)}).arguments == {"beta": 3.0}
    assert as_step("registration", "diffeomorphic", {"iterations": np.array([5, 3])}).arguments == {
        "iterations": (5, 3)
    }
    for method, parameters, message in (
        ("jiont", {}, "did you mean 'joint'"),
        (None, {}, "expected the name of a fusion method .* got None"),
        (["joint"], {}, "got a list of 1"),
        ("joint", {"bata": 3}, r"fusion method 'joint': has no parameter 'bata'; did you mean 'beta'"),
        ("joint", {"beta": "3"}, "beta: .* got '3'"),
        ("joint", {"beta": None}, "beta: .* got None"),
        ("joint", {"target": 1}, "no parameter 'target'"),
    ):
        with pytest.raises(InputError, match=message):
            as_step("fusion", method, parameters)
    with pytest.raises(InputError, match="lacks the parameter 'model'"):
        as_step("refinement", "corrective_learning", {})
    with pytest.raises(InputError, match="expected one, or a list of 3, got 2"):
        repeat_or_check([1, 2], 3, "mask")


def test_recipes_by_path_name_method_tables_or_not_at_all(tmp_path, caplog):
    (tmp_path / "own.toml").write_text('[fusion]\nmethod = "staple"\n[registration]\nsteps = ["affine"]\n')
    for value in (tmp_path / "own.toml", str(tmp_path / "own.toml")):
        assert as_recipe(value).fusion.method.name == "staple"
    assert as_recipe("hippocampus").fusion.method.name == "local_weighted"
    refined = as_recipe("majority+markov_field", overrides=["refinement.beta=0.2"])
    assert refined.variant == "majority+markov_field" and refined.refinement.method.arguments == {"beta": 0.2}
    assert [step.name for step in refined.registration.steps] == ["affine", "diffeomorphic"]
    assert as_recipe({"fusion": {"method": "simple"}}).fusion.method.name == "simple"
    with caplog.at_level("INFO", "atlasseg"):
        assert as_recipe(None).fusion.method.name == "joint"
        assert as_recipe(None, kind="single").fusion.method.name == "majority"
    assert "no recipe given: using the default" in caplog.text
    assert as_recipe(refined) is refined
    assert not set(shipped_recipes()) & set(names("fusion"))  # else a name would have two meanings


def test_the_kind_of_atlases_is_that_of_a_library(tiny):
    fractions = Atlas("p", tiny["image"], ProbabilityMap.from_labels(tiny["labels"]))
    assert get_kind([tiny["atlas"]]) == "single" and get_kind([tiny["atlas"]] * 2) == "multi"
    assert get_kind([fractions]) == get_kind([tiny["atlas"], fractions]) == "probabilistic"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "expected a recipe .* got an int"),
        (["joint"], "got a list of 1"),
        ("jiont", "did you mean 'joint'"),
        ("hippocampos", "did you mean 'hippocampus'"),
        ("nowhere.toml", "nowhere.toml"),
        ("", "got the text ''"),
        ("joint+nothing", "nothing"),
        ({"fusion": {"method": "jiont"}}, "did you mean 'joint'"),
        ({"fusoin": {}}, "did you mean 'fusion'"),
    ],
)
def test_what_is_no_recipe_is_refused(value, message):
    with pytest.raises(InputError, match=message):
        as_recipe(value)


def test_overrides_are_texts_and_not_for_a_recipe_that_is_read():
    with pytest.raises(InputError, match="overrides: expected a list of texts"):
        as_recipe("joint", overrides="fusion.beta=3")
    with pytest.raises(InputError, match="expected a path or a name together with overrides, got a Recipe"):
        as_recipe(as_recipe("joint"), overrides=["fusion.beta=3"])
