"""The methods of the engine: known deformations found again, the same bits whatever the batch, bad input named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from atlasseg import device, phantoms
from atlasseg.errors import GeometryError, InputError, MissingLibraryError
from atlasseg.registration import affine, diffeomorphic, ffd, rigid
from atlasseg.registration import similarity_transform as similarity
from atlasseg.registration._engine import (
    dense,
    dense_torch,
    freeform,
    freeform_torch,
    linear,
    linear_torch,
    torch_ops,
)
from atlasseg.registration._engine.batch import Pair, prepare_pairs
from atlasseg.registration._engine.linear import approximate_start
from atlasseg.registration._engine.pyramid import choose_factors
from atlasseg.registration.quality import measure_quality
from atlasseg.similarity import create_metric, metric_names
from atlasseg.transforms import Affine, DisplacementField, Transform, grid_points
from atlasseg.volume import Grid, Image, Mask

LINEAR = [rigid, similarity, affine]
DEFORMABLE = [ffd, diffeomorphic]
METRICS: tuple[str, ...] = metric_names()
LOCAL = create_metric("local_correlation")

TORCH_VOXELS = 2e-3
"""Mean difference, in voxels, of two engines whose float32 sums go in another order, after a few iterations."""

TORCH_VALUE = 3e-4


def blobs(grid: Grid, moved_by: Transform, seed: int = 0) -> Image:
    """Smooth blobs of space under a map: the image at x is that of the blobs at ``moved_by(x)``."""
    rng = np.random.default_rng(seed)
    at = moved_by.on_grid(grid)
    out = np.zeros(grid.shape)
    for centre, size, height in zip(
        rng.uniform(-16, 16, (40, 3)), rng.uniform(2.5, 5, 40), rng.uniform(-1, 1, 40), strict=True
    ):
        out += height * np.exp(-((at - centre) ** 2).sum(axis=-1) / (2 * size**2))
    return Image(out.astype(np.float32), grid.affine, f"blobs{seed}")


FIXED_GRID = phantoms.tilted_grid((29, 33, 24), spacing_mm=(1.2, 1.0, 1.5), angles_degrees=(8, -5, 11))
MOVING_GRID = phantoms.tilted_grid((27, 36, 34), spacing_mm=(1.3, 1.1, 1.0), angles_degrees=(-4, 6, 3), axes="SRA")


def known_motion(scale: float, shear: float) -> Affine:
    matrix = np.eye(4)
    c, s = np.cos(0.12), np.sin(0.12)
    matrix[:3, :3] = scale * np.array([[c, -s, 0], [s, c, shear], [0, 0, 1]])
    matrix[:3, 3] = (2.0, -1.5, 1.0)
    return Affine(matrix)


def error_mm(found: Transform, true: Transform, grid: Grid, margin: int = 4) -> float:
    inner = (slice(margin, -margin),) * 3
    return float(np.linalg.norm(found.on_grid(grid)[inner] - true.on_grid(grid)[inner], axis=-1).mean())


@pytest.fixture(scope="module")
def warped_pair() -> tuple[Image, Image, Transform]:
    """A fixed image, a moving one of another scale of intensity, and the true map between their points."""
    true = known_motion(1.03, 0.05) @ phantoms.smooth_deformation(FIXED_GRID, largest_mm=2.0, smoothness_mm=7.0, seed=3)
    fixed = blobs(FIXED_GRID, true)
    moving = blobs(MOVING_GRID, Affine.identity())
    return fixed, moving.with_array(moving.array * 3e5 + 1e6), true


@pytest.mark.parametrize(("module", "scale", "shear"), [(rigid, 1, 0), (similarity, 1.05, 0), (affine, 1.05, 0.06)])
def test_linear_motion_is_found_again(module, scale: float, shear: float) -> None:  # type: ignore[no-untyped-def]
    true = known_motion(scale, shear)
    (found,) = module.register(blobs(FIXED_GRID, true), [blobs(MOVING_GRID, Affine.identity())], finest_shrink=1)
    assert error_mm(found, true, FIXED_GRID) < 0.1  # a tenth of a voxel
    part = found.matrix[:3, :3]
    if module is not affine:  # a rotation times one scale
        size = np.cbrt(np.linalg.det(part))
        np.testing.assert_allclose(part.T @ part / size**2, np.eye(3), atol=1e-9)
        assert module is similarity or size == pytest.approx(1, abs=1e-9)


def remapped(image: Image) -> Image:
    """Another contrast that no line takes back: what was between dark and bright is brightest."""
    x = (image.array - image.array.min()) / np.ptp(image.array)
    return image.with_array(np.sin(2.2 * np.pi * x).astype(np.float32))


@pytest.mark.parametrize("module", LINEAR)
@pytest.mark.parametrize("metric", ["mutual_information", "normalized_mutual_information"])
def test_information_finds_the_motion_of_another_contrast(module, metric: str) -> None:  # type: ignore[no-untyped-def]
    true = known_motion(1.0, 0.0)
    fixed, moving = blobs(FIXED_GRID, true), remapped(blobs(MOVING_GRID, Affine.identity()))
    errors = {
        m: error_mm(module.register(fixed, [moving], metric=m, finest_shrink=1)[0], true, FIXED_GRID)
        for m in (metric, "correlation")
    }
    assert errors[metric] < 0.3 < 3 < errors["correlation"]


@pytest.mark.parametrize("metric", ["correlation", "mean_squares"])
def test_global_measures_find_the_motion_of_one_contrast(metric: str) -> None:
    true = known_motion(1.05, 0.06)
    fixed, moving = blobs(FIXED_GRID, true), blobs(MOVING_GRID, Affine.identity())
    (found,) = affine.register(fixed, [moving], metric=metric, finest_shrink=1)
    assert error_mm(found, true, FIXED_GRID) < 0.3


@pytest.mark.parametrize("module", DEFORMABLE)
def test_information_finds_the_deformation_of_another_contrast(module, warped_pair) -> None:  # type: ignore[no-untyped-def]
    fixed, moving, true = warped_pair
    start = [known_motion(1.03, 0.05)]
    before = error_mm(start[0], true, FIXED_GRID)
    errors = {
        m: error_mm(module.register(fixed, [remapped(moving)], initial=start, metric=m)[0], true, FIXED_GRID)
        for m in ("mutual_information", "correlation")
    }
    assert errors["mutual_information"] < 0.75 * before < errors["correlation"]


def test_principal_axes_find_a_turn_that_no_other_start_is_near() -> None:
    """A long, lopsided body turned by 100 degrees about an oblique axis."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec(np.radians(100) * np.array([0.6, -0.48, 0.64])).as_matrix()
    true = Affine(turn)

    def body(grid: Grid, moved_by: Transform) -> Image:
        at = moved_by.on_grid(grid)
        ball = np.exp(-((((at / (13, 7, 4)) ** 2).sum(axis=-1)) ** 2))
        return Image((ball * (1.5 + np.tanh(at[..., 0] / 6 + at[..., 1] / 5))).astype(np.float32), grid.affine)

    grid = phantoms.tilted_grid((37, 41, 33), spacing_mm=(1.1, 1.0, 1.2), angles_degrees=(8, -5, 11))
    fixed, moving = body(grid, true), body(grid, Affine.identity())
    (found,) = rigid.register(fixed, [moving])
    assert error_mm(found, true, grid) < 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "list_axis_rotations", lambda *_: [])
        (lost,) = rigid.register(fixed, [moving])
    assert error_mm(lost, true, grid) > 5


