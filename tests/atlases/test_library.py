"""Folders become libraries and targets, or say which file is at fault."""

import logging

import numpy as np
import pytest

from atlasseg import io
from atlasseg.atlases.library import AtlasLibrary, Target, read_library, read_targets
from atlasseg.errors import GeometryError, InputError
from atlasseg.labels import Label, LabelTable
from atlasseg.volume import Image, LabelMap, Mask, ProbabilityMap

SHAPES = {"a": (7, 9, 5), "b": (6, 9, 8), "c": (5, 4, 11)}
AFFINE = np.array([[-0.9, 0.2, 0.1, 31.0], [0.15, 1.2, -0.3, -12.5], [0.05, 0.25, 2.5, 7.25], [0, 0, 0, 1]])


def affine_of(id_):
    """A place of its own for every atlas, hundreds of millimetres apart."""
    affine = AFFINE.copy()
    affine[:3, 3] += 200 * "abc".index(id_)
    return affine


def scan(id_):
    rng = np.random.default_rng("abc".index(id_))
    return Image(rng.normal(100, 30, SHAPES[id_]), affine_of(id_), id_)


def labels(id_, values=(0, 1, 2)):
    return LabelMap(np.resize(values, SHAPES[id_]), affine_of(id_), id_)


@pytest.fixture
def folder(tmp_path):
    """Three atlases on three grids; b lacks label 2, c has a mask."""
    for id_ in SHAPES:
        io.write_image(scan(id_), tmp_path / "images" / f"{id_}.nii.gz")
        io.write_label_map(labels(id_, (0, 1) if id_ == "b" else (0, 1, 2)), tmp_path / "labels" / f"{id_}.nii.gz")
    io.write_mask(Mask(scan("c").array > 60, affine_of("c")), tmp_path / "masks" / "c.nii.gz")
    return tmp_path


def table(folder, *rows):
    io.write_label_table(LabelTable(rows or (Label(1, "head"), Label(2, "tail"))), folder / "labels.tsv")


# --------------------------------------------------------------------------------------------------------- reading


def test_a_library_of_several_grids_is_read(folder):
    library = read_library(folder)
    assert library.kind == "multi" and library.ids == ("a", "b", "c") and len(library) == 3
    for id_ in library.ids:
        atlas = library.read(id_)
        assert atlas.id == id_ and atlas.image.shape == SHAPES[id_]
        np.testing.assert_array_equal(atlas.image.array, scan(id_).array)
        np.testing.assert_allclose(atlas.image.affine, affine_of(id_), rtol=1e-6)
        np.testing.assert_array_equal(atlas.labels.affine, atlas.image.affine)
        assert atlas.label_values.tolist() == ([0, 1] if id_ == "b" else [0, 1, 2])
        assert atlas.not_annotated == frozenset()
    assert library.read("a").mask is None
    np.testing.assert_array_equal(library.read("c").mask.array, scan("c").array > 60)


def test_a_folder_among_the_images_is_a_dicom_series(folder):
    (folder / "images" / "a.nii.gz").unlink()
    (folder / "images" / "a").mkdir()
    library = read_library(folder)
    assert library.ids == ("a", "b", "c") and library.files("a").image == folder / "images" / "a"
    with pytest.raises(InputError, match="images/a: expected a folder with a DICOM series"):
        library.read("a")


def test_nothing_is_read_before_it_is_asked_for(folder, monkeypatch):
    monkeypatch.setattr("atlasseg.io._opening.open_volume", None)
    assert len(read_library(folder)) == 3
    assert len(read_targets(folder)) == 3


def test_a_library_is_a_value(folder):
    library = read_library(folder)
    assert library == read_library(folder) and hash(library) == hash(read_library(folder))
    assert library.without("b").ids == ("a", "c")
    assert library.without("nobody") == library
    assert library.only(["b", "a"]).ids == ("a", "b")
    assert library.ids == ("a", "b", "c")
    with pytest.raises(InputError, match=r"expected an atlas of the library \(a, b, c.*got 'x'"):
        library.only(["x"])
    with pytest.raises(InputError, match=r"expected an atlas of the library .*got 'x'"):
        library.read("x")


