"""Folds of displacement fields: found as a brute-force Jacobian finds them, and repaired."""

import numpy as np
import pytest
from scipy import ndimage

from atlasseg.registration import diffeomorphic
from atlasseg.registration._engine import dense, folds
from atlasseg.registration._engine.batch import Pair, prepare_pairs
from atlasseg.registration.quality import measure_quality
from atlasseg.similarity import create_metric
from atlasseg.transforms import Affine, DisplacementField
from atlasseg.volume import Grid, Image

SHAPE = (23, 19, 27)


def smooth_field(amplitude: float) -> np.ndarray:
    """Displacements in voxels that fold for a large amplitude, in the middle of a grid alone."""
    i, j, k = np.indices(SHAPE).astype(float)
    away = ((i - 11) / 4) ** 2 + ((j - 8) / 3) ** 2 + ((k - 15) / 5) ** 2
    return (amplitude * np.exp(-away / 2)[..., None] * np.stack([j - 8, 11 - i, (15 - k) * 0.8], -1)).astype(np.float32)


def brute_force(field: np.ndarray) -> np.ndarray:
    """Least determinant of the trilinear map at the corners of the cells around a voxel, and of central differences."""
    padded = np.pad(field.astype(np.float64), [(1, 1)] * 3 + [(0, 0)], mode="edge")
    out = np.full(SHAPE, np.inf)
    inner = tuple(slice(1, -1) for _ in SHAPE)
    ahead, behind = [], []
    for axis in range(3):
        ahead.append((np.roll(padded, -1, axis) - padded)[inner])
        behind.append((padded - np.roll(padded, 1, axis))[inner])
    sides = [[b, f, (b + f) / 2] for b, f in zip(behind, ahead, strict=True)]
    corners = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)] + [(2, 2, 2)]
    for corner in corners:
        columns = np.stack([sides[axis][side] for axis, side in enumerate(corner)], axis=-1)
        out = np.minimum(out, np.linalg.det(np.eye(3) + columns))
    return out


def test_determinants_are_those_of_every_corner() -> None:
    field = np.random.default_rng(3).normal(0, 0.3, (*SHAPE, 3)).astype(np.float32)
    np.testing.assert_allclose(folds.compute_least_determinants(field), brute_force(field), atol=1e-5)


def test_a_field_without_folds_is_left_as_it_is() -> None:
    field = smooth_field(0.2)
    assert brute_force(field).min() > folds.LEAST_DETERMINANT
    same, count = folds.repair(field)
    assert same is field
    assert count == 0


@pytest.mark.parametrize("amplitude", [1.5, 2.0])
def test_folds_are_smoothed_away_and_the_rest_stays(amplitude: float) -> None:
    field = smooth_field(amplitude)
    before = field.copy()
    folded = brute_force(field) <= folds.LEAST_DETERMINANT
    assert folded.any()
    repaired, count = folds.repair(field)
    assert count == folded.sum()
    assert brute_force(repaired).min() > folds.LEAST_DETERMINANT
    np.testing.assert_array_equal(field, before)
    near = ndimage.binary_dilation(folded, np.ones((3, 3, 3)), iterations=10)
    assert not near.all()
    np.testing.assert_array_equal(repaired[~near], field[~near])
    grid = Grid(SHAPE, np.diag([1.0, 1.0, 1.0, 1.0]))
    assert measure_quality(DisplacementField(field, grid.affine), grid).folded_share > 0
    assert measure_quality(DisplacementField(repaired, grid.affine), grid).folded_share == 0


def test_even_noise_ends_without_folds() -> None:
    field = np.random.default_rng(0).normal(0, 4, (*SHAPE, 3)).astype(np.float32)
    repaired, count = folds.repair(field)
    assert count > 0.5 * np.prod(SHAPE)
    assert brute_force(repaired).min() > 0


def noisy_pair() -> tuple[Image, Image]:
    """Two unrelated images: what is registered to each other folds."""
    rng = np.random.default_rng(5)
    fixed, moving = (
        Image(ndimage.gaussian_filter(rng.normal(size=SHAPE), 0.8).astype(np.float32), np.diag([1.5, 1.5, 2.0, 1.0]))
        for _ in range(2)
    )
    return fixed, moving


STEEP = {"iterations": (30, 30), "update_sigma_voxels": 0.6, "total_field_sigma_voxels": (0.0, 0.0), "radius_voxels": 1}


@pytest.fixture(scope="module")
def folding() -> Pair:
    fixed, moving = noisy_pair()
    return prepare_pairs(fixed, [moving], [Affine.identity()], None, None)[0]


def test_an_optimisation_that_folds_is_repaired(folding: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = dense.Schedule(
        (2, 1), (30, 30), create_metric("local_correlation", radius_voxels=1), 0.6, (0.0, 0.0), 1.0, 1e-4
    )
    found = dense.solve(folding, schedule)
    assert found.repaired > 0
    assert folds.compute_least_determinants(found.field).min() > folds.LEAST_DETERMINANT
    monkeypatch.setattr(dense.folds, "repair", lambda field: (field, 0))
    assert folds.compute_least_determinants(dense.solve(folding, schedule).field).min() <= 0


def test_the_method_gives_no_fold_on_the_whole_grid() -> None:
    fixed, moving = noisy_pair()
    (transform,) = diffeomorphic.register(fixed, [moving], initial=[Affine.identity()], **STEEP)  # type: ignore[arg-type]
    assert measure_quality(transform, fixed.grid).jacobian_min > 0
