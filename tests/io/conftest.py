"""Files that went wrong once, which are not part of the project, and makers of files of the same kinds."""

from pathlib import Path

import pytest

CASES = Path(__file__).parents[2] / ".." / "shared" / "cases" / "files"


@pytest.fixture(scope="session")
def cases() -> Path:
    """Folder of the collected files; the test skips where it is absent."""
    if not CASES.is_dir():
        pytest.skip(f"no collected cases in {CASES.resolve()}")
    return CASES.resolve()
