"""Recipe tables [refiner], [training] and [augmentation]: architecture and training of the refinement network."""

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
    """Architecture of the refinement network.

    Parameters
    ----------
    architecture : str
        One of MONAI's networks: "dynunet", "residual_dynunet", "basic_unet", "residual_unet", "attention_unet" or
        "swin_unetr".
    levels : int, optional
        Number of resolution levels. Levels, width and patch that are not given are chosen to fit the budget.
    width : int, optional
        Number of channels at the finest level; it doubles from level to level.
    patch_voxels : three ints, optional
        Size of the input patch along the axes R, A and S, in voxels.
    prior : str
        How the fused probabilities enter: "residual": as input, and the output is added to their logarithm; "input": as
        input alone; "none": not at all, the network sees the scan alone.
    prior_channels : int
        Maximum number of input channels for the fused probabilities. With more labels, labels that the fusion never
        confuses share a channel.
    candidates : int
        Number of most probable labels that are kept in each voxel.
    deep_supervision : int
        Number of coarser levels whose outputs enter the loss (DynUNets only).
    dropout : float
        Dropout rate.
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
    """Training of the network.

    Parameters
    ----------
    folds : int
        Number of cross-validation folds that the atlases are split into.
    n_models : int
        Number of networks to train, at most one for each fold. Each is validated on its own fold and learns from the
        others.
    steps : int
        Maximum number of optimiser steps for each network.
    minutes : float, optional
        Maximum training time for each network. The learning rate then follows whichever limit comes first.
    validate_every : int
        Number of steps between validations.
    patience : int
        Number of validations without improvement after which training stops.
    batch : int
        Number of patches in a batch.
    accumulation : int
        Number of batches whose gradients are accumulated for one step.
    optimiser : str
        "sgd" (with Nesterov momentum), "rmsprop", "adam" or "adamw".
    learning_rate : float
        Maximum learning rate.
    momentum : float
        Momentum (beta1 of Adam).
    decay : str
        Factor on the learning rate, with t from 0 to 1 over the training. "inverse": 1 / (1 + rate t); "exponential":
        exp(-rate t); "step": the same, held constant over each of several equal stages; "cosine": (1 + cos pi t) / 2;
        "poly": (1 - t)^power; "none": 1.
    decay_rate : float
        Rate of "inverse", "exponential" and "step".
    decay_stages : int
        Number of stages of "step".
    decay_power : float
        Power of "poly".
    warmup_fraction : float
        Fraction of the training over which the learning rate rises linearly.
    l1 : float
        Weight of the L1 norm of the weights in the loss.
    weight_decay : float
        Weight decay of the optimiser.
    grad_clip_norm : float
        Maximum norm of the gradient; longer gradients are scaled to it.
    ema_decay : float
        Decay of the exponential moving average of the weights, which is what is validated and kept; 0 keeps the last
        weights.
    cross_entropy : float
        Weight of the cross-entropy in the loss.
    dice : float
        Weight of the soft Dice in the loss.
    foreground : float
        Fraction of the patches that are centred on a labelled voxel; each label is drawn equally often.
    uncertainty : float
        Fraction of the patches that are centred on a voxel where the fusion is uncertain.
    mixed_precision : bool
        Use bfloat16 where the hardware is faster with it and the precision suffices.
    seed : int
        Seed of all random draws.
    """

    folds: Annotated[int, Ge(2)] = 5
    n_models: Count = 5
    steps: Count = 2000
    minutes: Annotated[float, Gt(0)] | None = None
    validate_every: Count = 100
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
    warmup_fraction: Annotated[float, Ge(0), Lt(1)] = 0.02
    l1: Amount = 0.0
    weight_decay: Amount = 1e-4
    grad_clip_norm: Annotated[float, Gt(0)] = 12.0
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.99
    cross_entropy: Amount = 1.0
    dice: Amount = 1.0
    foreground: Share = 0.4
    uncertainty: Share = 0.4
    mixed_precision: bool = True
    seed: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of the training patches: in space of scan, prior and labels alike, in intensity of the scan alone.

    Parameters
    ----------
    rotation_degrees : float
        Maximum rotation about each axis in degrees.
    scaling : float
        Maximum change of size along each axis, as a fraction.
    shear : float
        Maximum shear between two axes.
    elastic_voxels : float
        Standard deviation of the elastic displacement in voxels.
    elastic_spacing_voxels : float
        Spacing of the knots of the elastic displacement in voxels.
    contrast : float
        Maximum change of scale, gamma and offset of the intensities.
    bias : float
        Standard deviation of the logarithm of the bias field.
    noise : float
        Maximum standard deviation of the noise, in standard deviations of the scan.
    synthesis : float
        Fraction of the patches whose scan is synthesised from the labels with random intensities.
    probability : float
        Probability with which each of the other augmentations is applied to a patch.
    flips : sequence of str
        Axes ("R", "A", "S") along which patches are flipped at random, in training and at test time. Leave out axes
        across which labels differ, such as left and right.
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
    probability: Share = 0.5
    flips: tuple[Axis, ...] = ()
