"""Sampling and augmentation of training patches, with one resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from atlasseg.recipe.training import Augmentation, Training
from atlasseg.refinement.network.cases import Case, LabelEncoding, foreground_or_uncertain
from atlasseg.refinement.network.inputs import dense

REGIONS_OF_BACKGROUND = 4
"""Number of intensity classes of the background of a synthetic scan, by quantiles of the scan."""


@dataclass(frozen=True, eq=False)
class PatchSource:
    """A case as tensors on the CPU, with the candidate centres of patches."""

    case: Case
    scan: Tensor
    codes: Tensor
    shares: Tensor
    truth: Tensor
    unknown: Tensor
    unsure: Tensor
    by_label: tuple[Tensor, ...]

    @classmethod
    def of(cls, case: Case, coding: LabelEncoding) -> PatchSource:
        """Make the source from a case with labels."""
        assert case.truth is not None
        unsure = np.flatnonzero(foreground_or_uncertain(case) & (case.doubt > 0.05))
        flat = case.truth.reshape(-1)
        order = np.argsort(flat, kind="stable")
        bounds = np.searchsorted(flat[order], np.arange(len(coding) + 1))
        by_label = [order[a:b] for a, b in pairwise(bounds[1:]) if b > a]
        unknown = torch.zeros(len(coding), dtype=torch.bool)
        unknown[list(case.unknown)] = True
        return cls(
            case,
            torch.from_numpy(case.scan),
            torch.from_numpy(case.codes),
            torch.from_numpy(case.shares),
            torch.from_numpy(case.truth),
            unknown,
            torch.from_numpy(unsure),
            tuple(torch.from_numpy(voxels) for voxels in by_label),
        )


@dataclass(frozen=True, eq=False)
class Batch:
    """Batch of a training step.

    Parameters
    ----------
    scan : (B, C, ...)
    prior : (B, L, ...)
        Fused probabilities.
    truth : (B, ...) int64
    unknown : (B, L) bool
    names : tuple of str
        Case and centre of each patch.
    """

    scan: Tensor
    prior: Tensor
    truth: Tensor
    unknown: Tensor
    names: tuple[str, ...]


def draw(
    cases: Sequence[PatchSource],
    coding: LabelEncoding,
    patch: tuple[int, int, int],
    training: Training,
    augmentation: Augmentation,
    *,
    seed: tuple[int, ...],
    batch: int,
    device: str = "cpu",
) -> Batch:
    """Draw a batch of patches on a device. It depends on `seed` alone, so that a training can resume."""
    source = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
    scans, priors, truths, unknown, names = [], [], [], [], []
    for _ in range(batch):
        shown = cases[_whole(source, len(cases))]
        centre = _centre(shown, training, source)
        scan, prior, truth = _crop(shown, coding, centre, patch, augmentation, source, device)
        scan = _augment_intensity(scan, truth, coding, augmentation, source)
        for axis, name in enumerate("RAS"):
            if name in augmentation.flips and _chance(source, 0.5):
                scan, prior, truth = scan.flip(axis + 1), prior.flip(axis + 1), truth.flip(axis)
        scans.append(scan)
        priors.append(prior)
        truths.append(truth)
        unknown.append(shown.unknown.to(device))
        names.append(f"{shown.case.id} around voxel {tuple(centre.tolist())}")
    return Batch(torch.stack(scans), torch.stack(priors), torch.stack(truths), torch.stack(unknown), tuple(names))


def _whole(source: torch.Generator, below: int) -> int:
    return int(torch.randint(below, (1,), generator=source))


def _chance(source: torch.Generator, share: float) -> bool:
    return float(torch.rand(1, generator=source)) < share


def _spread(source: torch.Generator, most: float, count: int = 1) -> Tensor:
    """(count,) uniform random numbers between minus and plus `most`."""
    return (2 * torch.rand(count, generator=source) - 1) * most


def _centre(shown: PatchSource, training: Training, source: torch.Generator) -> Tensor:
    """(3,) random voxel: of a label, of the uncertain voxels, or of the whole case."""
    kind = float(torch.rand(1, generator=source))
    voxels = None
    if kind < training.foreground and shown.by_label:
        voxels = shown.by_label[_whole(source, len(shown.by_label))]
    elif kind < training.foreground + training.uncertainty and shown.unsure.numel():
        voxels = shown.unsure
    size = shown.truth.shape
    flat = _whole(source, shown.truth.numel()) if voxels is None else int(voxels[_whole(source, voxels.numel())])
    return torch.tensor(np.unravel_index(flat, size))


def _crop(
    shown: PatchSource,
    coding: LabelEncoding,
    centre: Tensor,
    patch: tuple[int, int, int],
    augmentation: Augmentation,
    source: torch.Generator,
    device: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scan (C, ...), prior (L, ...) and truth (...) of a patch around a voxel, randomly deformed.

    A case that is smaller than the patch along an axis is centred in it. Beyond the case the scan is 0, the prior is
    background with certainty, and the truth is unknown.
    """
    size, extent = torch.tensor(shown.truth.shape), torch.tensor(patch)
    low, high = (extent - 1) / 2, size - 1 - (extent - 1) / 2
    middle = torch.where(high > low, torch.minimum(torch.maximum(centre.float(), low), high), (size - 1) / 2)
    bent = _chance(source, augmentation.probability), _chance(source, augmentation.probability)
    if not any(bent):
        middle = torch.floor(middle - low) + low  # whole voxels
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in patch]
    offset = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    points = offset @ _random_affine(augmentation, shown.case.spacing_mm, source).T if bent[0] else offset
    points = points + middle
    if bent[1] and augmentation.elastic_voxels:
        knots = [max(4, math.ceil(n / augmentation.elastic_spacing_voxels) + 1) for n in patch]
        field_ = torch.randn((1, 3, *knots), generator=source) * augmentation.elastic_voxels
        moved = functional.interpolate(field_, size=patch, mode="trilinear", align_corners=True)
        points = points + moved[0].movedim(0, -1)
    first = points.reshape(-1, 3).amin(0).floor().clamp(min=0).minimum(size - 1).long().tolist()
    last = (points.reshape(-1, 3).amax(0).ceil() + 1).maximum(torch.tensor(first) + 1).minimum(size).long().tolist()
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    scan, codes, shares = (each[:, *box].to(device) for each in (shown.scan, shown.codes, shown.shares))
    every = torch.cat([scan, dense(codes, shares, len(coding))])
    edge = torch.tensor(every.shape[1:])
    place = ((points - torch.tensor(first)) * 2 + 1) / edge - 1  # as with align_corners=False
    place = place.flip(-1)[None].to(device)
    smooth = functional.grid_sample(every[None], place, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    whole = (shown.truth[box].to(device).float() + 1)[None, None]
    truth = functional.grid_sample(whole, place, mode="nearest", padding_mode="zeros", align_corners=False)[0, 0]
    channels = shown.scan.shape[0]
    prior = smooth[channels:].clone()
    prior[0] += 1 - prior.sum(0)
    return smooth[:channels], prior, truth.round().long() - 1


def _random_affine(
    augmentation: Augmentation, spacing_mm: tuple[float, float, float], source: torch.Generator
) -> Tensor:
    """(3, 3) random rotation, scaling and shear in space, for offsets in voxels."""
    out = torch.eye(3)
    for axis, angle in enumerate(torch.deg2rad(_spread(source, augmentation.rotation_degrees, 3)).tolist()):
        a, b = [other for other in range(3) if other != axis]
        turn = torch.eye(3)
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        out = out @ turn
    out = out @ torch.diag(1 + _spread(source, augmentation.scaling, 3))
    shear = torch.eye(3)
    shear[0, 1], shear[0, 2], shear[1, 2] = _spread(source, augmentation.shear, 3)
    size = torch.tensor(spacing_mm)
    return out @ shear * size / size[:, None]


def _augment_intensity(
    scan: Tensor, truth: Tensor, coding: LabelEncoding, augmentation: Augmentation, source: torch.Generator
) -> Tensor:
    """Augment the intensities of a scan (C, ...)."""
    noise = torch.Generator(scan.device).manual_seed(_whole(source, 2**62))
    if _chance(source, augmentation.synthesis):
        scan = _synthesise(scan, truth, coding, source, noise)
    if augmentation.bias and _chance(source, augmentation.probability):
        knots = torch.randn((1, 1, 4, 4, 4), generator=source).to(scan.device) * augmentation.bias
        smooth = functional.interpolate(knots, size=scan.shape[1:], mode="trilinear", align_corners=True)[0]
        least = scan.amin(dim=(1, 2, 3), keepdim=True)
        scan = (scan - least) * smooth.exp() + least
    if augmentation.contrast and _chance(source, augmentation.probability):
        scale, gamma, shift = (float(v) for v in _spread(source, augmentation.contrast, 3))
        least, most = scan.amin(dim=(1, 2, 3), keepdim=True), scan.amax(dim=(1, 2, 3), keepdim=True)
        span = (most - least).clamp(min=1e-6)
        scan = ((scan - least) / span) ** (1 + gamma) * span * (1 + scale) + least + shift
    if augmentation.noise and _chance(source, augmentation.probability):
        sd = augmentation.noise * float(torch.rand(1, generator=source))
        scan = scan + sd * torch.randn(scan.shape, generator=noise, device=scan.device)
    return scan


def _synthesise(
    scan: Tensor, truth: Tensor, coding: LabelEncoding, source: torch.Generator, noise: torch.Generator
) -> Tensor:
    """Synthesise a scan from labels: each region has a random intensity and texture, and the scan is blurred [1]_.

    The regions are the labels and `REGIONS_OF_BACKGROUND` parts of the background, by the intensities of the scan.

    References
    ----------
    .. [1] Billot, B., Greve, D. N., Puonti, O., et al. (2023). SynthSeg: segmentation of brain MRI scans of any
       contrast and resolution without retraining. Medical Image Analysis 86, 102789.
    """
    out = torch.empty_like(scan)
    for channel in range(scan.shape[0]):
        each = scan[channel]
        some = each.reshape(-1)[:: max(1, each.numel() // 20000)]
        cuts = torch.quantile(some, torch.linspace(0, 1, REGIONS_OF_BACKGROUND + 1, device=each.device)[1:-1])
        region = torch.where(truth > 0, truth - 1 + REGIONS_OF_BACKGROUND, torch.bucketize(each, cuts))
        count = len(coding) - 1 + REGIONS_OF_BACKGROUND
        mean = torch.randn(count, generator=source).to(each.device)
        spread = (0.05 + 0.3 * torch.rand(count, generator=source)).to(each.device)
        texture = torch.randn(each.shape, generator=noise, device=each.device)
        painted = (mean[region] + spread[region] * texture)[None, None]
        side = 0.1 + 0.2 * float(torch.rand(1, generator=source))
        kernel = torch.tensor([side, 1 - 2 * side, side], device=each.device)
        for axis in range(3):
            shape = [1, 1, 1, 1, 1]
            shape[axis + 2] = 3
            padding = [0, 0, 0]
            padding[axis] = 1
            painted = functional.conv3d(painted, kernel.reshape(shape), padding=padding)
        out[channel] = (painted[0, 0] - painted.mean()) / painted.std().clamp(min=1e-6)
    return out