@pytest.mark.parametrize("module", DEFORMABLE)
def test_deformation_is_found_again_without_folding(module, warped_pair) -> None:  # type: ignore[no-untyped-def]
    fixed, moving, true = warped_pair
    (linear,) = affine.register(fixed, [moving])
    (found,) = module.register(fixed, [moving], initial=[linear])
    # Within the smooth blobs nothing tells where a point belongs: what is left is there.
    assert error_mm(found, true, FIXED_GRID) < min(0.45, 0.6 * error_mm(linear, true, FIXED_GRID))
    back = (~found)(found.on_grid(FIXED_GRID)) - Affine.identity().on_grid(FIXED_GRID)
    assert np.abs(back[1:-1, 1:-1, 1:-1]).max() < 0.01  # in the outermost layer two points may go to one place
    measured = measure_quality(found, FIXED_GRID)
    assert measured.folded_share < 1e-3 and measured.sd_log_jacobian < 0.5


@pytest.mark.parametrize("module", DEFORMABLE)
def test_a_start_that_is_a_field_is_kept_and_improved(module, warped_pair) -> None:  # type: ignore[no-untyped-def]
    fixed, moving, true = warped_pair
    half = phantoms.smooth_deformation(FIXED_GRID, largest_mm=1.0, smoothness_mm=7.0, seed=3)
    start = known_motion(1.03, 0.05) @ half
    (kept,) = module.register(fixed, [moving], initial=[start], iterations=(0,))
    assert error_mm(kept, start, FIXED_GRID) < 1e-3
    (found,) = module.register(fixed, [moving], initial=[start], iterations=(15, 15))
    assert error_mm(found, true, FIXED_GRID) < 0.7 * error_mm(start, true, FIXED_GRID)


