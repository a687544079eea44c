"""Finds the methods of a stage: a file that defines the stage's verb is a method, and its name is the file's.

``atlasseg/fusion/joint.py`` holds ``def fuse(...)`` and is thereby the fusion method ``joint``: nothing is registered
anywhere. A package from elsewhere adds methods through the entry point group ``atlasseg.<stage>``, each entry point
naming a module that defines the verb. Parameters, defaults and descriptions are read from the function itself.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from atlasseg.errors import InputError

VERBS = {
    "preprocessing": "preprocess",
    "registration": "register",
    "fusion": "fuse",
    "refinement": "refine",
    "regions": "partition",
    "tissue": "classify",
}
"""Stages whose methods can be chosen, with the function that a file must define to be one."""

PACKAGES = {"tissue": "tissues"}
"""Stages whose methods are in a package of another name."""

GIVEN_BY_PIPELINE = frozenset(
    {"initial", "fixed_mask", "moving_masks", "reference", "mask", "noise_sd", "seeds", "markers", "inside"}
    | {"provenance"}
)
"""Keyword arguments that carry data: the pipeline gives them, so a recipe cannot."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method: what a recipe may set."""

    name: str
    annotation: Any
    default: Any
    description: str

    @property
    def required(self) -> bool:
        """Whether it has no default, so that a recipe must give it."""
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Method:
    """A method of a stage."""

    stage: str
    name: str
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    summary: str
    references: tuple[str, ...]

    def takes(self, name: str) -> bool:
        """Whether the function has a parameter of that name, data included."""
        return name in inspect.signature(self.function).parameters


def names(stage: str) -> tuple[str, ...]:
    """Methods of `stage`, in alphabetical order, found without importing them.

    Raises
    ------
    InputError
        There is no such stage.

    Examples
    --------
    >>> "majority" in names("fusion")
    True
    """
    return tuple(sorted(_modules(stage)))


def get(stage: str, name: str) -> Method:
    """The method `name` of `stage`.

    Raises
    ------
    InputError
        There is no such stage or method; the message names those that exist.
    """
    found = _modules(stage)
    if name not in found:
        raise InputError(f"{stage} has no method {name!r}{suggestion(name, found)}")
    module = importlib.import_module(found[name])
    function = getattr(module, VERBS[stage])
    described = described_parameters(inspect.getdoc(function) or "")
    hints = typing.get_type_hints(function)
    parameters = tuple(
        Parameter(p.name, hints.get(p.name, Any), p.default, described.get(p.name, ""))
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in GIVEN_BY_PIPELINE
    )
    text = inspect.getdoc(module) or inspect.getdoc(function) or ""
    references = _section(inspect.getdoc(function) or "", "References") or _section(text, "References")
    cited = tuple(re.sub(r"\s+", " ", r).strip() for r in re.split(r"(?m)^\s*\.\. \[\w+\]\s*", references) if r.strip())
    return Method(stage, name, function, parameters, text.split("\n\n")[0].replace("\n", " "), cited)


def suggestion(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'? There are: ..."`` for a name that is not among `known`."""
    every = sorted(known)
    close = difflib.get_close_matches(name, every, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else "."
    return f"{guess} There are: {', '.join(every) or 'none'}"


@cache
def _modules(stage: str) -> dict[str, str]:
    """Method name to module path."""
    if stage not in VERBS:
        raise InputError(f"there is no stage {stage!r} with methods{suggestion(stage, VERBS)}")
    package = importlib.import_module(f"atlasseg.{PACKAGES.get(stage, stage)}")
    defines = re.compile(rf"^def {VERBS[stage]}\(", re.MULTILINE)
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("_") and not info.ispkg:
            path = f"{package.__name__}.{info.name}"
            spec = importlib.util.find_spec(path)
            source = spec.loader.get_source(path) if spec and spec.loader else None  # type: ignore[attr-defined]
            if defines.search(source or ""):
                found[info.name] = path
    for entry in importlib.metadata.entry_points(group=f"atlasseg.{stage}"):
        found.setdefault(entry.name, entry.module)
    return found


def _section(text: str, title: str) -> str:
    """Body of one section of a numpydoc docstring."""
    match = re.search(rf"(?ms)^{title}\n-+\n(.*?)(?=^\S[^\n]*\n-+\n|\Z)", text)
    return match.group(1) if match else ""


def described_parameters(text: str) -> dict[str, str]:
    """Parameter name to its description, from the `Parameters` section."""
    described: dict[str, str] = {}
    for entry in re.split(r"(?m)^(?=\S)", _section(text, "Parameters")):
        head, _, body = entry.partition("\n")
        for name in head.partition(":")[0].split(","):
            if name.strip():
                described[name.strip()] = re.sub(r"\s+", " ", body).strip()
    return described
