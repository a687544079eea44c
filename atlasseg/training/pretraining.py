"""Self-supervised pre-training by masked reconstruction, on scans without labels."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from atlasseg.errors import InputError
from atlasseg.recipe.training import Training
from atlasseg.refinement.network.model import Member
from atlasseg.refinement.network.networks import build, zero_init_head
from atlasseg.training.fitting import Loss, fit
from atlasseg.training.planning import Plan
from atlasseg.volume import Float32

__all__ = ["fit_reconstruction"]

HIDDEN = 0.6
"""Fraction of the blocks of a patch that are masked."""


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
    """Train a network by masked reconstruction [1]_: mean squared error in the masked blocks.

    Parameters
    ----------
    scans : sequence of (C, I, J, K) float32
        At least two, each with mean 0 and standard deviation 1. Every fifth, or the last, is used for validation.
    plan : Plan
        A network with C inputs and C outputs.
    training : Training
        All settings apply except folds, n_models, cross_entropy, dice, foreground and uncertainty.
    device, checkpoint, progress, stop
        As for `fitting.fit`, and so are the errors.

    Returns
    -------
    Member

    Raises
    ------
    InputError
        There are fewer than two scans.

    References
    ----------
    .. [1] He, K., Chen, X., Xie, S., et al. (2022). Masked autoencoders are scalable vision learners. CVPR,
       16000-16009.
    """
    if len(scans) < 2:
        raise InputError(f"pre-training: expected at least two scans, one of them for validation, got {len(scans)}")
    kept = tuple(torch.from_numpy(scan) for scan in scans)
    validate = kept[4::5] or kept[-1:]
    learn = tuple(scan for scan in kept if not any(scan is other for other in validate))
    task = Reconstruction(plan, training, learn, validate, device)
    return fit(task, checkpoint=checkpoint, progress=progress, stop=stop)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Training task of masked reconstruction, a `fitting.Task`."""

    plan: Plan
    training: Training
    training_set: tuple[Tensor, ...]
    held_out: tuple[Tensor, ...]
    device: str

    number = 0
    name = "pre-training"
    measure = "validation loss"
    sign = -1
    replan: Callable[[float], str] | None = None

    @property
    def key(self) -> str:
        """Digest of all that the training depends on, except the device."""
        digest = hashlib.sha256()
        for scan in (*self.training_set, *self.held_out):
            digest.update(repr(tuple(scan.shape)).encode() + scan.numpy().tobytes())
        return json.dumps([asdict(self.plan), asdict(self.training), digest.hexdigest(), torch.__version__])

    def begin(self) -> nn.Module:
        """Create a network that returns the mean, 0."""
        network = build(self.plan.form)
        zero_init_head(network, self.plan.form)
        return network

    def loss(self, network: nn.Module, half: torch.dtype | None, *, step: int, turn: int, batch: int) -> Loss:
        """Loss of a batch of random patches."""
        begun = time.perf_counter()
        drawn = self._drawn(self.training_set, batch, (self.training.seed, 1, step, turn))
        loading_s = time.perf_counter() - begun
        return Loss(_error(network, half, *drawn[:3]), drawn[3], loading_s)

    def validate(self, network: nn.Module, half: torch.dtype | None) -> float:
        """Mean squared error on the validation scans."""
        errors = []
        for number, scan in enumerate(self.held_out):
            drawn = self._drawn((scan,), 2, (self.training.seed, 2, number))
            with torch.no_grad():
                errors.append(float(_error(network, half, *drawn[:3])))
        return float(np.mean(errors))

    def finish(self, network: nn.Module, half: torch.dtype | None) -> tuple[float, dict[str, float]]:
        """Temperature 1 and no further scores, since there are no probabilities to calibrate."""
        return 1.0, {}

    def _drawn(
        self, scans: tuple[Tensor, ...], batch: int, seed: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
        image, hidden, there, names = _mask_blocks(scans, self.plan.patch_voxels, batch, seed)
        return image.to(self.device), hidden.to(self.device), there.to(self.device), names


def _mask_blocks(
    scans: Sequence[Tensor], patch: tuple[int, int, int], batch: int, seed: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """Patches (B, C, ...), the same with masked blocks set to 0, the mask (B, 1, ...), and names of the patches."""
    source = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint32)[0]))
    block = max(2, min(patch) // 8)
    whole, known, names = [], [], []
    for _ in range(batch):
        number = int(torch.randint(len(scans), (1,), generator=source))
        scan = scans[number]
        starts = [
            int(torch.randint(max(n - w, 0) + 1, (1,), generator=source))
            for n, w in zip(scan.shape[1:], patch, strict=True)
        ]
        box = tuple(slice(s, s + w) for s, w in zip(starts, patch, strict=True))
        taken = scan[:, *box]
        pad = [n for w, have in zip(patch[::-1], taken.shape[:0:-1], strict=True) for n in (0, w - have)]
        names.append(f"scan {number + 1} from voxel {tuple(starts)}")
        whole.append(functional.pad(taken, pad))
        known.append(functional.pad(torch.ones_like(taken[:1]), pad))
    image, there = torch.stack(whole), torch.stack(known)
    coarse = [-(-w // block) for w in patch]
    hidden = (torch.rand((batch, 1, *coarse), generator=source) < HIDDEN).float()
    hidden = functional.interpolate(hidden, scale_factor=block, mode="nearest")[
        :, :, : patch[0], : patch[1], : patch[2]
    ]
    return image, image * (1 - hidden), hidden * there, tuple(names)


def _error(network: nn.Module, half: torch.dtype | None, image: Tensor, shown: Tensor, hidden: Tensor) -> Tensor:
    with torch.autocast(image.device.type, dtype=half, enabled=half is not None):
        out = network(shown.contiguous(memory_format=torch.channels_last_3d))
    out = (out[:, 0] if out.ndim == 6 else out).float()
    error: Tensor = ((out - image) ** 2 * hidden).sum() / (hidden.sum() * image.shape[1]).clamp(min=1)
    return error