@pytest.mark.parametrize("module", DEFORMABLE)
def test_other_images_in_the_batch_change_no_bit(module, warped_pair) -> None:  # type: ignore[no-untyped-def]
    fixed, moving, _ = warped_pair
    others = [blobs(phantoms.tilted_grid((22, 25, 31)), Affine.identity()), moving]
    alone = module.register(fixed, [moving], iterations=(5, 3))[0].on_grid(FIXED_GRID)
    together = module.register(fixed, others, iterations=(5, 3))
    assert len(together) == 2
    np.testing.assert_array_equal(together[1].on_grid(FIXED_GRID), alone)


def test_folding_penalty_keeps_the_jacobian_near_one(warped_pair: tuple[Image, Image, Transform]) -> None:
    fixed, moving, _ = warped_pair
    start = [known_motion(1.03, 0.05)]
    free, held = (
        measure_quality(
            ffd.register(fixed, [moving], initial=start, spacing_voxels=2.0, bending=0, folding=f)[0], FIXED_GRID
        )
        for f in (0.0, 0.5)
    )
    assert held.sd_log_jacobian < 0.8 * free.sd_log_jacobian and held.folded_share <= free.folded_share


@pytest.fixture(scope="module")
def masked_pairs(warped_pair: tuple[Image, Image, Transform]) -> list[Pair]:
    """Two moving images of one fixed image, on grids of different sizes, the first with a mask."""
    fixed, moving, _ = warped_pair
    mask = Mask(np.ones(moving.shape, bool), moving.affine)
    mask.array[:9] = False
    other = blobs(phantoms.tilted_grid((31, 28, 33), spacing_mm=(1.2, 1.3, 1.1)), known_motion(1, 0))
    starts = [known_motion(1.03, 0.05), Affine.identity()]
    return prepare_pairs(fixed, [moving, other], starts, None, [mask, None])


@pytest.mark.parametrize("metric", METRICS)
def test_torch_climbs_as_the_compiled_kernels_do(metric: str, masked_pairs: list[Pair]) -> None:
    schedule = dense.Schedule((2, 1), (3, 2), create_metric(metric), 1.7, (0.5, 0.4), 1.0, 1e-4)
    on_torch = dense_torch.solve(masked_pairs, schedule, device="cpu")
    for pair, found in zip(masked_pairs, on_torch, strict=True):
        solution = dense.solve(pair, schedule)
        (wanted, reached), (field, value) = ((s.field, s.similarity) for s in (solution, found))
        assert np.abs(wanted).max() > 1
        # Sums in another order; where a voxel lies just on the edge of the mask the two may count it differently.
        local = metric == "local_correlation"
        assert np.abs(field - wanted).mean() < (1e-3 if local else TORCH_VOXELS)
        assert value == pytest.approx(reached, abs=1e-4 if local else TORCH_VALUE)


