"""``import atlasseg`` loads little, offers what its stub lists, and no import of a submodule hides a function."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import atlasseg

PACKAGE = Path(atlasseg.__file__).parent
VERBS = (
    "extract_brain",
    "register",
    "propagate",
    "fuse",
    "refine",
    "evaluate",
    "segment",
    "tissue",
    "compare",
    "list_methods",
    "run",
)
WITH_STUBS = ("fusion", "registration", "refinement", "preprocessing", "statistics", "atlases")
LISTED = ("evaluation", "tissues", "regions")
HEAVY = (
    "numpy",
    "nibabel",
    "SimpleITK",
    "numba",
    "scipy",
    "pandas",
    "torch",
    "ants",
    "matplotlib",
    "distributed",
    "jinja2",
)


def fresh(code):
    """What a new Python prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_loads_no_library_and_no_room():
    loaded = fresh(
        "import sys, atlasseg; dir(atlasseg); "
        f"print([m for m in sys.modules if m in {HEAVY!r} or m.startswith('atlasseg.')])"
    )
    assert loaded == "['atlasseg.version']"


def test_every_name_is_there_and_documented():
    for name in atlasseg.__all__:
        thing = getattr(atlasseg, name)
        assert name in dir(atlasseg)
        if name != "__version__":
            assert inspect.getdoc(thing), name
    with pytest.raises(AttributeError, match="nothing_like_it"):
        atlasseg.nothing_like_it  # noqa: B018


def test_verbs_stay_functions_after_every_module_was_imported():
    code = (
        "import importlib, pkgutil, types, atlasseg\n"
        "for info in pkgutil.walk_packages(atlasseg.__path__, 'atlasseg.'):\n"
        "    if not info.name.endswith('__main__') and '_data' not in info.name:\n"
        "        importlib.import_module(info.name)\n"
        f"print([n for n in {VERBS!r} if not isinstance(getattr(atlasseg, n), types.FunctionType)])\n"
        "print([n for n in atlasseg.__all__ if n[0].isupper() and not isinstance(getattr(atlasseg, n), type)])"
    )
    assert fresh(code).splitlines() == ["[]", "[]"]


def test_no_module_has_the_name_of_a_function():
    modules = {info.name for info in pkgutil.iter_modules([str(PACKAGE)])}
    functions = {n for n in atlasseg.__all__ if not inspect.ismodule(getattr(atlasseg, n)) and n != "__version__"}
    assert not modules & functions


@pytest.mark.parametrize("room", [*WITH_STUBS, *LISTED])
def test_every_public_module_of_a_room_is_found_without_importing_it_first(room):
    package = importlib.import_module(f"atlasseg.{room}")
    public = {info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")}
    missing = public - set(dir(package))
    assert not missing, f"add them to atlasseg/{room}/__init__.py{'i' if room in WITH_STUBS else ''}: {missing}"
    code = f"import atlasseg\nfor n in {sorted(public)!r}: getattr(atlasseg.{room}, n)\nprint('all')"
    assert fresh(code) == "all"


def test_a_method_is_reached_through_its_package():
    assert fresh("import atlasseg; print(atlasseg.fusion.joint.fuse.__module__)") == "atlasseg.fusion.joint"


@pytest.mark.parametrize("name", VERBS)
def test_docstrings_are_complete(name):
    function = getattr(atlasseg, name)
    text = inspect.getdoc(function)
    signature = inspect.signature(function)
    for section in ("Parameters", "Returns", "Raises"):
        assert f"{section}\n---" in text, section
    for parameter in signature.parameters.values():
        assert f"{parameter.name} :" in text or f"**{parameter.name}" in text or f"{parameter.name}," in text, parameter
    if name != "run":
        assert "Examples\n---" in text
