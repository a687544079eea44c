"""What the steps of a run take: memory, seconds and disk.

The constants are estimates, each from single runs on a few real scans; they are not fitted, and have no error bars. A
plan uses what was measured of the kept results instead wherever there are such.
"""

from __future__ import annotations

from dataclasses import dataclass

from atlasseg.methods import Workload
from atlasseg.recipe import Recipe, Step

PROCESS_BYTES = 400e6
"""Python with the libraries, compiled kernels included."""

LIBRARY_BYTES, REGISTERED_BYTES, CARRIED_BYTES = 13, 24, 40
"""A voxel of an atlas as read and preprocessed; of its transform, with the copy that a step makes; carried over."""

PAIR_BYTES, FUSION_BYTES = 100, 150
"""A voxel of the target while a pair is registered, of which two go side by side; and while fused, entropy included."""

SECONDS = {"preprocessing": 0.05, "registration": 1.5, "propagate": 0.3, "fit": 0.1, "fusion": 3.0}
"""A million voxels, where nothing better is known: of fusion for all atlases together, of the others for one volume."""

KEPT_BYTES = {"preprocessing": 4.0, "registration": 12.0, "propagate": 25.0, "fit": 0.0, "fusion": 20.0}
"""A voxel of what is kept, where nothing better is known."""

RESULT_BYTES, REPORT_BYTES = 3.0, 600e3
"""A voxel of a target's results, compressed, and its report."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a process needs to register a target and to fuse and refine it, and whether a GPU is used."""

    registering: float
    fusing: float
    gpu: bool


def memory(recipe: Recipe, *, atlases: int, voxels: int) -> Memory:
    """What is declared to the workers: `atlases` scans of at most so many `voxels`, and a target like them."""
    library = PROCESS_BYTES + atlases * voxels * LIBRARY_BYTES
    registering = library + voxels * (atlases * REGISTERED_BYTES + 2 * PAIR_BYTES)
    fusing = library + voxels * (atlases * (REGISTERED_BYTES / 2 + CARRIED_BYTES) + FUSION_BYTES)
    refinement = recipe.refinement.method
    if refinement is not None:
        fusing += refinement.method.memory_bytes(Workload(voxels, atlases))
    return Memory(registering, fusing, any(on_gpu(step) for step in steps_of(recipe)))


def steps_of(recipe: Recipe) -> tuple[Step, ...]:
    """Every method that the recipe uses."""
    optional = (recipe.refinement.method, recipe.regions and recipe.regions.method)
    last = (recipe.fusion.method, *(step for step in optional if step))
    return (*recipe.preprocessing.steps, *recipe.registration.steps, *last)


def on_gpu(step: Step) -> bool:
    """Whether a method computes on a GPU here."""
    from atlasseg.device import resolved

    return step.method.has_device and resolved(step.arguments.get("device", "auto")) == "cuda"


def of_stage(table: dict[str, float], stage: str, default: float) -> float:
    """The value for a stage of the cache: its own, or that of what its name begins with."""
    return table.get(stage, table.get(stage.partition(".")[0], default))