@pytest.mark.parametrize("metric", METRICS)
def test_torch_deforms_as_the_compiled_kernels_do(metric: str, masked_pairs: list[Pair]) -> None:
    schedule = freeform.Schedule((2, 1), (4, 3), 4.0, create_metric(metric), 0.1, 0.02, 0.25, 1e-4)
    on_torch = freeform_torch.solve(masked_pairs, schedule, FIXED_GRID, device="cpu")
    for pair, (spline, value) in zip(masked_pairs, on_torch, strict=True):
        wanted, reached = freeform.solve(pair, schedule, FIXED_GRID)
        assert error_mm(wanted, Affine.identity(), FIXED_GRID) > 0.1
        assert error_mm(spline, wanted, FIXED_GRID) < TORCH_VOXELS
        assert value == pytest.approx(reached, abs=TORCH_VALUE)


@pytest.mark.parametrize("metric", METRICS)
def test_torch_fits_as_the_compiled_kernels_do(metric: str, masked_pairs: list[Pair]) -> None:
    level = masked_pairs[0].fixed.level((2, 2, 2))
    others = [pair.moving.level(choose_factors(level, pair.moving)) for pair in masked_pairs]
    batch = torch_ops.MovingBatch(level, others, [pair.known for pair in masked_pairs], "cpu")
    which, matrices = [1, 0, 0], [np.eye(4), known_motion(1.03, 0.05).matrix, known_motion(1, 0).matrix]
    for n, matrix, at in zip(
        which, matrices, linear_torch.fit_many(batch, which, matrices, create_metric(metric)), strict=True
    ):
        wanted = linear.fit(level, others[n], matrix, create_metric(metric), known=masked_pairs[n].known)
        assert at.value == pytest.approx(wanted.value, abs=TORCH_VALUE)
        assert at.overlap == pytest.approx(wanted.overlap, abs=1e-3)  # a voxel or two on the edge
        for here, there in ((at.gradient, wanted.gradient), (at.hessian, wanted.hessian)):
            np.testing.assert_allclose(here, there, atol=5e-3 * np.abs(there).max())


def test_torch_searches_as_the_compiled_kernels_do(masked_pairs: list[Pair]) -> None:
    lost = [dataclasses.replace(pair, matrix_mm=None) for pair in masked_pairs]

    def steps(pair: Pair) -> linear.Search[tuple[np.ndarray, linear.Fit]]:
        return linear.search(pair.fixed, pair.moving, "affine", None, finest=2, iterations=20)

    found = linear_torch.run_search(lost, steps, LOCAL, device="cpu", finest=(2, 2, 2))
    for pair, (matrix, fit) in zip(lost, found, strict=True):
        wanted, reached = linear.run_search(pair, steps(pair), LOCAL)
        assert error_mm(Affine(matrix), Affine(wanted), FIXED_GRID) < 0.05  # of some millimetre's voxels
        assert fit.value == pytest.approx(reached.value, abs=1e-3)


def test_half_precision_moves_no_voxel_by_much(masked_pairs: list[Pair]) -> None:
    options = (2, 1), (4, 3), LOCAL, 1.7, (0.5, 0.4), 1.0, 1e-4
    single, mixed = (
        dense_torch.solve(masked_pairs, dense.Schedule(*options, mixed=m), device="cpu") for m in (False, True)
    )
    for wanted, found in zip(single, mixed, strict=True):
        assert 0 < np.abs(found.field - wanted.field).mean() < 0.01


