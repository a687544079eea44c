"""Size of a network: depth, width and patch size grow together up to limits of memory and operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atlasseg.errors import InputError
from atlasseg.recipe.training import Refiner
from atlasseg.refinement.network.networks import Form, cost

__all__ = ["Plan", "plan"]

GROWTHS = np.arange(0, 13)
"""Steps of the compound scaling: width and patch grow by these powers of the factors below."""

WIDTH_FACTOR, PATCH_FACTOR = 1.2, 1.15
LEAST_WIDTH, LEAST_PATCH = 8, 16
MOST_PATCH = 128


@dataclass(frozen=True)
class Plan:
    """A network with patch and batch size, and memory and operations of a training step.

    Parameters
    ----------
    form : Form
        Settings of the network.
    patch_voxels : (3,) int
        Size of a patch in voxels.
    batch : int
        Number of patches per batch.
    parameters : int
        Number of weights.
    step_bytes, step_flops : float
        Memory and floating-point operations of a training step.
    """

    form: Form
    patch_voxels: tuple[int, int, int]
    batch: int
    step_bytes: int
    step_flops: int
    parameters: int

    def text(self) -> str:
        """Describe the plan in one line.

        Returns
        -------
        str
        """
        form = self.form
        patch = " x ".join(map(str, self.patch_voxels))
        return (
            f"{form.architecture}, {form.levels} levels of {form.width} channels and more, {self.parameters / 1e6:.2f} "
            f"million weights; {form.inputs} inputs, {form.outputs} outputs; patch {patch}, batch {self.batch}: about "
            f"{self.step_bytes / 2**30:.2f} GB and {self.step_flops / 1e9:.0f} GFLOP per step"
        )


def plan(
    refiner: Refiner,
    *,
    inputs: int,
    outputs: int,
    sizes: Sequence[tuple[int, int, int]],
    batch: int,
    memory_bytes: float,
    flops: float,
) -> Plan:
    """Choose the largest network within limits by compound scaling of depth, width and patch [1]_.

    From a small network, width grows by 1.2 and patch by 1.15 per step. The patch is at most the median box, and
    the coarsest level has at least four voxels of the patch along each axis. Settings given in `refiner` are kept.

    Parameters
    ----------
    refiner : Refiner
        Table [refiner] of the recipe.
    inputs, outputs : int
        Numbers of channels.
    sizes : sequence of (3,) int
        Boxes of the cases in voxels, along the patient's axes.
    batch : int
        Number of patches per batch.
    memory_bytes, flops : float
        Maximum of a training step.

    Returns
    -------
    Plan

    Raises
    ------
    InputError
        The smallest network exceeds the limits, or the settings of the recipe contradict each other.

    References
    ----------
    .. [1] Tan, M., Le, Q. V. (2019). EfficientNet: rethinking model scaling for convolutional neural networks. ICML.
    """
    median = np.median(np.array(sizes), axis=0)
    best: Plan | None = None
    smallest: Plan | None = None
    for growth in GROWTHS:
        made = _scaled(refiner, inputs, outputs, median, batch, int(growth))
        smallest = smallest or made
        if made.step_bytes <= memory_bytes and made.step_flops <= flops:
            best = made
        else:
            break
    if best is None and smallest is not None:
        raise InputError(
            f"expected a network within {memory_bytes / 2**30:.2f} GB and {flops / 1e9:.0f} GFLOP per step; the "
            f"smallest of this recipe is {smallest.text()}"
        )
    assert best is not None
    return best


def _scaled(refiner: Refiner, inputs: int, outputs: int, median: np.ndarray, batch: int, growth: int) -> Plan:
    architecture = refiner.architecture
    swin, basic = architecture == "swin_unetr", architecture == "basic_unet"
    edge = LEAST_PATCH * PATCH_FACTOR**growth
    wanted = np.array(refiner.patch_voxels) if refiner.patch_voxels else np.minimum(median, min(edge * 1.5, MOST_PATCH))
    levels = refiner.levels or (5 if basic else 4 if swin else int(np.clip(np.log2(wanted.min() / 4) + 1.2, 3, 6)))
    unit = 12 if swin else 4
    width = refiner.width or max(unit, round(LEAST_WIDTH * WIDTH_FACTOR**growth / unit) * unit)
    form = Form(architecture, inputs, outputs, levels, width, refiner.deep_supervision, refiner.dropout)
    multiple = form.multiple_voxels
    rounded = np.maximum(np.ceil(wanted / multiple - 0.25).astype(int) * multiple, form.smallest_voxels)
    if refiner.patch_voxels and (rounded != wanted).any():
        raise InputError(
            f"[refiner] patch_voxels: expected multiples of {multiple}, at least {form.smallest_voxels}, for "
            f"{architecture} of {levels} levels, got {list(refiner.patch_voxels)}. Use {rounded.tolist()}."
        )
    patch = (int(rounded[0]), int(rounded[1]), int(rounded[2]))
    found = cost(form, patch)
    return Plan(form, patch, batch, found.training_bytes(batch), found.step_flops(batch), found.parameters)
