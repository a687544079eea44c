"""Training loop of a network. An interrupted training resumes from its checkpoint with the same result."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from atlasseg.errors import InputError, TrainingError
from atlasseg.recipe.training import Training
from atlasseg.refinement.network.model import Member
from atlasseg.refinement.network.networks import load_weights, weights_of
from atlasseg.refinement.network.precision import autocast_dtype
from atlasseg.refinement.network.tensors import read_tensors, write_tensors
from atlasseg.training.checkpoints import optimiser_state, part, restore_optimiser
from atlasseg.training.optimisation import absolute_sum, average_weights, learning_rate, make_optimiser
from atlasseg.training.planning import Plan

log = logging.getLogger(__name__)

TELL_EVERY_S = 5.0
"""Interval of progress messages, in seconds."""

KEEP_EVERY_STEPS = 100
"""Maximum number of steps between two checkpoints. A checkpoint is also written after each validation."""


@dataclass(frozen=True, eq=False)
class Loss:
    """Loss of a batch: its value, the names of the patches, and the duration of loading in seconds."""

    value: Tensor
    names: tuple[str, ...]
    loading_s: float


class Task(Protocol):
    """A training of one network: its data, its loss and its validation."""

    @property
    def number(self) -> int:
        """Number among the networks of a model, from 0. Random draws depend on it."""

    @property
    def name(self) -> str:
        """Name in messages."""

    @property
    def plan(self) -> Plan:
        """Network, patch and batch."""

    @property
    def training(self) -> Training:
        """Settings of the optimisation."""

    @property
    def device(self) -> str:
        """Device: "cpu" or "cuda"."""

    @property
    def measure(self) -> str:
        """Name of the score that `validate` returns."""

    @property
    def sign(self) -> int:
        """1 if a higher score is better, -1 if a lower score is better."""

    @property
    def replan(self) -> Callable[[float], str] | None:
        """Function that describes the plan that fits into a number of bytes."""

    @property
    def key(self) -> str:
        """Digest of all that the training depends on, except the device."""

    def begin(self) -> nn.Module:
        """Create the network, on the CPU. Parameters that require no gradient are not trained."""

    def loss(self, network: nn.Module, half: torch.dtype | None, *, step: int, turn: int, batch: int) -> Loss:
        """Loss of the batch of one turn of a step."""

    def validate(self, network: nn.Module, half: torch.dtype | None) -> float:
        """Validation score of a network."""

    def finish(self, network: nn.Module, half: torch.dtype | None) -> tuple[float, dict[str, float]]:
        """Temperature of the best network, and further scores."""


Stop = Callable[[], bool]


class _State:
    """State of a training: network, optimiser, moving average of the weights, and counters."""

    def __init__(self, task: Task) -> None:
        torch.manual_seed(_seeds(task, 0))
        self.network = task.begin()
        self.network.to(task.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.learned = [p for p in self.network.parameters() if p.requires_grad]
        self.optimiser = make_optimiser(self.learned, task.training)
        self.half = autocast_dtype(task.device) if task.training.mixed_precision else None
        self.mean = average_weights(self.network, task.training.ema_decay)
        self.best = {name: tensor.clone() for name, tensor in weights_of(self.network).items()}
        self.numbers: dict[str, Any] = {
            "step": 0,
            "best": None,
            "best_round": 0,
            "seconds": 0.0,
            "stepping": 0.0,
            "loading": 0.0,
            "losses": [],
            "curve": [],
            "batch": task.plan.batch,
            "threads": torch.get_num_threads(),
            "half": None if self.half is None else str(self.half).removeprefix("torch."),
            "done": False,
        }

    def write(self, path: Path, key: str) -> None:
        groups = (("weights/", weights_of(self.network)), ("mean/", weights_of(self.mean.module)), ("best/", self.best))
        tensors = {prefix + name: tensor for prefix, group in groups for name, tensor in group.items()}
        tensors |= {f"optimiser/{name}": tensor for name, tensor in optimiser_state(self.optimiser).items()}
        write_tensors(path, tensors, {"key": key, **self.numbers})

    def read(self, path: Path, key: str) -> None:
        tensors, state = read_tensors(path)
        if state.pop("key", None) != key:
            raise InputError(
                f"{path}: expected the checkpoint of this training, got that of another training (recipe, atlases or "
                "torch changed). Remove it to start again."
            )
        load_weights(self.network, part(tensors, "weights/"), str(path))
        load_weights(self.mean.module, part(tensors, "mean/"), str(path))
        self.mean.n_averaged.fill_(1 + state["step"])
        for name, tensor in part(tensors, "best/").items():
            self.best[name].copy_(tensor)
        restore_optimiser(self.optimiser, part(tensors, "optimiser/"))
        self.numbers = state
        self.half = state["half"] and getattr(torch, state["half"])


def fit(
    task: Task,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
    stop: Stop = lambda: False,
) -> Member:
    """Train a network, or resume the training of `checkpoint`.

    All random numbers depend on the seed, the task and the step. The number of threads, which determines the order of
    sums, is stored. A resumed training has the same training curve, on the CPU to the last digit.

    Raises
    ------
    TrainingError
        The loss or its gradient is not finite. The message names the step and its patches.
    InputError
        The checkpoint is damaged or belongs to another training, or the GPU's memory is too small for one patch.
    KeyboardInterrupt
        `stop` returned True. The checkpoint is written before.
    """
    state = _State(task)
    if checkpoint is not None and checkpoint.exists():
        state.read(checkpoint, task.key)
        log.info("%s: resuming at step %d", checkpoint, state.numbers["step"])
    threads = torch.get_num_threads()
    torch.set_num_threads(state.numbers["threads"])  # set in any case: numba's threads may have changed OpenMP's
    try:
        return _fit_loop(state, task, checkpoint, progress, stop)
    finally:
        torch.set_num_threads(threads)


def _fit_loop(
    state: _State, task: Task, checkpoint: Path | None, progress: Callable[[str], None], stop: Stop
) -> Member:
    key = task.key

    def keep() -> None:
        if checkpoint is not None:
            state.write(checkpoint, key)

    numbers, training = state.numbers, task.training
    told = time.perf_counter()
    while not numbers["done"]:
        begun = time.perf_counter()
        t = numbers["step"] / training.steps
        if training.minutes is not None:
            t = max(t, numbers["seconds"] / (60 * training.minutes))
        rate = learning_rate(training, t)
        value, loading = _step(state, task, rate)
        numbers["losses"] = [*numbers["losses"], value][-training.validate_every :]
        numbers["step"] += 1
        numbers["loading"] += loading
        numbers["stepping"] += time.perf_counter() - begun
        numbers["seconds"] += time.perf_counter() - begun
        over = numbers["step"] >= training.steps or (
            training.minutes is not None and numbers["seconds"] >= 60 * training.minutes
        )
        if over or numbers["step"] % training.validate_every == 0:
            begun = time.perf_counter()
            _round(state, task, rate, progress)
            waited = len(numbers["curve"]) - numbers["best_round"]
            numbers["done"] = over or waited >= training.patience
            numbers["seconds"] += time.perf_counter() - begun
            keep()
        elif numbers["step"] % KEEP_EVERY_STEPS == 0:
            keep()
        if time.perf_counter() - told > TELL_EVERY_S and not numbers["done"]:
            told = time.perf_counter()
            progress(f"{task.name}: step {numbers['step']} of {training.steps} ...")
        if not numbers["done"] and stop():
            keep()
            raise KeyboardInterrupt
    load_weights(state.mean.module, state.best, "training")
    temperature, scores = task.finish(state.mean.module, state.half)
    scores = {
        _column(task): numbers["best"],
        **scores,
        "seconds": round(numbers["seconds"], 1),
        "loading_share": round(numbers["loading"] / max(numbers["stepping"], 1e-9), 4),
        "steps": numbers["step"],
    }
    weights = {name: tensor.cpu().contiguous() for name, tensor in state.best.items()}
    return Member(weights, temperature, tuple(numbers["curve"]), scores)


def _step(state: _State, task: Task, rate: float) -> tuple[float, float]:
    """Run one step of the optimiser. If a batch does not fit into GPU memory, halve it and accumulate more batches."""
    while True:
        try:
            return _attempt(state, task, rate)
        except torch.OutOfMemoryError:
            state.optimiser.zero_grad(set_to_none=True)
        batch = state.numbers["batch"]
        if batch == 1:
            raise InputError(_too_large(task))
        state.numbers["batch"] = batch // 2
        log.warning(
            "out of GPU memory: batch size %d instead of %d, with twice as many batches per step", batch // 2, batch
        )


def _too_large(task: Task) -> str:
    half = task.plan.step_bytes / task.plan.batch / 2
    try:
        smaller = task.replan(half) if task.replan is not None else ""
    except InputError as error:
        smaller = str(error)
    return (
        f"GPU memory: expected enough for one patch of this network ({task.plan.text()}). Use --gpu-memory "
        f"{half / 2**30:.2g}GB, which chooses {smaller or 'a smaller network'}."
    )


def _attempt(state: _State, task: Task, rate: float) -> tuple[float, float]:
    """Loss of a step, and the duration of loading its patches in seconds."""
    training, step, batch = task.training, state.numbers["step"], state.numbers["batch"]
    turns = math.ceil(training.batch * training.accumulation / batch)
    torch.manual_seed(_seeds(task, 1, step))  # dropout
    _set_train_mode(state.network)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.optimiser.zero_grad(set_to_none=True)
    total, loading = 0.0, 0.0
    names: list[str] = []
    for turn in range(turns):
        found = task.loss(state.network, state.half, step=step, turn=turn, batch=batch)
        value = found.value + training.l1 * absolute_sum(state.learned) if training.l1 else found.value
        value = value / turns
        names += found.names
        loading += found.loading_s
        total += float(value.detach())
        if not math.isfinite(total):
            raise TrainingError(f"{task.name}: the loss is {total} at step {step + 1}, of {', '.join(found.names)}")
        value.backward()
    length = float(nn.utils.clip_grad_norm_(state.learned, training.grad_clip_norm))
    if not math.isfinite(length):
        raise TrainingError(f"{task.name}: the gradient is {length} at step {step + 1}, of {', '.join(names)}")
    state.optimiser.step()
    state.mean.update_parameters(state.network)
    return total, loading


def _set_train_mode(network: nn.Module) -> None:
    """Set a network to training mode, except its frozen layers: their running means do not change either."""
    network.train()
    for module in network.modules():
        own = [p.requires_grad for p in module.parameters(recurse=False)]
        if own and not any(own):
            module.eval()


def _round(state: _State, task: Task, rate: float, progress: Callable[[str], None]) -> None:
    """Validate the moving average of the weights, and keep it if it is the best so far."""
    numbers = state.numbers
    value = task.validate(state.mean.module, state.half)
    row = {
        "step": numbers["step"],
        "learning_rate": rate,
        "training_loss": float(np.mean(numbers["losses"])),
        _column(task): value,
    }
    numbers["curve"].append(row)
    if numbers["best"] is None or task.sign * (value - numbers["best"]) > 0:
        numbers["best"], numbers["best_round"] = value, len(numbers["curve"])
        state.best = {name: tensor.clone() for name, tensor in weights_of(state.mean.module).items()}
    progress(
        f"{task.name}: step {numbers['step']} of {task.training.steps}, loss {row['training_loss']:.4f}, "
        f"{task.measure} {value:.4f} (best {numbers['best']:.4f}), {numbers['seconds']:.0f} s"
    )


def _column(task: Task) -> str:
    return task.measure.lower().replace(" ", "_")


def _seeds(task: Task, *more: int) -> int:
    return int(np.random.SeedSequence((task.training.seed, task.number, *more)).generate_state(1, np.uint32)[0])