@pytest.mark.parametrize("engine", [linear_torch, dense_torch, freeform_torch])
def test_batches_cut_for_want_of_memory_give_the_same(engine, masked_pairs, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    torch = pytest.importorskip("torch")

    def solve() -> list[np.ndarray]:
        if engine is linear_torch:

            def steps(pair: Pair) -> linear.Search[tuple[np.ndarray, linear.Fit]]:
                return linear.search(pair.fixed, pair.moving, "rigid", pair.start_mm, finest=2, iterations=3)

            found = linear_torch.run_search(masked_pairs, steps, LOCAL, device="cpu", finest=(2, 2, 2))
            return [matrix for matrix, _ in found]
        if engine is dense_torch:
            schedule = dense.Schedule((2,), (3,), LOCAL, 1.7, (0.5,), 1.0, 1e-4)
            return [solution.field for solution in dense_torch.solve(masked_pairs, schedule, device="cpu")]
        bent = freeform.Schedule((2,), (3,), 4.0, LOCAL, 0.1, 0.02, 0.25, 1e-4)
        return [s.coefficients_mm for s, _ in freeform_torch.solve(masked_pairs, bent, FIXED_GRID, device="cpu")]

    wanted = solve()

    class OneAtATime(torch_ops.MovingBatch):
        def __init__(self, fixed, moving, *rest, **options) -> None:  # type: ignore[no-untyped-def]
            if len(moving) > 1:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            super().__init__(fixed, moving, *rest, **options)

    monkeypatch.setattr(engine, "MovingBatch", OneAtATime)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for here, there in zip(solve(), wanted, strict=True):
        assert np.abs(here - there).mean() < TORCH_VOXELS  # torch sums in the order that suits the batch


@pytest.mark.parametrize("module", LINEAR + DEFORMABLE)
def test_cuda_asked_for_and_absent_is_an_error_of_every_method(module, warped_pair, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="finds no CUDA GPU"):
        module.register(warped_pair[0], [warped_pair[1]], device="cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("module", LINEAR + DEFORMABLE)
@pytest.mark.parametrize("metric", METRICS)
def test_cuda_agrees_with_the_processor(module, metric: str, warped_pair) -> None:  # type: ignore[no-untyped-def]
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    fixed, moving, _ = warped_pair
    few = {"iterations": (4, 3)} if module in DEFORMABLE else {}
    start = {"initial": [known_motion(1.03, 0.05)] * 2}
    on = [module.register(fixed, [moving] * 2, metric=metric, device=d, **few, **start) for d in ("cpu", "cuda")]
    for here, there in zip(*on, strict=True):
        assert error_mm(here, there, FIXED_GRID) < 0.05
    again = module.register(fixed, [moving], metric=metric, device="cuda", **few, initial=start["initial"][:1])
    np.testing.assert_allclose(again[0].on_grid(FIXED_GRID), on[1][0].on_grid(FIXED_GRID), atol=1e-3)


def test_a_batch_too_large_for_the_gpu_is_halved_and_one_image_too_large_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = pytest.importorskip("torch")
    sizes: list[int] = []

    def fits(limit: int) -> Callable[[range], list[int]]:
        def solve(batch: range) -> list[int]:
            sizes.append(len(batch))
            if len(batch) > limit:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return list(batch)

        return solve

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 8 * 2**30))
    assert torch_ops.solve_in_batches(7, 7, fits(2), 2**33) == list(range(7))
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    with pytest.raises(InputError, match=r"expected 8\.0 GiB, got 1\.0 GiB free of 8\.0 GiB"):
        torch_ops.solve_in_batches(2, 2, fits(0), 2**33)


def test_devices_asked_for_and_absent_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.resolve_device("auto") == "cpu"
    with pytest.raises(InputError, match="finds no CUDA GPU"):
        device.resolve_device("cuda")
    with pytest.raises(InputError, match="'tpu'"):
        device.resolve_device("tpu")
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda _: None)
    assert device.resolve_device("auto") == "cpu"
    with pytest.raises(MissingLibraryError, match=r"atlasseg\[torch\]"):
        device.resolve_device("cuda")


