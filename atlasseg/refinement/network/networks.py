"""U-Nets of MONAI: built from a few numbers, with estimates of memory and operations."""

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
"""Pattern of the names of parameters outside the encoder."""

HEAD = {
    "dynunet": r"^(output_block|deep_supervision_heads)",
    "residual_dynunet": r"^(output_block|deep_supervision_heads)",
    "basic_unet": r"^final_conv",
    "residual_unet": r"^model\.2",
    "attention_unet": r"^model\.2",
    "swin_unetr": r"^out",
}
"""Pattern of the names of parameters of the output layers."""


@dataclass(frozen=True)
class Form:
    """Settings from which a network is built."""

    architecture: Architecture
    inputs: int
    outputs: int
    levels: int
    width: int
    deep_supervision: int = 0
    dropout: float = 0.0

    @property
    def multiple_voxels(self) -> int:
        """Number of voxels of which the patch must be a multiple along each axis."""
        return 32 if self.architecture == "swin_unetr" else int(2 ** (self.levels - 1))

    @property
    def smallest_voxels(self) -> int:
        """Minimum patch size. A smaller patch has one voxel at the coarsest level, which cannot be normalised."""
        return 2 * self.multiple_voxels


def build(form: Form) -> nn.Module:
    """Build the network of a form on the CPU, with random weights from torch's generator.

    In training, a network with deep supervision returns (B, 1 + coarser, outputs, ...), others (B, outputs, ...).

    Raises
    ------
    InputError
        The architecture does not allow this form.
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
    """Whether a parameter, by its name, belongs to the encoder."""
    return re.search(DECODER[form.architecture], name) is None


def is_head(form: Form, name: str) -> bool:
    """Whether a parameter, by its name, belongs to the output layers, which compute the logits."""
    return re.search(HEAD[form.architecture], name) is not None


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Collect the parameters and buffers of a network by name, each once, without copies."""
    kept = network.state_dict().keys()
    every = (*network.named_parameters(), *network.named_buffers())
    return {name: tensor.data for name, tensor in every if name in kept}


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load `weights` into a network.

    Raises
    ------
    InputError
        The weights do not fit the network. The message names their source `where` and the first that differs.
    """
    own = weights_of(network)
    for name in sorted({*own, *weights}):
        here, there = own.get(name), weights.get(name)
        if here is None or there is None or here.shape != there.shape or here.dtype != there.dtype:
            said = [f"{tuple(t.shape)} {t.dtype}" if t is not None else "nothing" for t in (here, there)]
            raise InputError(f"{where}: weights of another network: {name}: expected {said[0]}, got {said[1]}")
        here.copy_(there)


def zero_init_head(network: nn.Module, form: Form) -> None:
    """Initialise the head of a new network with zeros, so that its initial correction of log probabilities is 0.

    The last layer of residual_unet is a residual of the previous one, and is not changed.
    """
    if form.architecture != "residual_unet":
        for name, tensor in weights_of(network).items():
            if is_head(form, name):
                tensor.zero_()


def transfer_weights(
    network: nn.Module, form: Form, weights: Mapping[str, Tensor], *, scan_channels: int, same_inputs: bool
) -> list[str]:
    """Copy the `weights` of another training into a network where they fit, and return the names of the others.

    The output layers are not copied. If the inputs are others, or belong to other labels (not
    `same_inputs`), the weights of the first layers are copied for the scan alone. The rest of them is set to 0, so that
    the network responds to the scan like the other network.
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
    """Names of the weights of the first layers: those whose shape depends on the number of inputs."""
    with torch.device("meta"):
        here, there = (weights_of(build(each)) for each in (form, replace(form, inputs=form.inputs + 1)))
    return {name for name, tensor in here.items() if tensor.shape != there[name].shape}


@dataclass(frozen=True)
class Cost:
    """Cost of one patch: floating-point operations of a forward pass, and bytes stored for the backward pass."""

    parameters: int
    flops: int
    kept_bytes: int

    def training_bytes(self, batch: int) -> int:
        """Bytes of a training step: weights with gradients, moments and average; activations with gradients."""
        return 20 * self.parameters + 2 * batch * self.kept_bytes

    def step_flops(self, batch: int) -> int:
        """Operations of a training step: a backward pass costs twice a forward pass."""
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
