"""What many tests share: real volumes where there are any, and a small data set on disk."""

import locale
import os
from dataclasses import replace
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from atlasseg import io, methods, phantoms
from atlasseg.methods import registry

# ANTs takes its number of threads from the environment when it is first imported, by whichever test that is; with more
# than one its sums, and with them its results, change from run to run
os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
# as the command sets it: with two processes of pytest on two cores, threads that spin take ten times as long
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# times are never asserted, and the first example of a compiled function includes its compilation
settings.register_profile("atlasseg", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("atlasseg")

REAL = Path(os.environ.get("ATLASSEG_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_collection_modifyitems(items):
    """Skip what needs a POSIX system elsewhere."""
    if os.name != "posix":
        for item in items:
            if item.get_closest_marker("posix"):
                item.add_marker(pytest.mark.skip(reason="needs the signals or terminals of a POSIX system"))


@pytest.fixture(autouse=True)
def _locale():
    """Set the locale back that ITK's readers of DICOM and VTK, which tests use as oracles, change to C."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


CASES = Path(__file__).parents[2] / "shared" / "cases" / "files"


@pytest.fixture(scope="session")
def cases():
    """The folder of files that went wrong once; the test is skipped, with the reason, where it is absent."""
    if not CASES.is_dir():
        pytest.skip(f"no collected cases in {CASES}")
    return CASES


@pytest.fixture(scope="session")
def real_data():
    """The folder of real volumes; the test is skipped, with the reason, where it is absent."""
    if not (REAL / "hippocampus").is_dir():
        pytest.skip(f"no real volumes in {REAL} (set ATLASSEG_REAL_DATA)")
    return REAL


@pytest.fixture(scope="session")
def _small_heads():
    """Five coarse heads on grids that differ in shape, spacing, tilt and axes."""
    looks = [
        ((17, 19, 13), "RAS"),
        ((18, 18, 14), "LAS"),
        ((16, 20, 12), "LPS"),
        ((18, 20, 13), "RAS"),
        ((13, 17, 19), "SRA"),
    ]
    heads = []
    for n, (shape, axes) in enumerate(looks):
        spacing = np.array([46.0, 52.0, 40.0]) * (1.25, 1.3, 1.2)[n % 3]
        order = [{"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}[a] for a in axes]
        grid = phantoms.tilted_grid(shape, spacing_mm=spacing[order] / shape, angles_degrees=(4, -3, 2 * n), axes=axes)
        heads.append(
            phantoms.head(f"head{n}", grid=grid, seed=n, largest_mm=1.5, white_matter=10.0 ** (n + 1), subsamples=1)
        )
    return heads


@pytest.fixture
def count_registrations(monkeypatch):
    """Let a registration method note the number of atlases of each call: ``calls = count_registrations("affine")``."""

    def start(name):
        CALLS.clear()
        entry = registry._registered["registration"][methods.get("registration", name).name]
        register = entry.method.function

        @wraps(register)
        def counting(*arguments, **options):
            CALLS.append(len(arguments[1]))
            return register(*arguments, **options)

        counted = replace(entry, method=replace(entry.method, function=counting))
        monkeypatch.setitem(registry._registered["registration"], name, counted)
        return CALLS

    return start


CALLS = []
"""Of `count_registrations`; no variable of the function, since what a function holds is part of its version."""


@pytest.fixture
def dataset(tmp_path, _small_heads):
    """A folder with ``atlases`` (head0 to head2) and ``targets`` (head3, head4), to be broken at will."""
    for n, head in enumerate(_small_heads):
        root = tmp_path / ("atlases" if n < 3 else "targets")
        for kind in ("images", "labels"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        io.write_image(head.image, root / "images" / f"{head.id}.nii.gz")
        io.write_label_map(head.labels, root / "labels" / f"{head.id}.nii.gz")
    return tmp_path
