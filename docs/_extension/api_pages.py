"""API reference: a page for ``atlasseg``, and one for each subpackage and module that exports names in ``__all__``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_origin

import atlasseg
from atlasseg import methods

from . import rst

NOT_LIBRARY = {"cli"}
"""Rooms that offer commands and no functions."""


def pages() -> dict[Path, str]:
    """Every page by its path."""
    rooms = [name for name in public_modules(atlasseg) if name not in NOT_LIBRARY]
    made = {Path("api/atlasseg.rst"): top_page()}
    summaries = []
    for room in rooms:
        module = importlib.import_module(f"atlasseg.{room}")
        text = room_page(module)
        if text:
            made[Path(f"api/{room}.rst")] = text
            summaries.append((f":doc:`atlasseg.{room} <{room}>`", first_paragraph(module)))
    text = (
        "Everything a program may use. The names in :doc:`atlasseg <atlasseg>` are enough for most programs; the "
        "subpackages hold the parts that they are made of. Methods of a stage have :doc:`pages of their own "
        "</generated/methods/index>`.\n"
    )
    head = [(":doc:`atlasseg <atlasseg>`", first_paragraph(atlasseg))]
    made[Path("api/index.rst")] = "\n".join(
        [
            rst.title("API reference"),
            text,
            rst.table(("module", "contents"), [*head, *summaries]),
            rst.toctree(["atlasseg", *(path.stem for path in made if path.stem != "atlasseg")], ":hidden:"),
        ]
    )
    return made


def top_page() -> str:
    """The page of the names that ``import atlasseg`` offers."""
    objects = {name: getattr(atlasseg, name) for name in atlasseg.__all__ if not name.startswith("__")}
    groups: dict[str, list[str]] = {
        "Verbs": [],
        "Reading and writing": [],
        "Conversion": [],
        "Data types": [],
        "Subpackages": [],
    }
    for name, thing in objects.items():
        if inspect.ismodule(thing):
            groups["Subpackages"].append(name)
        elif inspect.isclass(thing):
            groups["Data types"].append(name)
        elif name.startswith("as_"):
            groups["Conversion"].append(name)
        else:
            groups["Reading and writing" if name.startswith(("read_", "write_")) else "Verbs"].append(name)
    parts = [rst.title("atlasseg"), module_text("atlasseg"), rst.directive("currentmodule", "atlasseg")]
    for title, names in groups.items():
        if not names:
            continue
        parts.append(rst.title(title, "-"))
        if title == "Subpackages":
            parts.append("\n".join(f"* :mod:`atlasseg.{name}`" for name in names) + "\n")
            continue
        parts += [summary_table(names), *(described("atlasseg", name, objects[name]) for name in names)]
    return "\n".join(parts)


def room_page(package: ModuleType) -> str:
    """The page of one subpackage or module; empty where it offers nothing."""
    parts, chosen = [], list(method_links(package))
    on_method_pages = {method.module for method in methods.list_methods()}
    seen = {id(getattr(atlasseg, name)) for name in atlasseg.__all__}
    for module in (package, *submodules(package)):
        names = {name: thing for name, thing in public_names(module).items() if id(thing) not in seen}
        seen.update(map(id, names.values()))
        if not names:
            continue
        path = module.__name__
        if module is not package:
            hidden = getattr(package, path.rpartition(".")[2], module) is not module  # by a function of the same name
            parts.append(rst.title(path, "-"))
            if path not in on_method_pages:
                parts.append(module_text(path, ":no-index:" if hidden else ""))
        parts += [
            rst.directive("currentmodule", path),
            summary_table([name for name in names if has_docstring(names[name])]),
        ]
        parts += [described(path, name, thing) for name, thing in names.items()]
    moved = [name for name, thing in public_names(package).items() if getattr(atlasseg, name, None) is thing]
    if not parts and not chosen and not moved:
        return ""
    head = [rst.title(package.__name__), module_text(package.__name__)]
    if moved:
        head.append("In :mod:`atlasseg` itself: " + ", ".join(f":obj:`~atlasseg.{name}`" for name in moved) + ".\n")
    if chosen:
        head.append("Methods: " + ", ".join(chosen) + ".\n")
    return "\n".join([*head, *parts])


def method_links(package: ModuleType) -> Iterator[str]:
    """Links to the pages of the methods in a package."""
    for method in methods.list_methods():
        if method.module.startswith(f"{package.__name__}."):
            yield f":doc:`{method.name} </generated/methods/{method.stage}/{method.name}>`"


def described(module: str, name: str, thing: Any) -> str:
    """The directive that documents one object."""
    if is_alias(thing):
        return rst.directive("py:data", name, body=f"Alias of ``{thing!r}``.")
    if inspect.isclass(thing):
        public = [
            base for base in thing.__bases__ if base.__module__.startswith("atlasseg") and base.__name__[0] != "_"
        ]
        return rst.directive("autoclass", f"{module}.{name}", ":members:", *([":show-inheritance:"] if public else []))
    if callable(thing):
        return rst.directive("autofunction", f"{module}.{name}")
    return rst.directive("py:data", name, f":type: {type(thing).__name__}")


def is_alias(thing: Any) -> bool:
    """Whether a name is an alias of a type, ``NDArray[np.float32]`` or ``Annotated[...]``."""
    return isinstance(thing, types.GenericAlias) or get_origin(thing) is Annotated


def has_docstring(thing: Any) -> bool:
    """Whether it is a class or a function, and not data."""
    return not is_alias(thing) and (inspect.isclass(thing) or callable(thing))


def module_text(path: str, *options: str) -> str:
    """The directive that inserts the docstring of a module."""
    return rst.directive("automodule", path, ":no-members:", *filter(None, options))


def summary_table(names: list[str]) -> str:
    """Names in the current module, with the first sentence of each."""
    if not names:
        return ""
    return rst.directive("autosummary", "", ":nosignatures:", body="\n".join(names))


def first_paragraph(module: ModuleType) -> str:
    """Of the docstring."""
    return (inspect.getdoc(module) or "").partition("\n\n")[0].replace("\n", " ")


def public_modules(package: ModuleType) -> list[str]:
    """Names of the modules in a package that have no leading underscore."""
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def submodules(package: ModuleType) -> Iterator[ModuleType]:
    """The public modules in a package and in its subpackages."""
    if not hasattr(package, "__path__"):
        return
    for name in public_modules(package):
        module = importlib.import_module(f"{package.__name__}.{name}")
        yield module
        yield from submodules(module)


def public_names(module: ModuleType) -> dict[str, Any]:
    """List what a module exports besides methods."""
    of_methods = {id(method.function) for method in methods.list_methods()}
    return {name: thing for name, thing in offered(module).items() if id(thing) not in of_methods}


def offered(module: ModuleType) -> dict[str, Any]:
    """List the names in the ``__all__`` of a module. A module without ``__all__`` has no names on the pages."""
    things = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    return {name: thing for name, thing in things.items() if not inspect.ismodule(thing)}
