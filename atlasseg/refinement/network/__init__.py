"""Networks of the refiner: inputs, architectures, storage and prediction."""

from __future__ import annotations

import importlib.util

from atlasseg.errors import MissingLibraryError


def require_libraries() -> None:
    """Check that the libraries of the network are installed.

    Raises
    ------
    MissingLibraryError
        A library is missing. The message says how to install it.
    """
    missing = [name for name in ("torch", "monai", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingLibraryError(f"the refiner needs {', '.join(missing)}: pip install 'atlasseg[refiner]'")
