"""Recipes: TOML files with the settings of all stages, checked when they are read.

A recipe has one table for each stage. The keys of a table are the fields of a dataclass in `atlasseg.recipe.tables`. A
sub-table with the name of a method holds the parameters of that method, which are checked against its signature::

    [data]
    atlases = "../sample_data/atlases"     # paths are relative to the recipe's folder
    targets = "../sample_data/targets"
    out = "../out/quickstart"

    [registration]
    steps = ["affine", "ffd"]
    [registration.ffd]
    spacing_voxels = 4

    [fusion]
    method = "local_weighted"
"""

from atlasseg.recipe.parsing import make_step, parse_recipe, read_recipe, with_device, with_methods, with_paths
from atlasseg.recipe.tables import (
    RENAMED_KEYS,
    SECTIONS,
    Data,
    Evaluation,
    Fusion,
    Localisation,
    Output,
    Preprocessing,
    Propagation,
    Recipe,
    Refinement,
    Regions,
    Registration,
    Selection,
    Step,
    Tissue,
)
from atlasseg.recipe.training import Augmentation, Refiner, Training

__all__ = [
    "RENAMED_KEYS",
    "SECTIONS",
    "Augmentation",
    "Data",
    "Evaluation",
    "Fusion",
    "Localisation",
    "Output",
    "Preprocessing",
    "Propagation",
    "Recipe",
    "Refinement",
    "Refiner",
    "Regions",
    "Registration",
    "Selection",
    "Step",
    "Tissue",
    "Training",
    "make_step",
    "parse_recipe",
    "read_recipe",
    "with_device",
    "with_methods",
    "with_paths",
]
