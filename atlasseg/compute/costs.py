"""Cost estimates of the steps of a run: memory, time and disk space.

Each constant is an estimate from single runs on a few real scans. They are not fitted and have no error bars. A plan
uses the measured costs of cached results where there are any.
"""

from __future__ import annotations

from dataclasses import dataclass

from atlasseg.methods import Workload
from atlasseg.recipe import Recipe, Step

PROCESS_BYTES = 400e6
"""Memory of a Python process with its libraries and compiled kernels."""

LIBRARY_BYTES, TRANSFORM_BYTES, PROPAGATED_BYTES = 13, 24, 40
"""Memory per voxel and atlas: preprocessed atlas; its transform, with one working copy; propagated labels and image."""

PAIR_BYTES, FUSION_BYTES = 100, 150
"""Memory per target voxel: registration of one pair (two run side by side); fusion, entropy included."""

SECONDS = {
    "preprocessing": 0.05,
    "extract_mask": 10.0,
    "registration": 1.5,
    "propagate": 0.3,
    "measure_fit": 0.1,
    "fusion": 3.0,
}
"""Default time per million voxels: fusion for all atlases together, the other stages for one volume."""

CACHED_BYTES = {
    "preprocessing": 4.0,
    "extract_mask": 1.0,
    "widen": 1.0,
    "registration": 12.0,
    "propagate": 25.0,
    "measure_fit": 0.0,
    "fusion": 20.0,
}
"""Default size per voxel of a cached result."""

RESULT_BYTES, REPORT_BYTES = 3.0, 600e3
"""Disk space of the compressed results per target voxel, and of one report."""


@dataclass(frozen=True)
class Memory:
    """Memory of a process in bytes: to register a target, and to fuse and refine it; and whether it uses a GPU."""

    registering: float
    fusing: float
    gpu: bool


def estimate_memory(recipe: Recipe, *, atlases: int, voxels: int) -> Memory:
    """Estimate the memory of a recipe for a number of atlases and a target that each have up to `voxels` voxels."""
    library = PROCESS_BYTES + atlases * voxels * LIBRARY_BYTES
    registering = library + voxels * (atlases * TRANSFORM_BYTES + 2 * PAIR_BYTES)
    fusing = library + voxels * (atlases * (TRANSFORM_BYTES / 2 + PROPAGATED_BYTES) + FUSION_BYTES)
    refinement = recipe.refinement.method
    if refinement is not None:
        fusing += refinement.method.memory_bytes(Workload(voxels, atlases))
    return Memory(registering, fusing, any(uses_gpu(step) for step in list_steps(recipe)))


def list_steps(recipe: Recipe) -> tuple[Step, ...]:
    """List every method that the recipe uses."""
    optional = (recipe.refinement.method, recipe.regions and recipe.regions.method)
    last = (recipe.fusion.method, *(step for step in optional if step))
    return (*recipe.preprocessing.steps, *recipe.registration.steps, *last)


def uses_gpu(step: Step) -> bool:
    """Whether a method computes on a GPU of this machine."""
    from atlasseg.device import resolve_device

    return step.method.has_device and resolve_device(step.arguments.get("device", "auto")) == "cuda"


def look_up_stage(table: dict[str, float], stage: str, default: float) -> float:
    """Look up the value of a cache stage ``STAGE.METHOD`` in a table, under its full name or under ``STAGE``."""
    return table.get(stage, table.get(stage.partition(".")[0], default))
