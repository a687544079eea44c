import numpy as np
import pytest

from atlasseg import io
from atlasseg.errors import InputError

STEP = np.array([1.0, 0, 0])
SLICER = (
    "# Markups fiducial file version = 4.11\n# CoordinateSystem = {}\n# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,"
    "label,desc,associatedNodeID\n1,-10.5,20,30,0,0,0,1,1,1,0,F-1,,\n2,1,2,3,0,0,0,1,1,1,0,F-2,,\n"
)


@pytest.mark.parametrize(
    ("name", "text", "coordinates", "first"),
    [
        ("p.csv", "x,y,z,t,label\n1,2,3,0,7\n4,5,6,0,8\n", None, (1, 2, 3)),
        ("p.csv", "x,y,z,t,label\n1,2,3,0,7\n4,5,6,0,8\n", "lps", (-1, -2, 3)),
        ("p.csv", "name,L,P,S\na,1,2,3\nb,4,5,6\n", None, (-1, -2, 3)),
        ("p.tsv", "R\tA\tS\n1\t2\t3\n4\t5\t6\n\n", "ras", (1, 2, 3)),
        ("p.csv", "\ufeffX,Y,Z\n1,2,3\n4,5,6\n", None, (1, 2, 3)),
        ("p.fcsv", SLICER.format("LPS"), None, (10.5, -20, 30)),
        ("p.fcsv", SLICER.format("1"), None, (10.5, -20, 30)),
        ("p.fcsv", SLICER.format("0"), None, (-10.5, 20, 30)),
    ],
)
def test_points_are_read_and_written_in_their_own_coordinates(tmp_path, name, text, coordinates, first):
    (tmp_path / name).write_text(text, encoding="utf-8")
    table = io.read_points(tmp_path / name, coordinates=coordinates)
    assert table.points_mm.shape == (2, 3) and table.points_mm[0].tolist() == list(first)
    io.write_points(table.moved(table.points_mm + STEP), tmp_path / f"out{name}")
    again = io.read_points(tmp_path / f"out{name}", coordinates=coordinates)
    np.testing.assert_allclose(again.points_mm, table.points_mm + STEP, atol=1e-6)
    assert (again.head == table.head and [row[-1] for row in again.rows] == [row[-1] for row in table.rows]) or (
        table.columns[-1] == len(table.rows[0]) - 1
    )


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("p.csv", "a,b,c\n1,2,3\n", "expected columns x, y, z"),
        ("p.csv", "", "expected columns x, y, z"),
        ("p.csv", "x,y,z\n1,2,3\n1,2\n", "line 3: expected three finite numbers"),
        ("p.csv", "x,y,z\n1,2,nan\n", "line 2: expected three finite numbers"),
        ("p.csv", "x,y,z\n1,2,three\n", "line 2"),
        ("p.csv", "L,P,S\n1,2,3\n", "in RAS, as was said, got a file that says LPS"),
        ("p.fcsv", SLICER.format("IJK"), "CoordinateSystem"),
        ("p.fcsv", "x,y,z\n1,2,3\n", "CoordinateSystem"),
        ("p.txt", "x,y,z\n1,2,3\n", "expected a table of points"),
    ],
)
def test_faulty_tables_are_refused(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=reason):
        io.read_points(tmp_path / name, coordinates="ras" if "L,P,S" in text else None)
    with pytest.raises(InputError, match=r"absent\.csv: the table of points cannot be read"):
        io.read_points(tmp_path / "absent.csv")


def test_another_layout_is_not_written(tmp_path):
    (tmp_path / "p.csv").write_text("x,y,z\n1,2,3\n")
    (tmp_path / "p.csv2.csv").write_bytes(b"x,y,z\n\xff\xfe")
    with pytest.raises(InputError, match=r"ends in \.csv"):
        io.write_points(io.read_points(tmp_path / "p.csv"), tmp_path / "out.tsv")
    with pytest.raises(InputError, match="expected text in UTF-8"):
        io.read_points(tmp_path / "p.csv2.csv")


def test_a_cell_too_long_for_a_table_is_refused(tmp_path):
    (tmp_path / "p.csv").write_text("x,y,z\n" + "1" * 200_000 + ",2,3\n")
    with pytest.raises(InputError, match="line 2"):
        io.read_points(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("x" * 200_000 + ",y,z\n1,2,3\n")
    with pytest.raises(InputError, match="names of columns"):
        io.read_points(tmp_path / "p.csv")


def test_a_file_larger_than_a_table_of_points_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "p.csv").write_text("x,y,z\n1,2,3\n")
    monkeypatch.setattr("atlasseg.io.points._MAX_BYTES", 12)
    assert io.read_points(tmp_path / "p.csv").points_mm.tolist() == [[1, 2, 3]]
    monkeypatch.setattr("atlasseg.io.points._MAX_BYTES", 11)
    with pytest.raises(InputError, match="at most 11 bytes, got a file of 12"):
        io.read_points(tmp_path / "p.csv")
