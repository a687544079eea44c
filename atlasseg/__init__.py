"""Atlas-based 3-D segmentation of medical images.

Give it a scan and a library of labelled scans; it registers, propagates, fuses, evaluates and reports.
The stages are functions on the nouns of :mod:`atlasseg.volume`; :mod:`atlasseg.pipeline` knows their order.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module; looked up on first use, so that `import atlasseg` costs nothing
_LAZY = {
    "Affine": "transforms",
    "Atlas": "volume",
    "AtlasLibrary": "atlases.library",
    "BSplineField": "transforms",
    "Chain": "transforms",
    "DisplacementField": "transforms",
    "Grid": "volume",
    "Image": "volume",
    "LabelMap": "volume",
    "LabelTable": "labels",
    "Mask": "volume",
    "ProbabilityMap": "volume",
    "evaluate": "evaluation",
    "propagate": "propagation",
    "read_image": "io",
    "read_label_map": "io",
    "read_library": "atlases.library",
    "read_recipe": "recipe",
    "resample": "resampling",
    "run": "pipeline",
    "segment": "pipeline",
    "write_image": "io",
    "write_label_map": "io",
}

if TYPE_CHECKING:
    from atlasseg.atlases.library import AtlasLibrary as AtlasLibrary
    from atlasseg.io import read_image as read_image

__all__ = [*sorted(_LAZY), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'atlasseg' has no attribute {name!r}")
    return getattr(importlib.import_module(f"atlasseg.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return __all__
