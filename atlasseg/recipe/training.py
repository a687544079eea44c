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
        One of MONAI's networks: "dynunet", "residual_dynunet", "basic_unet", "residual_unet", "attention_unet" or
        "swin_unetr".
    levels : int, optional
        Resolutions; what is not given is chosen under the budget.
    width : int, optional
        Channels at the finest resolution, doubled from each to the next.
    patch_voxels : three ints, optional
        What it sees at once along the axes R, A and S.
    prior : str
        "residual": the network sees the fused probabilities and corrects their logarithm; "input": it sees them and
        speaks for itself; "none": it sees the scan alone.
    prior_channels : int
        With more labels than this, labels that are never in doubt with each other share an input channel.
    candidates : int
        So many of the most probable labels of a voxel are kept.
    deep_supervision : int
        So many coarser resolutions are trained too, by an architecture that can: the DynUNets.
    dropout : float
        Share of the activations left out in training.
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
    folds : int
        The atlases are dealt out to so many folds.
    members : int
        So many networks are trained, at most one a fold, each without the fold that it is validated on.
    steps : int
        Of the optimiser, for each network at most.
    minutes : float, optional
        For each network at most; the learning rate then falls by whichever ends first.
    round_steps : int
        Validated every so many steps.
    patience : int
        Stopped after so many rounds that were no better than the best.
    batch : int
        Patches at once.
    accumulation : int
        Batches to a step.
    optimiser : str
        "sgd" (with Nesterov's momentum), "rmsprop", "adam" or "adamw".
    learning_rate : float
        At its highest.
    momentum : float
        Of the gradient's running mean.
    decay : str
        With t from 0 to 1 over the training the rate is multiplied, "inverse": by 1 / (1 + rate t); "exponential": by
        exp(-rate t); "step": by that at the beginning of each of even stages; "cosine": by (1 + cos pi t) / 2; "poly":
        by (1 - t)^power; "none": by 1.
    decay_rate : float
        The rate of "inverse", "exponential" and "step".
    decay_stages : int
        Stages of "step".
    decay_power : float
        The power of "poly".
    warm_up : float
        Share of the training over which the rate rises linearly.
    l1 : float
        Weight of the sum of absolute weights in the loss.
    l2 : float
        Weight decay of the optimiser.
    clip : float
        Gradients longer than this are shortened.
    averaging : float
        What is validated and kept is the running mean of the weights with this memory; 0 takes the last weights.
    cross_entropy : float
        Weight of the cross-entropy in the loss.
    dice : float
        Weight of the soft Dice.
    foreground : float
        Share of the patches around a voxel of a label, each label alike.
    uncertainty : float
        Share of the patches around a voxel where the fusion is unsure.
    mixed_precision : bool
        Compute in 16 bits where that is enough, on a GPU and on processors that multiply so faster.
    seed : int
        Of all draws.
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
    rotation_degrees : float
        Largest turn about each axis.
    scaling : float
        Largest change of size along each axis, as a share.
    shear : float
        Largest shear between axes.
    elastic_voxels : float
        Standard deviation of a smooth random displacement.
    elastic_spacing_voxels : float
        Distance of its knots.
    contrast : float
        Largest change of scale, gamma and offset.
    bias : float
        Standard deviation of the logarithm of a smooth field.
    noise : float
        Largest standard deviation of noise, in standard deviations of the scan.
    synthesis : float
        Share of the patches whose scan is painted anew from the labels, with random intensities.
    often : float
        Share of the patches that each of the others is applied to.
    flips : sequence of str
        Axes, of "R", "A" and "S", along which patches are turned around at random, and in use too; not those across
        which labels differ, such as left and right.
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
