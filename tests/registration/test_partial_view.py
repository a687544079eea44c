"""Linear registration where one image shows a part of what the other shows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from atlasseg import io, phantoms
from atlasseg.registration import affine
from atlasseg.registration._engine import linear
from atlasseg.registration._engine.batch import prepare_pairs
from atlasseg.resampling import resample
from atlasseg.similarity import create_metric
from atlasseg.transforms import Affine
from atlasseg.volume import Grid, Image, LabelMap

CASES = Path(os.environ.get("ATLASSEG_CASES", Path(__file__).parents[3] / "shared" / "cases"))

PARTS = [(axis, end) for axis in range(3) for end in (0, 1)]


def part_of(image: Image, axis: int, end: int, share: float = 0.5) -> Image:
    """The low (0) or the high (1) end of an image along an axis of its array."""
    start, stop = [0, 0, 0], list(image.shape)
    at = round(image.shape[axis] * share)
    if end:
        start[axis] = image.shape[axis] - at
    else:
        stop[axis] = at
    return image.cropped(start, stop)


def brain(grid: Grid, moved_by: Affine) -> Image:
    """An egg of blobs in empty space."""
    rng = np.random.default_rng(8)
    at = moved_by.on_grid(grid)
    out = np.full(grid.shape, 0.6)
    for centre, size, height in zip(
        rng.uniform(-30, 30, (120, 3)), rng.uniform(3, 6, 120), rng.uniform(-1, 1, 120), strict=True
    ):
        out += height * np.exp(-((at - centre) ** 2).sum(axis=-1) / (2 * size**2))
    inside = (at[..., 0] / 26) ** 2 + ((at[..., 1] + 0.1 * at[..., 2]) / 34) ** 2 + (at[..., 2] / 24) ** 2 < 1
    return Image(np.where(inside, np.maximum(out, 0.05), 0).astype(np.float32), grid.affine)


MOTION = Affine(
    np.block([
        [Rotation.from_euler("xyz", (6, -4, 8), degrees=True).as_matrix() * 1.03, np.array([[9.0], [-14.0], [6.0]])],
        [np.zeros((1, 3)), np.ones((1, 1))],
    ])
)  # fmt: skip


@pytest.fixture(scope="module")
def whole_pair() -> tuple[Image, Image]:
    fixed = phantoms.tilted_grid((24, 27, 21), spacing_mm=(2.6, 3.0, 3.1), angles_degrees=(3, -2, 4))
    moving = phantoms.tilted_grid((27, 26, 25), spacing_mm=(2.4, 3.2, 2.7), angles_degrees=(-2, 3, 1), axes="LPS")
    centre = MOTION.matrix[:3, :3].T @ -MOTION.matrix[:3, 3] / 1.03**2
    fixed_affine = fixed.affine.copy()
    fixed_affine[:3, 3] += centre - fixed.centre_mm
    moving_affine = moving.affine.copy()
    moving_affine[:3, 3] -= moving.centre_mm
    return brain(Grid(fixed.shape, fixed_affine), MOTION), brain(Grid(moving.shape, moving_affine), Affine.identity())


@pytest.mark.parametrize(("axis", "end"), PARTS)
def test_a_half_is_found_in_the_whole(whole_pair: tuple[Image, Image], axis: int, end: int) -> None:
    whole, moving = whole_pair
    fixed = part_of(whole, axis, end)
    (found,) = affine.register(fixed, [moving])
    inside = fixed.array > 0
    apart_mm = np.linalg.norm(found.on_grid(fixed.grid) - MOTION.on_grid(fixed.grid), axis=-1)[inside]
    assert apart_mm.mean() < 2


def test_edges_are_brought_together_along_the_axes_that_differ(whole_pair: tuple[Image, Image]) -> None:
    whole, moving = whole_pair
    pair = prepare_pairs(whole, [moving], None, None, None)[0]
    one = (1, 1, 1)
    assert linear.list_edge_alignments(pair.fixed.level(one), pair.moving.level(one)) == []
    cut = prepare_pairs(part_of(whole, 2, 1, 0.4), [moving], None, None, None)[0]
    found = linear.list_edge_alignments(cut.fixed.level(one), cut.moving.level(one))
    boxes = []
    for level in (cut.fixed.level(one), cut.moving.level(one)):
        at = np.argwhere(level.mask == 2) @ level.affine[:3, :3].T + level.affine[:3, 3]
        boxes.append((at.min(axis=0), at.max(axis=0)))
    shifts = np.array([matrix[:3, 3] for matrix in found])
    ((low_f, high_f), (low_m, high_m)) = boxes
    assert np.isclose(shifts[:, 2], (low_m - low_f)[2]).any()
    assert np.isclose(shifts[:, 2], (high_m - high_f)[2]).any()
    for matrix in found:
        np.testing.assert_array_equal(matrix[:3, :3], np.eye(3))


def test_starts_of_a_slab_are_compared_on_coarse_voxels() -> None:
    grid = Grid((80, 90, 24), np.diag([1.0, 1.0, 1.0, 1.0]))
    slab = prepare_pairs(brain(grid, Affine.identity()), [brain(grid, Affine.identity())], None, None, None)[0].fixed
    coarse, levels = linear.choose_levels(slab, 2)
    assert levels == [(1, 1, 1)]  # no coarser one keeps 16 voxels
    assert coarse == (round(max(slab.valid.shape) / linear.START_VOXELS),) * 3


def test_the_header_is_optimised_whatever_its_rank(whole_pair: tuple[Image, Image], monkeypatch) -> None:  # type: ignore[no-untyped-def]
    whole, moving = whole_pair
    pair = prepare_pairs(whole, [moving], None, None, None)[0]
    begun: list[np.ndarray] = []
    original = linear.optimise

    def recorded(fixed, factors, matrix, freedom, *, iterations):  # type: ignore[no-untyped-def]
        begun.append(matrix)
        return original(fixed, factors, matrix, freedom, iterations=iterations)

    monkeypatch.setattr(linear, "optimise", recorded)
    # every other start looks better before it is optimised
    monkeypatch.setattr(linear, "score_start", lambda fit, matrix: fit.value - 10.0 * np.array_equal(matrix, np.eye(4)))
    linear.run_search(pair, linear.find_start(pair.fixed, pair.moving, (2, 2, 2)), create_metric("local_correlation"))
    assert any(np.array_equal(matrix, np.eye(4)) for matrix in begun)


def test_a_turn_upside_down_must_be_clearly_better() -> None:
    fit = linear.Fit(0.5, np.zeros((3, 4)), np.zeros((12, 12)), 1.0)
    upright, tilted, upside_down = (np.eye(4) for _ in range(3))
    tilted[:3, :3] = Rotation.from_euler("x", 50, degrees=True).as_matrix()
    upside_down[:3, :3] = np.diag([1.0, -1.0, -1.0])
    assert linear.score_start(fit, upright) == linear.score_start(fit, tilted) == 0.5
    assert linear.score_start(fit, upside_down) == pytest.approx(0.45)


def test_the_lower_half_of_a_brain_is_not_turned_upside_down() -> None:
    folder = CASES / "methods" / "partial"
    if not folder.is_dir():
        pytest.skip(f"no cases in {CASES} (set ATLASSEG_CASES)")
    fixed, moving = (io.read_image(folder / f"{name}.nii.gz") for name in ("fixed_bottom", "moving_whole"))
    labels, reference = (io.read_label_map(folder / f"{name}_lab.nii.gz") for name in ("moving_whole", "fixed_bottom"))
    (found,) = affine.register(fixed, [moving])
    assert np.trace(linear.nearest_rotation(found.matrix)) > 1 + 2 * np.cos(np.radians(30))
    assert mean_dice(resample(labels, fixed.grid, found), reference) > 0.35  # 0.03 when upside down


def mean_dice(labels: LabelMap, reference: LabelMap) -> float:
    scores = []
    for value in np.unique(reference.array)[1:]:
        one, other = labels.array == value, reference.array == value
        scores.append(2 * (one & other).sum() / (one.sum() + other.sum()))
    return float(np.mean(scores))
