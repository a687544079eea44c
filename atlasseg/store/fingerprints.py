"""Code fingerprints: a digest of a function's source, of the modules that it imports, and of its libraries' versions.

A cached result is valid only for the code that computed it. Imports are followed through the package, also inside
functions: a change in a kernel that a method uses changes the fingerprint, a change in another method does not. The
fingerprint of a partial, a closure or an object with ``__call__`` includes the values that it holds.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

PACKAGE = "atlasseg"

DISTRIBUTIONS = {
    "ants": "antspyx",
    "itk": "itk-elastix",
    "maxflow": "PyMaxflow",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}
"""Import name and distribution name of libraries where these differ."""


def fingerprint(function: Callable[..., Any], *modules: str) -> str:
    """Compute the hexadecimal digest of all code that `function` may run.

    Parameters
    ----------
    function : callable
    *modules : str
        Further modules to include, such as the one that registered the function as a method.
    """
    found, held = set(modules), list[str]()
    _collect(function, found, held, set())
    return hashlib.sha256("\n".join([_version(frozenset(found)), *held]).encode()).hexdigest()


def fingerprint_package() -> str:
    """Compute the fingerprint of the whole package."""
    root = Path(__file__).parents[1]
    files = (path.relative_to(root).with_suffix("").parts for path in root.rglob("*.py"))
    return _version(frozenset(".".join((PACKAGE, *parts)) for parts in files))


def _collect(value: Any, modules: set[str], held: list[str], seen: set[int]) -> None:
    """Add the modules of a callable and of all callables that it holds to `modules`, and its other values to `held`."""
    parts: list[Any] = []
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | Path):
        held.append(repr(value))
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, partial):
        parts = [value.func, value.args, value.keywords]
    elif isinstance(value, FunctionType | MethodType):
        modules.add(value.__module__)
        function = value.__func__ if isinstance(value, MethodType) else value
        if not _has_source(value.__module__):
            held.append(repr(_code(function.__code__)))
        parts = [getattr(value, "__wrapped__", None), getattr(value, "__self__", None), function.__defaults__]
        parts += [function.__kwdefaults__, *(cell.cell_contents for cell in function.__closure__ or ())]
    elif isinstance(value, Mapping):
        parts = [part for name, each in value.items() for part in (name, each)]
    elif isinstance(value, tuple | list):
        parts = list(value)
    elif isinstance(value, np.ndarray):
        held.append(f"{value.dtype.str} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()}")
    elif isinstance(value, ModuleType):
        modules.add(value.__name__)
    elif isinstance(value, type):
        modules |= {base.__module__ for base in value.__mro__}
        parts = (
            [] if _has_source(value.__module__) else [f for f in vars(value).values() if isinstance(f, FunctionType)]
        )
    else:
        modules.add(str(getattr(value, "__module__", None) or type(value).__module__))
        if callable(value) or is_dataclass(value):
            parts = [getattr(value, "__wrapped__", None) or getattr(value, "__dict__", None)]
    for part in parts:
        _collect(part, modules, held, seen)


def _code(code: CodeType) -> tuple[Any, ...]:
    """Byte code and constants of a function without a source file, such as one of a notebook."""
    constants = tuple(_code(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts)
    return code.co_code.hex(), code.co_names, constants


def _has_source(module: str) -> bool:
    return bool(_source_and_imports(module)[0])


@cache
def _version(modules: frozenset[str]) -> str:
    sources: dict[str, str] = {}
    libraries: set[str] = set()
    waiting = sorted(modules)
    while waiting:
        name = waiting.pop()
        if name in sources or _is_library(name.partition(".")[0]):
            libraries |= {name.partition(".")[0]} - {PACKAGE}
            continue
        source, imported = _source_and_imports(name)
        sources[name] = hashlib.sha256(source).hexdigest()
        waiting += sorted(imported - {PACKAGE})
    versions = [f"{each} {_installed(each)}" for each in sorted(libraries - sys.stdlib_module_names)]
    return hashlib.sha256("\n".join([*(f"{n} {sources[n]}" for n in sorted(sources)), *versions]).encode()).hexdigest()


@cache
def _is_library(top: str) -> bool:
    """Whether a top-level module is an installed library with a version, not this package and not a script."""
    if top == PACKAGE:
        return False
    if top in sys.stdlib_module_names:
        return True
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    places = [] if spec is None else [spec.origin or "", *(spec.submodule_search_locations or [])]
    installed = any(part in ("site-packages", "dist-packages") for place in places for part in Path(place).parts)
    return spec is None or installed or not any(place.endswith(".py") for place in places)


@cache
def _source_and_imports(module: str) -> tuple[bytes, frozenset[str]]:
    """Source of a module and the modules that it imports; both empty without Python source."""
    file, is_package = _file_of(module)
    if file is None:
        return b"", frozenset()
    source = file.read_bytes()
    package = module if is_package else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and node.attr == "iter_modules":  # imports every file of its package
            places = importlib.util.find_spec(package).submodule_search_locations if package else []  # type: ignore[union-attr]
            found |= {f"{package}.{info.name}" for info in pkgutil.iter_modules(places)}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            found.add(base)
            if not _is_library(base.partition(".")[0]):
                found |= {f"{base}.{alias.name}" for alias in node.names if _is_module(f"{base}.{alias.name}")}
    return source, frozenset(found)


@cache
def _file_of(module: str) -> tuple[Path | None, bool]:
    """Source file of a module, or None, and whether the module is a package."""
    if module == "__main__":
        script = getattr(sys.modules.get("__main__"), "__file__", None)
        return (Path(script) if script and script.endswith(".py") else None), False
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None, False
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None, False
    return Path(spec.origin), bool(spec.submodule_search_locations)


@cache
def _is_module(name: str) -> bool:
    parent, is_package = _file_of(name.rpartition(".")[0])
    if parent is not None and not is_package:  # most names: quicker than a search
        return False
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
