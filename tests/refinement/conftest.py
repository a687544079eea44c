"""A systematic error that can be learned: two structures that fusion sees too far to the patient's right."""

import numpy as np
import pytest

from atlasseg import phantoms
from atlasseg.refinement.examples import Example
from atlasseg.volume import Image, LabelMap, ProbabilityMap

SIZES = {"R": 21, "L": 21, "A": 15, "P": 15, "S": 14, "I": 14}
MM = {"R": 2.0, "L": 2.0, "A": 2.3, "P": 2.3, "S": 2.4, "I": 2.4}


def _ellipsoids(grid, shift_mm):
    """Two structures side by side (5 and 700), seen `shift_mm` to the right, and how deep every voxel lies in each."""
    points = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1) @ grid.affine[:3, :3].T
    points = points + grid.affine[:3, 3] - grid.centre_mm
    depths = []
    for centre in (-8.0, 8.0):
        apart = (points - (centre + shift_mm, 1.0, -2.0)) / (7.5, 10.0, 9.0)
        depths.append(1 - np.linalg.norm(apart, axis=-1))
    return np.stack(depths, -1)


@pytest.fixture(scope="session")
def made():
    """Makes a scan whose fusion sees both structures too far to the patient's right, whatever the array's axes."""

    def example(axes, seed, *, shift_mm=3.0, scale=1.0, channels=1):
        rng = np.random.default_rng(seed)
        grid = phantoms.tilted_grid(
            tuple(SIZES[a] for a in axes),
            spacing_mm=np.array([MM[a] for a in axes]),
            angles_degrees=(3, -4, 2),
            axes=axes,
        )
        values = np.array([5, 700])
        truth, seen = _ellipsoids(grid, 0.0), _ellipsoids(grid, shift_mm)
        labels = np.where(truth.max(-1) > 0, values[truth.argmax(-1)], 0)
        votes = np.clip(0.5 + 2.5 * seen, 0, 1)
        background = np.clip(1 - votes.sum(-1, keepdims=True), 0, None)
        fused = ProbabilityMap.from_dense(np.concatenate([background, votes], -1), [0, *values], grid.affine)
        bright = scale * (1 + (labels > 0) + 0.2 * rng.standard_normal(labels.shape))
        scan = bright if channels == 1 else np.stack([bright] * channels, -1)
        id_ = f"{axes}{seed}"
        return Example(id_, Image(scan, grid.affine, id_), fused, LabelMap(labels, grid.affine))

    return example


@pytest.fixture(scope="session")
def right():
    """Share of right voxels where either says a label."""

    def share(found, each):
        some = (found.mode > 0) | (each.truth.array > 0)
        return float((found.mode == each.truth.array)[some].mean())

    return share
