"""Description of a method, read from the signature and docstring of its function and checked for completeness."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args, get_origin

from atlasseg.device import Device
from atlasseg.errors import InputError
from atlasseg.methods.choices import OneOf
from atlasseg.methods.stages import DATA, stage_of

Channels = Literal["all", "first", "one"]
"""Use of several channels by a method: all, only the first, or an error for more than one."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method, which a recipe may set.

    Parameters
    ----------
    name : str
        Name of the parameter.
    annotation : type
        Type, with its constraints (``Annotated[float, Gt(0)]``). Recipes check values against it.
    default : object
        Default, or ``inspect.Parameter.empty`` without one.
    description : str
        Text from the docstring.
    """

    name: str
    annotation: Any
    default: Any
    description: str

    @property
    def required(self) -> bool:
        """Whether it has no default, so that a recipe must set it."""
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Workload:
    """Size of one call of a method, for the estimate of its memory.

    Parameters
    ----------
    voxels : int
        Number of voxels of the target's grid.
    atlases : int
        Number of moving images or candidates.
    labels : int
        Number of labels, background included.
    channels : int
        Number of channels.
    """

    voxels: int
    atlases: int = 1
    labels: int = 2
    channels: int = 1


@dataclass(frozen=True)
class Needs:
    """Requirements and costs of a method, declared where it is registered.

    Parameters
    ----------
    libraries : tuple of str
        Import names of optional libraries.
    install : str
        Argument of ``pip install`` for them: ``"atlasseg[syn]"``.
    model : str, optional
        Parameter with the folder of a trained model; None if the method needs no training.
    channels : {"all", "first", "one"}
        "all": the method uses all channels; "first": only the first; "one": error for more than one.
    compares_intensities : bool
        For fusion methods: whether they compare the intensities of target and candidates, so that both must have one
        contrast.
    memory : callable, optional
        Function of a `Workload` that returns the memory of the method in bytes, without that of its stage.
    check : callable, optional
        Function of the recipe's parameters, and of `provenance` if the stage has it, that raises `InputError` if the
        method cannot be used with them. It is called before anything is computed.
    renamed : mapping of str to str
        Former names of parameters to new ones. The error for a former name gives the new one.
    companions : mapping of str to callable
        Functions with the same parameters and further results, by name: ``{"hierarchy": ...}``.
    """

    libraries: tuple[str, ...] = ()
    install: str = ""
    model: str | None = None
    channels: Channels = "all"
    compares_intensities: bool = True
    memory: Callable[[Workload], float] | None = None
    check: Callable[..., None] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    companions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A method of a stage.

    Parameters
    ----------
    stage, name : str
        Stage and name of the method.
    function : callable
        Function of the data of the stage, and of the parameters by keyword.
    parameters : tuple of Parameter
        Parameters that a recipe may set.
    data : frozenset of str
        Names of the data arguments that the function takes.
    summary : str
        One paragraph about the method.
    references : tuple of str
        Sources of the method.
    module : str
        Module in which the method was registered.
    needs : Needs
        Requirements and costs.
    """

    stage: str
    name: str
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    data: frozenset[str]
    summary: str
    references: tuple[str, ...]
    module: str
    needs: Needs

    def __repr__(self) -> str:
        return f"<{self.stage} method {self.name!r}: {self.summary}>"

    def takes(self, name: str) -> bool:
        """Test whether the function takes a data argument.

        Parameters
        ----------
        name : str
            Name of the data argument.

        Returns
        -------
        bool
        """
        return name in self.data

    def has_parameter(self, name: str) -> bool:
        """Test whether the method has a parameter.

        Parameters
        ----------
        name : str
            Name of the parameter.

        Returns
        -------
        bool
        """
        return any(parameter.name == name for parameter in self.parameters)

    def chosen(self, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
        """Look up the parameters that are names of a registry, for example a similarity metric.

        Parameters
        ----------
        arguments : mapping
            Values of the parameters by name.

        Returns
        -------
        tuple
            Their classes or functions.
        """
        found = []
        for parameter in self.parameters:
            for mark in get_args(parameter.annotation)[1:] if get_origin(parameter.annotation) is Annotated else ():
                if isinstance(mark, OneOf) and mark.chosen is not None:
                    found.append(mark.chosen(arguments.get(parameter.name, parameter.default)))
        return tuple(found)

    @property
    def has_device(self) -> bool:
        """Whether it has a parameter ``device: Device``, and can use a GPU."""
        return any(p.name == "device" and p.annotation == Device for p in self.parameters)

    @property
    def missing_libraries(self) -> tuple[str, ...]:
        """Required optional libraries that are not installed."""
        return tuple(name for name in self.needs.libraries if importlib.util.find_spec(name) is None)

    def memory_bytes(self, work: Workload) -> float:
        """Estimate the memory of the method, without that of its stage.

        Parameters
        ----------
        work : Workload
            Size of the call.

        Returns
        -------
        float
            Bytes; 0 if the method declares none.
        """
        return 0.0 if self.needs.memory is None else float(self.needs.memory(work))


def describe(stage: str, name: str, function: Callable[..., Any], *, module: str, summary: str, needs: Needs) -> Method:
    """Describe the method of a function, and check that it is complete.

    Raises
    ------
    InputError
        The method is incomplete: a data argument is missing, or a parameter lacks a type or a description. The message
        names the method and what is missing.
    """
    where = f"{stage} method {name!r} ({module})"
    if not callable(function):
        raise InputError(f"{where}: expected a function, got {type(function).__name__}")
    text = docstring(function)
    signature = _signature(function, where)
    data, parameters = _split_signature(stage, signature, where)
    described = described_parameters(text)
    has_docstrings = sys.flags.optimize < 2
    missing = [p.name for p in parameters if not described.get(p.name)]
    if missing and has_docstrings:
        raise InputError(
            f"{where}: the docstring does not describe {', '.join(missing)}. Add a numpydoc section Parameters."
        )
    summary = summary or first_paragraph(text)
    if not summary and has_docstrings:
        raise InputError(f"{where}: expected a docstring with a summary of the method, got none")
    if needs.model is not None and needs.model not in {p.name for p in parameters}:
        raise InputError(f"{where}: expected a parameter {needs.model!r} for the model, got none")
    former = {*needs.renamed.values()} - {p.name for p in parameters}
    if former:
        raise InputError(f"{where}: expected the parameter {min(former)!r}, the new name of a renamed one, got none")
    return Method(
        stage,
        name,
        function,
        tuple(Parameter(p.name, p.annotation, p.default, described.get(p.name, "")) for p in parameters),
        data,
        summary,
        references(text) or references(inspect.getdoc(sys.modules.get(module)) or ""),
        module,
        needs,
    )


def _signature(function: Callable[..., Any], where: str) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: expected a readable signature, got: {error}") from error
    except NameError as error:
        raise InputError(
            f"{where}: unknown type in the signature: {error}. Import it outside TYPE_CHECKING, above the function."
        ) from error


def _split_signature(
    stage: str, signature: inspect.Signature, where: str
) -> tuple[frozenset[str], list[inspect.Parameter]]:
    """Names of the data arguments, and the parameters."""
    kinds = inspect.Parameter
    known = stage_of(stage)
    arguments = list(signature.parameters.values())
    first = [a for a in arguments if a.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    given = first[: len(known.positional)]
    wrong = [a for a, name in zip(given, known.positional, strict=False) if a.name != name and not is_data(a)]
    if len(given) < len(known.positional) or wrong:
        raise InputError(
            f"{where}: expected the data arguments ({', '.join(known.positional)}) first, got "
            f"({', '.join(a.name for a in given)}). Use these names, or mark other arguments by Data[...]."
        )
    data, parameters = {*known.positional}, []
    for argument in arguments:
        if argument in given:
            continue
        if argument.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD, kinds.POSITIONAL_ONLY):
            raise InputError(f"{where}: expected named parameters, got {argument}. Declare each of them.")
        if argument.annotation is kinds.empty:
            raise InputError(f"{where}: parameter {argument.name!r}: expected a type, got none. Annotate it.")
        if not is_data(argument):
            parameters.append(argument)
        elif argument.name in (*known.required, *known.optional):
            data.add(argument.name)
        else:
            offered = ", ".join((*known.required, *known.optional)) or "none"
            raise InputError(
                f"{where}: data argument {argument.name!r}: expected one that the stage passes ({offered})"
            )
    missing = [name for name in known.required if name not in data]
    if missing:
        raise InputError(
            f"{where}: expected the data argument {missing[0]!r}, got none. Add it as a keyword, marked by Data[...]."
        )
    return frozenset(data), parameters


def is_data(argument: inspect.Parameter) -> bool:
    """Whether an argument is marked as data."""
    annotation = argument.annotation
    return get_origin(annotation) is Annotated and DATA in get_args(annotation)[1:]


def docstring(function: Callable[..., Any]) -> str:
    """Get the docstring of a function, of the function of a partial, or of an object's class."""
    if isinstance(function, functools.partial):
        return docstring(function.func)
    if inspect.isroutine(function) or inspect.isclass(function):
        return inspect.getdoc(function) or ""
    return inspect.getdoc(type(function).__call__) or inspect.getdoc(function) or ""


def first_paragraph(text: str) -> str:
    """Get the first paragraph of a docstring on one line."""
    return re.sub(r"\s+", " ", text.split("\n\n")[0]).strip()


def references(text: str) -> tuple[str, ...]:
    """List the references of a docstring, one string each."""
    section = _section(text, "References")
    parts = re.split(r"(?m)^\s*\.\. \[\w+\]\s*", section)
    return tuple(re.sub(r"\s+", " ", part).strip() for part in parts if part.strip())


def described_parameters(text: str) -> dict[str, str]:
    """Read the descriptions of parameters from a numpydoc docstring.

    Parameters
    ----------
    text : str
        The docstring.

    Returns
    -------
    dict of str to str
        Description of each name in the `Parameters` section.
    """
    described: dict[str, str] = {}
    for entry in re.split(r"(?m)^(?=\S)", _section(text, "Parameters")):
        head, _, body = entry.partition("\n")
        for name in head.partition(":")[0].split(","):
            if name.strip():
                described[name.strip()] = re.sub(r"\s+", " ", body).strip()
    return described


def _section(text: str, title: str) -> str:
    """Body of one section of a numpydoc docstring."""
    match = re.search(rf"(?ms)^{title}\n-+\n(.*?)(?=^\S[^\n]*\n-+\n|\Z)", text)
    return match.group(1) if match else ""
