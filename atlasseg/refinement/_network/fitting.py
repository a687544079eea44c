"""One network trained on some cases and validated on others; killed at any moment, it goes on as if it had not been."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atlasseg.errors import InputError, TrainingError
from atlasseg.learning import Augmentation, Training
from atlasseg.refinement._network.cases import Case, Coding
from atlasseg.refinement._network.checkpoints import (
    optimiser_tensors,
    part,
    read_tensors,
    restore_optimiser,
    write_tensors,
)
from atlasseg.refinement._network.loss import supervised
from atlasseg.refinement._network.networks import build, is_encoder, load_weights, silence, transferred, weights_of
from atlasseg.refinement._network.optimisation import absolute_sum, learning_rate, optimiser_of
from atlasseg.refinement._network.patches import Batch, Shown, draw, inputs_of
from atlasseg.refinement._network.planning import Plan
from atlasseg.refinement._network.precision import fast_half
from atlasseg.refinement._network.scoring import fitted_temperature, mean_dice, reliable_logits
from atlasseg.refinement._network.windows import probabilities, speaker

log = logging.getLogger(__name__)

KEEP_EVERY_STEPS = 100
"""A checkpoint is written at the end of every round, and within a longer one every so many steps."""


@dataclass(frozen=True)
class Start:
    """Weights to begin from; with `freeze` those of the encoder stay as they are."""

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    freeze: bool = False


@dataclass(frozen=True, eq=False)
class Member:
    """A trained network: its weights, temperature, the curve of its training, and how well it did on validation."""

    weights: dict[str, Tensor]
    temperature: float
    curve: tuple[dict[str, float], ...]
    scores: dict[str, float]


@dataclass(frozen=True, eq=False)
class Job:
    """All that one training depends on; `number` is its fold, `replan` says what would fit so many bytes."""

    number: int
    plan: Plan
    coding: Coding
    prior: str
    training: Training
    augmentation: Augmentation
    learn: tuple[Case, ...]
    validate: tuple[Case, ...]
    device: str = "cpu"
    start: Start = field(default_factory=Start)
    data: str = ""
    replan: Callable[[float], str] | None = None

    @property
    def key(self) -> str:
        """Digest of all that the training depends on, but the device and how far it may go."""
        training = {k: v for k, v in asdict(self.training).items() if k != "members"}
        weights = hashlib.sha256()
        for name, tensor in sorted(self.start.weights.items()):
            weights.update(name.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        said = [
            self.number,
            asdict(self.plan),
            asdict(self.coding),
            self.prior,
            training,
            asdict(self.augmentation),
            [case.id for case in self.learn],
            [case.id for case in self.validate],
            self.start.freeze,
            weights.hexdigest(),
            self.data,
            torch.__version__,
        ]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


Stop = Callable[[], bool]


class _State:
    """Network, optimiser and running mean of the weights, and the numbers that go with them."""

    def __init__(self, job: Job) -> None:
        torch.manual_seed(_seeds(job, 0))
        self.network = build(job.plan.form)
        if job.prior == "residual":
            silence(self.network, job.plan.form)
        if job.start.weights:
            channels = job.plan.form.inputs - (0 if job.prior == "none" else job.coding.channels)
            left = transferred(self.network, job.plan.form, job.start.weights, scan_channels=channels)
            log.info("begun from other weights, all but %s", ", ".join(left) or "none")
        self.network.to(job.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad = not (job.start.freeze and is_encoder(job.plan.form, name))
        self.learned = [p for p in self.network.parameters() if p.requires_grad]
        self.optimiser = optimiser_of(self.learned, job.training)
        self.half = fast_half(job.device) if job.training.mixed_precision else None
        self.scaler = torch.amp.GradScaler(job.device, enabled=self.half is torch.float16)
        self.mean = {name: tensor.clone() for name, tensor in weights_of(self.network).items()}
        self.best = {name: tensor.clone() for name, tensor in self.mean.items()}
        self.numbers: dict[str, Any] = {
            "step": 0,
            "best": -1.0,
            "best_round": 0,
            "seconds": 0.0,
            "loading": 0.0,
            "losses": [],
            "curve": [],
            "batch": job.plan.batch,
            "threads": torch.get_num_threads(),
            "half": None if self.half is None else str(self.half).removeprefix("torch."),
            "done": False,
        }

    def write(self, path: Path, key: str) -> None:
        groups = (("weights/", weights_of(self.network)), ("mean/", self.mean), ("best/", self.best))
        tensors = {prefix + name: tensor for prefix, group in groups for name, tensor in group.items()}
        tensors |= {f"optimiser/{name}": tensor for name, tensor in optimiser_tensors(self.optimiser).items()}
        write_tensors(path, tensors, {"key": key, "scaler": self.scaler.state_dict(), **self.numbers})

    def read(self, path: Path, key: str) -> None:
        tensors, state = read_tensors(path)
        if state.pop("key", None) != key:
            raise InputError(
                f"{path}: the checkpoint of another training (recipe, atlases or torch have changed): remove it "
                "to begin anew"
            )
        load_weights(self.network, part(tensors, "weights/"), str(path))
        for mine, prefix in ((self.mean, "mean/"), (self.best, "best/")):
            for name, tensor in part(tensors, prefix).items():
                mine[name].copy_(tensor)
        restore_optimiser(self.optimiser, part(tensors, "optimiser/"))
        self.scaler.load_state_dict(state.pop("scaler"))
        self.numbers = state
        self.half = state["half"] and getattr(torch, state["half"])


def fit(
    job: Job,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
    stop: Stop = lambda: False,
) -> Member:
    """Train a network, or go on with it where `checkpoint` left off.

    Every draw follows from the seed, the fold and the number of the step, and the number of threads, which orders sums,
    is kept, so that what is resumed has the same curve, to the last digit on the CPU.

    Raises
    ------
    TrainingError
        The loss is not finite: the message names the step and its patches.
    InputError
        The checkpoint is of another training or damaged; the GPU's memory is too small even for one patch.
    KeyboardInterrupt
        `stop` said so; the checkpoint is written.
    """
    state = _State(job)
    if checkpoint is not None and checkpoint.exists():
        state.read(checkpoint, job.key)
        log.info("%s: going on at step %d", checkpoint, state.numbers["step"])
    threads = torch.get_num_threads()
    torch.set_num_threads(state.numbers["threads"])  # set in any case: numba's threads may have changed OpenMP's
    try:
        return _fitted(state, job, checkpoint, progress, stop)
    finally:
        torch.set_num_threads(threads)


def _fitted(state: _State, job: Job, checkpoint: Path | None, progress: Callable[[str], None], stop: Stop) -> Member:
    shown = [] if state.numbers["done"] else [Shown.of(case, job.coding, job.device) for case in job.learn]

    def keep() -> None:
        if checkpoint is not None:
            state.write(checkpoint, job.key)

    numbers, training = state.numbers, job.training
    while not numbers["done"]:
        begun = time.perf_counter()
        step = numbers["step"]
        t = step / training.steps
        if training.minutes is not None:
            t = max(t, numbers["seconds"] / (60 * training.minutes))
        rate = learning_rate(training, t)
        value, loading = _step(state, job, shown, rate)
        if not math.isfinite(value[0]):
            raise TrainingError(f"network {job.number}: the loss is {value[0]} at step {step + 1}, of {value[1]}")
        numbers["losses"] = [*numbers["losses"], value[0]][-training.round_steps :]
        numbers["step"] = step + 1
        numbers["loading"] += loading
        numbers["seconds"] += time.perf_counter() - begun
        over = numbers["step"] >= training.steps or (
            training.minutes is not None and numbers["seconds"] >= 60 * training.minutes
        )
        if over or numbers["step"] % training.round_steps == 0:
            begun = time.perf_counter()
            _round(state, job, rate, progress)
            waited = len(numbers["curve"]) - numbers["best_round"]
            numbers["done"] = over or waited >= training.patience
            numbers["seconds"] += time.perf_counter() - begun
            keep()
        elif numbers["step"] % KEEP_EVERY_STEPS == 0:
            keep()
        if not numbers["done"] and stop():
            keep()
            raise KeyboardInterrupt
    return _member(state, job)


def _step(state: _State, job: Job, shown: Sequence[Shown], rate: float) -> tuple[tuple[float, str], float]:
    """One step of the optimiser; a batch that does not fit a GPU's memory is halved, and taken in more turns."""
    while True:
        try:
            return _attempt(state, job, shown, rate)
        except torch.OutOfMemoryError:
            state.optimiser.zero_grad(set_to_none=True)
            if job.device == "cuda":
                torch.cuda.empty_cache()
            batch = state.numbers["batch"]
            if batch == 1:
                raise InputError(_too_large(job)) from None
            state.numbers["batch"] = batch // 2
            log.warning("out of memory: batches of %d in place of %d, and as many more of them", batch // 2, batch)


def _too_large(job: Job) -> str:
    half = job.plan.step_bytes / job.plan.batch / 2
    try:
        smaller = job.replan(half) if job.replan is not None else ""
    except InputError as error:
        smaller = str(error)
    return (
        f"the GPU has not enough memory for one patch of this network ({job.plan.text()}); --gpu-memory "
        f"{half / 2**30:.2g}GB would choose {smaller or 'a smaller one'}"
    )


def _attempt(state: _State, job: Job, shown: Sequence[Shown], rate: float) -> tuple[tuple[float, str], float]:
    training, step, batch = job.training, state.numbers["step"], state.numbers["batch"]
    turns = math.ceil(training.batch * training.accumulation / batch)
    torch.manual_seed(_seeds(job, 1, step))  # dropout
    state.network.train()
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.optimiser.zero_grad(set_to_none=True)
    total, loading = 0.0, 0.0
    names: list[str] = []
    groups = torch.tensor(job.coding.groups, device=job.device)
    for turn in range(turns):
        begun = time.perf_counter()
        drawn = draw(
            shown,
            job.coding,
            job.plan.patch_voxels,
            training,
            job.augmentation,
            seed=(training.seed, job.number, step, turn),
            batch=batch,
        )
        loading += time.perf_counter() - begun
        value = _loss(state, job, drawn, groups) / turns
        names += drawn.names
        total += float(value.detach())
        if not math.isfinite(total):
            return (total, ", ".join(drawn.names)), loading
        state.scaler.scale(value).backward()
    state.scaler.unscale_(state.optimiser)
    nn.utils.clip_grad_norm_(state.learned, training.clip)
    state.scaler.step(state.optimiser)
    state.scaler.update()
    share = min(training.averaging, (1 + step) / (10 + step)) if training.averaging else 0.0
    for name, tensor in weights_of(state.network).items():
        if tensor.is_floating_point():
            state.mean[name].lerp_(tensor, 1 - share)
        else:
            state.mean[name].copy_(tensor)
    return (total, ", ".join(names)), loading


def _loss(state: _State, job: Job, drawn: Batch, groups: Tensor) -> Tensor:
    seen, log_prior = inputs_of(drawn.scan, drawn.prior, groups, job.prior)
    seen = seen.contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast(job.device, dtype=state.half, enabled=state.half is not None):
        out = state.network(seen)
    training = job.training
    value = supervised(
        out, log_prior, drawn.truth, drawn.unknown, cross_entropy=training.cross_entropy, dice=training.dice
    )
    return value + training.l1 * absolute_sum(state.learned) if training.l1 else value


def _round(state: _State, job: Job, rate: float, progress: Callable[[str], None]) -> None:
    """Validate the running mean of the weights, and keep it where it is the best so far."""
    numbers = state.numbers
    network = _with(job, state.mean)
    found = [_spoken(network, case, job, state.half) for case in job.validate]
    score = mean_dice([p.argmax(0) for p in found], job.validate, job.coding)
    row = {
        "step": numbers["step"],
        "learning_rate": rate,
        "training_loss": float(np.mean(numbers["losses"])),
        "validation_dice": score,
    }
    numbers["curve"].append(row)
    if score > numbers["best"]:
        numbers["best"], numbers["best_round"] = score, len(numbers["curve"])
        state.best = {name: tensor.clone() for name, tensor in state.mean.items()}
    progress(
        f"network {job.number + 1}: step {numbers['step']} of {job.training.steps}, loss {row['training_loss']:.4f}, "
        f"validation Dice {score:.4f} (best {numbers['best']:.4f}), {numbers['seconds']:.0f} s"
    )


def _spoken(network: nn.Module, case: Case, job: Job, half: torch.dtype | None) -> np.ndarray:
    return probabilities(
        case,
        job.coding,
        speaker([network], [1.0], (), half),
        window=job.plan.patch_voxels,
        prior=job.prior,
        device=job.device,
    )


def _with(job: Job, weights: Mapping[str, Tensor]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        network = build(job.plan.form).to(job.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    load_weights(network, weights, "training")
    network.eval()
    return network  # type: ignore[no-any-return]


def _member(state: _State, job: Job) -> Member:
    """The best weights, calibrated on the validation cases."""
    network = _with(job, state.best)
    found = [_spoken(network, case, job, state.half) for case in job.validate]
    temperature = fitted_temperature(*reliable_logits(found, job.validate))
    fused = [case.codes[0].astype(np.int64) for case in job.validate]
    numbers = state.numbers
    scores = {
        "validation_dice": mean_dice([p.argmax(0) for p in found], job.validate, job.coding),
        "fused_dice": mean_dice(fused, job.validate, job.coding),
        "seconds": round(numbers["seconds"], 1),
        "loading_share": round(numbers["loading"] / max(numbers["seconds"], 1e-9), 4),
        "steps": numbers["step"],
    }
    weights = {name: tensor.cpu().contiguous() for name, tensor in state.best.items()}
    return Member(weights, temperature, tuple(numbers["curve"]), scores)


def _seeds(job: Job, *more: int) -> int:
    return int(np.random.SeedSequence((job.training.seed, job.number, *more)).generate_state(1, np.uint32)[0])
