"""Whether a second channel helps: leave-one-out fusion on three gliomas, by FLAIR, by T1c, and by both.

``python benchmarks/channels.py`` takes about two minutes on one core. The data is ``glioma_two_channels`` (see
``benchmarks/common.py`` for the folder), on voxels of 3 mm.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from atlasseg import methods
from atlasseg.atlases.library import read_library
from atlasseg.propagation import propagate
from atlasseg.resampling import resample
from atlasseg.volume import Atlas, Grid, Image, LabelMap

DATA = Path(os.environ.get("ATLASSEG_REAL_DATA", Path(__file__).parents[2] / "shared" / "data")) / "glioma_two_channels"
VOXEL_MM = 3.0
CHANNELS = {"FLAIR": [0], "T1c": [1], "both": [0, 1]}
FUSIONS = ("majority", "joint", "nearest_patches")


def read_coarse(atlas: Atlas) -> Atlas:
    """Read an atlas on voxels of `VOXEL_MM`, with scaled intensities; labels: 1 oedema, 2 the rest of the tumour."""
    shape = np.ceil(np.array(atlas.shape) * atlas.image.spacing_mm / VOXEL_MM).astype(int)
    affine = atlas.image.affine @ np.diag([*(VOXEL_MM / atlas.image.spacing_mm), 1.0])
    grid = Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
    parts = atlas.segmentation.array
    labels = np.where(parts == 2, 1, np.where(parts > 0, 2, 0))
    scaled = methods.get("preprocessing", "intensity").function(resample(atlas.image, grid, antialias=True))
    return Atlas(atlas.id, scaled, resample(LabelMap(labels, atlas.image.affine), grid))


def choose(image: Image, channels: list[int]) -> Image:
    """Keep some channels of an image."""
    return image.with_array(np.ascontiguousarray(image.channels[..., channels]))


def dice(found: np.ndarray, known: np.ndarray) -> float:
    """Dice coefficient of two boolean arrays."""
    return 2 * float((found & known).sum()) / max(float(found.sum() + known.sum()), 1)


def main() -> None:
    """Print a table of Dice coefficients, mean over the three scans."""
    library = read_library(DATA)
    scans = [read_coarse(library.read(id_)) for id_ in library.ids]
    for name, channels in CHANNELS.items():
        scores: dict[str, list[tuple[float, float]]] = {fusion: [] for fusion in FUSIONS}
        for target in scans:
            fixed = choose(target.image, channels)
            others = [Atlas(a.id, choose(a.image, channels), a.labels) for a in scans if a is not target]
            images = [other.image for other in others]
            transforms = None
            for step in ("affine", "diffeomorphic"):
                transforms = methods.get("registration", step).function(fixed, images, initial=transforms)
            carried = [propagate(a, t, fixed.grid) for a, t in zip(others, transforms or (), strict=True)]
            for fusion in FUSIONS:
                labels = methods.get("fusion", fusion).function(fixed, carried).label_map().array
                known = target.segmentation.array
                scores[fusion].append((dice(labels > 0, known > 0), dice(labels == 2, known == 2)))
        for fusion, found in scores.items():
            whole, core = np.mean(found, axis=0)
            print(f"{name:6} {fusion:16} whole tumour {whole:.3f}  core {core:.3f}", flush=True)


if __name__ == "__main__":
    main()
