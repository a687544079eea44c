"""Training task of the refiner: correct fused segmentations of cases with known labels."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atlasseg.recipe.training import Augmentation, Training
from atlasseg.refinement.network.cases import Case, LabelEncoding
from atlasseg.refinement.network.inputs import network_inputs
from atlasseg.refinement.network.networks import build, is_encoder, transfer_weights, zero_init_head
from atlasseg.refinement.network.windows import make_predictor, probabilities, slabs
from atlasseg.training.fitting import Loss
from atlasseg.training.loss import deep_supervision_loss
from atlasseg.training.patches import PatchSource, draw
from atlasseg.training.planning import Plan
from atlasseg.training.scoring import fit_temperature, mean_dice, reliable_logits

__all__ = ["Start"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Start:
    """Initial weights from another training.

    Parameters
    ----------
    weights : mapping of str to Tensor
        Weights of its network.
    freeze : bool
        Keep the weights of the encoder unchanged.
    coding : LabelEncoding, optional
        Label encoding of that training. If it is another one, the first layers are copied for the scan's channels only.
    channels : int, optional
        Number of channels of its scans.
    seen : mapping of str to str
        Digest of each scan whose labels it was trained on, by id.
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    freeze: bool = False
    coding: LabelEncoding | None = None
    channels: int | None = None
    seen: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Job:
    """Training of one network of a refiner, a `fitting.Task`. `number` is its validation fold.

    `data` is a digest of the inputs of the cases.
    """

    number: int
    plan: Plan
    coding: LabelEncoding
    prior: str
    training: Training
    augmentation: Augmentation
    training_set: tuple[Case, ...]
    held_out: tuple[Case, ...]
    device: str = "cpu"
    start: Start = field(default_factory=Start)
    data: str = ""
    replan: Callable[[float], str] | None = None

    measure = "validation Dice"
    sign = 1

    @property
    def name(self) -> str:
        """Name in messages, counted from 1."""
        return f"network {self.number + 1}"

    @property
    def key(self) -> str:
        """Digest of all that the training depends on, except the device and the number of other networks."""
        training = {k: v for k, v in asdict(self.training).items() if k != "n_models"}
        weights = hashlib.sha256()
        for name, tensor in sorted(self.start.weights.items()):
            weights.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        said = [
            self.number,
            asdict(self.plan),
            asdict(self.coding),
            self.prior,
            training,
            asdict(self.augmentation),
            [case.id for case in self.training_set],
            [case.id for case in self.held_out],
            self.start.freeze,
            weights.hexdigest(),
            self.data,
            torch.__version__,
        ]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def begin(self) -> nn.Module:
        """Create a network that returns the fused probabilities, or one with the initial weights."""
        form = self.plan.form
        network = build(form)
        if self.prior == "residual":
            zero_init_head(network, form)
        if self.start.weights:
            scan = form.inputs - (0 if self.prior == "none" else self.coding.channels)
            left = transfer_weights(
                network, form, self.start.weights, scan_channels=scan, same_inputs=self.start.coding == self.coding
            )
            log.info("initial weights used for all layers except: %s", ", ".join(left) or "none")
        for name, parameter in network.named_parameters():
            parameter.requires_grad = not (self.start.freeze and is_encoder(form, name))
        return network

    @cached_property
    def _shown(self) -> list[PatchSource]:
        return [PatchSource.of(case, self.coding) for case in self.training_set]

    @cached_property
    def _groups(self) -> Tensor:
        return torch.tensor(self.coding.groups, device=self.device)

    def loss(self, network: nn.Module, half: torch.dtype | None, *, step: int, turn: int, batch: int) -> Loss:
        """Loss of a batch of random patches."""
        begun = time.perf_counter()
        training = self.training
        drawn = draw(
            self._shown,
            self.coding,
            self.plan.patch_voxels,
            training,
            self.augmentation,
            seed=(training.seed, self.number, step, turn),
            batch=batch,
            device=self.device,
        )
        loading_s = time.perf_counter() - begun
        seen, log_prior = network_inputs(drawn.scan, drawn.prior, self._groups, self.prior)
        with torch.autocast(self.device, dtype=half, enabled=half is not None):
            out = network(seen.contiguous(memory_format=torch.channels_last_3d))
        value = deep_supervision_loss(
            out, log_prior, drawn.truth, drawn.unknown, cross_entropy=training.cross_entropy, dice=training.dice
        )
        return Loss(value, drawn.names, loading_s)

    def validate(self, network: nn.Module, half: torch.dtype | None) -> float:
        """Mean Dice of the validation cases."""
        predict = make_predictor([network], [1.0], (), half)
        found = [
            torch.cat([slab.argmax(0) for _, slab in slabs(case, self.coding, predict, **self._windows)]).cpu().numpy()
            for case in self.held_out
        ]
        return mean_dice(found, self.held_out, self.coding)

    def finish(self, network: nn.Module, half: torch.dtype | None) -> tuple[float, dict[str, float]]:
        """Temperature of the network, and mean Dice of the fusion without refinement."""
        predict = make_predictor([network], [1.0], (), half)
        spoken = (probabilities(case, self.coding, predict, **self._windows) for case in self.held_out)
        temperature = fit_temperature(*reliable_logits(spoken, self.held_out))
        fused = [case.codes[0].astype(np.int64) for case in self.held_out]
        return temperature, {"fused_dice": mean_dice(fused, self.held_out, self.coding)}

    @property
    def _windows(self) -> dict[str, Any]:
        return {"window": self.plan.patch_voxels, "prior": self.prior, "device": self.device}
