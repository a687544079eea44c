"""Write the Boutiques descriptor of the BIDS-App from the options of the command itself.

python containers/boutiques.py
"""

from __future__ import annotations

import enum
import json
import re
import types
import typing
from pathlib import Path
from typing import Any

import typer

from atlasseg.cli import app
from atlasseg.cli.bids import bids
from atlasseg.version import __version__

DESCRIPTOR = Path(__file__).with_name("atlasseg.boutiques.json")

LEFT_OUT = {"help", "version", "dry_run"}
"""Options that end the command without results."""

KINDS = {int: "Number", float: "Number", Path: "File", bool: "Flag"}


def descriptor() -> dict[str, Any]:
    """The descriptor: one input for each argument and option of ``atlasseg bids``."""
    command: Any = typer.main.get_command(app).commands["bids"]  # type: ignore[attr-defined]
    hints = typing.get_type_hints(bids)
    inputs = [made for parameter in command.params for made in inputs_of(parameter, hints[parameter.name])]
    keys = " ".join(each["value-key"] for each in inputs)
    return {
        "name": "atlasseg",
        "tool-version": __version__,
        "schema-version": "0.5",
        "author": "The atlasseg developers",
        "url": "https://github.com/atlasseg/atlasseg",
        "description": "Segment the T1-weighted scans of a BIDS dataset with a library of atlases, as a BIDS-App.",
        "command-line": f"atlasseg bids {keys}",
        "tags": {"domain": ["neuroinformatics", "mri"], "toolbox": ["atlasseg"]},
        "inputs": inputs,
        "output-files": [
            {
                "id": "derivative",
                "name": "Derivative",
                "description": "The BIDS derivative: segmentations, label tables, volumes, entropy maps and reports.",
                "path-template": "[OUT_DIR]",
            }
        ],
        "error-codes": [
            {"code": 1, "description": "Some scans failed; each is named with its reason, the others are written."},
            {"code": 2, "description": "The request itself was wrong."},
            {"code": 130, "description": "Interrupted; what was finished is kept."},
        ],
    }


def inputs_of(parameter: Any, hint: Any) -> list[dict[str, Any]]:
    """The inputs that one argument or option is: two for a flag that can be negated, none for one left out."""
    if parameter.name in LEFT_OUT:
        return []
    made: dict[str, Any] = {
        "id": parameter.name,
        "name": parameter.name.replace("_", " "),
        "value-key": f"[{parameter.name.upper()}]",
        "optional": not parameter.required,
    }
    text = re.sub(r"\s+", " ", getattr(parameter, "help", None) or "").replace("`", "'").strip()
    if text:
        made["description"] = text
    kind = value_type(hint)
    if kind is bool:
        flags = [made | {"type": "Flag", "command-line-flag": parameter.opts[0]}]
        for flag in parameter.secondary_opts:
            name = f"no_{parameter.name}"
            negated = {"id": name, "name": name.replace("_", " "), "value-key": f"[{name.upper()}]"}
            flags.append(flags[0] | negated | {"command-line-flag": flag, "disables-inputs": [made["id"]]})
        return flags
    made["type"] = KINDS.get(kind, "String")
    if parameter.name == "out_dir":
        made["type"] = "String"  # it may not be there yet
    if issubclass(kind, enum.Enum):
        made["value-choices"] = [choice.value for choice in kind]
    if parameter.opts[0].startswith("-"):
        made["command-line-flag"] = parameter.opts[0]
    if hint is not None and list in map(typing.get_origin, (hint, *typing.get_args(hint))):
        made |= {"list": True, "list-separator": f" {parameter.opts[0]} "}
    return [made]


def value_type(hint: Any) -> Any:
    """The type of one value: without ``None`` and without the list."""
    while typing.get_origin(hint) in (list, typing.Union, types.UnionType):
        hint = next(each for each in typing.get_args(hint) if each is not type(None))
    return hint


def text() -> str:
    """The descriptor as the file holds it."""
    return json.dumps(descriptor(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DESCRIPTOR.write_text(text(), encoding="utf-8")
