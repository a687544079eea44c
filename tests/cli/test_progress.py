"""What the user sees while a command works: lines, bars, the time left, and one warning for one cause."""

import logging
import os
import re
import subprocess
import sys
import textwrap
from io import StringIO

import pytest

from atlasseg.cli import _display, _logging
from atlasseg.cli._display import Board, format_clock, format_duration, format_interval
from atlasseg.cli._logging import GroupedLog
from atlasseg.cli._progress import Progress


def board(targets, at=0.0):
    made = Board(at)
    for target in targets:
        made.take({"target": target, "stage": "waiting"}, at)
    return made


def finish(made, target, begun, ended, end="done"):
    made.take({"target": target, "stage": "read"}, begun)
    made.take({"target": target, "stage": end}, ended)


def test_a_line_names_counts_targets_under_way_and_how_long_each_is_at_its_stage():
    made = board("abc")
    assert made.line(5.0) == "     5 s  0 of 3 targets done; start"
    finish(made, "a", 0.0, 10.0, "failed")
    made.take({"target": "b", "stage": "read"}, 10.0)
    made.take({"target": "b", "stage": "fuse joint"}, 12.0)
    assert made.line(40.0) == "    40 s  1 of 3 targets done, 1 failed; b: fuse joint for 28 s"


def test_of_many_targets_under_way_the_first_are_named_and_stages_are_counted():
    made = board([f"t{n}" for n in range(20)])
    for n in range(12):
        made.take({"target": f"t{n}", "stage": "register" if n < 7 else "fuse"}, 1.0)
    line = made.line(2.0)
    assert "0 of 20 targets done, 7 register, 5 fuse" in line
    assert "t7" in line and "t8" not in line and "and 4 more" in line


def test_no_time_left_is_told_before_enough_is_known():
    made = board(range(10))
    for n in range(3):  # the first one compiles, so two of them tell something
        finish(made, n, 10.0 * n, 10.0 * n + 10)
    assert made.seconds_left(30.0) is None and "left" not in made.line(30.0)
    finish(made, 3, 30.0, 40.0)
    assert made.seconds_left(40.0) == (60.0, 60.0)


def test_targets_whose_results_were_there_tell_nothing_of_the_time_that_others_take():
    made = board(range(100))
    for n in range(50):
        made.take({"target": n, "stage": "done"}, 1.0)
    assert made.seconds_left(1.0) is None


def test_the_time_left_covers_what_the_others_take():
    """Over many cohorts with random durations the interval holds the true time left in about 80 percent."""
    import numpy as np

    rng = np.random.default_rng(3)
    inside = []
    for _ in range(400):
        seconds = rng.gamma(9.0, 3.0, 60)
        made, now = board(range(60)), 0.0
        for n in range(12):
            finish(made, n, now, now + seconds[n])
            now += seconds[n]
        low, high = made.seconds_left(now)
        inside.append(low <= seconds[12:].sum() <= high)
    assert 0.72 < np.mean(inside) < 0.88


def test_durations_and_spans_are_told_no_finer_than_they_are_known():
    assert [format_duration(s) for s in (3.4, 99, 120, 6000)] == ["3 s", "99 s", "2 min", "1.7 h"]
    assert [format_clock(s) for s in (3.4, 59.9, 60, 725, 3661)] == ["3 s", "59 s", "1:00 min", "12:05 min", "1:01 h"]
    assert format_interval(31, 58) == "about 30 to 60 s"
    assert format_interval(700, 1100) == "about 12 to 18 min"
    assert format_interval(700, 710) == "about 12 min"
    assert format_interval(0, 3) == "about 0 to 10 s"
    assert format_interval(8000, 20000) == "about 2 to 5.5 h"


HOLDS_THE_INTERPRETER = """
import sys
from atlasseg.cli._progress import Progress, announce
announce("first line")
with Progress("register") as progress:
    progress("scan1", "waiting")
    progress("scan1", "register")
    for _ in range({times}):
        3 ** 4_000_000
print("the end", file=sys.stderr)
"""


def test_lines_come_though_nothing_new_does_and_though_a_library_holds_the_interpreter():
    code = HOLDS_THE_INTERPRETER.format(times=2)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "ATLASSEG_PROGRESS_S": "0.1"},
    )
    lines = done.stderr.splitlines()
    assert lines[0] == "first line" and lines[-1] == "the end" and done.stdout == ""
    assert sum("0 of 1 targets done; scan1: register for" in line for line in lines) >= 3
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", done.stderr)


