"""Atlas-based 3-D segmentation of medical images.

Give it a scan and a library of labelled scans; it registers, propagates, fuses, evaluates and reports.
The stages are functions on the data types of :mod:`atlasseg.volume`; :mod:`atlasseg.pipeline` knows their order.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from atlasseg.version import __version__

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
    "compare": "app.compare",
    "evaluate": "evaluation",
    "propagate": "propagation",
    "read_image": "io",
    "read_label_map": "io",
    "read_library": "atlases.library",
    "read_label_table": "io",
    "read_recipe": "recipe",
    "read_transform": "io",
    "resample": "resampling",
    "run": "app.run",
    "segment": "pipeline",
    "write_image": "io",
    "write_label_map": "io",
    "write_transform": "io",
}

if TYPE_CHECKING:
    from atlasseg.app.compare import compare as compare
    from atlasseg.app.run import run as run
    from atlasseg.atlases.library import AtlasLibrary as AtlasLibrary
    from atlasseg.atlases.library import read_library as read_library
    from atlasseg.evaluation import evaluate as evaluate
    from atlasseg.io import read_image as read_image
    from atlasseg.io import read_label_map as read_label_map
    from atlasseg.io import read_label_table as read_label_table
    from atlasseg.io import read_transform as read_transform
    from atlasseg.io import write_image as write_image
    from atlasseg.io import write_label_map as write_label_map
    from atlasseg.io import write_transform as write_transform
    from atlasseg.labels import LabelTable as LabelTable
    from atlasseg.pipeline import segment as segment
    from atlasseg.propagation import propagate as propagate
    from atlasseg.recipe import read_recipe as read_recipe
    from atlasseg.resampling import resample as resample
    from atlasseg.transforms import Affine as Affine
    from atlasseg.transforms import BSplineField as BSplineField
    from atlasseg.transforms import Chain as Chain
    from atlasseg.transforms import DisplacementField as DisplacementField
    from atlasseg.volume import Atlas as Atlas
    from atlasseg.volume import Grid as Grid
    from atlasseg.volume import Image as Image
    from atlasseg.volume import LabelMap as LabelMap
    from atlasseg.volume import Mask as Mask
    from atlasseg.volume import ProbabilityMap as ProbabilityMap

__all__ = [*sorted(_LAZY), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'atlasseg' has no attribute {name!r}")
    return getattr(importlib.import_module(f"atlasseg.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return __all__
