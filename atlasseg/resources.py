"""Recipes and sample data that come with the package: in a checkout at its top level, else beside the code."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent

RECIPES, SAMPLE_DATA = "pipelines", "sample_data"
"""Folders at the top of the repository; the wheel holds them in ``atlasseg/_data``."""


def resource(name: str) -> Path:
    """Folder that comes with the package, as a path on disk.

    Parameters
    ----------
    name : str
        `RECIPES` or `SAMPLE_DATA`.

    Raises
    ------
    FileNotFoundError
        The package was installed without it.
    """
    checkout = _PACKAGE.parent
    for folder in (checkout / name, _PACKAGE / "_data" / name):
        if folder.is_dir() and (folder.parent != checkout or (checkout / "pyproject.toml").is_file()):
            return folder
    raise FileNotFoundError(
        f"{_PACKAGE / '_data' / name}: expected a folder that comes with atlasseg. Install it again."
    )


def shipped_recipes() -> dict[str, Path]:
    """Name of each recipe that comes with the package to its TOML file, in alphabetical order.

    Examples
    --------
    >>> "quickstart" in shipped_recipes()
    True
    """
    return {path.stem: path for path in sorted(resource(RECIPES).glob("*.toml"))}


def sample_data() -> Path:
    """Find the sample data: ``atlases`` (six labelled phantoms) and ``targets`` (two).

    Returns
    -------
    Path
        Folder of the sample data.

    Examples
    --------
    >>> sorted(folder.name for folder in sample_data().iterdir() if folder.is_dir())
    ['atlases', 'targets']
    """
    return resource(SAMPLE_DATA)


def describe_recipe(path: Path) -> str:
    """First line of the comment that a recipe begins with, or nothing."""
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    return first.removeprefix("#").strip() if first.startswith("#") else ""
