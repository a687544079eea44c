"""A page for every stage and for every method of it, from the registry."""

from __future__ import annotations

import typing
from pathlib import Path

import tomli_w

from atlasseg import methods, recipe

from . import rst

STAGES = {
    "preprocessing": (
        "Steps applied to target and atlases before registration: bias field correction and intensity normalisation. "
        "A recipe lists them in the order in which they run."
    ),
    "localisation": (
        "Methods that find a small organ in a large, variable view before registration, from the atlases' labels and "
        "their surroundings. Without a table ``[localisation]`` the whole view is registered. See "
        ":doc:`/guide/localisation`."
    ),
    "registration": (
        "Methods that find, for every point of the target, the corresponding point of an atlas. A recipe lists several "
        "steps; each starts from the transform that the step before it found."
    ),
    "fusion": (
        "Methods that combine the candidates into one segmentation. A *candidate* is an atlas whose image and labels "
        "were resampled onto the grid of the target. In the equations :math:`T` is the target, :math:`A_i` the image "
        "and :math:`L_i` the labels of candidate :math:`i = 1 \\dots N`, and :math:`x` a voxel. "
        "``atlasseg compare`` runs several fusions on the same registrations."
    ),
    "refinement": (
        "Post-processing of the fused segmentation. Corrective learning and the U-Net are trained on the library: each "
        "atlas is segmented from the others, and the model learns the errors. Without a table ``[refinement]`` the "
        "fused segmentation is the result. See :doc:`/guide/refinement` for training."
    ),
    "regions": (
        "Methods that partition a volume into homogeneous regions. With a table ``[regions]`` in a recipe the regions "
        "vote on the fused labels, see :doc:`/guide/regions`."
    ),
    "tissue": (
        "Models of ``atlasseg tissue``: tissue classes from intensities, with or without a prior, see "
        ":doc:`/guide/tissue`."
    ),
}


def pages() -> dict[Path, str]:
    """Every page by its path."""
    made = {Path("methods/index.rst"): overview()}
    for stage in methods.STAGES:
        names = methods.names(stage)
        made[Path(f"methods/{stage}/index.rst")] = stage_page(stage, names)
        for name in names:
            made[Path(f"methods/{stage}/{name}.rst")] = method_page(methods.get(stage, name))
    return made


def overview() -> str:
    """The page that lists the stages."""
    rows = [(f":doc:`{s} <{s}/index>`", str(len(methods.names(s))), STAGES.get(s, "")) for s in methods.STAGES]
    text = (
        "One page for every method: what it computes, with its equations, its parameters with their defaults, and the "
        "papers to cite. Choose a method in a recipe by its name, or call the function. ``atlasseg methods`` prints "
        "the same in a terminal.\n"
    )
    tree = rst.toctree([f"{stage}/index" for stage in methods.STAGES], ":hidden:")
    return "\n".join([rst.title("Methods"), text, rst.table(("stage", "methods", "purpose"), rows), tree])


def stage_page(stage: str, names: typing.Sequence[str]) -> str:
    """The page of one stage: a table of its methods."""
    rows = [(f":doc:`{name} <{name}>`", rst.escape(methods.get(stage, name).summary)) for name in names]
    parts = [rst.title(stage.capitalize()), STAGES.get(stage, "") + "\n", rst.table(("method", "summary"), rows)]
    return "\n".join([*parts, rst.toctree(names, ":hidden:")])


def method_page(method: methods.Method) -> str:
    """The page of one method."""
    alone = sum(other.module == method.module for other in methods.list_methods()) == 1
    parts = [
        f".. _method-{method.stage}-{method.name}:\n",
        rst.title(method.name),
        rst.directive("automodule", method.module, ":no-members:") if alone else rst.escape(method.summary) + "\n",
        "In a recipe, with the default values:\n",
        rst.code(recipe_snippet(method), "toml"),
        rst.directive("currentmodule", method.module),
        rst.directive("autofunction", f"{method.module}.{method.function.__qualname__}"),
    ]
    return "\n".join(parts)


def recipe_snippet(method: methods.Method) -> str:
    """TOML that chooses `method`, and gives each parameter its default."""
    section = recipe.SECTIONS[method.stage]
    key = "method" if "method" in typing.get_type_hints(section) else "steps"
    head = {method.stage: {key: method.name if key == "method" else [method.name]}}
    lines = [tomli_w.dumps(head, multiline_strings=False).rstrip()]
    if method.parameters:
        lines += ["", f"[{method.stage}.{method.name}]"]
    for parameter in method.parameters:
        if parameter.required:
            lines.append(f"# {parameter.name} must be given")
        elif parameter.default is None:
            lines.append(f"# {parameter.name} is unset by default")
        else:
            lines.append(rst.toml_line(parameter.name, parameter.default))
    return "\n".join(lines)
