"""The version of a function: its source, that of every file of the package it builds on, and its libraries' versions.

A kept result is only as good as the code that made it. The imports of a module are followed through the package, inside
functions too, so that a change in a kernel below a method counts, and one in another method does not.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGE = "atlasseg"

DISTRIBUTIONS = {
    "ants": "antspyx",
    "itk": "itk-elastix",
    "maxflow": "PyMaxflow",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}
"""Libraries that are installed under another name than they are imported by."""


def version_of(function: Callable[..., Any]) -> str:
    """Hexadecimal digest of all code that `function` may run."""
    return _version(function.__module__)


def package_version() -> str:
    """The same for the whole package."""
    return _version(PACKAGE)


@cache
def _version(module: str) -> str:
    sources: dict[str, str] = {}
    libraries: set[str] = set()
    waiting = [module]
    if module == PACKAGE:
        root = Path(__file__).parents[1]
        waiting = [".".join((PACKAGE, *p.relative_to(root).with_suffix("").parts)) for p in root.rglob("*.py")]
    while waiting:
        name = waiting.pop()
        if name in sources:
            continue
        source, imported = _source_and_imports(name)
        sources[name] = hashlib.sha256(source).hexdigest()
        own = {each for each in imported if each.partition(".")[0] == name.partition(".")[0]}
        waiting += sorted(own - {PACKAGE})
        libraries |= {each.partition(".")[0] for each in imported - own}
    versions = [f"{each} {_installed(each)}" for each in sorted(libraries - sys.stdlib_module_names)]
    return hashlib.sha256("\n".join([*(f"{n} {sources[n]}" for n in sorted(sources)), *versions]).encode()).hexdigest()


@cache
def _source_and_imports(module: str) -> tuple[bytes, frozenset[str]]:
    """The text of a module, and the modules that it imports; neither where it has no Python source."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return b"", frozenset()
    source = Path(spec.origin).read_bytes()
    package = module if spec.submodule_search_locations else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            found.add(base)
            if base.partition(".")[0] == module.partition(".")[0]:
                found |= {f"{base}.{alias.name}" for alias in node.names if _is_module(f"{base}.{alias.name}")}
    return source, frozenset(found)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@cache
def _installed(library: str) -> str:
    try:
        return version(DISTRIBUTIONS.get(library, library))
    except PackageNotFoundError:
        return ""
