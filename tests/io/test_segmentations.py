"""Slicer's segmentations and the tables that programs write: names kept, layers merged or named where they overlap."""

import numpy as np
import pytest

from atlasseg import io
from atlasseg.atlases.library import read_library, read_targets
from atlasseg.errors import InputError
from atlasseg.volume import Image

SHAPE = (6, 5, 4)
AFFINE = np.diag([-1.5, -1.2, 2.0, 1.0])
AFFINE[:3, 3] = -10, -20, 30


def write(path, layers, segments, *, more=""):
    """A file as Slicer writes it: `layers` of (I, J, K) uint8, segments of (name, layer, value)."""
    several = len(layers) > 1
    size, kinds, along = (f"{len(layers)} ", "list ", "none ") if several else ("", "", "")
    header = [
        "NRRD0005",
        "type: unsigned char",
        f"dimension: {4 if several else 3}",
        "space: left-posterior-superior",
        f"sizes: {size}6 5 4",
        f"space directions: {along}(1.5,0,0) (0,1.2,0) (0,0,2)",
        f"kinds: {kinds}domain domain domain",
        "encoding: raw",
        "space origin: (10,20,30)",
    ]
    for n, (name, layer, value) in enumerate(segments):
        header += [f"Segment{n}_ID:=Segment_{n}", f"Segment{n}_Name:={name}", f"Segment{n}_Color:=0.5 1 0"]
        if layer is not None:
            header += [f"Segment{n}_LabelValue:={value}", f"Segment{n}_Layer:={layer}"]
    array = np.stack(layers) if several else layers[0]
    path.write_bytes("\n".join(header).encode() + f"\n{more}\n".encode() + array.astype(np.uint8).tobytes(order="F"))
    return path


def block(i, value=1):
    out = np.zeros(SHAPE, np.uint8)
    out[i, 1:3, 1:3] = value
    return out


def names(path):
    return [(label.value, label.name) for label in io.read_label_table(path)]


def test_one_layer_keeps_values_names_and_colours(tmp_path, caplog):
    path = write(tmp_path / "x.seg.nrrd", [block(1, 1) + block(3, 7)], [('Left "kidney"', 0, 1), ("Tumeur é", 0, 7)])
    found = io.read_label_map(path)
    np.testing.assert_array_equal(found.array, block(1, 1) + block(3, 7))
    np.testing.assert_allclose(found.affine, AFFINE)
    assert found.name == "x" and names(path) == [(1, 'Left "kidney"'), (7, "Tumeur é")]
    assert io.read_label_table(path).color(7) == (128, 255, 0)
    assert not caplog.records


def test_layers_that_do_not_overlap_become_one_map(tmp_path, caplog):
    path = write(tmp_path / "x.seg.nrrd", [block(1, 3), block(3, 5)], [("a", 0, 3), ("b", 1, 5)])
    np.testing.assert_array_equal(io.read_label_map(path).array, block(1, 3) + block(3, 5))
    assert names(path) == [(3, "a"), (5, "b")] and not caplog.records


def test_segments_of_one_value_in_several_layers_are_numbered_and_told(tmp_path, caplog):
    layers = [block(1, 1) + block(2, 2), block(4, 1)]
    path = write(tmp_path / "x.seg.nrrd", layers, [("a", 0, 1), ("b", 0, 2), ("c", 1, 1)])
    np.testing.assert_array_equal(io.read_label_map(path).array, block(1, 1) + block(2, 2) + block(4, 3))
    assert names(path) == [(1, "a"), (2, "b"), (3, "c")]
    assert "have the same label value; they are numbered 1 'a', 2 'b', 3 'c'" in caplog.text


def test_files_without_layers_have_one_a_segment(tmp_path):
    """As Slicer 4.10 wrote them."""
    path = write(tmp_path / "x.seg.nrrd", [block(1), block(4)], [("a", None, None), ("b", None, None)])
    np.testing.assert_array_equal(io.read_label_map(path).array, block(1, 1) + block(4, 2))
    assert names(path) == [(1, "a"), (2, "b")]


def test_overlapping_segments_are_named(tmp_path):
    path = write(tmp_path / "x.seg.nrrd", [block(1, 1), block(1, 2)], [("liver", 0, 1), ("tumour", 1, 2)])
    with pytest.raises(InputError, match=r"x\.seg.*'liver' and 'tumour' overlap in 4 voxels, in layers 0 and 1"):
        io.read_label_map(path)


def test_segments_of_layers_that_are_not_there_are_told(tmp_path, caplog):
    path = write(tmp_path / "x.seg.nrrd", [block(1, 1) + block(2, 2)], [("a", 0, 1), ("b", 1, 1)])
    np.testing.assert_array_equal(io.read_label_map(path).array, block(1, 1) + block(2, 2))
    assert names(path) == [(1, "a")]
    assert "the segments 'b' are in layers that the file does not have" in caplog.text


