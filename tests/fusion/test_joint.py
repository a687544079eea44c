"""Joint label fusion against the equations written out one voxel at a time, and against ANTs."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage
from scipy.optimize import nnls

from atlasseg.errors import GeometryError, InputError
from atlasseg.fusion import joint, majority
from atlasseg.fusion._joint_numba import _count_votes, minimise
from atlasseg.fusion._patches import list_offsets
from atlasseg.threads import limit_threads
from atlasseg.volume import Atlas, Image, LabelMap, Mask, ProbabilityMap

SHAPE = (7, 6, 8)
AGREEMENT = 1e-5
"""Probabilities are float32, weights too; the oracle is in double precision."""


def oblique(spacing=(1.1, 0.8, 2.0)):
    """An affine that is turned about two axes, and flipped."""
    a, b = 0.3, -0.2
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing) @ np.diag([-1, 1, 1])
    affine[:3, 3] = 31, -7, 4
    return affine


def scene(count=3, channels=1, shape=SHAPE, values=(0, 3, 70), seed=0, masks=False):
    """A target and candidates that resemble it, with the true labels."""
    rng = np.random.default_rng(seed)
    sizes = np.array(shape)
    centre = (sizes - 1) / 2

    def one(jitter):
        shift = rng.normal(0, jitter, 3)
        at = np.moveaxis(np.indices(shape), 0, -1) - centre - shift
        distance = np.linalg.norm(at / sizes * 2.6, axis=-1)
        inner = distance + 0.25 * at[..., 0] / sizes[0]
        labels = np.where(inner < 0.45, values[2], np.where(distance < 0.9, values[1], values[0]))
        contrast = np.array([100, 180, 60])[np.searchsorted(values, labels)][..., None] * (1 + np.arange(channels))
        image = ndimage.gaussian_filter(contrast + rng.normal(0, 25, contrast.shape), (0.6, 0.6, 0.6, 0))
        return (image if channels > 1 else image[..., 0]), labels

    affine = oblique()
    image, truth = one(0)
    target = Image(image, affine, "target")
    candidates = []
    for n in range(count):
        image, labels = one(0.8)
        mask = None
        if masks and n % 2 == 0:
            known = np.ones(shape, bool)
            known[: 2 + n // 2] = False
            mask = Mask(known, affine)
            image = np.where(known if channels == 1 else known[..., None], image, 0)
            labels = np.where(known, labels, 0)
        candidates.append(Atlas(f"a{n}", Image(image * (n + 1), affine), LabelMap(labels, affine), mask))
    return target, candidates, truth


def soften(atlas, seed=0):
    """The same atlas with fractions: every label blurred."""
    values = atlas.label_values
    one_hot = np.stack([ndimage.uniform_filter((atlas.segmentation.array == v).astype(float), 3) for v in values], -1)
    labels = ProbabilityMap.from_dense(np.where(one_hot < 0.05, 0, one_hot), values, atlas.image.affine)
    return Atlas(atlas.id, atlas.image, labels, atlas.mask, atlas.not_annotated)


def patches(channels, radius):
    padded = np.pad(channels.astype(float), [(radius, radius)] * 3 + [(0, 0)], mode="edge")
    windows = sliding_window_view(padded, (2 * radius + 1,) * 3, axis=(0, 1, 2))
    return windows.reshape(*channels.shape, -1)


def normalised(patch):
    """(C, P) each channel with mean 0 and standard deviation 1; a constant one is 0."""
    deviation = patch.std(axis=-1, ddof=1, keepdims=True)
    flat = np.ptp(patch, axis=-1, keepdims=True) == 0
    return np.where(flat, 0, (patch - patch.mean(axis=-1, keepdims=True)) / np.where(flat, 1, deviation))


def oracle(target, candidates, *, alpha=0.1, beta=2.0, patch=2, window=3, nonnegative=True):
    """(I, J, K, L) votes by the definition, one voxel at a time, where the candidates disagree; NaN elsewhere."""
    shape = target.shape
    values = np.unique(np.concatenate([atlas.label_values for atlas in candidates]))
    known = [np.ones(shape, bool) if a.mask is None else a.mask.array for a in candidates]
    dense = np.zeros((len(candidates), *shape, values.size))
    for n, atlas in enumerate(candidates):
        for at, value in enumerate(values):
            labels = atlas.labels
            one = labels.array == value if isinstance(labels, LabelMap) else labels.probability(value)
            dense[n, ..., at] = np.where(known[n], one, 0)
    modes = np.array([a.segmentation.array for a in candidates])
    disagreement = np.zeros(shape, bool)
    for x in np.ndindex(shape):
        said = {int(modes[n][x]) for n in range(len(candidates)) if known[n][x]}
        unsure = any(0 < p < 1 for n in range(len(candidates)) for p in dense[n][x])
        disagreement[x] = len(said) > 1 or unsure
    t = normalised(patches(target.channels, patch))
    a = [normalised(patches(atlas.image.channels, patch)) for atlas in candidates]
    offsets = list_offsets(window)
    votes = np.zeros((*shape, values.size))
    for x in np.argwhere(ndimage.binary_dilation(disagreement, np.ones((2 * patch + 1,) * 3))):
        own = t[tuple(x)]
        errors, moves, who = [], [], []
        for n in range(len(candidates)):
            best = np.inf
            for offset in offsets:
                y = tuple(x + offset)
                if min(y) < 0 or any(y >= np.array(shape)) or not known[n][y]:
                    continue
                apart = -np.vdot(own, a[n][y])  # the squared difference, less what does not depend on the candidate
                if apart < best - 1e-6 * own.shape[-1]:
                    best, move, error = apart, offset, np.abs(own - a[n][y]).ravel()
            if np.isfinite(best):
                errors.append(error), moves.append(move), who.append(n)
        if not who:
            continue
        d = np.array(errors)
        m = (d @ d.T / (d.shape[1] - 1)) ** beta + alpha * np.eye(len(d))
        if nonnegative:
            root = np.linalg.cholesky(m).T
            w = nnls(root, np.linalg.solve(root.T, np.ones(len(d))))[0]
        else:
            w = np.maximum(np.linalg.solve(m, np.ones(len(d))), 0)
        w /= w.sum()
        for step in np.ndindex((2 * patch + 1,) * 3):
            z = x + step - patch
            if min(z) < 0 or any(z >= np.array(shape)):
                continue
            for weight, move, n in zip(w, moves, who, strict=True):
                y = tuple((z + move).tolist())
                if weight > 0 and min(y) >= 0 and all(i < n for i, n in zip(y, shape, strict=True)):
                    votes[tuple(z)] += weight * dense[n][y]
    return np.where(disagreement[..., None], votes / np.maximum(votes.sum(-1, keepdims=True), 1e-300), np.nan)


@pytest.fixture(params=["numba", "torch"])
def engine(request, monkeypatch):
    """Both ways to compute; torch's, meant for a GPU, runs on the processor here."""
    if request.param == "numba":
        yield request.param
        return
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from atlasseg.fusion import _joint_torch

    monkeypatch.setattr(joint, "resolve_device", lambda device: "cuda")
    for function in (_joint_torch.joint_weights, _joint_torch.count_votes):
        monkeypatch.setitem(function.__kwdefaults__, "device", "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small operations: more threads only wait for each other
    yield request.param
    torch.set_num_threads(threads)


def assert_like_oracle(target, candidates, **parameters):
    fused = joint.fuse(
        target,
        candidates,
        patch_radius_voxels=parameters.get("patch", 2),
        search_radius_voxels=parameters.get("window", 3),
        contrast="same",  # random images: the mapping has its own oracle
        **{name: parameters[name] for name in ("alpha", "beta", "nonnegative") if name in parameters},
    )
    wanted = oracle(target, candidates, **parameters)
    disagreement = ~np.isnan(wanted[..., 0])
    assert disagreement.any()
    np.testing.assert_allclose(fused.dense()[disagreement], wanted[disagreement], atol=AGREEMENT)
    assert (fused.confidence()[~disagreement] == 1).all()


@pytest.mark.parametrize(
    "parameters",
    [
        {"patch": 1, "window": 1},
        {"patch": 1, "window": 1, "nonnegative": False, "alpha": 0.01, "beta": 1.0},
        {"patch": 2, "window": 0, "alpha": 1e-3, "beta": 2.5},
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_probabilities_are_those_of_the_definition(parameters, channels, engine):
    target, candidates, _ = scene(4, channels, masks=True)
    assert_like_oracle(target, candidates, **parameters)


def test_default_radii_give_the_probabilities_of_the_definition(engine):
    target, candidates, _ = scene(3, shape=(8, 6, 7), seed=4)
    assert_like_oracle(target, candidates)


def test_fractions_are_voted_with(engine):
    target, candidates, _ = scene(3, masks=True, seed=1)
    mixed = [soften(candidates[0]), candidates[1], soften(candidates[2])]
    assert_like_oracle(target, mixed, patch=1, window=1)


def test_closed_form_agrees_with_ants(tmp_path):
    ants = pytest.importorskip("ants", reason="antspyx is not installed")
    target, candidates, _ = scene(4, shape=(22, 20, 19), seed=2)

    def image(array):
        return ants.from_numpy(array.astype(np.float32))

    theirs = ants.joint_label_fusion(
        image(target.array),
        image(np.ones(target.shape)),
        [image(a.image.array) for a in candidates],
        label_list=[image(a.segmentation.array) for a in candidates],
        beta=2,
        rho=0.1,
        rad=2,
        r_search=2,
        usecor=True,
        output_prefix=str(tmp_path / "fused"),
    )
    ours = joint.fuse(target, candidates, search_radius_voxels=2, nonnegative=False, device="cpu")
    disagreement = ours.confidence() < 1
    inner = np.zeros(target.shape, bool)
    inner[6:-6, 6:-6, 6:-6] = True  # ANTs treats patches that reach beyond the grid in its own way
    compared = disagreement & inner
    assert compared.sum() > 100
    for label, probability in zip(theirs["segmentation_numbers"], theirs["probabilityimages"], strict=True):
        apart = np.abs(probability.numpy() - ours.probability(int(label)))[compared]
        assert np.median(apart) < 1e-5
        assert np.quantile(apart, 0.9) < 1e-3  # the rest: ANTs keeps negative votes until the end


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6), st.floats(-4, 0))
def test_weights_minimise_the_expected_error(size, seed, log_alpha):
    rng = np.random.default_rng(seed)
    d = np.abs(rng.normal(size=(size, 3)) + rng.normal(size=3)) * rng.uniform(0.1, 2, (size, 1))
    m = (d @ d.T) ** 2 + 10**log_alpha * np.eye(size)
    w, clipped, room = np.zeros(size), np.zeros(size), np.zeros((size, size))
    minimise(m.copy(), size, True, room, w)
    minimise(m.copy(), size, False, room, clipped)
    closed = np.maximum(np.linalg.solve(m, np.ones(size)), 0)
    np.testing.assert_allclose(clipped, closed / closed.sum(), atol=1e-7)
    assert (w >= 0).all() and abs(w.sum() - 1) < 1e-9
    # the conditions of Karush, Kuhn and Tucker: no atlas without weight lowers it; scipy's nnls stops short at times
    gradient = m @ w
    assert (gradient >= w @ gradient * (1 - 1e-7)).all()


def test_joint_beats_majority_on_a_phantom():
    target, candidates, truth = scene(5, shape=(26, 22, 24), seed=7)
    right = [(m.fuse(target, candidates).mode == truth).mean() for m in (majority, joint)]
    assert right[1] > right[0] + 0.01


def test_unanimous_candidates_come_back_unchanged():
    target, candidates, _ = scene(3)
    same = [Atlas(a.id, a.image, candidates[0].labels) for a in candidates]
    fused = joint.fuse(target, same)
    assert (fused.mode == candidates[0].segmentation.array).all()
    assert fused.voxels.size == 0
    assert fused.label_values.tolist() == [0, 3, 70]


@pytest.mark.parametrize("count", [1, 2])
def test_few_candidates_work(count, engine):
    target, candidates, _ = scene(count)
    fused = joint.fuse(target, candidates)
    assert set(np.unique(fused.mode)) <= {0, 3, 70}
    if count == 1:
        assert (fused.mode == candidates[0].segmentation.array).all()


def test_identical_atlases_share_their_weight(engine):
    target, candidates, _ = scene(2, seed=3)
    twice = [*candidates, Atlas("again", candidates[0].image, candidates[0].labels)]
    fused = joint.fuse(target, twice, alpha=1e-12)
    once = joint.fuse(target, candidates, alpha=1e-12)
    np.testing.assert_allclose(fused.dense(), once.dense(), atol=1e-3)  # twice the same errors count once


def test_constant_images_leave_the_majority():
    target, candidates, _ = scene(5, seed=5)
    flat = [Atlas(a.id, a.image.with_array(np.full(target.shape, 7.0, np.float32)), a.labels) for a in candidates]
    fused = joint.fuse(target.with_array(np.zeros(target.shape, np.float32)), flat, patch_radius_voxels=0)
    np.testing.assert_allclose(fused.dense(), majority.fuse(target, flat).dense(), atol=AGREEMENT)


def test_the_order_of_the_candidates_does_not_matter():
    target, candidates, _ = scene(4, masks=True, seed=6)
    there = joint.fuse(target, candidates, patch_radius_voxels=1, search_radius_voxels=1)
    back = joint.fuse(target, candidates[::-1], patch_radius_voxels=1, search_radius_voxels=1)
    np.testing.assert_allclose(there.dense(), back.dense(), atol=AGREEMENT)


def test_the_number_of_threads_changes_nothing():
    target, candidates, _ = scene(3, shape=(31, 19, 23), seed=8)
    answers = []
    for threads in (1, 3):
        with limit_threads(threads):
            answers.append(joint.fuse(target, candidates, device="cpu"))
    for answer in answers[1:]:
        assert answer.values.tobytes() == answers[0].values.tobytes()
        assert answer.labels.tobytes() == answers[0].labels.tobytes()


def test_intensities_may_be_scaled_and_shifted():
    target, candidates, _ = scene(3, seed=9)
    plain = joint.fuse(target, candidates, search_radius_voxels=1)
    other = [Atlas(a.id, a.image.with_array(a.image.array * 1e-3 + 4), a.labels) for a in candidates]
    scaled = joint.fuse(target.with_array(target.array * 1e4 - 1e6), other, search_radius_voxels=1)
    np.testing.assert_allclose(plain.dense(), scaled.dense(), atol=2e-3)  # float32 rounds the shifted intensities


def test_both_engines_agree(monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed")
    from atlasseg.fusion import _joint_torch as torch_engine

    target, candidates, _ = scene(5, 2, shape=(12, 9, 11), seed=14, masks=True)
    poor = [Atlas(a.id, a.image, a.labels, a.mask, frozenset({70} if n == 2 else ())) for n, a in enumerate(candidates)]
    poor[1] = soften(poor[1])
    radii = {"patch_radius_voxels": 1, "search_radius_voxels": 2}
    on_cpu = joint.fuse(target, poor, device="cpu", **radii)
    monkeypatch.setattr(joint, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr(torch_engine, "SEARCHED", 2000)  # several slabs
    monkeypatch.setattr(torch_engine, "HELD", 40000)  # and several parts of each
    for function in (torch_engine.joint_weights, torch_engine.count_votes):
        monkeypatch.setitem(function.__kwdefaults__, "device", "cpu")
    by_torch = joint.fuse(target, poor, **radii)
    np.testing.assert_allclose(on_cpu.dense(), by_torch.dense(), atol=AGREEMENT)


@pytest.mark.cuda
def test_the_gpu_agrees_with_the_processor():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    target, candidates, _ = scene(5, shape=(31, 22, 27), seed=15, masks=True)
    on_cpu, on_gpu = (joint.fuse(target, candidates, device=device) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(on_cpu.dense(), on_gpu.dense(), atol=AGREEMENT)


def test_cuda_asked_for_by_name_and_absent_is_refused():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA GPU")
    target, candidates, _ = scene(2)
    with pytest.raises(InputError, match="no CUDA GPU"):
        joint.fuse(target, candidates, device="cuda")


def test_three_hundred_candidates_and_labels_beyond_float_precision():
    big = 2**24 + 1
    target, candidates, _ = scene(300, shape=(5, 4, 6), values=(0, big, 2**31 - 1))
    fused = joint.fuse(target, candidates, patch_radius_voxels=1, search_radius_voxels=1)
    assert fused.label_values.tolist() == [0, big, 2**31 - 1]
    assert set(np.unique(fused.mode)) <= {0, big, 2**31 - 1}
    assert fused.probability(big).max() > 0.5


def test_memory_does_not_grow_with_labels_times_voxels():
    shape, many = (22, 25, 19), 600
    target, candidates, _ = scene(3, shape=shape)
    i, j, k = np.indices((8, 15, 5))

    def peak(labels):
        """Bytes taken at most to fuse candidates whose labels are shifted by a voxel against each other."""
        labels = labels.repeat(3, 0).repeat(2, 1).repeat(4, 2)
        shifted = [np.roll(labels, n, n)[: shape[0], : shape[1], : shape[2]] for n in range(3)]
        voters = [Atlas(a.id, a.image, LabelMap(s, target.affine)) for a, s in zip(candidates, shifted, strict=True)]
        joint.fuse(target, voters)  # compiles
        tracemalloc.start()
        fused = joint.fuse(target, voters)
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return taken, fused.voxels.size

    few, some = peak(((i % 4) * 6 + j % 6) * 5 + k + 1)  # 120 labels: as many meet in a patch as of the 600
    lot, every = peak((i * 15 + j) * 5 + k + 1)
    assert every == some > 0.7 * np.prod(shape)  # as much is disputed
    assert lot - few < 0.1 * (many - 120) * np.prod(shape)  # a tenth of a byte for each label and voxel


def test_the_smallest_votes_are_counted():
    """Weight times fraction is below what float32 can hold, in each of three patches."""
    tiny, one = np.float32(1e-30), np.zeros(1, np.int64)
    counts, labels, values = _count_votes(
        one, one, np.arange(3, dtype=np.int32), np.arange(3), one, np.zeros((3, 1), np.int32),
        np.full((3, 1), tiny), np.array([[5]], np.int32), np.array([0, 2]), np.array([0, 3], np.int32),
        np.array([1, tiny], np.float32), np.zeros((1, 5), bool), 0,
    )  # fmt: skip
    assert counts.tolist() == [2] and labels.tolist() == [0, 3]
    np.testing.assert_allclose(values, [1, tiny])


def test_a_label_in_one_atlas_only_keeps_its_share():
    target, candidates, _ = scene(3, seed=10)
    labels = candidates[1].segmentation.array.copy()
    labels[3:6, 2:5, 3:6] = 9
    rare = [candidates[0], Atlas("a1", candidates[1].image, LabelMap(labels, target.affine)), candidates[2]]
    fused = joint.fuse(target, rare)
    assert 9 in fused.label_values
    assert 0 < fused.probability(9).max() < 1


def test_background_of_an_atlas_that_does_not_know_a_label_follows_those_that_do(engine):
    target, candidates, _ = scene(3, seed=11)
    knows, other, partial_atlas = candidates
    empty = np.where(partial_atlas.segmentation.array == 70, 0, partial_atlas.segmentation.array)
    poor = Atlas("poor", partial_atlas.image, LabelMap(empty, target.affine), not_annotated=frozenset({70}))
    fused = joint.fuse(target, [knows, other, poor])
    agreed = (knows.segmentation.array == 70) & (other.segmentation.array == 70) & (empty == 0)
    agreed = ndimage.binary_erosion(agreed, np.ones((3, 3, 3)))
    assert (fused.probability(70)[agreed] > 0.9).all()
    blind = joint.fuse(target, [knows, other, Atlas("poor", partial_atlas.image, LabelMap(empty, target.affine))])
    assert fused.probability(70).sum() > blind.probability(70).sum()
    np.testing.assert_allclose(fused.dense().sum(-1), 1, atol=AGREEMENT)


def test_nobody_votes_outside_its_field_of_view(engine):
    target, candidates, _ = scene(2, seed=12)
    known = np.zeros(target.shape, bool)
    known[:, :, :4] = True
    beyond = LabelMap(np.where(known, candidates[1].segmentation.array, 55), target.affine)
    half = Atlas("half", candidates[1].image, beyond, Mask(known, target.affine))
    fused = joint.fuse(target, [candidates[0], half])
    assert fused.probability(55).max() == 0
    assert (fused.mode[:, :, 4:] == candidates[0].segmentation.array[:, :, 4:]).all()


def test_where_no_field_of_view_reaches_is_background():
    target, candidates, _ = scene(2, seed=13)
    mask = Mask(np.zeros(target.shape, bool), target.affine)
    fused = joint.fuse(target, [Atlas(a.id, a.image, a.labels, mask) for a in candidates])
    assert (fused.mode == 0).all() and fused.voxels.size == 0


def test_a_candidate_on_another_grid_is_refused():
    target, candidates, _ = scene(2)
    moved = target.affine.copy()
    moved[0, 3] += 1
    image = Image(candidates[1].image.array, moved)
    with pytest.raises(GeometryError, match="elsewhere"):
        joint.fuse(target, [candidates[0], Atlas("elsewhere", image, LabelMap(candidates[1].labels.array, moved))])


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.0},
        {"alpha": np.nan},
        {"beta": -1.0},
        {"patch_radius_voxels": -1},
        {"search_radius_voxels": 1.5},
        {"device": "gpu"},
    ],
)
def test_a_wrong_parameter_is_named(wrong):
    target, candidates, _ = scene(2)
    with pytest.raises(InputError, match=next(iter(wrong))):
        joint.fuse(target, candidates, **wrong)


def test_numbers_of_channels_must_agree():
    target, candidates, _ = scene(1)
    _, two, _ = scene(1, channels=2)
    with pytest.raises(InputError, match=r"expected 1 channels, as in the target .*got 2"):
        joint.fuse(target, [*candidates, Atlas("two", two[0].image, two[0].labels)])


def test_no_candidate_is_refused():
    with pytest.raises(InputError, match="at least one"):
        joint.fuse(scene(1)[0], [])
