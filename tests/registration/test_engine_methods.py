"""The methods of the engine: known deformations found again, the same bits whatever the batch, bad input named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from atlasseg import device, phantoms
from atlasseg.errors import GeometryError, InputError, MissingLibraryError
from atlasseg.registration import affine, diffeomorphic, ffd, rigid, similarity
from atlasseg.registration._engine import dense, dense_torch
from atlasseg.registration._engine.batch import pairs
from atlasseg.registration._engine.linear import as_matrix
from atlasseg.registration.quality import quality
from atlasseg.transforms import Affine, DisplacementField, Transform
from atlasseg.volume import Grid, Image, Mask

LINEAR = [rigid, similarity, affine]
DEFORMABLE = [ffd, diffeomorphic]


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


@pytest.mark.parametrize("module", DEFORMABLE)
def test_deformation_is_found_again_without_folding(module, warped_pair) -> None:  # type: ignore[no-untyped-def]
    fixed, moving, true = warped_pair
    (linear,) = affine.register(fixed, [moving])
    (found,) = module.register(fixed, [moving], initial=[linear])
    # Within the smooth blobs nothing tells where a point belongs: what is left is there.
    assert error_mm(found, true, FIXED_GRID) < min(0.45, 0.6 * error_mm(linear, true, FIXED_GRID))
    measured = quality(found, FIXED_GRID)
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
        quality(ffd.register(fixed, [moving], initial=start, spacing_voxels=2.0, bending=0, folding=f)[0], FIXED_GRID)
        for f in (0.0, 0.5)
    )
    assert held.sd_log_jacobian < 0.8 * free.sd_log_jacobian and held.folded_share <= free.folded_share


def test_torch_agrees_with_the_compiled_kernels(warped_pair: tuple[Image, Image, Transform]) -> None:
    fixed, moving, _ = warped_pair
    mask = Mask(np.ones(moving.shape, bool), moving.affine)
    mask.array[:9] = False
    prepared = pairs(fixed, [moving, blobs(MOVING_GRID, known_motion(1, 0))], None, None, [mask, None])
    schedule = dense.Schedule((2, 1), (4, 4), 2, 1.7, (0.5, 0.4), 1.0, 1e-4)
    matrices = [known_motion(1.03, 0.05).matrix, np.eye(4)]
    both = [[p.moving for p in prepared], matrices, [None, None]]
    known = [p.known for p in prepared]
    on_torch = dense_torch.solve(prepared[0].fixed, *both, schedule, known=known, device="cpu")
    for pair, matrix, (field, value) in zip(prepared, matrices, on_torch, strict=True):
        wanted, reached = dense.solve(pair.fixed, pair.moving, matrix, None, schedule, known=pair.known)
        assert np.abs(wanted).max() > 1
        # Sums in another order; where a voxel lies just on the edge of the mask the two may count it differently.
        assert np.abs(field - wanted).mean() < 1e-3  # of a voxel
        assert value == pytest.approx(reached, abs=1e-4)


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
    assert dense_torch.in_batches(7, 7, fits(2), 2**33) == list(range(7))
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    with pytest.raises(InputError, match=r"about 8\.0 GiB are wanted, 1\.0 of 8\.0 GiB are free"):
        dense_torch.in_batches(2, 2, fits(0), 2**33)


def test_devices_asked_for_and_absent_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.resolved("auto") == "cpu"
    with pytest.raises(InputError, match="finds no CUDA GPU"):
        device.resolved("cuda")
    with pytest.raises(InputError, match="'tpu'"):
        device.resolved("tpu")
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda _: None)
    assert device.resolved("auto") == "cpu"
    with pytest.raises(MissingLibraryError, match=r"atlasseg\[torch\]"):
        device.resolved("cuda")


@pytest.mark.parametrize("module", LINEAR + DEFORMABLE)
def test_bad_input_is_named(module, warped_pair) -> None:  # type: ignore[no-untyped-def]
    fixed, moving, _ = warped_pair
    flat = Image(np.full((9, 8, 7), 5, np.float32), np.eye(4), "flat")
    with pytest.raises(InputError, match=r"'flat' is constant .*every voxel is 5"):
        module.register(fixed, [flat])
    with pytest.raises(InputError, match="'flat' is constant"):
        module.register(flat, [moving])
    empty = Mask(np.zeros(fixed.shape, bool), fixed.affine)
    with pytest.raises(InputError, match="empty"):
        module.register(fixed, [moving], fixed_mask=empty)
    with pytest.raises(GeometryError, match="not on its grid"):
        module.register(fixed, [moving], moving_masks=[empty])
    with pytest.raises(InputError, match="2 initial transforms for 1 moving"):
        module.register(fixed, [moving], initial=[Affine.identity()] * 2)
    with pytest.raises(InputError, match="2 channels"):
        module.register(fixed, [Image(np.repeat(moving.array[..., None], 2, -1), moving.affine, "two")])
    assert module.register(fixed, []) == []


def test_images_that_never_meet_are_an_error(warped_pair: tuple[Image, Image, Transform]) -> None:
    fixed, moving, _ = warped_pair
    with pytest.raises(GeometryError, match="do not overlap"):
        diffeomorphic.register(fixed, [moving], initial=[Affine.translation((500.0, 0, 0))])


@pytest.mark.parametrize("module", DEFORMABLE)
def test_parameters_out_of_range_are_named(module, warped_pair) -> None:  # type: ignore[no-untyped-def]
    fixed, moving, _ = warped_pair
    for wrong in (
        {"step_voxels": 0.0},
        {"radius_voxels": 0},
        {"iterations": (-1,)},
        {"shrink_factors": (2, 1), "iterations": (3,)},
    ):
        with pytest.raises(InputError):
            module.register(fixed, [moving], initial=[Affine.identity()], **wrong)


@pytest.mark.parametrize("module", [affine, *DEFORMABLE])
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
    fixed = pairs(blobs(FIXED_GRID, Affine.identity()), [blobs(MOVING_GRID, Affine.identity())], None, None, None)[
        0
    ].fixed
    voxels = np.eye(4)
    voxels[:3] += 0.05 * np.random.default_rng(0).normal(size=(3, 4))
    x = np.stack(np.meshgrid(*(np.arange(n) for n in fixed.counted.shape), indexing="ij"), axis=-1)
    moved = (x @ (voxels[:3, :3] - np.eye(3)).T + voxels[:3, 3]).astype(np.float32)
    found = as_matrix(np.eye(4), moved, fixed)
    np.testing.assert_allclose(found, fixed.affine @ voxels @ np.linalg.inv(fixed.affine), atol=1e-4)


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
