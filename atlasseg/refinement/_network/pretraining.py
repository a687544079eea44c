"""Self-supervision: a network that fills in what was hidden from it has learned how scans look, without any label."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from atlasseg.errors import InputError, TrainingError
from atlasseg.learning import Training
from atlasseg.refinement._network.checkpoints import (
    optimiser_tensors,
    part,
    read_tensors,
    restore_optimiser,
    write_tensors,
)
from atlasseg.refinement._network.fitting import Member
from atlasseg.refinement._network.networks import build, load_weights, silence, weights_of
from atlasseg.refinement._network.optimisation import learning_rate, optimiser_of
from atlasseg.refinement._network.planning import Plan
from atlasseg.volume import Float32

log = logging.getLogger(__name__)

HIDDEN = 0.6
"""Share of the blocks of a patch that are hidden."""


def fit_reconstruction(
    scans: Sequence[Float32],
    plan: Plan,
    training: Training,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
) -> Member:
    """Train a network to fill in hidden blocks: masked reconstruction [1]_, of mean squared error where hidden.

    Parameters
    ----------
    scans : sequence of (C, I, J, K) float32
        Each of mean 0 and standard deviation 1, two at least: every fifth, or the last, is validated on.
    plan : Plan
        A network of C inputs and C outputs.
    training : Training
        Of it those keys are used that do not speak of labels.
    device, checkpoint, progress, stop
        As for `fitting.fit`.

    Raises
    ------
    InputError
        There are fewer than two scans; the checkpoint is of another training.
    TrainingError
        The loss is not finite.

    References
    ----------
    .. [1] He, K., Chen, X., Xie, S., et al. (2022). Masked autoencoders are scalable vision learners. CVPR,
       16000-16009.
    """
    if len(scans) < 2:
        raise InputError(f"pre-training needs at least two scans, one of them to validate on, got {len(scans)}")
    kept = [torch.from_numpy(scan).to(device) for scan in scans]
    validate = kept[4::5] or kept[-1:]
    learn = [scan for scan in kept if not any(scan is other for other in validate)]
    torch.manual_seed(training.seed)
    network = build(plan.form)
    silence(network, plan.form)  # it begins by saying the mean
    network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimiser = optimiser_of(list(network.parameters()), training)
    digest = hashlib.sha256(b"".join(scan.tobytes() for scan in scans)).hexdigest()
    key = json.dumps([asdict(plan), asdict(training), digest, torch.__version__])
    best = {name: tensor.clone() for name, tensor in weights_of(network).items()}
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "losses": [], "curve": [], "best": math.inf, "done": False}
    if checkpoint is not None and checkpoint.exists():
        tensors, state = read_tensors(checkpoint)
        if state.pop("key", None) != key:
            raise InputError(f"{checkpoint}: the checkpoint of another training: remove it to begin anew")
        load_weights(network, part(tensors, "weights/"), str(checkpoint))
        best = part(tensors, "best/")
        restore_optimiser(optimiser, part(tensors, "optimiser/"))

    def keep() -> None:
        if checkpoint is not None:
            groups = (("weights/", weights_of(network)), ("best/", best), ("optimiser/", optimiser_tensors(optimiser)))
            tensors = {prefix + name: tensor for prefix, group in groups for name, tensor in group.items()}
            write_tensors(checkpoint, tensors, {"key": key, **state})

    while not state["done"]:
        begun = time.perf_counter()
        step = state["step"]
        t = step / training.steps
        if training.minutes is not None:
            t = max(t, state["seconds"] / (60 * training.minutes))
        network.train()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(training, t)
        optimiser.zero_grad(set_to_none=True)
        torch.manual_seed(int(np.random.SeedSequence((training.seed, step)).generate_state(1, np.uint32)[0]))
        value = _error(network, *_hidden(learn, plan.patch_voxels, training.batch, (training.seed, 1, step)))
        if not math.isfinite(float(value.detach())):
            raise TrainingError(f"pre-training: the loss is {float(value.detach())} at step {step + 1}")
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), training.clip)
        optimiser.step()
        state["losses"].append(float(value.detach()))
        state["step"] = step + 1
        over = step + 1 >= training.steps
        if training.minutes is not None:
            over = over or state["seconds"] + time.perf_counter() - begun >= 60 * training.minutes
        if over or (step + 1) % training.round_steps == 0:
            network.eval()
            with torch.no_grad():
                batches = [
                    _hidden([scan], plan.patch_voxels, 2, (training.seed, 2, n)) for n, scan in enumerate(validate)
                ]
                found = float(np.mean([float(_error(network, *each)) for each in batches]))
            row = {"step": step + 1, "training_loss": float(np.mean(state["losses"])), "validation_loss": found}
            state["curve"].append(row)
            state["losses"], state["done"] = [], over
            if found < state["best"]:
                state["best"] = found
                best = {name: tensor.clone() for name, tensor in weights_of(network).items()}
            state["seconds"] += time.perf_counter() - begun
            keep()
            progress(f"pre-training: step {step + 1} of {training.steps}, error {found:.4f} (best {state['best']:.4f})")
        else:
            state["seconds"] += time.perf_counter() - begun
        if not state["done"] and stop():
            keep()
            raise KeyboardInterrupt
    scores = {"validation_loss": state["best"], "steps": state["step"], "seconds": round(state["seconds"], 1)}
    return Member({name: tensor.cpu() for name, tensor in best.items()}, 1.0, tuple(state["curve"]), scores)


def _hidden(
    scans: Sequence[Tensor], patch: tuple[int, int, int], batch: int, seed: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Patches (B, C, ...) as they are, the same with blocks set to 0, and where (B, 1, ...) those lie in the scan."""
    source = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint32)[0]))
    block = max(2, min(patch) // 8)
    whole, known = [], []
    for _ in range(batch):
        scan = scans[int(torch.randint(len(scans), (1,), generator=source))]
        starts = [
            int(torch.randint(max(n - w, 0) + 1, (1,), generator=source))
            for n, w in zip(scan.shape[1:], patch, strict=True)
        ]
        box = tuple(slice(s, s + w) for s, w in zip(starts, patch, strict=True))
        taken = scan[:, *box]
        pad = [n for w, have in zip(patch[::-1], taken.shape[:0:-1], strict=True) for n in (0, w - have)]
        whole.append(functional.pad(taken, pad))
        known.append(functional.pad(torch.ones_like(taken[:1]), pad))
    image, there = torch.stack(whole), torch.stack(known)
    coarse = [-(-w // block) for w in patch]
    hidden = (torch.rand((batch, 1, *coarse), generator=source) < HIDDEN).float().to(image.device)
    hidden = functional.interpolate(hidden, scale_factor=block, mode="nearest")[
        :, :, : patch[0], : patch[1], : patch[2]
    ]
    return image, image * (1 - hidden), hidden * there


def _error(network: torch.nn.Module, image: Tensor, shown: Tensor, hidden: Tensor) -> Tensor:
    out = network(shown.contiguous(memory_format=torch.channels_last_3d))
    out = out[:, 0] if out.ndim == 6 else out
    error: Tensor = ((out - image) ** 2 * hidden).sum() / (hidden.sum() * image.shape[1]).clamp(min=1)
    return error
