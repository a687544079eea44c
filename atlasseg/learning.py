"""What a recipe says of the network that refines: its form, its training, and how its examples are varied.

These are the tables [refiner], [training] and [augmentation] of a recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

Count = Annotated[int, Ge(1)]
Share = Annotated[float, Ge(0), Le(1)]
Amount = Annotated[float, Ge(0)]

Architecture = Literal["dynunet", "residual_dynunet", "basic_unet", "residual_unet", "attention_unet", "swin_unetr"]
Optimiser = Literal["sgd", "rmsprop", "adam", "adamw"]
Decay = Literal["none", "inverse", "exponential", "step", "cosine", "poly"]
Axis = Literal["R", "A", "S"]


@dataclass(frozen=True)
class Refiner:
    """The network.

    Parameters
    ----------
    architecture : str
        One of MONAI's U-Nets.
    levels, width, patch_voxels : int, int, three ints, optional
        Resolutions, channels at the finest one, and what it sees at once along the axes R, A and S. What is not given
        is chosen under the budget.
    prior : {"residual", "input", "none"}
        The network sees the fused probabilities and corrects their logarithm; sees them and speaks for itself; or sees
        the scan alone.
    prior_channels : int
        With more labels than this, labels that are never in doubt with each other share an input channel.
    candidates : int
        So many of the most probable labels of a voxel are kept.
    deep_supervision : int
        So many coarser resolutions are trained too, by an architecture that can (the DynUNets).
    dropout : float
    """

    architecture: Architecture = "dynunet"
    levels: Annotated[int, Ge(3), Le(7)] | None = None
    width: Annotated[int, Ge(2)] | None = None
    patch_voxels: tuple[Count, Count, Count] | None = None
    prior: Literal["residual", "input", "none"] = "residual"
    prior_channels: Annotated[int, Ge(2)] = 12
    candidates: Count = 6
    deep_supervision: Annotated[int, Ge(0)] = 2
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0


@dataclass(frozen=True)
class Training:
    """How it learns.

    Parameters
    ----------
    folds, members : int
        The atlases are dealt out to so many folds; so many networks, at most one a fold, are trained, each without the
        fold that it is validated on.
    steps : int
        Of the optimiser, for each network at most.
    minutes : float, optional
        For each network at most; the learning rate then falls by whichever ends first.
    round_steps, patience : int
        Validated every so many steps; stopped after so many rounds that were no better than the best.
    batch, accumulation : int
        Patches at once, and batches to a step.
    optimiser : str
    learning_rate, momentum : float
    decay : str
        With t from 0 to 1 over the training the rate is multiplied, "inverse": by 1 / (1 + rate t); "exponential": by
        exp(-rate t); "step": by that at the last of `decay_stages` even stages; "cosine": by (1 + cos pi t) / 2;
        "poly": by (1 - t)^power.
    decay_rate, decay_stages, decay_power : float, int, float
    warm_up : float
        Share of the training over which the rate rises linearly.
    l1, l2 : float
        Weight of the sum of absolute weights in the loss; weight decay of the optimiser.
    clip : float
        Gradients longer than this are shortened.
    averaging : float
        What is validated and kept is the running mean of the weights with this memory; 0 takes the last weights.
    cross_entropy, dice : float
        Weights of the two losses.
    foreground, uncertainty : float
        Shares of the patches around a voxel of a label, each label alike, and around one where the fusion is unsure.
    mixed_precision : bool
        On a GPU.
    seed : int
    """

    folds: Annotated[int, Ge(2)] = 5
    members: Count = 5
    steps: Count = 2000
    minutes: Annotated[float, Gt(0)] | None = None
    round_steps: Count = 100
    patience: Count = 10
    batch: Count = 2
    accumulation: Count = 1
    optimiser: Optimiser = "adamw"
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    decay: Decay = "poly"
    decay_rate: Amount = 5.0
    decay_stages: Count = 4
    decay_power: Amount = 0.9
    warm_up: Annotated[float, Ge(0), Lt(1)] = 0.02
    l1: Amount = 0.0
    l2: Amount = 1e-4
    clip: Annotated[float, Gt(0)] = 12.0
    averaging: Annotated[float, Ge(0), Lt(1)] = 0.99
    cross_entropy: Amount = 1.0
    dice: Amount = 1.0
    foreground: Share = 0.4
    uncertainty: Share = 0.4
    mixed_precision: bool = True
    seed: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True)
class Augmentation:
    """How patches are varied: scan, fused probabilities and labels alike in space, the scan alone in intensity.

    Parameters
    ----------
    rotation_degrees, scaling, shear : float
        Largest change about or along each axis.
    elastic_voxels, elastic_spacing_voxels : float
        Standard deviation and spacing of a smooth random displacement.
    contrast, bias, noise : float
        Largest change of the scale and gamma; of the logarithm of a smooth field; largest standard deviation, in
        standard deviations of the scan.
    synthesis : float
        Share of the patches whose scan is painted anew from the labels, with random intensities.
    often : float
        Share of the patches that each of the others is applied to.
    flips : sequence of {"R", "A", "S"}
        Axes along which patches are turned around at random, and in use too; not those across which labels differ,
        such as left and right.
    """

    rotation_degrees: Amount = 15.0
    scaling: Annotated[float, Ge(0), Lt(1)] = 0.15
    shear: Amount = 0.05
    elastic_voxels: Amount = 1.0
    elastic_spacing_voxels: Annotated[float, Ge(2)] = 8.0
    contrast: Annotated[float, Ge(0), Lt(1)] = 0.3
    bias: Amount = 0.3
    noise: Amount = 0.15
    synthesis: Share = 0.05
    often: Share = 0.5
    flips: tuple[Axis, ...] = ()