def test_one_atlas_is_a_single_library(folder):
    assert read_library(folder).only(["a"]).kind == "single"


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_other_formats_are_found_and_other_files_are_passed_over(folder, suffix):
    io.write_image(scan("a"), folder / "images" / f"a{suffix}")
    (folder / "images" / "a.nii.gz").unlink()
    for name in ("notes.txt", ".a.nii.gz", "a.json"):
        (folder / "images" / name).write_text("{}")
    library = read_library(folder)
    assert library.ids == ("a", "b", "c")
    np.testing.assert_array_equal(library.read("a").image.array, scan("a").array)


def test_intensities_that_are_not_finite_leave_the_mask(folder):
    import nibabel as nib

    for id_ in ("a", "c"):
        array = scan(id_).array.copy()
        array[1, 2, 3] = np.nan
        nib.save(nib.Nifti1Image(array, affine_of(id_)), folder / "images" / f"{id_}.nii.gz")
    library = read_library(folder)
    assert np.argwhere(~library.read("a").mask.array).tolist() == [[1, 2, 3]]
    expected = scan("c").array > 60
    expected[1, 2, 3] = False
    np.testing.assert_array_equal(library.read("c").mask.array, expected)


# ------------------------------------------------------------------------------------------ what the labels mean


def test_the_label_table_is_read_and_says_what_was_not_annotated(folder):
    table(folder, Label(1, "head"), Label(2, "tail", not_annotated_in=frozenset({"b"})))
    library = read_library(folder)
    assert library.table.name(2) == "tail"
    assert [library.read(id_).not_annotated for id_ in library.ids] == [set(), {2}, set()]


def test_sidecars_say_what_was_not_annotated_by_value_or_name(folder):
    table(folder, Label(1, "head"), Label(2, "tail"), Label(3, "body", not_annotated_in=frozenset({"b"})))
    io.write_json({"not_annotated": ["tail", 7]}, folder / "labels" / "b.json")
    assert read_library(folder).read("b").not_annotated == {2, 3, 7}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"not_annotated": ["tale"]}', "no label 'tale'; it has head, tail"),
        ('{"not_annotated": 2}', "expected a list of labels"),
        ('{"not_annotated": [2.5]}', "whole number or a name, got 2.5"),
        ('{"not_annotated": [true]}', "whole number or a name, got True"),
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
    ],
)
def test_a_faulty_sidecar_is_named(folder, content, reason):
    table(folder)
    (folder / "labels" / "b.json").write_text(content)
    with pytest.raises(InputError, match=rf"b\.json.*{reason}"):
        read_library(folder)


def test_ids_in_the_table_that_no_atlas_has_are_warned_of(folder, caplog):
    table(folder, Label(1, "head", not_annotated_in=frozenset({"bb"})))
    read_library(folder)
    assert "not_annotated_in names bb, but there is no atlas with this id" in caplog.text


def test_labels_said_not_to_be_annotated_that_are_there_are_warned_of(folder, caplog):
    io.write_json({"not_annotated": [2, 3]}, folder / "labels" / "a.json")
    read_library(folder).read("a")
    assert "a.nii.gz: labels 2 are listed as not annotated, but occur in the label map" in caplog.text


def test_labels_that_the_table_lacks_are_warned_of(folder, caplog):
    table(folder, Label(1, "head"))
    read_library(folder).read("b")
    assert not caplog.records
    read_library(folder).read("a")
    assert "a.nii.gz: labels 2 are not in the label table" in caplog.text


def test_a_faulty_or_second_label_table_is_named(folder):
    (folder / "labels.tsv").write_text("index\tname\n1\thead\n1\ttail\n")
    with pytest.raises(InputError, match=r"labels\.tsv, line 3"):
        read_library(folder)
    table(folder)
    (folder / "labels.csv").write_text("index,name\n1,head\n")
    with pytest.raises(InputError, match=r"expected one label table, got labels\.tsv, labels\.csv"):
        read_library(folder)


# -------------------------------------------------------------------------------------------------- faulty folders


