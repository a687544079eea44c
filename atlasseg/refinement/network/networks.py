"""MONAI's U-Nets under one roof: built from a few numbers, and what they cost before they are run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from atlasseg.errors import InputError
from atlasseg.recipe.training import Architecture

NORM = ("INSTANCE", {"affine": True})

DECODER = {
    "dynunet": r"^(upsamples|output_block|deep_supervision_heads)",
    "residual_dynunet": r"^(upsamples|output_block|deep_supervision_heads)",
    "basic_unet": r"^(upcat_|final_conv)",
    "residual_unet": r"^model\.2|(\.submodule)+\.2\.",
    "attention_unet": r"^model\.2|\.(attention|upconv|merge)\.",
    "swin_unetr": r"^(decoder|out)",
}
"""Names of the parameters that are not the encoder's."""

HEAD = {
    "dynunet": r"^(output_block|deep_supervision_heads)",
    "residual_dynunet": r"^(output_block|deep_supervision_heads)",
    "basic_unet": r"^final_conv",
    "residual_unet": r"^model\.2",
    "attention_unet": r"^model\.2",
    "swin_unetr": r"^out",
}
"""Names of the parameters that belong to the labels."""


@dataclass(frozen=True)
class Form:
    """All that it takes to build a network again."""

    architecture: Architecture
    inputs: int
    outputs: int
    levels: int
    width: int
    deep_supervision: int = 0
    dropout: float = 0.0

    @property
    def multiple_voxels(self) -> int:
        """The patch must be a multiple of this along each axis."""
        return 32 if self.architecture == "swin_unetr" else int(2 ** (self.levels - 1))

    @property
    def smallest_voxels(self) -> int:
        """A patch smaller than this leaves a single voxel at the coarsest level, which no norm can do with."""
        return 2 * self.multiple_voxels


def build(form: Form) -> nn.Module:
    """The network of a form, on the CPU, its weights drawn from torch's generator.

    In training one with deep supervision returns (B, 1 + coarser, outputs, ...), every other (B, outputs, ...).

    Raises
    ------
    InputError
        An architecture cannot have this form.
    """
    from monai.networks import nets

    widths = [min(form.width * 2**level, 320) for level in range(form.levels)]
    halvings = [2] * (form.levels - 1)
    match form.architecture:
        case "dynunet" | "residual_dynunet":
            coarser = min(form.deep_supervision, form.levels - 2)
            return nets.DynUNet(  # type: ignore[no-any-return]
                3,
                form.inputs,
                form.outputs,
                [3] * form.levels,
                [1, *halvings],
                halvings,
                filters=widths,
                dropout=form.dropout or None,
                norm_name=NORM,
                deep_supervision=coarser > 0,
                deep_supr_num=max(coarser, 1),
                res_block=form.architecture == "residual_dynunet",
            )
        case "basic_unet":
            if form.levels != 5:
                raise InputError(f"[refiner] levels: expected 5 for basic_unet, got {form.levels}")
            return nets.BasicUNet(  # type: ignore[no-any-return]
                3, form.inputs, form.outputs, (*widths, form.width), norm=NORM, dropout=form.dropout
            )
        case "residual_unet":
            return nets.UNet(  # type: ignore[no-any-return]
                3, form.inputs, form.outputs, widths, halvings, num_res_units=2, norm=NORM, dropout=form.dropout
            )
        case "attention_unet":
            return nets.AttentionUnet(3, form.inputs, form.outputs, widths, halvings, dropout=form.dropout)  # type: ignore[no-any-return]
        case "swin_unetr":
            if form.width % 12:
                raise InputError(f"[refiner] width: expected a multiple of 12 for swin_unetr, got {form.width}")
            return nets.SwinUNETR(form.inputs, form.outputs, feature_size=form.width, drop_rate=form.dropout)  # type: ignore[no-any-return]


def is_encoder(form: Form, name: str) -> bool:
    """Whether a parameter, by its name, is the encoder's."""
    return re.search(DECODER[form.architecture], name) is None


