"""Joint label fusion on a CUDA GPU against the processor: seconds, peak memory of the GPU, largest difference.

    python benchmarks/gpu_fusion.py [--case FILE.pickle] [--device cuda]

Without a case (a file of `benchmarks/fusion.py`'s cache: target, candidates, reference) a synthetic one of the size of
a 1 mm brain is made: 14 atlases, 139 labels, so that it runs on a machine that has no data.
"""

from __future__ import annotations

import argparse
import pickle
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

from atlasseg.fusion import joint
from atlasseg.volume import Atlas, Image, LabelMap


def synthetic_brain(
    shape: tuple[int, int, int] = (140, 176, 150), *, atlases: int = 14, labels: int = 138, seed: int = 0
) -> tuple[Image, list[Atlas]]:
    """An ellipsoid of cells, each a label with its own intensity, and warped, noisy copies of it."""
    rng = np.random.default_rng(seed)
    sizes = np.array(shape)
    grid = np.moveaxis(np.indices(shape), 0, -1).astype(np.float32)
    inside = (((grid - sizes / 2) / (0.47 * sizes)) ** 2).sum(-1) < 1
    seeds = np.zeros(shape, np.int32)
    chosen = rng.choice(np.flatnonzero(inside), labels, replace=False)
    seeds.reshape(-1)[chosen] = 4 + np.arange(labels)
    nearest = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    truth = np.where(inside, seeds[tuple(nearest)], 0)
    level = np.concatenate([[0], rng.uniform(60, 160, labels + 4)])
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])

    def look(anatomy: np.ndarray) -> np.ndarray:
        tissue = level[np.where(anatomy > 0, anatomy - 3, 0)] + np.where(anatomy > 0, rng.normal(0, 8, shape), 0)
        return ndimage.gaussian_filter(tissue, 0.7).astype(np.float32)

    candidates = []
    for n in range(atlases):
        move = [ndimage.gaussian_filter(rng.normal(0, 1, shape), 6) for _ in range(3)]
        move = [m * 1.2 / m.std() for m in move]
        at = [np.clip(np.rint(grid[..., a] + move[a]), 0, sizes[a] - 1).astype(int) for a in range(3)]
        anatomy = truth[tuple(at)]
        candidates.append(Atlas(f"a{n}", Image(look(anatomy), affine), LabelMap(anatomy, affine)))
    return Image(look(truth), affine, "synthetic"), candidates


def measure(target: Image, candidates: list[Atlas], *, device: str = "cuda") -> dict[str, float]:
    """Seconds on `device` (the second run) and on the processor, GPU memory, and how far the two are apart."""
    import torch

    middle = np.array(target.shape) // 2
    box = np.maximum(middle - 12, 0), np.minimum(middle + 12, target.shape)
    crops = [Atlas(a.id, a.image.cropped(*box), a.segmentation.cropped(*box)) for a in candidates]
    for place in ("cpu", device):  # compiled code is loaded, and the GPU awake
        joint.fuse(target.cropped(*box), crops, device=place)  # type: ignore[arg-type]
    seconds, maps = {}, {}
    for place in ("cpu", device):
        if place == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        maps[place] = joint.fuse(target, candidates, device=place)  # type: ignore[arg-type]
        seconds[place] = time.perf_counter() - began
    apart = max(
        float(np.abs(maps["cpu"].probability(int(label)) - maps[device].probability(int(label))).max())
        for label in maps["cpu"].label_values
    )
    return {
        "cpu_seconds": seconds["cpu"],
        "gpu_seconds": seconds[device],
        "gpu_peak_gb": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0,
        "largest_difference": apart,
        "labels_that_differ": float((maps["cpu"].mode != maps[device].mode).sum()),
        "active_voxels": float(maps["cpu"].voxels.size),
    }


def main() -> None:
    """Measure one case and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=Path)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    target, candidates = pickle.loads(given.case.read_bytes())[:2] if given.case else synthetic_brain()
    for name, value in measure(target, candidates, device=given.device).items():
        print(f"{name}: {value:.6g}")


if __name__ == "__main__":
    main()