def test_an_atlas_without_its_label_file_is_named(folder):
    (folder / "labels" / "b.nii.gz").unlink()
    with pytest.raises(
        InputError, match=r"1 of 3 images have no label file in labels/: b \(expected e\.g\. .*b\.nii\.gz"
    ):
        read_library(folder)


def test_labels_without_an_image_are_named(folder):
    (folder / "images" / "b.nii.gz").unlink()
    with pytest.raises(InputError, match="labels without an image of the same id: b"):
        read_library(folder)


def test_a_mask_without_an_image_is_warned_of(folder, caplog):
    (folder / "masks" / "c.nii.gz").rename(folder / "masks" / "d.nii.gz")
    read_library(folder)
    assert "d.nii.gz: a mask without an image" in caplog.text


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_duplicate_ids_are_refused_with_both_files(folder, kind):
    (folder / kind / "b.nii").write_bytes(b"")
    with pytest.raises(InputError, match=rf"{kind}: two volumes have the id 'b': b\.nii and b\.nii\.gz"):
        read_library(folder)


def test_folders_that_are_no_library_are_refused(tmp_path):
    with pytest.raises(InputError, match="absent: no such folder"):
        read_library(tmp_path / "absent")
    with pytest.raises(InputError, match="images: no images found"):
        read_library(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder, got a file"):
        read_library(tmp_path / "file")


def test_labels_of_another_shape_are_refused_with_both_files_and_shapes(folder):
    io.write_label_map(LabelMap(np.ones((7, 9, 4)), affine_of("a")), folder / "labels" / "a.nii.gz")
    with pytest.raises(GeometryError) as refused:
        read_library(folder).read("a")
    for part in (str(folder / "labels" / "a.nii.gz"), str(folder / "images" / "a.nii.gz"), "(7, 9, 4)", "(7, 9, 5)"):
        assert part in str(refused.value)


@pytest.mark.parametrize("kind", ["labels", "masks"])
@pytest.mark.parametrize(("apart", "refused"), [(1e-7, False), (1e-3, False), (0.5, True)])
def test_affines_may_differ_by_rounding_but_not_by_half_a_voxel(folder, kind, apart, refused):
    affine = affine_of("c")
    affine[:3, 3] += apart * affine[:3, 0]
    if kind == "labels":
        io.write_label_map(LabelMap(labels("c").array, affine), folder / kind / "c.nii.gz")
    else:
        io.write_mask(Mask(np.ones(SHAPES["c"]), affine), folder / kind / "c.nii.gz")
    library = read_library(folder)
    if refused:
        with pytest.raises(GeometryError, match=rf"{kind}/c\.nii\.gz: expected the grid.*up to 0\.45\d* mm"):
            library.read("c")
    else:
        atlas = library.read("c")
        for volume in (atlas.labels, atlas.mask):
            np.testing.assert_array_equal(volume.affine, atlas.image.affine)


def test_an_empty_label_map_is_warned_of_and_refused_where_it_is_the_only_one(folder, caplog):
    io.write_label_map(LabelMap(np.zeros(SHAPES["a"]), affine_of("a")), folder / "labels" / "a.nii.gz")
    library = read_library(folder)
    assert library.read("a").labels.values.tolist() == [0]
    assert "a.nii.gz: the label map has only background" in caplog.text
    with pytest.raises(InputError, match=r"a\.nii\.gz: expected labels in the only atlas"):
        library.only(["a"]).read("a")


def test_a_damaged_file_is_named_when_it_is_read(folder):
    (folder / "images" / "a.nii.gz").write_text("text")
    library = read_library(folder)
    with pytest.raises(InputError, match=r"images/a\.nii\.gz"):
        library.read("a")
    assert library.read("b").id == "b"


def test_a_mask_that_leaves_nothing_finite_is_refused(folder):
    import nibabel as nib

    array = scan("c").array.copy()
    array[scan("c").array > 60] = np.nan
    nib.save(nib.Nifti1Image(array, affine_of("c")), folder / "images" / "c.nii.gz")
    with pytest.raises(InputError, match=r"masks/c\.nii\.gz: no intensity of .*c\.nii\.gz is finite inside the mask"):
        read_library(folder).read("c")


# -------------------------------------------------------------------------------------------- probabilistic atlases


@pytest.fixture
def template(tmp_path):
    io.write_image(scan("a"), tmp_path / "images" / "a.nii.gz")
    (tmp_path / "probabilities").mkdir()
    return tmp_path


def fractions():
    weights = np.random.default_rng(1).random((*SHAPES["a"], 3))
    return ProbabilityMap.from_dense(weights, [0, 1, 2], affine_of("a"))


def assert_fractions(library):
    assert library.kind == "probabilistic"
    found = library.read("a").labels
    assert isinstance(found, ProbabilityMap)
    assert found.label_values.tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.dense(), fractions().dense(), atol=2e-5)