def is_head(form: Form, name: str) -> bool:
    """Whether a parameter, by its name, is of the layers that compute the labels' logits."""
    return re.search(HEAD[form.architecture], name) is not None


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a network by name, each once; they are the network's own, not copies."""
    kept = network.state_dict().keys()
    every = (*network.named_parameters(), *network.named_buffers())
    return {name: tensor.data for name, tensor in every if name in kept}


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Put `weights` into a network.

    Raises
    ------
    InputError
        They are not the network's: the message names `where` they come from and the first that differs.
    """
    own = weights_of(network)
    for name in sorted({*own, *weights}):
        here, there = own.get(name), weights.get(name)
        if here is None or there is None or here.shape != there.shape or here.dtype != there.dtype:
            said = [f"{tuple(t.shape)} {t.dtype}" if t is not None else "nothing" for t in (here, there)]
            raise InputError(f"{where}: weights of another network: {name}: expected {said[0]}, got {said[1]}")
        here.copy_(there)


def zero_init_head(network: nn.Module, form: Form) -> None:
    """Initialise the head of a new network with zeros, so that its first correction of the fused logarithms is 0.

    The last layer of residual_unet adds to the one before it, and is left as it is.
    """
    if form.architecture != "residual_unet":
        for name, tensor in weights_of(network).items():
            if is_head(form, name):
                tensor.zero_()


def transfer_weights(
    network: nn.Module, form: Form, weights: Mapping[str, Tensor], *, scan_channels: int, same_inputs: bool
) -> list[str]:
    """Copy the `weights` of another training into a network where they fit, and return the names of the others.

    The layers that compute the labels' logits keep theirs. Where the inputs are others, or mean other labels (not
    `same_inputs`), the weights of the first layers are copied for the scan alone. The rest of them is set to 0, so that
    the network responds to the scan as the other one did.
    """
    left, first = [], _first(form)
    for name, tensor in weights_of(network).items():
        given = weights.get(name)
        if given is None or is_head(form, name):
            left.append(name)
        elif given.shape == tensor.shape and (same_inputs or name not in first):
            tensor.copy_(given)
        elif name in first and (given.shape[0], *given.shape[2:]) == (tensor.shape[0], *tensor.shape[2:]):
            tensor.zero_()
            tensor[:, :scan_channels] = given[:, :scan_channels]
        else:
            left.append(name)
    return left


def _first(form: Form) -> set[str]:
    """Names of the weights that see the inputs: those whose shape changes with their number."""
    with torch.device("meta"):
        here, there = (weights_of(build(each)) for each in (form, replace(form, inputs=form.inputs + 1)))
    return {name for name, tensor in here.items() if tensor.shape != there[name].shape}


@dataclass(frozen=True)
class Cost:
    """Of one patch: a forward pass in floating point operations, and bytes kept for the way back."""

    parameters: int
    flops: int
    kept_bytes: int

    def training_bytes(self, batch: int) -> int:
        """Bytes of a training step: weights, their gradients, two moments and the mean; activations and gradients."""
        return 20 * self.parameters + 2 * batch * self.kept_bytes

    def step_flops(self, batch: int) -> int:
        """Operations of a training step: the way back costs twice the way there."""
        return 3 * batch * self.flops


@lru_cache(maxsize=512)
def cost(form: Form, patch: tuple[int, int, int]) -> Cost:
    """Count parameters, memory and operations of a network on meta tensors, without computing."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.random.fork_rng(devices=[]):
        network = build(form).to("meta")
    network.train()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[id(tensor.untyped_storage())] = tensor.numel() * tensor.element_size()
        held.append(tensor)
        return tensor

    held: list[Tensor] = []
    count: Any = FlopCounterMode(display=False)
    with count, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = network(torch.empty((1, form.inputs, *patch), device="meta"))
    parameters = sum(p.numel() for p in network.parameters())
    return Cost(parameters, int(count.get_total_flops()), sum(kept.values()) + 3 * out.numel() * 4)