def test_values_of_no_segment_in_layers_are_told(tmp_path, caplog):
    path = write(tmp_path / "x.seg.nrrd", [block(1, 1) + block(2, 9), block(4, 1)], [("a", 0, 1), ("b", 1, 1)])
    np.testing.assert_array_equal(io.read_label_map(path).array, block(1, 1) + block(4, 2))
    assert "4 voxels have values that belong to no segment" in caplog.text


@pytest.mark.parametrize(
    ("segments", "more", "reason"),
    [
        ([("a", 0, 1), ("b", 0, 1)], "", r"'a' and 'b' have 1 in layer 0"),
        ([("a", "x", 1)], "", "expected a whole number as Segment0_Layer, got 'x'"),
        ([("a", 0, "9" * 5000)], "", "expected a whole number as Segment0_LabelValue"),
        ([], "", "got a header without segments"),
    ],
)
def test_faulty_headers_are_refused(tmp_path, segments, more, reason):
    with pytest.raises(InputError, match=rf"x\.seg\.nrrd: .*{reason}"):
        io.read_label_table(write(tmp_path / "x.seg.nrrd", [block(1)], segments, more=more))


def test_more_layers_than_one_are_no_scan_and_no_other_nrrd_label_map(tmp_path):
    path = write(tmp_path / "x.seg.nrrd", [block(1), block(4)], [("a", 0, 1), ("b", 1, 1)])
    path.rename(tmp_path / "plain.nrrd")
    with pytest.raises(InputError, match="expected one 3-D volume"):
        io.read_label_map(tmp_path / "plain.nrrd")


# ------------------------------------------------------------------------------------------------------ in a library


def library(folder, *, second=("kidney", 0, 1)):
    for id_ in "xy":
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "labels").mkdir(exist_ok=True)
        io.write_image(Image(np.random.default_rng(1).normal(size=SHAPE), AFFINE), folder / "images" / f"{id_}.nrrd")
    write(folder / "labels" / "x.seg.nrrd", [block(1)], [("kidney", 0, 1)])
    write(folder / "labels" / "y.seg.nrrd", [block(2, second[2])], [second])
    return folder


def test_a_segmentation_belongs_to_the_scan_of_its_name(tmp_path):
    found = read_library(library(tmp_path, second=("liver", 0, 2)))
    assert found.ids == ("x", "y") and found.files("x").labels.name == "x.seg.nrrd"
    assert [(label.value, label.name) for label in found.table] == [(1, "kidney"), (2, "liver")]
    np.testing.assert_array_equal(found.read("y").labels.array, block(2, 2))


def test_a_table_of_the_library_comes_first(tmp_path):
    (library(tmp_path) / "labels.tsv").write_text("index\tname\n1\tmine\n")
    assert [label.name for label in read_library(tmp_path).table] == ["mine"]


def test_one_value_of_two_meanings_is_refused(tmp_path):
    library(tmp_path, second=("tumour", 0, 1))
    with pytest.raises(InputError, match=r"y\.seg\.nrrd: .*label 1 .*got 'tumour', where x\.seg\.nrrd has 'kidney'"):
        read_library(tmp_path)


def test_segmentations_beside_scans_are_no_scans(tmp_path):
    io.write_image(Image(np.random.default_rng(1).normal(size=SHAPE), AFFINE), tmp_path / "x.nrrd")
    write(tmp_path / "x.seg.nrrd", [block(1)], [("kidney", 0, 1)])
    assert [target.image.name for target in read_targets(tmp_path)] == ["x.nrrd"]


@pytest.mark.parametrize(
    ("name", "id_"), [("x.seg.nrrd", "x"), ("x.seg.nhdr", "x"), ("a.b.SEG.NRRD", "a.b"), ("x.seg.nii.gz", "x.seg")]
)
def test_ids(name, id_):
    assert io.volume_id(name) == id_


# --------------------------------------------------------------------------------------------------------- the cases


def test_the_cases_of_segmentations(cases, caplog):
    one, two = cases / "nrrd_meta" / "one_layer.seg.nrrd", cases / "nrrd_meta" / "two_layers.seg.nrrd"
    assert io.read_label_map(one).values.tolist() == [0, 1, 2]
    assert names(one) == [(1, 'Left "kidney"')]
    assert names(two) == [(1, 'Left "kidney"'), (2, "Tumeur é")]
    with pytest.raises(InputError, match=r"""segments 'Left "kidney"' and 'Tumeur é' overlap in 2 voxels"""):
        io.read_label_map(two)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("freesurfer_seven_columns.txt", [(0, "Unknown"), (10, "Left-Alpha"), (901, "Left-Beta"), (902, "Right-Beta")]),
        ("fs_tissuetype_ctab.txt", [(0, "Unknown"), (2, "Left-Cerebral-White-Matter")]),
        ("slicer.csv", [(1, "Left hippocampus"), (2, "Kidney, left")]),
        ("snap_alpha_sci.txt", [(1, "Noyau")]),
        ("csv_float_index.csv", [(1, "A"), (2, "B")]),
    ],
)
def test_the_cases_of_tables(cases, name, rows):
    assert names(cases / "tables" / name) == rows
