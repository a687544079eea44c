"""The parts of the refiner against oracles: MONAI, scikit-learn's and NumPy's own, and what a real pass costs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from atlasseg.errors import InputError
from atlasseg.recipe.training import Augmentation, Refiner, Training
from atlasseg.refinement.network.cases import IGNORED, Frame, LabelEncoding, case_of, encode_labels
from atlasseg.refinement.network.inputs import dense, network_inputs
from atlasseg.refinement.network.networks import (
    Form,
    build,
    cost,
    is_encoder,
    is_head,
    load_weights,
    transfer_weights,
    weights_of,
    zero_init_head,
)
from atlasseg.refinement.network.windows import _gaussian, make_predictor, probabilities, slabs, sparse_entries
from atlasseg.training.loss import deep_supervision_loss, loss
from atlasseg.training.optimisation import average_weights, learning_rate, make_optimiser
from atlasseg.training.patches import PatchSource, _random_affine, draw
from atlasseg.training.planning import plan
from atlasseg.training.scoring import fit_temperature, mean_dice
from atlasseg.volume import LabelMap, ProbabilityMap

FORMS = {
    "dynunet": (3, 4, (8, 12, 16)),
    "residual_dynunet": (3, 4, (8, 12, 16)),
    "basic_unet": (5, 2, (32, 32, 32)),
    "residual_unet": (3, 4, (8, 12, 16)),
    "attention_unet": (3, 4, (8, 12, 16)),
    "swin_unetr": (4, 12, (64, 64, 64)),
}
STILL = Augmentation(probability=0.0, synthesis=0.0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SRA", "PIR"])
def test_a_frame_is_the_same_volume_along_the_patients_axes(made, axes):
    each = made(axes, 1)
    frame = Frame.around(each.fused)
    index = np.argwhere(np.ones(frame.size, bool))
    flat = frame.flat(index)
    taken = frame.taken(each.truth.array)
    np.testing.assert_array_equal(taken.reshape(-1), each.truth.array.reshape(-1)[flat])
    place = np.stack(np.unravel_index(flat, each.truth.shape), 1) @ each.truth.affine[:3, :3].T
    place = place.reshape(*frame.size, 3)
    for axis in range(3):
        assert (np.diff(place[..., axis], axis=axis) > 0).all()  # right, anterior and superior are up


def test_a_case_holds_what_fusion_said(made):
    each = made("LAS", 2)
    coding = encode_labels([each.fused], [5, 700], channels=12)
    assert coding == LabelEncoding((0, 5, 700), (0, 1, 2))
    case = case_of(each.target, each.fused, coding, candidates=3, example=each)
    full = dense(torch.from_numpy(case.codes), torch.from_numpy(case.shares), 3).numpy()
    for code, label in enumerate(coding.labels):
        np.testing.assert_allclose(full[code], case.frame.taken(each.fused.probability(label)), atol=1e-6)
        assert (case.truth == code).sum() + case.outside[code] == (each.truth.array == label).sum()
    assert abs(case.scan.mean()) < 1e-4 and case.scan.std() == pytest.approx(1, abs=1e-3)
    two = case_of(each.target, each.fused, coding, candidates=1)
    np.testing.assert_allclose(two.shares, 1)


def test_labels_in_doubt_with_each_other_get_inputs_of_their_own():
    rng = np.random.default_rng(0)
    labels = np.arange(0, 40)
    weights = np.zeros((4, 5, 38, 40), np.float32)
    for n in range(38):  # a chain: n is in doubt with n + 1 alone
        weights[:, :, n, n + 1] = rng.uniform(0.4, 0.6, (4, 5))
        weights[:, :, n, (n + 2) if n < 37 else 0] = 0.5
    fused = ProbabilityMap.from_dense(weights, labels, np.diag([1.0, 2.0, 3.0, 1.0]))
    coding = encode_labels([fused], labels.tolist(), channels=5)
    assert coding.channels <= 5 and coding.groups[0] == 0 and coding.groups.count(0) == 1
    assert all(coding.groups[n] != coding.groups[n + 1] for n in range(1, 38))
    counts = np.bincount(coding.groups)[1:]
    assert counts.max() < 39  # shared out, not all in one
    prior = torch.rand(2, 40, 3, 4, 5)
    scan = torch.rand(2, 1, 3, 4, 5)
    shown, added = network_inputs(scan, prior, torch.tensor(coding.groups), "residual")
    for group in range(coding.channels):
        expected = prior[:, [c for c, g in enumerate(coding.groups) if g == group]].sum(1)
        np.testing.assert_allclose(shown[:, 1 + group], expected, rtol=1e-5)
    np.testing.assert_allclose(added, prior.clamp(min=0.02 / 39).log())
    assert network_inputs(scan, prior, torch.tensor(coding.groups), "none")[0] is scan
    assert network_inputs(scan, prior, torch.tensor(coding.groups), "input")[1] is None


def test_loss_is_cross_entropy_and_dice_of_monai():
    from monai.losses import DiceLoss

    torch.manual_seed(0)
    logits, truth = torch.randn(2, 4, 5, 6, 7), torch.randint(0, 4, (2, 5, 6, 7))
    known = torch.zeros(2, 4, dtype=torch.bool)
    entropy = torch.nn.functional.cross_entropy(logits, truth)
    oracle = DiceLoss(
        softmax=True, to_onehot_y=True, include_background=False, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
    )
    assert loss(logits, truth, known, dice=0) == pytest.approx(float(entropy), abs=1e-5)
    only = float(loss(logits, truth, known, cross_entropy=0))
    assert only == pytest.approx(float(oracle(logits, truth[:, None])), abs=1e-5)
    deep = torch.stack([logits, 2 * logits], 1)
    each = [float(loss(n * logits, truth, known)) for n in (1, 2)]
    found = float(deep_supervision_loss(deep, None, truth, known, cross_entropy=1, dice=1))
    assert found == pytest.approx((each[0] + each[1] / 2) / 1.5, abs=1e-5)


def test_a_label_that_nobody_drew_may_be_anywhere_in_the_background():
    torch.manual_seed(1)
    logits, truth = torch.randn(1, 4, 3, 4, 5), torch.randint(0, 2, (1, 3, 4, 5))
    unknown = torch.tensor([[False, False, True, True]])
    p = torch.softmax(logits, 1)
    merged = torch.where(truth == 0, p[:, 0] + p[:, 2] + p[:, 3], p[:, 1])
    assert float(loss(logits, truth, unknown, dice=0)) == pytest.approx(float(-merged.log().mean()), abs=1e-5)
    moved = logits.clone()
    moved[:, 2] += 3  # what is given to it is not wrong where the truth says background
    here = truth == 0
    for each in (logits, moved):
        each.requires_grad_(True)
        loss(each, torch.where(here, truth, IGNORED), unknown).backward()
        assert each.grad[:, 1][here].abs().max() > 0 and (each.grad[:, 2][here] <= 0).all()
    assert float(loss(logits.detach(), torch.full_like(truth, IGNORED), unknown)) == 0


def test_windows_are_blended_as_by_monai(made):
    from monai.inferers import sliding_window_inference

    each = made("RAS", 3)
    coding = encode_labels([each.fused], [5, 700], channels=12)
    case = case_of(each.target, each.fused, coding, candidates=3)
    torch.manual_seed(3)
    network = torch.nn.Conv3d(4, 3, 3, padding=1)
    window = (14, 10, 14)  # so that MONAI's windows, of which it moves the last inward, are spread evenly too
    assert case.scan.shape == (1, 21, 15, 14)
    predict = make_predictor([network], [1.0], ())
    found = probabilities(case, coding, predict, window=window, prior="residual", overlap=0.5)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)

    prior = dense(torch.from_numpy(case.codes), torch.from_numpy(case.shares), 3)[None]
    shown, added = network_inputs(torch.from_numpy(case.scan)[None], prior, torch.tensor(coding.groups), "residual")
    whole = torch.cat([shown, added], 1)
    with torch.no_grad():
        same = sliding_window_inference(
            whole,
            window,
            1,
            lambda both: torch.softmax(network(both[:, :4]) + both[:, 4:], 1),
            overlap=0.5,
            mode="gaussian",
            roi_weight_map=_gaussian(window),
        )[0].numpy()
    np.testing.assert_allclose(found, same, atol=1e-5)
    pieces = list(slabs(case, coding, predict, window=window, prior="residual", overlap=0.5))
    assert [(first, slab.shape[1]) for first, slab in pieces] == [(0, 7), (7, 14)]

    larger = probabilities(case, coding, predict, window=(32, 24, 24), prior="residual")
    assert larger.shape == found.shape  # a case smaller than the patch lies in its middle


def test_turnings_of_the_axes_are_averaged(made):
    torch.manual_seed(4)
    network = build(Form("dynunet", 4, 3, 3, 4)).eval()
    shown, prior = torch.randn(1, 4, 8, 12, 8), torch.randn(1, 3, 8, 12, 8)
    with torch.no_grad():
        found = make_predictor([network, network], [1.0, 2.0], (1,))(shown, prior)
        expected = 0
        for temperature in (1.0, 2.0):
            plain, turned = network(shown), network(shown.flip(3)).flip(3)
            expected = expected + sum(torch.softmax((each + prior) / temperature, 1) for each in (plain, turned))
        coarse = make_predictor([network, network], [1.0, 2.0], (1,), torch.bfloat16)(shown, prior)
    np.testing.assert_allclose(found, expected / 4, atol=1e-5)
    assert coarse.dtype == torch.float32 and 0 < (coarse - found).abs().max() < 0.05
    np.testing.assert_allclose(coarse.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("architecture", [name for name in FORMS if name != "swin_unetr"])
def test_cost_is_what_a_pass_takes(architecture):
    levels, width, patch = FORMS[architecture]
    form = Form(architecture, 4, 3, levels, width, deep_supervision=1)
    network = build(form).train()
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = network(torch.zeros(1, 4, *patch))
    heads = out.unbind(1) if out.ndim == 6 else (out,)
    assert heads[0].shape == (1, 3, *patch) and len(heads) == (2 if "dynunet" in architecture else 1)
    found = cost(form, patch)
    assert found.parameters == sum(p.numel() for p in network.parameters())
    assert found.kept_bytes == sum(kept.values()) + 3 * 4 * out.numel()  # and what the loss keeps
    if architecture == "dynunet":  # the convolutions by hand: 2 FLOP for each weight at each voxel
        convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv3d | torch.nn.ConvTranspose3d)]
        assert 0 < found.flops < 2 * sum(m.weight.numel() for m in convolutions) * np.prod(patch)
    encoder = [name for name in weights_of(network) if is_encoder(form, name)]
    heads_ = [name for name in weights_of(network) if is_head(form, name)]
    assert (
        encoder and heads_ and not set(encoder) & set(heads_) and len(encoder) + len(heads_) < len(weights_of(network))
    )
    assert all(weights_of(network)[name].shape[0] == 3 for name in heads_ if name.endswith("conv.bias"))


def test_an_encoder_is_what_the_coarsest_level_depends_on():
    for architecture in ("dynunet", "residual_unet", "attention_unet"):
        levels, width, patch = FORMS[architecture]
        form = Form(architecture, 1, 2, levels, width)
        network = build(form).eval()
        reached = set()
        deepest = {
            "dynunet": "bottleneck",
            "residual_unet": "submodule.1.submodule",
            "attention_unet": "submodule.1.submodule",
        }
        module = next(m for name, m in network.named_modules() if name.endswith(deepest[architecture]))
        values = []
        module.register_forward_hook(lambda _m, _i, out, values=values: values.append(out))
        network(torch.randn(1, 1, *patch))
        values[0].sum().backward()
        reached = {name for name, p in network.named_parameters() if p.grad is not None}
        assert reached <= {name for name, _ in network.named_parameters() if is_encoder(form, name)}
        assert len(reached) >= 4


@pytest.mark.parametrize("architecture", ["dynunet", "residual_dynunet", "basic_unet", "attention_unet"])
def test_a_new_network_leaves_fusion_as_it_is(architecture):
    levels, width, patch = FORMS[architecture]
    form = Form(architecture, 4, 3, levels, width, 1)
    network = build(form).train()
    assert network(torch.randn(2, 4, *patch)).abs().max() > 0
    zero_init_head(network, form)
    assert not network(torch.randn(2, 4, *patch)).any()


@pytest.mark.parametrize("architecture", [name for name in FORMS if name != "swin_unetr"])
def test_dropout_drops_in_training_and_only_there(architecture):
    levels, width, patch = FORMS[architecture]
    scan = torch.randn(1, 4, *patch, generator=torch.Generator().manual_seed(0))
    for dropout in (0.0, 0.5):
        torch.manual_seed(0)
        network = build(Form(architecture, 4, 3, levels, width, dropout=dropout))
        for module in network.modules():  # running means may differ from pass to pass
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = 0.0
        with torch.no_grad():
            passes = [network.train()(scan) for _ in range(2)]
            still = [network.eval()(scan) for _ in range(2)]
        assert torch.equal(*passes) == (dropout == 0) and torch.equal(*still)


def test_swin_unetr_is_among_them():
    form = Form("swin_unetr", 2, 3, 4, 12)
    assert cost(form, (64, 64, 64)).parameters > 4e6
    with pytest.raises(InputError, match="multiple of 12 for swin_unetr, got 16"):
        build(Form("swin_unetr", 2, 3, 4, 16))
    with pytest.raises(InputError, match="expected 5 for basic_unet, got 3"):
        build(Form("basic_unet", 2, 3, 3, 8))


def test_a_larger_budget_gives_a_larger_network():
    sizes = [(30, 50, 36), (34, 52, 40), (28, 49, 35)]
    given = {"inputs": 4, "outputs": 3, "sizes": sizes, "batch": 2}
    plans = [
        plan(Refiner(), memory_bytes=m * 2**20, flops=f, **given) for m, f in ((60, 1e14), (200, 1e14), (4000, 3e11))
    ]
    grown = [(p.form.width, np.prod(p.patch_voxels), p.form.levels) for p in plans]
    assert grown[0] < grown[1] < grown[2] and all(a <= b for a, b in zip(grown[0], grown[2], strict=True))
    for each, most in zip(plans, (60, 200, 4000), strict=True):
        assert each.step_bytes <= most * 2**20
        assert all(n % each.form.multiple_voxels == 0 for n in each.patch_voxels)
        assert f"patch {each.patch_voxels[0]} x" in each.text()
    fixed = plan(Refiner(levels=3, width=6, patch_voxels=(8, 12, 16)), memory_bytes=1e9, flops=1e12, **given)
    assert (fixed.form.levels, fixed.form.width, fixed.patch_voxels) == (3, 6, (8, 12, 16))
    with pytest.raises(InputError, match=r"multiples of 4, at least 8, .*, got \[10, 12, 16\]\. Use \[12, 12, 16\]"):
        plan(Refiner(levels=3, patch_voxels=(10, 12, 16)), memory_bytes=1e9, flops=1e12, **given)
    with pytest.raises(InputError, match=r"a network within 0\.00 GB and .* smallest of this recipe is dynunet"):
        plan(Refiner(), memory_bytes=2**20, flops=1e12, **given)


def test_learning_rates_fall_as_they_are_said_to():
    def rates(decay, **more):
        return [
            learning_rate(Training(decay=decay, learning_rate=2.0, warmup_fraction=0.0, **more), t) for t in (0, 0.5, 1)
        ]

    assert rates("none") == [2, 2, 2]
    assert rates("inverse", decay_rate=3.0) == pytest.approx([2, 2 / 2.5, 0.5])
    assert rates("exponential", decay_rate=2.0) == pytest.approx([2, 2 * np.exp(-1), 2 * np.exp(-2)])
    assert rates("step", decay_rate=2.0, decay_stages=2) == pytest.approx([2, 2 * np.exp(-1), 2 * np.exp(-1)])
    assert rates("cosine") == pytest.approx([2, 1, 0])
    assert rates("poly", decay_power=2.0) == pytest.approx([2, 0.5, 0])
    assert learning_rate(Training(warmup_fraction=0.5, decay="none", learning_rate=1.0), 0.25) == pytest.approx(
        0.5, abs=0.01
    )


def test_learning_rates_are_those_of_torch_schedulers():
    steps, rate = 40, 1.5
    oracles = {
        "none": lambda o: lr_scheduler.ConstantLR(o, factor=1.0),
        "exponential": lambda o: lr_scheduler.ExponentialLR(o, np.exp(-rate / steps)),
        "step": lambda o: lr_scheduler.StepLR(o, steps // 4, np.exp(-rate / 4)),
        "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, steps),
        "poly": lambda o: lr_scheduler.PolynomialLR(o, steps, 0.7),
    }
    for decay, make in oracles.items():
        training = Training(decay=decay, decay_rate=rate, decay_stages=4, decay_power=0.7, warmup_fraction=0.0)
        optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
        scheduler, found = make(optimiser), []
        for _ in range(steps):
            found.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            scheduler.step()
        expected = [learning_rate(training, step / steps) for step in range(steps)]
        assert found == pytest.approx(expected, rel=1e-9), decay


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.99])
def test_weights_are_averaged_with_a_decay_that_rises(decay):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    expected = {name: tensor.clone().double() for name, tensor in network.state_dict().items()}
    average = average_weights(network, decay)
    for step in range(5):
        network(torch.randn(6, 3)).square().sum().backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= 0.1 * torch.randn_like(parameter)
        average.update_parameters(network)
        kept = min(decay, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            expected[name] = kept * expected[name] + (1 - kept) * tensor
    found = average.module.state_dict()
    assert found.pop("1.num_batches_tracked") == 5  # a count has no mean
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected[name], atol=1e-6, rtol=1e-6)
        assert decay == 0 or not torch.equal(tensor, network.state_dict()[name])
    assert not average.module.training


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam", "adamw"])
def test_optimisers_go_down(name):
    weight = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimiser = make_optimiser([weight], Training(optimiser=name, learning_rate=0.05, weight_decay=0.01))
    assert optimiser.param_groups[0]["weight_decay"] == 0.01 and type(optimiser).__name__.lower() == name
    for _ in range(60):
        optimiser.zero_grad()
        (weight**2).sum().backward()
        optimiser.step()
    assert weight.abs().max() < 2


def test_weights_are_taken_over_where_they_fit():
    torch.manual_seed(0)
    source_form = Form("dynunet", 2, 2, 3, 4, 1)
    source = build(source_form)
    form = Form("dynunet", 5, 4, 3, 4, 1)
    target = build(form)
    given = {name: tensor.clone() for name, tensor in weights_of(source).items()}
    left = transfer_weights(target, form, given, scan_channels=2, same_inputs=False)
    assert left and all(is_head(form, name) for name in left)
    now = weights_of(target)
    first = now["input_block.conv1.conv.weight"]
    assert torch.equal(first[:, :2], given["input_block.conv1.conv.weight"]) and not first[:, 2:].any()
    assert torch.equal(now["bottleneck.conv1.conv.weight"], given["bottleneck.conv1.conv.weight"])
    with pytest.raises(InputError, match="here: weights of another network"):
        load_weights(target, given, "here")
    again = build(form)
    transfer_weights(again, form, given, scan_channels=2, same_inputs=True)  # of the same labels, but not shown them
    assert torch.equal(weights_of(again)["input_block.conv1.conv.weight"], first)
    for same in (True, False):  # as many inputs, which may mean other labels
        alike = build(source_form)
        transfer_weights(alike, source_form, given, scan_channels=1, same_inputs=same)
        first = weights_of(alike)["input_block.conv1.conv.weight"]
        assert torch.equal(first[:, :1], given["input_block.conv1.conv.weight"][:, :1]) and first[:, 1:].any() == same


def test_turns_are_turns_in_space():
    spacing = torch.tensor([1.0, 1.5, 4.0])
    turning = replace(STILL, rotation_degrees=40.0, scaling=0.0, shear=0.0)
    voxels = _random_affine(turning, tuple(spacing.tolist()), torch.Generator().manual_seed(1))
    space = spacing[:, None] * voxels / spacing
    torch.testing.assert_close(space @ space.T, torch.eye(3), atol=1e-5, rtol=0)
    assert (space - torch.eye(3)).abs().max() > 0.1


@given(st.integers(0, 2**31), st.floats(0.3, 4.0))
@settings(max_examples=10)
def test_a_temperature_that_was_put_in_is_found(seed, temperature):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (6000, 3)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    codes = (rng.random(6000)[:, None] > p.cumsum(1)).sum(1).clip(0, 2)
    assert fit_temperature(logits * np.float32(temperature), codes) == pytest.approx(temperature, rel=0.15)


def shown_of(each, coding, **more):
    return PatchSource.of(case_of(each.target, each.fused, coding, candidates=3, example=each._replace(**more)), coding)


def test_patches_are_the_case_where_nothing_is_varied(made):
    each = made("SRA", 5)
    coding = encode_labels([each.fused], [5, 700], channels=12)
    shown = shown_of(each, coding)
    for patch in ((8, 12, 8), (24, 20, 16)):
        batch = draw([shown], coding, patch, Training(), STILL, seed=(1, 2, 3), batch=3)
        again = draw([shown], coding, patch, Training(), STILL, seed=(1, 2, 3), batch=3)
        assert torch.equal(batch.scan, again.scan) and batch.names == again.names
        assert batch.scan.shape == (3, 1, *patch) and batch.prior.shape == (3, 3, *patch)
        np.testing.assert_allclose(batch.prior.sum(1), 1, atol=1e-4)
        size = np.array(shown.truth.shape)
        inside = np.prod(np.minimum(size, patch))
        assert all(int((t != IGNORED).sum()) == inside for t in batch.truth)
        values = set(np.round(shown.scan.numpy().ravel(), 3))
        known = batch.truth[0] != IGNORED
        assert set(np.round(batch.scan[0, 0][known].numpy(), 3)) <= values
    truth = case_of(each.target, each.fused, coding, candidates=3, example=each).truth
    counted = np.bincount(batch.truth[0][batch.truth[0] != IGNORED].numpy(), minlength=3)
    np.testing.assert_array_equal(counted, np.bincount(truth.ravel(), minlength=3))


def test_varied_patches_move_scan_prior_and_labels_together(made):
    each = made("RAS", 6)
    coding = encode_labels([each.fused], [5, 700], channels=12)
    certain = ProbabilityMap.from_labels(each.truth, label_values=[0, 5, 700])
    codes = coding.codes(each.truth.array).astype(np.float32)
    target = each.target.with_array(codes)
    case = case_of(target, certain, coding, candidates=3, example=each._replace(target=target, fused=certain))
    bent = Augmentation(probability=1.0, synthesis=0.0, contrast=0.0, bias=0.0, noise=0.0, flips=("A",))
    batch = draw([PatchSource.of(case, coding)], coding, (16, 16, 12), Training(), bent, seed=(9,), batch=4)
    known = batch.truth != IGNORED
    agree = (batch.prior.argmax(1) == batch.truth)[known].float().mean()
    assert agree > 0.97  # both follow the same displacement; only rounding at borders differs
    for code in (0, 1, 2):
        seen = batch.scan[:, 0][(batch.truth == code) & (batch.prior[:, code] > 0.99)]
        assert seen.numel() and seen.std() < 0.05
    loud = Augmentation(probability=1.0, synthesis=1.0)
    painted = draw([PatchSource.of(case, coding)], coding, (16, 16, 12), Training(), loud, seed=(9,), batch=4)
    assert torch.isfinite(painted.scan).all() and not torch.equal(painted.scan, batch.scan)


def test_sampling_goes_to_labels_and_to_doubt(made):
    each = made("RAS", 7)
    coding = encode_labels([each.fused], [5, 700], channels=12)
    shown = shown_of(each, coding)
    at = {}
    for name, settings_ in (("label", (1.0, 0.0)), ("doubt", (0.0, 1.0)), ("anywhere", (0.0, 0.0))):
        training = Training(foreground=settings_[0], uncertainty=settings_[1])
        names = draw([shown], coding, (4, 4, 4), training, STILL, seed=(4,), batch=60).names
        at[name] = [tuple(int(n) for n in text.partition("(")[2].rstrip(")").split(",")) for text in names]
    assert all(shown.truth[place] > 0 for place in at["label"])
    assert {int(shown.truth[place]) for place in at["label"]} == {1, 2}
    assert all(shown.shares[0][place] < 1 for place in at["doubt"])
    assert 0 < sum(int(shown.truth[place]) > 0 for place in at["anywhere"]) < 60


def test_dice_counts_what_lies_outside_the_box(made):
    each = made("RAS", 8)
    coding = encode_labels([each.fused], [5, 700], channels=12)
    case = case_of(each.target, each.fused, coding, candidates=3, example=each)
    assert mean_dice([case.truth], [case], coding) == 1
    case.outside[1] += int((case.truth == 1).sum())
    assert mean_dice([case.truth], [case], coding) == pytest.approx((2 / 3 + 1) / 2)
    partly = case_of(each.target, each.fused, coding, candidates=3, example=each._replace(not_annotated=frozenset({5})))
    assert partly.unknown == (1,)
    nothing = LabelMap(np.zeros(each.truth.shape, np.int32), each.truth.affine)
    empty = ProbabilityMap.from_labels(nothing, label_values=[0, 5, 700])
    assert Frame.around(empty).size == tuple(each.truth.shape)


def test_only_the_most_probable_labels_are_kept():
    rng = np.random.default_rng(2)
    slab = rng.dirichlet(np.full(11, 0.3), (3, 4, 5)).transpose(3, 0, 1, 2).astype(np.float32)
    index, codes, values = sparse_entries(torch.from_numpy(slab), 0.01, 4)
    np.testing.assert_array_equal(slab[codes, *index.T], values)
    found = set(zip(map(tuple, index.tolist()), codes.tolist(), strict=True))
    for voxel in np.ndindex(3, 4, 5):
        order = np.argsort(-slab[:, *voxel])[:4]
        assert {c for v, c in found if v == voxel} == {int(c) for c in order if slab[c][voxel] >= 0.01}