def on_a_terminal(code, *, columns=80):
    """Everything that a program writes to a terminal."""
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "COLUMNS": str(columns), "LINES": "40", "TERM": "xterm"},
    )
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:  # the program has ended
        pass
    os.close(ours)
    assert process.wait() == 0, written
    return written.decode()


@pytest.mark.posix
def test_on_a_terminal_rows_are_drawn_and_removed_and_lines_stay():
    code = HOLDS_THE_INTERPRETER.format(times=1).replace("for _", "progress.say('network 1: done')\n    for _")
    written = on_a_terminal(code)
    assert "scan1" in written and "\x1b[" in written
    kept = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    assert "network 1: done" in kept and kept.rstrip().endswith("the end")
    assert "\x1b[?25h" in written  # the cursor is shown again


def test_where_standard_error_is_no_file_of_the_system_a_thread_tells(monkeypatch):
    stream = StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(_display, "EVERY_S", 0.05)
    with Progress("average the atlases") as progress:
        progress.note("network 1: step 500")
        progress.note("network 1: step 510 ...")
        while "step 510" not in stream.getvalue():
            pass
    assert stream.getvalue().startswith("network 1: step 500\n")
    assert "network 1: step 510 (" in stream.getvalue() and "..." not in stream.getvalue()


@pytest.fixture
def printed(monkeypatch):
    lines = []
    monkeypatch.setattr(_logging, "print_line", lines.append)
    return lines


@pytest.fixture
def log():
    handler = GroupedLog()
    logger = logging.getLogger("atlasseg.test_progress")
    logger.addHandler(handler)
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)


def test_a_warning_of_many_files_is_one_with_a_count_and_the_files(log, printed):
    for n in range(15):
        log.warning("%s: labels %s are not in the label table", f"lib/labels/a{n}.nii.gz", "7, 9")
    log.warning("%s: labels %s are not in the label table", "lib/labels/a3.nii.gz", "7, 9")
    log.warning("waiting: the scheduler has no worker")
    log.handlers[0].flush()
    names = ", ".join(f"a{n}.nii.gz" for n in range(15))
    assert printed == [
        f"WARNING: 15 files: labels 7, 9 are not in the label table\n  in lib/labels: {names}",
        "WARNING: waiting: the scheduler has no worker",
    ]


def test_a_cause_that_was_told_is_told_again_only_with_new_files(log, printed):
    log.warning("%s: a mask without an image", "a.nii.gz")
    log.handlers[0]._print_new()
    log.warning("%s: a mask without an image", "a.nii.gz")
    log.warning("%s: a mask without an image", "b.nii.gz")
    log.warning("%s: a mask without an image", "c.nii.gz")
    assert printed == ["WARNING: a.nii.gz: a mask without an image"]
    log.handlers[0].flush()
    assert printed[1:] == ["WARNING: 2 more: a mask without an image\n  b.nii.gz, c.nii.gz"]


def test_texts_that_differ_in_their_figures_alone_do_not_fill_the_screen(log, printed):
    for n in range(40):
        log.warning("%s: the largest value is %d", f"s{n}.nii.gz", n)
    log.handlers[0].flush()
    assert len(printed) == 4
    assert printed[-1].startswith("WARNING: 37 more like this: s3.nii.gz, s4.nii.gz") and "and 17 more" in printed[-1]


def test_lines_of_dask_are_not_told(printed):
    handler = GroupedLog(grouped=False)
    for name, shown in (("distributed.nanny", 0), ("tornado.application", 0), ("atlasseg.compute", 1)):
        handler.handle(logging.makeLogRecord({"name": name, "levelno": 40, "levelname": "ERROR", "msg": "lost"}))
        assert len(printed) == shown


def test_a_warning_of_a_worker_is_grouped_with_the_others(dataset, tmp_path):
    (dataset / "atlases/labels.tsv").write_text("index\tname\n1\tgrey matter\n")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        textwrap.dedent("""
        [data]
        atlases = "atlases"
        targets = "targets"
        out = "out"
        [registration]
        steps = ["affine"]
        [fusion]
        method = "majority"
        [output]
        report = false
        """)
    )
    done = subprocess.run(
        [sys.executable, "-m", "atlasseg", "run", recipe, "--jobs", "2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == f"run: read the recipe {recipe}"
    assert len(re.findall("not in the label table", done.stderr)) == 1
    assert "WARNING: 3 files: labels" in done.stderr and "head0.nii.gz, head1.nii.gz, head2.nii.gz" in done.stderr
    assert "distributed" not in done.stderr and "tornado" not in done.stderr
