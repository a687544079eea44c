"""Self-supervision: a network that fills in what was hidden from it has learned how scans look, without any label."""

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
        All settings apply but folds and n_models, and those about labels: cross_entropy, dice, foreground, uncertainty.
    device, checkpoint, progress, stop
        As for `fitting.fit`, and so are the errors.

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
        raise InputError(f"pre-training needs at least two scans, one of them to validate on, got {len(scans)}")
    kept = tuple(torch.from_numpy(scan) for scan in scans)
    validate = kept[4::5] or kept[-1:]
    learn = tuple(scan for scan in kept if not any(scan is other for other in validate))
    task = Reconstruction(plan, training, learn, validate, device)
    return fit(task, checkpoint=checkpoint, progress=progress, stop=stop)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A `fitting.Task`: what is hidden is to be filled in."""

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
        """Digest of all that the training depends on, but the device."""
        digest = hashlib.sha256()
        for scan in (*self.training_set, *self.held_out):
            digest.update(repr(tuple(scan.shape)).encode() + scan.numpy().tobytes())
        return json.dumps([asdict(self.plan), asdict(self.training), digest.hexdigest(), torch.__version__])

    def begin(self) -> nn.Module:
        """A new network, which says the mean."""
        network = build(self.plan.form)
        zero_init_head(network, self.plan.form)
        return network

    def loss(self, network: nn.Module, half: torch.dtype | None, *, step: int, turn: int, batch: int) -> Loss:
        """Of patches at random."""
        begun = time.perf_counter()
        drawn = self._drawn(self.training_set, batch, (self.training.seed, 1, step, turn))
        loading_s = time.perf_counter() - begun
        return Loss(_error(network, half, *drawn[:3]), drawn[3], loading_s)

    def validate(self, network: nn.Module, half: torch.dtype | None) -> float:
        """Mean error on scans that it does not learn from."""
        errors = []
        for number, scan in enumerate(self.held_out):
            drawn = self._drawn((scan,), 2, (self.training.seed, 2, number))
            with torch.no_grad():
                errors.append(float(_error(network, half, *drawn[:3])))
        return float(np.mean(errors))

    def finish(self, network: nn.Module, half: torch.dtype | None) -> tuple[float, dict[str, float]]:
        """Nothing more: there are no probabilities to calibrate."""
        return 1.0, {}

    def _drawn(
        self, scans: tuple[Tensor, ...], batch: int, seed: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
        image, hidden, there, names = _mask_blocks(scans, self.plan.patch_voxels, batch, seed)
        return image.to(self.device), hidden.to(self.device), there.to(self.device), names


def _mask_blocks(
    scans: Sequence[Tensor], patch: tuple[int, int, int], batch: int, seed: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """Patches (B, C, ...), the same with blocks set to 0, where (B, 1, ...) those lie, and what they are of."""
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