def test_a_probabilistic_atlas_in_one_file_that_knows_its_labels(template):
    io.write_probability_map(fractions(), template / "probabilities" / "a.nii.gz")
    assert_fractions(read_library(template))


@pytest.mark.parametrize("rows", [(1, 2), (0, 1, 2)])
@pytest.mark.parametrize("volumes", [(1, 2), (0, 1, 2)])
def test_a_probabilistic_atlas_in_one_file_whose_labels_the_table_knows(template, rows, volumes):
    import nibabel as nib

    table(template, *(Label(value, f"label {value}") for value in rows))
    array = fractions().dense()[..., list(volumes)]
    nib.save(nib.Nifti1Image(array, affine_of("a")), template / "probabilities" / "a.nii.gz")
    library = read_library(template)
    if rows == (1, 2) and volumes == (0, 1, 2):
        with pytest.raises(
            InputError, match=r"a\.nii\.gz: expected a different label for each of 3 volumes, got \[1, 2\]"
        ):
            library.read("a")
    else:
        assert_fractions(library)


def test_a_probabilistic_atlas_with_a_file_a_label_by_name_or_value(template):
    table(template)
    for name, value in (("head", 1), ("2", 2)):
        part = Image(fractions().probability(value), affine_of("a"))
        io.write_image(part, template / "probabilities" / f"{name}.nii.gz")
    assert_fractions(read_library(template))


def test_faulty_files_of_probabilities_are_named(template):
    table(template)
    part = Image(fractions().probability(1), affine_of("a"))
    path = template / "probabilities"
    io.write_image(part, path / "hand.nii.gz")
    with pytest.raises(InputError, match=r"hand\.nii\.gz: neither a label's value nor a name.*head, tail"):
        read_library(template)
    (path / "hand.nii.gz").unlink()
    io.write_image(part, path / "head.nii.gz")
    io.write_image(part, path / "1.nii.gz")
    with pytest.raises(InputError, match=r"expected one file per label, got two of label 1: also 1\.nii\.gz"):
        read_library(template)
    io.write_image(scan("b"), template / "images" / "b.nii.gz")
    with pytest.raises(InputError, match="one file a label needs a single template"):
        read_library(template)


def test_probabilities_on_another_grid_are_refused(template):
    moved = affine_of("a")
    moved[0, 3] += 3
    probabilities = ProbabilityMap.from_dense(fractions().dense(), [0, 1, 2], moved)
    io.write_probability_map(probabilities, template / "probabilities" / "a.nii.gz")
    with pytest.raises(GeometryError, match=r"probabilities/a\.nii\.gz: expected the grid of its image"):
        read_library(template).read("a")


def test_labels_and_probabilities_of_one_atlas_are_refused(template):
    io.write_label_map(labels("a"), template / "labels" / "a.nii.gz")
    io.write_probability_map(fractions(), template / "probabilities" / "a.nii.gz")
    with pytest.raises(InputError, match="expected labels or probabilities, got both for a"):
        read_library(template)


# ------------------------------------------------------------------------------------------------------------ targets


