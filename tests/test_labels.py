"""Label tables: every format there and back, and messages that name the line."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlasseg.errors import InputError
from atlasseg.io import read_label_table
from atlasseg.labels import Label, LabelTable, default_color, format_label_table, parse_label_table

FORMATS = ["bids", "csv", "itk-snap", "freesurfer"]

BIDS = (
    "index\tname\tabbreviation\tcolor\tmapping\tgroup\tnot_annotated_in\n"
    "0\tBackground\tBG\t#000000\t0\tn/a\tn/a\n"
    "17\tLeft hippocampus\tn/a\t#DCD814\t10\tlimbic\tatlas2; atlas5\n"
    "53\tRight hippocampus\tRHI\tn/a\tn/a\tlimbic\tn/a\n"
)

ITK_SNAP = """################################################
# ITK-SnAP Label Description File
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
################################################
    0     0    0    0        0  0  0    "Clear Label"
    1   255    0    0        1  1  0    "Label 1"
   17   220  216   20     0.65  1  1    "Left hippocampus, head"
"""

FREESURFER = """#$Id: FreeSurferColorLUT.txt
#No. Label Name:                            R   G   B   A

0   Unknown                                 0   0   0   0
17  Left-Hippocampus                        220 216 20  0
1000 ctx-lh-unknown  25  5  25 0
"""


def test_bids_columns_are_read():
    table = parse_label_table(BIDS)
    assert table.labels == (
        Label(0, "Background", (0, 0, 0), abbreviation="BG", mapping=0),
        Label(17, "Left hippocampus", (220, 216, 20), "limbic", None, 10, frozenset({"atlas2", "atlas5"})),
        Label(53, "Right hippocampus", None, "limbic", "RHI"),
    )
    assert table.groups == {"limbic": (17, 53)}
    assert table.not_annotated_in("atlas5") == {17}
    assert table.not_annotated_in("atlas1") == frozenset()


def test_itk_snap_is_read_by_its_content():
    assert parse_label_table(ITK_SNAP).labels == (
        Label(1, "Label 1", (255, 0, 0)),
        Label(17, "Left hippocampus, head", (220, 216, 20)),
    )


def test_freesurfer_is_read_by_its_content():
    table = parse_label_table(FREESURFER)
    assert table.values == (0, 17, 1000)
    assert table.labels[1] == Label(17, "Left-Hippocampus", (220, 216, 20))


@pytest.mark.parametrize(
    "text",
    [
        "value,name,red,green,blue\n17,Left hippocampus,220,216,20\n",
        "Label,Name,R,G,B\n17,Left hippocampus,220,216,20\n",
        "id;structure;colour\n17;Left hippocampus;DCD814\n",
        'index,name,color\r\n17,"Left hippocampus",#dcd814\r\n',
    ],
)
def test_csv_with_the_usual_names_of_columns(text):
    assert parse_label_table(text).labels == (Label(17, "Left hippocampus", (220, 216, 20)),)


def test_a_comma_within_quotes_belongs_to_the_name():
    assert parse_label_table('index,name\n3,"gyrus, frontal"\n').name(3) == "gyrus, frontal"


NAMES = st.text("abz Z-_'.é,\"#;", min_size=1, max_size=8).filter(
    lambda name: name.strip() == name != "" and name != "n/a"
)
TABLES = st.lists(
    st.builds(
        Label,
        st.integers(-(2**31), 2**31 - 1),
        NAMES,
        st.none() | st.tuples(*[st.integers(0, 255)] * 3),
        st.none() | st.sampled_from(["limbic", "deep grey"]),
        st.none() | st.just("HI"),
        st.none() | st.integers(0, 99),
        st.frozensets(st.sampled_from(["a1", "sub-02", "003"])),
    ),
    max_size=6,
    unique_by=(lambda label: label.value, lambda label: label.name),
).map(lambda labels: LabelTable(tuple(labels)))


@settings(max_examples=60, deadline=None)
@given(TABLES, st.sampled_from(["bids", "csv"]))
def test_tables_come_back_from_tsv_and_csv(table, form):
    text = format_label_table(table, form)
    if not len(table):
        assert text.startswith("index")
        return
    found = parse_label_table(text)
    colored = [Label(**{**vars_of(label), "color": table.color(label.value)}) for label in table]
    assert list(found) == colored
    assert format_label_table(found, form) == text


def vars_of(label):
    names = ("value", "name", "color", "group", "abbreviation", "mapping", "not_annotated_in")
    return {name: getattr(label, name) for name in names}


@pytest.mark.parametrize("form", FORMATS)
def test_values_names_and_colors_come_back_from_every_format(form):
    table = LabelTable(
        (Label(3, "Left_CA1", (1, 2, 3)), Label(-7, "odd", None), Label(614454277, "third", (255, 0, 9)))
    )
    found = parse_label_table(format_label_table(table, form))
    assert [(x.value, x.name, x.color) for x in found] == [(x.value, x.name, table.color(x.value)) for x in table]


def test_freesurfer_names_lose_their_spaces_and_clashes_are_refused():
    assert (
        parse_label_table(format_label_table(LabelTable((Label(3, "Left CA1"),)), "freesurfer")).name(3) == "Left_CA1"
    )
    with pytest.raises(InputError, match="the labels 3 and 4 would all get the name 'CA_1'"):
        format_label_table(LabelTable((Label(3, "CA 1"), Label(4, "CA_1"))), "freesurfer")


def test_an_unknown_format_is_refused():
    with pytest.raises(InputError, match=r"'xml'\. Choose from: bids, csv, itk-snap, freesurfer"):
        format_label_table(LabelTable(), "xml")


def test_itk_snap_names_lose_their_double_quotes():
    assert (
        parse_label_table(format_label_table(LabelTable((Label(3, 'the "head"'),)), "itk-snap")).name(3) == "the 'head'"
    )


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("index\tname\n1\ta\n1\tb\n", 3, "expected a new value, got 1 as in line 2"),
        ("index\tname\n1\ta\n\n1.0\tb\n", 4, "expected a new value, got 1 as in line 2"),
        ("index\tname\n1e99\ta\n", 2, "expected a whole number as value, got '1e99'"),
        ("index\tname\n99999999999\ta\n", 2, "expected a value of 32 bits"),
        ("index\tname\n1.5\ta\n", 2, "expected a whole number as value, got '1.5'"),
        ("index\tname\n1\ta\tmore\n", 2, "expected 2 columns"),
        ("index\tname\n1\t\n", 2, "both a value and a name"),
        ("index\tname\n1\tn/a\n", 2, "both a value and a name"),
        ("index\tname\tcolor\n1\ta\tred\n", 2, "expected a colour such as #E69F00, got 'red'"),
        ("index,name,r,g,b\n1,a,1,2,300\n", 2, "0..255"),
        ("index\tname\tmapping\n1\ta\tx\n", 2, "as mapping, got 'x'"),
        (ITK_SNAP + "oh no\n", 8, "expected the same format as in the lines before"),
        (FREESURFER + "18 Amygdala 1 2\n", 7, "expected the same format as in the lines before"),
        (FREESURFER + "18 Amygdala 1 2 256 0\n", 7, "0..255"),
        ("hello\nworld\n", 1, "expected a label table"),
        ("# only\n\nindex;colour\n", 3, "expected a label table"),
    ],
)
def test_a_faulty_line_is_named(text, line, reason):
    with pytest.raises(InputError, match=f"^t.tsv, line {line}: .*{reason}"):
        parse_label_table(text, source="t.tsv")


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"])
def test_an_empty_table_is_refused(text):
    with pytest.raises(InputError, match="empty"):
        parse_label_table(text)


def test_files_are_read_with_their_byte_order_mark(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes(b"\xef\xbb\xbf" + BIDS.replace("\n", "\r\n").encode())
    assert read_label_table(path) == parse_label_table(BIDS)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.tsv"):
        read_label_table(tmp_path / "absent.tsv")
    binary = tmp_path / "binary.tsv"
    binary.write_bytes(b"index\tname\n1\t\xff\xfe\n")
    with pytest.raises(InputError, match=r"binary\.tsv.*UTF-8.*byte 13"):
        read_label_table(binary)


def test_a_value_given_twice_is_refused():
    with pytest.raises(InputError, match="label 1 is listed twice: as 'a' and 'b'"):
        LabelTable((Label(1, "a"), Label(1, "b")))


def test_a_name_given_twice_is_told_and_no_error(caplog):
    table = parse_label_table("index\tname\n1\tcortex\n2\tvein\n3\tcortex\n", source="t.tsv")
    assert [label.name for label in table] == ["cortex", "vein", "cortex"]
    assert "t.tsv: several labels have the name 'cortex': 1, 3" in caplog.text
    assert (table.name(1), table.name(3), table.value("vein")) == ("cortex", "cortex", 2)
    with pytest.raises(InputError, match=r"have the name 'cortex': 1, 3\. Give the number instead"):
        table.value("cortex")
    for form in FORMATS:
        assert parse_label_table(format_label_table(table, form)).values == (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (
            "#No. Label Name:  R G B A\n\n0  Unknown  0 0 0 0\n10 Left-Alpha 0 118 14 0\n"
            "# more\n901 Left-Beta  0 80 0 0 2\n",
            [(0, "Unknown", (0, 0, 0)), (10, "Left-Alpha", (0, 118, 14)), (901, "Left-Beta", (0, 80, 0))],
        ),
        (
            "  0  Unknown  0 0 0 0 -1\n  2  Left-White-Matter  245 245 245 0 2\n",
            [(0, "Unknown", (0, 0, 0)), (2, "Left-White-Matter", (245, 245, 245))],
        ),
        (
            "LabelValue,Name,Color_R,Color_G,Color_B,Color_A,Category\n1,Left hippocampus,128,174,128,255,SCT\n"
            '2,"Kidney, left",241,214,145,255,SCT\n',
            [(1, "Left hippocampus", (128, 174, 128)), (2, "Kidney, left", (241, 214, 145))],
        ),
        ('1 255 0 0 1e-05 1 1 "Noyau"\n2 0 1 2 .5 0 1 "b"\n3 0 1 2 1.E+0 1 0 "c"\n', None),
        ("index,name\n1.0,A\n2.0,B\n", [(1, "A", default_color(1)), (2, "B", default_color(2))]),
        ("index\tname\tr\tg\tb\n3e0\tA\t1.0\t2\t255.0\n", [(3, "A", (1, 2, 255))]),
    ],
    ids=["seventh column", "tissue type -1", "slicer", "scientific alpha", "float index", "float colours"],
)
def test_tables_as_programs_write_them_are_read(text, rows):
    found = [
        (label.value, label.name, table.color(label.value)) for table in [parse_label_table(text)] for label in table
    ]
    assert found == (rows or [(1, "Noyau", (255, 0, 0)), (2, "b", (0, 1, 2)), (3, "c", (0, 1, 2))])


def test_what_csv_cannot_hold_is_an_input_error():
    with pytest.raises(InputError, match=r"t\.csv: expected a label table"):
        parse_label_table("index,name\n1," + "a" * 200_000 + "\n", source="t.csv")


def test_a_file_too_large_for_a_table_is_not_read(tmp_path):
    with (tmp_path / "t.tsv").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(InputError, match=r"t\.tsv: expected a label table of at most 16777216 bytes"):
        read_label_table(tmp_path / "t.tsv")


@pytest.mark.parametrize("name", ["", "  ", "a\tb", "a\nb", "n/a"])
def test_names_that_would_break_a_table_are_refused(name):
    with pytest.raises(InputError, match="label 3"):
        Label(3, name)
    with pytest.raises(InputError, match="label 3"):
        Label(3, "name", group=name)


def test_labels_that_are_not_listed_have_names_and_colors_all_the_same():
    table = LabelTable((Label(9, "nine", (9, 9, 9)), Label(2, "two")))
    assert [table.name(value) for value in (9, 0, 5)] == ["nine", "background", "label 5"]
    assert table.color(9) == (9, 9, 9)
    assert table.color(2) == default_color(2)
    assert table.completed([7, 0, 9, 5, 5]).values == (9, 2, 5, 7)
    assert LabelTable.from_values(np.array([3, 0, 1], np.int32)).values == (1, 3)
    assert 9 in table and 5 not in table and table[9].name == "nine" and table.value("two") == 2
    with pytest.raises(InputError, match="no label 5; it has 9, 2"):
        table[5]
    with pytest.raises(InputError, match="no label 'five'; it has nine, two"):
        table.value("five")


def test_default_colors_differ_and_stay_apart_for_the_color_blind():
    """Labels with neighbouring values differ clearly in every kind of colour blindness (Viénot 1999 in linear RGB)."""
    assert default_color(0) == (0, 0, 0)
    colors = [default_color(value) for value in range(1, 36)]
    assert len(set(colors)) == 35
    assert default_color(36) == default_color(1) and default_color(-1) in colors
    linear = (np.array(colors[:7]) / 255) ** 2.2
    protan = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
    deutan = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    for seen in (np.eye(3), protan, deutan):
        display = np.clip(linear @ seen.T, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(display[:, None] - display[None], axis=-1) + np.eye(7)
        assert apart.min() > 0.12  # of 1.7 from black to white; 0.04 for the first seven of matplotlib's tab10
