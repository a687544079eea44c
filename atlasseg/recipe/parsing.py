"""Read recipes and check them: TOML to the dataclasses of `atlasseg.recipe.tables`."""

from __future__ import annotations

import json
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from atlasseg import methods, resources
from atlasseg.errors import InputError
from atlasseg.files import checked_path
from atlasseg.recipe.tables import (
    RENAMED_KEYS,
    SECTIONS,
    Fusion,
    Recipe,
    Refinement,
    Registration,
    Selection,
    Step,
)

_ONE_OR_MORE = {("data", "atlases"), ("data", "targets"), ("tissue", "prior")}
"""Keys whose list may be one string."""


def read_recipe(path: str | Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a TOML recipe.

    Parameters
    ----------
    path : path or str
        TOML file, or name of a recipe that comes with atlasseg, such as ``"quickstart"``. The output folder of such a
        recipe is ``out/NAME`` in the current folder; its folders of scans are ignored if they do not exist.
    overrides : sequence of str
        ``"stage.key=value"`` or ``"stage.method.key=value"`` with a TOML value (a bare word is a string).
        ``"fusion.beta=3"`` sets `beta` of the chosen fusion method.

    Returns
    -------
    Recipe

    Raises
    ------
    InputError
        The file does not exist or is not TOML; a table, key, method or value is invalid. The message names the file,
        the key, the given and the expected value.
    """
    file = checked_path(path, "recipe")
    if not file.suffix and file.parent == Path() and not file.exists():
        return _read_shipped(file.name, overrides)
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: there is no such recipe") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{file}: expected a recipe in TOML: {error}") from error
    return parse_recipe(tables, overrides=overrides, where=str(file), base=file.parent, name=file.stem)


def _read_shipped(name: str, overrides: Sequence[str]) -> Recipe:
    """Read a recipe that comes with atlasseg; its output folder is in the current folder, not in the package."""
    shipped = resources.shipped_recipes()
    if name not in shipped:
        raise InputError(
            f"{name}: expected a recipe file (.toml) or the name of a recipe{methods.suggestion(name, shipped)}"
        )
    tables = tomllib.loads(shipped[name].read_text(encoding="utf-8"))
    data = tables["data"]
    for key in {"atlases", "targets"} & data.keys():
        named = [data[key]] if isinstance(data[key], str) else data[key]
        folders = [(shipped[name].parent / folder).resolve() for folder in named]
        data[key] = [str(folder) for folder in folders] if all(folder.exists() for folder in folders) else []
    data["out"] = f"out/{name}"
    for parameters in filter(lambda value: isinstance(value, dict), tables.get("refinement", {}).values()):
        parameters |= {key: value.removeprefix("../") for key, value in parameters.items() if key == "model"}
    return parse_recipe(tables, overrides=overrides, where=f"recipe {name}", base=Path(), name=name)


def parse_recipe(
    tables: Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    where: str = "recipe",
    base: Path | None = None,
    name: str = "recipe",
) -> Recipe:
    """Parse and check a recipe from nested tables, such as a dictionary or parsed TOML.

    Parameters
    ----------
    tables : mapping
        Table of each section, by its name.
    overrides : sequence of str
        As for `read_recipe`.
    where : str
        Name of the source in messages.
    base : path, optional
        Base folder of relative paths; by default the current folder.
    name : str
        Name of the recipe in results.

    Returns
    -------
    Recipe
    """
    import tomli_w

    merged = _apply_overrides(tables, overrides, where)
    sections = {}
    for title, table in merged.items():
        if title not in SECTIONS:
            raise InputError(f"{where}: there is no table [{title}]{methods.suggestion(title, SECTIONS)}")
        if not isinstance(table, dict):
            raise InputError(f"{where}: {title}: expected a table [{title}], got {table!r}")
        sections[title] = _section(SECTIONS[title], title, table, where)
    if "tissue" in sections:
        apart = [
            title for title in ("localisation", "selection", "fusion", "refinement", "regions") if title in sections
        ]
        if apart:
            raise InputError(
                f"{where}: a recipe with [tissue] cannot have [{'] and ['.join(apart)}]. Use separate recipes."
            )
        sections["fusion"] = _section(Fusion, "fusion", {"method": "majority"}, where)  # for the atlases of a prior
    if "preprocessing" in sections:
        preprocessing = sections["preprocessing"]
        if preprocessing.fill_mask and preprocessing.mask != "brain":
            raise InputError(
                f'{where}: [preprocessing] fill_mask: expected mask = "brain", got {preprocessing.mask!r}. Change one.'
            )
    if "fusion" not in sections:
        raise InputError(f'{where}: expected the table [fusion] with method = "...". Add it.')
    if base is not None and "data" in sections:
        data = sections["data"]
        sections["data"] = replace(
            data,
            atlases=tuple(base / folder for folder in data.atlases),
            targets=tuple(base / target for target in data.targets),
            out=None if data.out is None else base / data.out,
        )
    if base is not None and "registration" in sections and sections["registration"].prepared is not None:
        registration = sections["registration"]
        sections["registration"] = replace(registration, prepared=base / registration.prepared)
    if "registration" in sections and sections["registration"].channel_weights:
        sections["registration"] = _weigh_channels(sections["registration"], where)
    if "registration" in sections and sections["registration"].initial is not None:
        sections["registration"] = _check_initial(sections["registration"], sections.get("selection"), base, where)
    if "localisation" in sections and sections["localisation"].method is not None:
        _check_localisation(sections, where)
    if base is not None and "tissue" in sections:
        tissue = sections["tissue"]
        sections["tissue"] = replace(tissue, prior=tuple(base / file for file in tissue.prior))
    if "refinement" in sections:
        sections["refinement"] = _resolve_paths(sections["refinement"], base)
    return Recipe(**sections, name=name, text=tomli_w.dumps(merged), base=base)


def _weigh_channels(registration: Registration, where: str) -> Registration:
    """Pass the weights of the channels to the steps that do not have their own.

    Raises
    ------
    InputError
        A step uses a single channel, the registration is a prepared one, or all weights are 0.
    """
    weights = registration.channel_weights
    if registration.prepared is not None:
        raise InputError(
            f"{where}: [registration] channel_weights and prepared exclude each other. Remove one of them."
        )
    if not any(weights):
        raise InputError(f"{where}: [registration] channel_weights: expected a weight above 0, got {list(weights)}.")
    steps = []
    for step in registration.steps:
        if "channel_weights" not in {parameter.name for parameter in step.method.parameters}:
            raise InputError(
                f"{where}: [registration] channel_weights: expected steps that weigh channels, got {step.name}. "
                "Choose another step, or remove the weights."
            )
        steps.append(Step(step.method, {"channel_weights": weights, **step.arguments}))
    return replace(registration, steps=tuple(steps))


def _check_initial(
    registration: Registration, selection: Selection | None, base: Path | None, where: str
) -> Registration:
    """Check the pattern of initial transforms, and make it relative to the folder `base`.

    Raises
    ------
    InputError
        The pattern has other fields than ``{target}`` and ``{atlas}``, or is combined with a setting that ignores it.
    """
    pattern = registration.initial or ""
    try:
        pattern.format(target="", atlas="")
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"{where}: [registration] initial: expected a file name with {{target}} and {{atlas}}, got {pattern!r}. "
            "Remove other braces."
        ) from error
    if registration.prepared is not None:
        raise InputError(f"{where}: [registration] initial and prepared exclude each other. Remove one of them.")
    if selection is not None and selection.by == "first_step":
        raise InputError(
            f'{where}: [registration] initial cannot be combined with [selection] by = "first_step". '
            'Set by = "thumbnails".'
        )
    return registration if base is None else replace(registration, initial=str(base / pattern))


def _check_localisation(sections: Mapping[str, Any], where: str) -> None:
    """Check that nothing else decides where the registration starts.

    Raises
    ------
    InputError
        The recipe has a prepared library, initial transforms, or a brain mask.
    """
    registration, preprocessing = sections.get("registration"), sections.get("preprocessing")
    for key in ("prepared", "initial"):
        if registration is not None and getattr(registration, key) is not None:
            raise InputError(
                f"{where}: [localisation] method and [registration] {key} exclude each other. Remove one of them."
            )
    if preprocessing is not None and preprocessing.mask == "brain":
        raise InputError(
            f'{where}: [localisation] method and [preprocessing] mask = "brain" exclude each other. Remove one of them.'
        )


def _resolve_paths(refinement: Refinement, base: Path | None) -> Refinement:
    """Make the paths among the parameters relative to the folder `base`."""
    step = refinement.method
    if step is None or base is None:
        return refinement
    resolved = {name: base / value if isinstance(value, Path) else value for name, value in step.arguments.items()}
    return Refinement(Step(step.method, resolved))


def _apply_overrides(tables: Mapping[str, Any], overrides: Sequence[str], where: str) -> dict[str, Any]:
    """Copy the tables and apply the overrides to the copy."""
    merged: dict[str, Any] = json.loads(json.dumps(tables, default=str))
    for override in overrides:
        key, equals, text = override.partition("=")
        path = key.strip().split(".")
        if not equals or len(path) not in (2, 3) or not all(path):
            raise InputError(f"--set {override}: expected stage.key=value or stage.method.key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        if path[0] not in SECTIONS:
            raise InputError(f"--set {override}: there is no stage {path[0]!r}{methods.suggestion(path[0], SECTIONS)}")
        table = merged.setdefault(path[0], {})
        of_method = path[0] in ("localisation", "fusion", "refinement", "tissue") and "method" in table
        if len(path) == 2 and of_method and path[1] not in (f.name for f in fields(SECTIONS[path[0]])):
            path.insert(1, table["method"])
        if len(path) == 3:
            table = table.setdefault(path[1], {})
        if not isinstance(table, dict):
            raise InputError(f"{where}: {path[0]}.{path[1]}: expected a table for --set {override}, got {table!r}")
        table[path[-1]] = value
    return merged


def _section(kind: type, title: str, table: dict[str, Any], where: str) -> Any:
    """Parse one table into its dataclass."""
    hints = typing.get_type_hints(kind, include_extras=True)
    has_methods = title in methods.STAGES
    arguments: dict[str, Any] = {}
    for key, value in table.items():
        if key in hints:
            if hints[key] in (Step, Step | None):
                arguments[key] = _step(title, key, value, table, where)
            elif hints[key] == tuple[Step, ...]:
                chosen = _checked(tuple[str, ...], value, f"{where}: [{title}] {key}")
                arguments[key] = tuple(_step(title, key, method, table, where) for method in chosen)
            else:
                if (title, key) in _ONE_OR_MORE and isinstance(value, str):
                    value = [value]
                arguments[key] = _checked(hints[key], value, f"{where}: [{title}] {key}")
        elif has_methods and isinstance(value, dict):
            _step(title, key, key, table, where)  # checked even if the method is not used
        elif key in RENAMED_KEYS.get(title, {}):
            raise InputError(f"{where}: [{title}] {key} is now called {RENAMED_KEYS[title][key]}. Rename the key")
        else:
            known = [*hints, *(methods.names(title) if has_methods else ())]
            raise InputError(f"{where}: [{title}] has no key {key!r}{methods.suggestion(key, known)}")
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    for name in missing:
        if name not in arguments:
            raise InputError(f"{where}: [{title}] lacks the key {name!r}. Add it.")
    return kind(**arguments)


def _step(stage: str, key: str, name: Any, table: dict[str, Any], where: str) -> Step:
    """Parse a method name and check the parameters in its table against its signature."""
    if not isinstance(name, str):
        raise InputError(f"{where}: [{stage}] {key}: expected the name of a method, got {name!r}")
    try:
        method = methods.get(stage, name)
    except InputError as error:
        raise InputError(f"{where}: [{stage}] {key}: {error}") from None
    arguments = _arguments(method, table.get(name, {}), f"{where}: [{stage}.{name}]")
    if key != name:
        _check_required(method, arguments, f"{where}: [{stage}.{name}]")
    return Step(method, arguments)


def make_step(stage: str, name: str, parameters: Mapping[str, Any]) -> Step:
    """Make a step from a method and its parameters, with the same checks as for a recipe.

    Parameters
    ----------
    stage, name : str
        Stage and name of the method.
    parameters : mapping
        Values by parameter name, also as NumPy scalars or arrays. The other parameters keep their defaults.

    Returns
    -------
    Step

    Raises
    ------
    InputError
        The stage, method or parameter does not exist, a value has the wrong type, or a parameter without a default is
        missing.

    Examples
    --------
    >>> make_step("fusion", "joint", {"beta": 3}).arguments
    {'beta': 3.0}
    """
    method = methods.get(stage, name)
    plain = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in parameters.items()}
    arguments = _arguments(method, plain, f"{stage} method {name!r}:")
    _check_required(method, arguments, f"{stage} method {name!r}:")
    return Step(method, arguments)


def _arguments(method: methods.Method, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check parameters against the signature of a method."""
    parameters = {p.name: p for p in method.parameters}
    arguments = {}
    for parameter, value in given.items():
        if parameter in method.needs.renamed:
            raise InputError(f"{where} {parameter} is now called {method.needs.renamed[parameter]}. Rename the key")
        if parameter not in parameters:
            raise InputError(f"{where} has no parameter {parameter!r}{methods.suggestion(parameter, parameters)}")
        arguments[parameter] = _checked(parameters[parameter].annotation, value, f"{where} {parameter}")
    return arguments


def _check_required(method: methods.Method, arguments: Mapping[str, Any], where: str) -> None:
    lacking = [p.name for p in method.parameters if p.required and p.name not in arguments]
    if lacking:
        raise InputError(f"{where} lacks the parameter {lacking[0]!r}. Add it.")


def _checked(hint: Any, value: Any, what: str) -> Any:
    """Validate a value against a type hint, strictly: a number in quotes is an error."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    config = ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True)
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint, config=config)
        return adapter.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        faults = "; or ".join(dict.fromkeys(problem["msg"].removeprefix("Value error, ") for problem in error.errors()))
        raise InputError(f"{what}: {faults}, got {value!r}") from None


def with_methods(recipe: Recipe, variant: str) -> Recipe:
    """Replace the fusion and the refinement of a recipe.

    Parameters
    ----------
    recipe : Recipe
        The recipe.
    variant : str
        ``"joint"`` for a fusion without refinement, ``"joint+corrective_learning"`` for a fusion with refinement. Their
        parameters are taken from the tables ``[fusion.NAME]`` and ``[refinement.NAME]`` of the recipe.

    Returns
    -------
    Recipe

    Raises
    ------
    InputError
        A method does not exist, or a parameter of it is missing.
    """
    fusion, plus, refinement = variant.partition("+")
    tables = tomllib.loads(recipe.text)

    def section(kind: type, title: str, method: str) -> Any:
        return _section(kind, title, {**tables.get(title, {}), "method": method}, recipe.name)

    made = replace(
        recipe,
        fusion=section(Fusion, "fusion", fusion),
        refinement=_resolve_paths(section(Refinement, "refinement", refinement), recipe.base) if plus else Refinement(),
    )
    return made if recipe.device is None else with_device(made, recipe.device)


def with_paths(
    recipe: Recipe,
    *,
    targets: Sequence[Path] = (),
    atlases: Sequence[Path] = (),
    out: Path | None = None,
    prepared: Path | None = None,
) -> Recipe:
    """Replace the targets, atlases, output folder or prepared library of a recipe, also in its text.

    Parameters
    ----------
    recipe : Recipe
        The recipe.
    targets, atlases : sequence of path
        New paths; empty to keep those of the recipe.
    out, prepared : path, optional
        New paths; None to keep those of the recipe.

    Returns
    -------
    Recipe
    """
    import tomli_w

    if not (targets or atlases or out or prepared):
        return recipe
    data = recipe.data
    data = replace(
        data, targets=tuple(targets) or data.targets, atlases=tuple(atlases) or data.atlases, out=out or data.out
    )
    tables = tomllib.loads(recipe.text)
    given = {"targets": [*map(str, targets)], "atlases": [*map(str, atlases)]}
    tables["data"] = {**tables.get("data", {}), **{key: paths for key, paths in given.items() if paths}}
    if out is not None:
        tables["data"].pop("out", None)  # results do not depend on the output folder
    registration = recipe.registration
    if prepared is not None:
        registration = replace(registration, prepared=prepared)
        tables["registration"] = {**tables.get("registration", {}), "prepared": str(prepared)}
    return replace(recipe, data=data, registration=registration, text=tomli_w.dumps(tables))


def with_device(recipe: Recipe, device: str) -> Recipe:
    """Set the device of all methods for which the recipe does not set it.

    Parameters
    ----------
    recipe : Recipe
        The recipe.
    device : {"auto", "cpu", "cuda"}
        Device.

    Returns
    -------
    Recipe
    """

    def set_device(step: Step) -> Step:
        if step.method.has_device and "device" not in step.arguments:
            return Step(step.method, {**step.arguments, "device": device})
        return step

    return replace(
        recipe,
        registration=replace(recipe.registration, steps=tuple(map(set_device, recipe.registration.steps))),
        fusion=Fusion(set_device(recipe.fusion.method)),
        refinement=Refinement(recipe.refinement.method and set_device(recipe.refinement.method)),
        device=device,
    )
