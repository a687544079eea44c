"""Tables on the terminal: every name and number whole, at any width."""

import re
from io import StringIO

import pandas as pd
import pytest

from atlasseg.cli._tables import print_table


class Terminal(StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


FRAME = pd.DataFrame(
    {
        "method": ["local_weighted+corrective_learning", "nonlocal_staple", "joint"],
        "Dice": [0.91234567, 0.5, 1.0],
        "HD95 (mm)": [1.25, 12345.678, 0.0],
        "calibration error": [0.01, 0.02, 0.03],
        "seconds": [1.0, 22.5, 333.0],
        "peak MB": [1000.0, 20.0, 3.0],
        "note": ["", "left out since its model was trained on another library than this one", ""],
    }
)


def printed(frame, stream, **options):
    print_table(frame, stream=stream, **options)
    return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_name_and_no_number_is_cut_or_broken(width):
    text = printed(FRAME, Terminal(), width=width, title="mean over 3 targets")
    assert "…" not in text
    for cell in [*FRAME["method"], "0.9123", "1.235e+04", "333", "corrective_learning"]:
        assert cell in text
    assert all(word in text for word in FRAME["note"][1].split())
    for head in ("method", "Dice", "HD95", "(mm)", "calibration", "seconds", "peak"):
        assert head in text
    if width >= 80:
        assert max(map(len, text.splitlines())) <= max(width, len("  calibration error  " + FRAME["note"][1]))


def test_the_width_that_there_is_is_used():
    wide, narrow = (printed(FRAME.drop(columns="note"), Terminal(), width=width) for width in (120, 80))
    assert "calibration error" in wide and "calibration error" not in narrow
    assert 80 < max(map(len, wide.splitlines())) <= 120
    assert max(map(len, narrow.splitlines())) <= 80 and len(narrow.splitlines()) == 5


def test_elsewhere_than_on_a_terminal_columns_are_aligned_by_spaces_and_lines_are_as_long_as_they_are():
    text = printed(FRAME, StringIO(), title="mean over 3 targets")
    lines = text.splitlines()
    assert lines[0] == "mean over 3 targets" and len(lines) == 5
    assert text.isascii() and "\x1b" not in text
    at = lines[1].index("Dice") + len("Dice")
    assert [line[:at].split()[-1] for line in lines[2:]] == ["0.9123", "0.5", "1"]
    assert lines[3].endswith("than this one")


def test_markup_in_a_cell_is_text():
    frame = pd.DataFrame({"file": ["scan[red].nii.gz"], "what": ["[/x] is no tag"]})
    assert "scan[red].nii.gz" in printed(frame, Terminal(), width=80)


def test_a_table_without_rows():
    assert printed(FRAME.iloc[:0], StringIO()).splitlines() == ["  ".join(FRAME.columns)]