def test_targets_of_a_folder_have_what_lies_beside_them(folder):
    (folder / "labels" / "b.nii.gz").unlink()
    found = read_targets(folder)
    images, others = folder / "images", (folder / "labels", folder / "masks")
    assert found == (
        Target("a", images / "a.nii.gz", others[0] / "a.nii.gz", None),
        Target("b", images / "b.nii.gz", None, None),
        Target("c", images / "c.nii.gz", others[0] / "c.nii.gz", others[1] / "c.nii.gz"),
    )
    image, mask = found[2].read()
    np.testing.assert_array_equal(mask.array, scan("c").array > 60)
    np.testing.assert_array_equal(found[2].read_labels(image).array, labels("c").array)
    assert found[1].read()[1] is None and found[1].read_labels(image) is None
    with pytest.raises(GeometryError, match=r"labels/a\.nii\.gz: expected the grid of its image"):
        found[0].read_labels(image)


def test_targets_may_be_files_in_any_order_and_folders_of_files(folder):
    files = [folder / "images" / f"{id_}.nii.gz" for id_ in ("c", "a")]
    assert [target.id for target in read_targets(files)] == ["c", "a"]
    assert read_targets(files[0]) == (Target("c", files[0]),)
    assert read_targets(str(files[0])) == (Target("c", files[0]),)
    assert [target.id for target in read_targets(folder / "images")] == ["a", "b", "c"]
    assert len(read_targets([files[0], files[0]])) == 1


def test_a_folder_of_slices_is_one_target(tmp_path):
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "IM0001").write_bytes(b"")
    assert read_targets(tmp_path / "series") == (Target("series", tmp_path / "series"),)


def test_faulty_targets_are_named(folder, tmp_path):
    with pytest.raises(InputError, match=r"absent\.nii\.gz: no such file"):
        read_targets([tmp_path / "absent.nii.gz"])
    with pytest.raises(InputError, match="expected at least one target"):
        read_targets([])
    (tmp_path / "empty" / "images").mkdir(parents=True)
    with pytest.raises(InputError, match="images: no images found"):
        read_targets(tmp_path / "empty")
    other = tmp_path / "other" / "a.nii.gz"
    io.write_image(scan("b"), other)
    with pytest.raises(InputError, match=r"got two targets 'a': .*images/a\.nii\.gz and .*other/a\.nii\.gz"):
        read_targets([folder, other])


def test_a_target_with_values_that_are_not_finite_gets_a_mask(folder, caplog):
    import nibabel as nib

    array = scan("a").array.copy()
    array[1, 2, 3] = np.inf
    nib.save(nib.Nifti1Image(array, affine_of("a")), folder / "images" / "a.nii.gz")
    _, mask = read_targets(folder)[0].read()
    assert np.argwhere(~mask.array).tolist() == [[1, 2, 3]]
    assert "a.nii.gz" in caplog.text


# --------------------------------------------------------------------------------------------------------- real files


def test_real_libraries_are_read(real_data, caplog):
    library = read_library(real_data / "hippocampus" / "atlases")
    assert isinstance(library, AtlasLibrary) and len(library) == 15
    assert {tuple(library.read(id_).label_values.tolist()) for id_ in library.ids} == {(0, 1, 2)}
    assert len(read_targets(real_data / "hippocampus" / "targets")) == 20
    mouse = read_library(real_data / "mouse_brain" / "atlases")
    atlas = mouse.read(mouse.ids[0])
    assert atlas.mask is not None and len(atlas.label_values) == 38
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_several_folders_make_one_library(tmp_path):
    for name, id_ in (("one", "b"), ("two", "a")):
        for kind in ("images", "labels"):
            (tmp_path / name / kind).mkdir(parents=True)
        io.write_image(Image(np.arange(24.0).reshape(2, 3, 4), np.eye(4)), tmp_path / name / f"images/{id_}.nii.gz")
        io.write_label_map(LabelMap(np.ones((2, 3, 4), int), np.eye(4)), tmp_path / name / f"labels/{id_}.nii.gz")
    (tmp_path / "two" / "labels.tsv").write_text("index\tname\n1\tpart\n")
    library = read_library(tmp_path / "one", tmp_path / "two")
    assert library.ids == ("a", "b") and library.kind == "multi" and library.root == tmp_path / "one"
    assert library.table.name(1) == "part"
    assert library.read("a").segmentation.values.tolist() == [1]
    with pytest.raises(InputError, match=r"got two atlases 'b': .*one.*one"):
        read_library(tmp_path / "one", tmp_path / "one")