@pytest.mark.parametrize("module", LINEAR + DEFORMABLE)
def test_bad_input_is_named(module, warped_pair) -> None:  # type: ignore[no-untyped-def]
    fixed, moving, _ = warped_pair
    flat = Image(np.full((9, 8, 7), 5, np.float32), np.eye(4), "flat")
    with pytest.raises(InputError, match=r"'flat' is constant.* got 5 at every voxel"):
        module.register(fixed, [flat])
    with pytest.raises(InputError, match="'flat' is constant"):
        module.register(flat, [moving])
    empty = Mask(np.zeros(fixed.shape, bool), fixed.affine)
    with pytest.raises(InputError, match="empty"):
        module.register(fixed, [moving], fixed_mask=empty)
    with pytest.raises(GeometryError, match="not on its grid"):
        module.register(fixed, [moving], moving_masks=[empty])
    with pytest.raises(InputError, match=r"initial transforms: expected one per moving image \(1\), got 2"):
        module.register(fixed, [moving], initial=[Affine.identity()] * 2)
    with pytest.raises(InputError, match=r"expected 1 channels? .*got 2"):
        module.register(fixed, [Image(np.repeat(moving.array[..., None], 2, -1), moving.affine, "two")])
    assert module.register(fixed, []) == []


@pytest.mark.parametrize("module", LINEAR + DEFORMABLE)
def test_images_that_never_meet_are_an_error(module, warped_pair) -> None:  # type: ignore[no-untyped-def]
    fixed, moving, _ = warped_pair
    with pytest.raises(GeometryError, match="do not overlap"):
        module.register(fixed, [moving], initial=[Affine.translation((500.0, 0, 0))])
    sliver = Image(moving.array[:2, :2, :2], moving.affine, "sliver")
    with pytest.raises(GeometryError, match=r"do not overlap: .* field of view of sliver, got at most \d+%"):
        module.register(fixed, [sliver])


def test_intensities_that_are_not_numbers_never_reach_a_registration(warped_pair) -> None:  # type: ignore[no-untyped-def]
    array = warped_pair[1].array.copy()
    array[3, 4, 5] = np.nan
    with pytest.raises(InputError, match="got 1 NaN or infinite"):
        warped_pair[1].with_array(array)


@pytest.mark.parametrize("module", DEFORMABLE)
def test_parameters_out_of_range_are_named(module, warped_pair) -> None:  # type: ignore[no-untyped-def]
    fixed, moving, _ = warped_pair
    for wrong in (
        {"step_voxels": 0.0},
        {"radius_voxels": 0},
        {"precision": "half"},
        {"metric": "ncc"},
        {"iterations": (-1,)},
        {"shrink_factors": (2, 1), "iterations": (3,)},
    ):
        with pytest.raises(InputError):
            module.register(fixed, [moving], initial=[Affine.identity()], **wrong)


@pytest.mark.parametrize("module", LINEAR + DEFORMABLE)
@pytest.mark.parametrize("depth", [1, 2])
def test_thin_volumes_work(module, depth: int) -> None:  # type: ignore[no-untyped-def]
    grid = Grid((40, 37, depth), np.diag([1.0, 1.1, 2.0, 1.0]))
    grid = Grid(grid.shape, np.array([[1, 0, 0, -20], [0, 1.1, 0, -20], [0, 0, 2, 0], [0, 0, 0, 1.0]]))
    true = Affine.translation((1.5, -1.0, 0.0))
    (found,) = module.register(blobs(grid, true, 5), [blobs(grid, Affine.identity(), 5)])
    moved = found.on_grid(grid) - Affine.identity().on_grid(grid)
    assert np.isfinite(moved).all()
    np.testing.assert_allclose(moved[8:-8, 8:-8, :, :2].mean(axis=(0, 1, 2)), (1.5, -1.0), atol=0.4)


def test_two_channels_register_as_well_as_one(warped_pair: tuple[Image, Image, Transform]) -> None:
    fixed, moving, true = warped_pair
    twice = [image.with_array(np.stack([image.array, -2 * image.array], axis=-1)) for image in (fixed, moving)]
    start = [known_motion(1.03, 0.05)]
    (one,) = diffeomorphic.register(fixed, [moving], initial=start)
    (both,) = diffeomorphic.register(twice[0], [twice[1]], initial=start)
    assert error_mm(both, true, FIXED_GRID) == pytest.approx(error_mm(one, true, FIXED_GRID), rel=0.1)


