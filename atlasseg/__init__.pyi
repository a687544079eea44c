# The public names of atlasseg: read at run time by lazy_loader, and by type checkers and editors.

from . import (
    app,
    atlases,
    bids,
    doctor,
    errors,
    evaluation,
    fusion,
    io,
    labels,
    methods,
    phantoms,
    pipeline,
    preprocessing,
    propagation,
    recipe,
    recommendation,
    refinement,
    regions,
    registration,
    report,
    resampling,
    similarity,
    statistics,
    tissues,
    training,
    transforms,
    volume,
)
from .api.coercion import (
    as_atlas,
    as_atlases,
    as_grid,
    as_image,
    as_label_map,
    as_mask,
    as_probability_map,
    as_transform,
)
from .api.comparison import compare
from .api.evaluation import evaluate
from .api.extraction import extract_brain
from .api.fusion import fuse, propagate, refine
from .api.recipes import as_recipe
from .api.registration import PairwiseRegistration, register
from .api.segmentation import segment
from .api.tissues import tissue
from .api.transformation import apply_transform
from .app.recommend import Recommendation, recommend
from .app.run import run
from .atlases.library import AtlasLibrary, read_library, read_targets
from .evaluation.comparison import Comparison
from .evaluation.result import EvaluationResult
from .io import (
    read_image,
    read_label_map,
    read_label_table,
    read_mask,
    read_probability_map,
    read_transform,
    write_image,
    write_label_map,
    write_label_table,
    write_mask,
    write_probability_map,
    write_transform,
)
from .labels import Label, LabelTable
from .methods import list_methods, method
from .organ_mask import OrganMask
from .pipeline import Segmentation
from .recipe import Recipe, read_recipe
from .resampling import resample
from .resources import sample_data
from .tissues import Tissues
from .transforms import Affine, BSplineField, Chain, DisplacementField, Transform
from .volume import Atlas, Grid, Image, LabelMap, Mask, ProbabilityMap

__version__: str

__all__ = [
    "Affine",
    "Atlas",
    "AtlasLibrary",
    "BSplineField",
    "Chain",
    "Comparison",
    "DisplacementField",
    "EvaluationResult",
    "Grid",
    "Image",
    "Label",
    "LabelMap",
    "LabelTable",
    "Mask",
    "OrganMask",
    "PairwiseRegistration",
    "ProbabilityMap",
    "Recipe",
    "Recommendation",
    "Segmentation",
    "Tissues",
    "Transform",
    "__version__",
    "app",
    "apply_transform",
    "as_atlas",
    "as_atlases",
    "as_grid",
    "as_image",
    "as_label_map",
    "as_mask",
    "as_probability_map",
    "as_recipe",
    "as_transform",
    "atlases",
    "bids",
    "compare",
    "doctor",
    "errors",
    "evaluate",
    "evaluation",
    "extract_brain",
    "fuse",
    "fusion",
    "io",
    "labels",
    "list_methods",
    "method",
    "methods",
    "phantoms",
    "pipeline",
    "preprocessing",
    "propagate",
    "propagation",
    "read_image",
    "read_label_map",
    "read_label_table",
    "read_library",
    "read_mask",
    "read_probability_map",
    "read_recipe",
    "read_targets",
    "read_transform",
    "recipe",
    "recommend",
    "recommendation",
    "refine",
    "refinement",
    "regions",
    "register",
    "registration",
    "report",
    "resample",
    "resampling",
    "run",
    "sample_data",
    "segment",
    "similarity",
    "statistics",
    "tissue",
    "tissues",
    "training",
    "transforms",
    "volume",
    "write_image",
    "write_label_map",
    "write_label_table",
    "write_mask",
    "write_probability_map",
    "write_transform",
]
