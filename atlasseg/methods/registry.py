"""Registry of methods by stage and name.

A method of the package is a public file of the stage's subpackage, imported when it is needed. Others come from
entry points of the group ``atlasseg.<stage>``, each with a module that registers methods or a function
(``package.module:function``), or from a script that registers them.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeVar

from atlasseg.errors import InputError
from atlasseg.methods.description import Method, Needs, describe, first_paragraph
from atlasseg.methods.stages import STAGES, stage_of, suggestion

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class _Entry:
    """A registered method, and the module code that registered it."""

    method: Method
    made_by: CodeType | None


_registered: dict[str, dict[str, _Entry]] = {stage: {} for stage in STAGES}


def method(stage: str, *, name: str = "", summary: str = "", **needs: Any) -> Callable[[Function], Function]:
    """Decorate a function to register it as a method of a stage.

    The function is returned unchanged. Its parameters, their defaults and their descriptions are read from its
    signature and its docstring. Data arguments are the first ones of the stage, and those marked by `Data`.

    Parameters
    ----------
    stage : str
        "preprocessing", "localisation", "registration", "fusion", "refinement", "regions" or "tissue".
    name : str
        Name of the method. Default: the name of the file.
    summary : str
        One paragraph. Default: the first paragraph of the file's docstring or, if `name` is given, of the function's.
    **needs
        Requirements and costs of the method: the fields of `Needs`.

    Returns
    -------
    callable
        Decorator.

    Raises
    ------
    InputError
        The stage is unknown, the method is incomplete, or its name is used already.

    Examples
    --------
    In a file ``closest.py``::

        @method("fusion")
        def fuse(target, candidates, *, power: float = 2.0):
            ...
    """
    caller = sys._getframe(1)

    def register(function: Function) -> Function:
        _register(stage, function, name, summary, needs, caller)
        return function

    return register


def register_method(
    stage: str, function: Callable[..., Any], *, name: str = "", summary: str = "", **needs: Any
) -> Method:
    """Register any callable as a method of a stage.

    Parameters
    ----------
    stage : str
        "preprocessing", "localisation", "registration", "fusion", "refinement", "regions" or "tissue".
    function : callable
        The method.
    name, summary, **needs
        As for `method`.

    Returns
    -------
    Method

    Raises
    ------
    InputError
        As for `method`.
    """
    return _register(stage, function, name, summary, needs, sys._getframe(1))


def list_methods(stage: str | None = None) -> tuple[Method, ...]:
    """List the methods of one stage, or of all, in alphabetical order.

    Parameters
    ----------
    stage : str, optional
        "preprocessing", "localisation", "registration", "fusion", "refinement", "regions" or "tissue". None: all.

    Returns
    -------
    tuple of Method
        Each with its ``name``, ``summary``, ``parameters`` and ``references``.

    Raises
    ------
    InputError
        The stage is unknown.

    Examples
    --------
    >>> [method.name for method in list_methods("tissue")]
    ['chain', 'field', 'locus', 'markov_field', 'mixture', 'nearest_neighbours']
    """
    return tuple(get(each, name) for each in ([stage] if stage is not None else STAGES) for name in names(each))


def names(stage: str) -> tuple[str, ...]:
    """List the names of the methods of a stage, in alphabetical order. Their modules are imported.

    Parameters
    ----------
    stage : str
        "preprocessing", "localisation", "registration", "fusion", "refinement", "regions" or "tissue".

    Returns
    -------
    tuple of str

    Raises
    ------
    InputError
        The stage is unknown, a method is incomplete, or two methods have one name.

    Examples
    --------
    >>> "majority" in names("fusion")
    True
    """
    stage_of(stage)
    for module in _files(stage).values():
        importlib.import_module(module)
    for entry in _entry_points(stage):
        _load(stage, entry)
    return tuple(sorted(_registered[stage]))


def get(stage: str, name: str) -> Method:
    """Get a method by stage and name. For a method of the package, only its file is imported.

    Parameters
    ----------
    stage : str
        "preprocessing", "localisation", "registration", "fusion", "refinement", "regions" or "tissue".
    name : str
        Name of the method.

    Returns
    -------
    Method

    Raises
    ------
    InputError
        The stage or the method is unknown (the message lists the known ones), or as for `names`.
    """
    stage_of(stage)
    if name in _files(stage):
        importlib.import_module(_files(stage)[name])
    for entry in _entry_points(stage):
        if entry.name == name:
            _load(stage, entry)
    if name not in _registered[stage]:
        found = names(stage)
        if name not in found:
            raise InputError(f"{stage} has no method {name!r}{suggestion(name, found)}")
    return _registered[stage][name].method


def _register(stage: str, function: Any, name: str, summary: str, needs: dict[str, Any], caller: FrameType) -> Method:
    stage_of(stage)
    module = str(caller.f_globals.get("__name__", ""))
    if not name:
        name = _file_name(caller)
        if not name:
            raise InputError(f"{module}: expected a name for a method that is not in a file, got none. Write name=...")
        summary = summary or first_paragraph(str(caller.f_globals.get("__doc__") or ""))
    return _add(stage, name, function, module, summary, _make_needs(stage, name, needs), caller.f_code)


def _make_needs(stage: str, name: str, declared: dict[str, Any]) -> Needs:
    known = {field.name for field in fields(Needs)}
    for need in declared:
        if need not in known:
            raise InputError(f"{stage} method {name!r}: unknown need {need!r}{suggestion(need, known)}")
    return Needs(**declared)


def _file_name(caller: FrameType) -> str:
    """Name of the file that registers, without folder and suffix; empty in a notebook or an interactive session."""
    file = caller.f_globals.get("__file__")
    return Path(file).stem if file else ""


def _add(
    stage: str, name: str, function: Any, module: str, summary: str, needs: Needs, made_by: CodeType | None
) -> Method:
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise InputError(f"{module}: expected letters, digits and underscores as the name of a method, got {name!r}")
    found = describe(stage, name, function, module=module, summary=summary, needs=needs)
    before = _registered[stage].get(name)
    if (
        before is not None
        and before.method.function is not function
        # a module that runs again (reload, a cell of a notebook) replaces its own methods
        and (before.method.module != module or before.made_by is made_by)
    ):
        raise InputError(
            f"{stage} method {name!r}: two functions have this name, in {before.method.module} and in {module}. "
            "Give one of them another name."
        )
    _registered[stage][name] = _Entry(found, made_by)
    return found


@cache
def _files(stage: str) -> dict[str, str]:
    """Name of each public file of the stage's subpackage to its module."""
    package = f"atlasseg.{stage_of(stage).package or stage}"
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return {
        info.name: f"{package}.{info.name}"
        for info in pkgutil.iter_modules(places or [])
        if not info.name.startswith("_") and not info.ispkg
    }


@cache
def _entry_points(stage: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=f"atlasseg.{stage}"))


@cache
def _load(stage: str, entry: EntryPoint) -> None:
    """Register what an entry point names: a module that registers methods, or a function."""
    where = f"entry point {entry.name} = {entry.value} of atlasseg.{stage}"
    try:
        loaded = entry.load()
    except InputError:
        raise
    except Exception as error:  # code of others may raise anything
        raise InputError(f"{where}: expected a loadable module, got {type(error).__name__}: {error}") from error
    if entry.attr:
        names_of_it = [name for name, known in _registered[stage].items() if known.method.function is loaded]
        if names_of_it and entry.name not in names_of_it:
            raise InputError(f"{where}: the function is registered as {names_of_it[0]!r}. Give both the same name")
        if not names_of_it:
            _add(stage, entry.name, loaded, entry.module, "", Needs(), None)
    elif not any(known.method.module == entry.module for known in _registered[stage].values()):
        raise InputError(
            f"{where}: the module registers no {stage} method. Decorate one with @method({stage!r}), "
            f"or name the function in the entry point: {entry.module}:FUNCTION"
        )
