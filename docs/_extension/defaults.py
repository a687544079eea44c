"""Defaults in signatures: as they stand in the source, but an attribute of a class or stage is shown by its value.

``surface_tolerance_mm=Evaluation.surface_tolerance_mm`` is shown as ``surface_tolerance_mm=1.0``; a lambda as written.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from sphinx.application import Sphinx

ATTRIBUTE = re.compile(r"(?<==)[A-Z]\w*(?:\[[^\]]+\])?\.\w+(?=[,)])")


def show_values(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Replace attributes in a signature by their values, where these are numbers, texts or tuples of them."""
    names = getattr(inspect.unwrap(obj), "__globals__", {})

    def value(match: re.Match[str]) -> str:
        found = eval(match[0], dict(names))  # source of this package
        return repr(found) if isinstance(found, str | int | float | tuple) else match[0]

    return signature and ATTRIBUTE.sub(value, signature), returns


def setup(app: Sphinx) -> None:
    """Register the handler."""
    app.connect("autodoc-process-signature", show_values)
