"""The network that refines: what it sees, how it is built, trained, kept and used."""

from __future__ import annotations

import importlib.util

from atlasseg.errors import MissingLibraryError


def require_libraries() -> None:
    """That the libraries of the network are there.

    Raises
    ------
    MissingLibraryError
        One is not: the message says how to install them.
    """
    missing = [name for name in ("torch", "monai", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingLibraryError(f"the refiner needs {', '.join(missing)}: pip install 'atlasseg[refiner]'")