def test_a_field_has_a_nearest_linear_map() -> None:
    voxels = np.eye(4)
    voxels[:3] += 0.05 * np.random.default_rng(0).normal(size=(3, 4))
    linear = FIXED_GRID.affine @ voxels @ np.linalg.inv(FIXED_GRID.affine)
    moved_mm = grid_points(Grid(FIXED_GRID.shape, linear @ FIXED_GRID.affine)) - grid_points(FIXED_GRID)
    field = DisplacementField(moved_mm.astype(np.float32), FIXED_GRID.affine)
    fixed, moving = blobs(FIXED_GRID, Affine.identity()), blobs(MOVING_GRID, Affine.identity())
    (pair,) = prepare_pairs(fixed, [moving], [field], None, None)
    np.testing.assert_allclose(approximate_start(pair), linear, atol=1e-4)
    full = pair.fixed.level((1, 1, 1))
    coarse = pair.fixed.level((2, 2, 2))
    inside = tuple(slice(0, n // 2) for n in full.shape)
    there = np.stack(np.indices(coarse.shape), axis=-1) + pair.displacement(coarse)
    at_mm = there @ coarse.affine[:3, :3].T + coarse.affine[:3, 3]
    true_mm = Affine(linear).on_grid(Grid(coarse.shape, coarse.affine))
    np.testing.assert_allclose(at_mm[inside], true_mm[inside], atol=1e-3)


def dice(labels: np.ndarray, reference: np.ndarray) -> float:
    values = [v for v in np.unique(reference) if v]
    shares = [
        2 * np.sum((labels == v) & (reference == v)) / (np.sum(labels == v) + np.sum(reference == v)) for v in values
    ]
    return float(np.mean(shares))


@pytest.mark.parametrize(("module", "floor"), [(affine, 0.62), (ffd, 0.74), (diffeomorphic, 0.75)])
def test_real_hippocampi(module, floor: float, real_data) -> None:  # type: ignore[no-untyped-def]
    from atlasseg import io
    from atlasseg.resampling import resample

    root = real_data / "hippocampus"
    names = sorted(p.name for p in (root / "atlases" / "images").glob("*.nii.gz"))[:3]
    target = sorted(p.name for p in (root / "targets" / "images").glob("*.nii.gz"))[1]
    fixed = io.read_image(root / "targets" / "images" / target)
    reference = io.read_label_map(root / "targets" / "labels" / target)
    moving = [io.read_image(root / "atlases" / "images" / name) for name in names]
    labels = [io.read_label_map(root / "atlases" / "labels" / name) for name in names]
    found = module.register(fixed, moving)
    scores = [
        dice(resample(label, fixed.grid, t).array, reference.array) for label, t in zip(labels, found, strict=True)
    ]
    assert np.mean(scores) > floor, scores
    assert all(
        isinstance(part, Affine | DisplacementField) or module is ffd
        for t in found
        for part in getattr(t, "transforms", (t,))
    )


def test_real_mouse_brain_of_inverted_contrast(real_data) -> None:  # type: ignore[no-untyped-def]
    from atlasseg import io
    from atlasseg.resampling import resample

    root = real_data / "mouse_brain" / "atlases"
    names = [sorted(p.name for p in (root / "images").glob("*.nii.gz"))[n] for n in (2, 4)]
    fixed, moving = (io.read_image(root / "images" / name) for name in names)
    masks = [io.read_mask(root / "masks" / name) for name in names]
    reference, labels = (io.read_label_map(root / "labels" / name) for name in names)
    inverted = moving.with_array(moving.array.max() - moving.array)
    options = {"fixed_mask": masks[0], "moving_masks": masks[1:]}

    def score(found: list[Transform]) -> float:
        return dice(resample(labels, fixed.grid, found[0]).array, reference.array)

    start = affine.register(fixed, [inverted], metric="mutual_information", **options)
    smooth = {"iterations": (60, 60, 30, 0), "update_sigma_voxels": 2.5, "total_field_sigma_voxels": (1.5,) * 4}
    found = diffeomorphic.register(fixed, [inverted], initial=start, metric="mutual_information", **smooth, **options)
    assert score(found) > max(score(start) + 0.005, 0.86)
    assert score(affine.register(fixed, [inverted], metric="correlation", **options)) < 0.5
