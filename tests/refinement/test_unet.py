"""The refiner as a whole: trained on a systematic error, kept in a folder, used, and refused where it must be."""

import importlib.util
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from atlasseg import __version__
from atlasseg.errors import GeometryError, InputError, MissingLibraryError, OutputError, TrainingError
from atlasseg.files import seal
from atlasseg.labels import Label, LabelTable
from atlasseg.recipe.training import Augmentation, Refiner, Training
from atlasseg.refinement import unet
from atlasseg.refinement.network.cases import case_of, encode_labels
from atlasseg.refinement.network.export import write_torchscript
from atlasseg.refinement.network.model import RefinerModel, best_of, check_free, read_model, write_model
from atlasseg.refinement.network.networks import is_encoder
from atlasseg.refinement.network.tensors import read_tensors, write_tensors
from atlasseg.training import correcting, fitting
from atlasseg.training.correcting import Job, Start
from atlasseg.training.fitting import fit
from atlasseg.training.planning import plan
from atlasseg.training.pretraining import fit_reconstruction
from atlasseg.volume import Image, LabelMap, ProbabilityMap

MADE = {"fusion": {"method": {"method": "joint", "beta": 2.0}}, "atlases": {"a": ["1f"], "b": ["2e"]}}
SMALL = Refiner(levels=3, width=4, patch_voxels=(12, 8, 8), deep_supervision=1)
QUICK = Training(steps=45, validate_every=15, learning_rate=1e-2, ema_decay=0.8, seed=1)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def job(made):
    examples = [made(axes, seed) for seed, axes in enumerate(("RAS", "LAS", "SRA"))]
    coding = encode_labels([e.fused for e in examples], [5, 700], channels=12)
    cases = [case_of(e.target, e.fused, coding, candidates=3, example=e) for e in examples]
    planned = plan(
        SMALL, inputs=4, outputs=3, sizes=[c.frame.size for c in cases], batch=2, memory_bytes=1e9, flops=1e12
    )
    return Job(0, planned, coding, "residual", QUICK, Augmentation(probability=0.3), tuple(cases[:2]), tuple(cases[2:]))


@pytest.fixture(scope="module")
def member(job):
    return fit(job)


@pytest.fixture(scope="module")
def model(job, member):
    form, patch = job.plan.form, job.plan.patch_voxels
    record = {"recipe": "[fusion]\n", "versions": {"atlasseg": __version__}, "data": {"a": "1f"}}
    return RefinerModel(
        form, job.coding, "residual", 3, patch, 1, (2.0, 2.3, 2.4), ("A",), (member, member), MADE, record
    )


@pytest.fixture
def folder(model, tmp_path):
    write_model(model, tmp_path / "model", table=LabelTable((Label(5, "left thing"),)))
    return tmp_path / "model"


def test_a_systematic_error_is_mended_in_an_orientation_never_seen(made, right, model, member):
    new = made("PIR", 9, scale=0.01)
    found = unet.refined(new.target, new.fused, model, device="cpu")
    assert member.scores["fused_dice"] < 0.75 < member.scores["validation_dice"]
    assert right(new.fused, new) < 0.6 and right(found, new) > right(new.fused, new) + 0.1
    assert found.grid.matches(new.fused.grid) and found.label_values.tolist() == [0, 5, 700]
    np.testing.assert_allclose(np.add.reduceat(found.values, found.offsets[:-1]), 1, atol=1e-5)
    once = unet.refined(new.target, new.fused, replace(model, members=(member,)), test_time_flips=False, device="cpu")
    assert not np.array_equal(once.values, found.values)
    again = unet.refined(new.target, new.fused, model, device="cpu")
    assert np.array_equal(again.values, found.values) and np.array_equal(again.mode, found.mode)


def test_what_is_far_from_any_doubt_stays(made, model):
    new = made("RAS", 4)
    wide = np.zeros((60, 15, 14), np.int32)
    wide[50:52, 3:5, 3:5] = 0
    affine = new.target.affine
    fused = new.fused.padded_to(LabelMap(wide, affine).grid, (2, 0, 0))
    scan = np.zeros(wide.shape, np.float32)
    scan[2:23] = new.target.array
    found = unet.refined(Image(scan, affine), fused, model, device="cpu")
    assert (found.mode[40:] == 0).all() and found.voxels.max() < 40 * 15 * 14
    assert found.voxels.size


def test_16_bits_are_used_where_they_are_wanted(made, model, monkeypatch):
    other = made("RAS", 12)
    monkeypatch.setattr("atlasseg.refinement.network.precision.autocast_dtype", lambda device: torch.bfloat16)
    full = unet.refined(other.target, other.fused, model, mixed_precision=False, device="cpu").dense()
    coarse = unet.refined(other.target, other.fused, model, device="cpu").dense()
    assert 0 < np.abs(full - coarse).max() < 0.05
    monkeypatch.setattr("atlasseg.refinement.network.precision.autocast_dtype", lambda device: None)
    np.testing.assert_array_equal(unet.refined(other.target, other.fused, model, device="cpu").dense(), full)


def test_read_as_written(model, folder):
    found = read_model(folder)
    names = {"SHA256SUMS", "model.json", "labels.tsv", "README.md", "curves.tsv", "curves.png", "recipe.toml"}
    assert {path.name for path in folder.iterdir()} == names | {f"member_{n}.safetensors" for n in (0, 1)}
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "all are for the same readers"
    same = ("form", "coding", "prior", "candidates", "patch_voxels", "channels", "spacing_mm", "flips", "provenance")
    assert all(getattr(found, name) == getattr(model, name) for name in same)
    for mine, theirs in zip(model.members, found.members, strict=True):
        assert mine.temperature == theirs.temperature and mine.scores == theirs.scores
        assert all(torch.equal(tensor, theirs.weights[name]) for name, tensor in mine.weights.items())
    card = (folder / "README.md").read_text()
    assert "left thing" in card and "`a`: 1f" in card and f"{model.members[0].scores['validation_dice']:.5g}" in card
    curve = (folder / "curves.tsv").read_text().splitlines()
    assert curve[0].split("\t") == ["member", "step", "learning_rate", "training_loss", "validation_dice"]
    assert len(curve) == 1 + 2 * 3 and (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_many_networks_keep_their_order(model, member, tmp_path):
    many = [
        replace(member, temperature=1 + n / 10, weights={k: v + n for k, v in member.weights.items()})
        for n in range(12)
    ]
    write_model(replace(model, members=tuple(many)), tmp_path / "many")
    for n, found in enumerate(read_model(tmp_path / "many").members):
        assert found.temperature == many[n].temperature
        assert all(torch.equal(tensor, many[n].weights[name]) for name, tensor in found.weights.items())


def test_used_by_its_folder_and_refused_where_it_does_not_belong(made, model, folder, caplog):
    new = made("LAS", 7)
    found = unet.refine(new.target, new.fused, model=folder, provenance=MADE, device="cpu")
    assert np.array_equal(found.values, unet.refined(new.target, new.fused, model, device="cpu").values)
    other = {**MADE, "fusion": {"method": {"method": "joint", "beta": 3.0}}}
    with pytest.raises(InputError, match=r"fusion method: trained with .*2\.0.* used with .*3\.0"):
        unet.refine(new.target, new.fused, model=folder, provenance=other)
    without = {**MADE, "atlases": {"a": ["1f"]}}
    with pytest.raises(InputError, match=r"atlases that are missing here \(b\), perhaps on the target itself"):
        unet.check(model=folder, provenance=without)
    begun = replace(model, record={**model.record, "begun_from": {"x": "1f", "y": "9a"}})
    write_model(begun, folder.parent / "begun")
    card = (folder.parent / "begun" / "README.md").read_text()
    assert "Its initial weights are from a model trained on `x`, `y`." in card
    with pytest.raises(InputError, match=r"atlases that are missing here \(y\), perhaps on the target itself"):
        unet.check(model=folder.parent / "begun", provenance=MADE)
    apart = replace(model, record={**model.record, "begun_from": {"x": "7c", "y": "9a"}})
    write_model(apart, folder.parent / "apart")
    unet.check(model=folder.parent / "apart", provenance=MADE)  # of another library, which holds no target of this one
    with caplog.at_level(logging.WARNING):
        unet.check(model=folder, provenance=without, allow_library_mismatch=True)
        unet.check(model=folder, provenance={**MADE, "atlases": {"c": ["3d"]}})
    assert caplog.text.count("trained on other atlases") == 2
    with pytest.raises(GeometryError, match="different grids"):
        unet.refined(new.target.cropped((0, 0, 0), (9, 9, 9)), new.fused, model)
    two = made("LAS", 7, channels=2)
    with pytest.raises(InputError, match="expected 1 channels as in the training, got 2"):
        unet.refined(two.target, two.fused, model)
    with pytest.raises(InputError, match="expected a model of the refiner, got none"):
        unet.check(model=folder / "nowhere")


def test_fusion_stands_where_no_model_fits_its_labels(made, model, caplog):
    new = made("RAS", 3)
    relabelled = ProbabilityMap.from_dense(new.fused.dense(), [0, 5, 701], new.fused.affine)
    with caplog.at_level(logging.WARNING):
        found = unet.refined(new.target, relabelled, model, device="cpu")
    assert found is relabelled
    assert "trained on the labels 0, 5, 700, not on 701; the fused segmentation is kept" in caplog.text


def test_damaged_and_foreign_folders_are_refused(model, folder, tmp_path):
    weights = folder / "member_1.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8] + bytes(8))
    with pytest.raises(
        InputError, match=r"member_1\.safetensors: damaged, its bytes are not those that were written: train"
    ):
        read_model(folder)
    weights.unlink()
    with pytest.raises(InputError, match=r"member_1\.safetensors: missing or unreadable"):
        read_model(folder)
    weights.write_bytes(whole)
    header = json.loads((folder / "model.json").read_text())
    for change, said in (
        ({"format": 99}, "expected .* format 2, got"),
        ({"method": "corrective_learning"}, "a model of 'unet'"),
        ({"form": {**header["form"], "width": 6}}, "weights of another network"),
        ({"coding": None}, "expected a model, got a damaged one"),
    ):
        (folder / "model.json").write_text(json.dumps({**header, **change}))
        seal(folder, ["model.json", "labels.tsv", weights.name])
        with pytest.raises(InputError, match=said):
            read_model(folder)
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(b"\x80\x04pickle, perhaps")
    with pytest.raises(InputError, match="expected weights of atlasseg"):
        read_tensors(foreign)
    with pytest.raises(OutputError, match="expected a new folder or a model"):
        check_free(tmp_path)


def test_torchscript_says_the_same(model, tmp_path, monkeypatch):
    paths = write_torchscript(replace(model, members=model.members[:1]), tmp_path)
    assert [path.name for path in paths] == ["member_0.ts"] and paths[0].stat().st_size > 1000
    monkeypatch.setattr("atlasseg.refinement.network.export.SAME", -1.0)
    with pytest.raises(OutputError, match="expected the outputs of the network"):
        write_torchscript(replace(model, members=model.members[:1]), tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


class Stopped:
    """Says stop after so many steps."""

    def __init__(self, after):
        self.left = after

    def __call__(self):
        self.left -= 1
        return self.left <= 0


def test_a_training_that_was_stopped_goes_on_to_the_last_digit(job, member, tmp_path):
    file = tmp_path / "work" / "network.safetensors"
    for after in (7, 20):  # within a round, and later again
        with pytest.raises(KeyboardInterrupt):
            fit(job, checkpoint=file, stop=Stopped(after))
        assert [path.name for path in file.parent.iterdir()] == [file.name]
    found = fit(job, checkpoint=file)
    assert found.curve == member.curve and found.temperature == member.temperature
    assert all(torch.equal(tensor, found.weights[name]) for name, tensor in member.weights.items())
    assert fit(job, checkpoint=file).curve == member.curve  # done: nothing is trained again
    with pytest.raises(InputError, match="expected the checkpoint of this training"):
        fit(replace(job, training=replace(QUICK, learning_rate=2e-2)), checkpoint=file)
    tensors, state = read_tensors(file)
    write_tensors(file, {k: v for k, v in tensors.items() if not k.startswith("weights/input")}, state)
    with pytest.raises(InputError, match="weights of another network"):
        fit(job, checkpoint=file)


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam"])
def test_every_optimiser_goes_on_where_it_stopped(job, name, tmp_path):
    short = replace(job, training=replace(QUICK, steps=4, validate_every=4, batch=1, optimiser=name, l1=1e-5))
    with pytest.raises(KeyboardInterrupt):
        fit(short, checkpoint=tmp_path / name, stop=Stopped(2))
    assert fit(short, checkpoint=tmp_path / name).curve == fit(short).curve


def test_l1_makes_weights_smaller(job):
    """The gradient of l1 times the sum of |w| is l1 towards 0: after a step of plain descent, rate times l1 less."""
    sums = {}
    for l1 in (0.0, 1e-2):
        short = Training(steps=1, validate_every=1, batch=1, optimiser="sgd", learning_rate=1e-2, l1=l1, seed=1,
                         warmup_fraction=0.0, weight_decay=0.0, grad_clip_norm=1e9, ema_decay=0.0)  # fmt: skip
        found = fit(replace(job, training=short)).weights
        sums[l1] = sum(float(tensor.abs().sum()) for tensor in found.values() if tensor.is_floating_point())
    assert sums[1e-2] < sums[0.0] * (1 - 1e-5)


def test_seeds_and_accumulation(job):
    short = replace(job, training=replace(QUICK, steps=2, validate_every=2, batch=2))
    other = replace(short, training=replace(short.training, seed=2))
    assert fit(short).curve == fit(short).curve != fit(other).curve
    twice = replace(short, training=replace(short.training, accumulation=2))
    assert fit(twice).curve != fit(short).curve


def test_early_stopping_and_time(job):
    patient = replace(job, training=replace(QUICK, steps=30, validate_every=1, patience=2, learning_rate=1e-12))
    assert len(fit(patient).curve) <= 4
    late = replace(job, training=replace(QUICK, steps=10**6, minutes=1e-3))
    assert fit(late).scores["steps"] < 30


def test_a_loss_that_is_not_a_number_names_its_patches(job, monkeypatch):
    def spoiled(*given, **settings):
        batch = real(*given, **settings)
        return replace(batch, scan=batch.scan * (float("nan") if settings["seed"][2] == 3 else 1))

    real = correcting.draw
    monkeypatch.setattr(correcting, "draw", spoiled)
    with pytest.raises(TrainingError, match=r"network 1: the loss is nan at step 4, of \w+\d around voxel \(\d+, "):
        fit(job)


def test_a_gradient_that_is_not_a_number_spoils_nothing(job, monkeypatch, tmp_path):
    def steep(out, *given, **settings):
        return (0 * out).abs().sqrt().sum()  # 0, of slope 0 / 0

    monkeypatch.setattr(correcting, "deep_supervision_loss", steep)
    with pytest.raises(TrainingError, match=r"network 1: the gradient is nan at step 1, of \w+\d around voxel"):
        fit(job, checkpoint=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_a_batch_that_does_not_fit_is_halved_and_then_told(job, monkeypatch, caplog):
    def full(state, task, rate):
        if state.numbers["batch"] > most:
            raise torch.OutOfMemoryError
        return real(state, task, rate)

    real, most = fitting._attempt, 1
    monkeypatch.setattr(fitting, "_attempt", full)
    short = replace(job, training=replace(QUICK, steps=1))
    with caplog.at_level(logging.WARNING):
        fit(short)
    assert "batch size 1 instead of 2" in caplog.text
    most = 0
    said = r"enough for one patch .*dynunet, 3 levels.*--gpu-memory 0\.\d+GB, which chooses one for \d{6} bytes"
    with pytest.raises(InputError, match=said):
        fit(replace(short, replan=lambda most: f"one for {most:.0f} bytes"))


def test_labels_that_were_not_drawn_do_not_teach_background(job, made):
    partly = [
        replace(case, unknown=(1,), truth=np.where(case.truth == 1, 0, case.truth)) for case in job.training_set[:1]
    ]
    trained = fit(replace(job, training_set=(*partly, job.training_set[1])))
    assert trained.scores["validation_dice"] > trained.scores["fused_dice"]


def test_a_frozen_encoder_stays_and_the_rest_learns(job, member):
    start = Start(member.weights, freeze=True, coding=job.coding)
    tuned = fit(replace(job, start=start, training=replace(QUICK, steps=2, validate_every=2, ema_decay=0.0)))
    moved = {name for name, tensor in member.weights.items() if not torch.equal(tensor, tuned.weights[name])}
    assert moved and not any(is_encoder(job.plan.form, name) for name in moved)


def test_a_frozen_encoder_keeps_its_running_means(job, tmp_path):
    form = replace(job.plan.form, architecture="attention_unet", deep_supervision=0)
    short = replace(QUICK, steps=2, validate_every=1, ema_decay=0.0)
    attentive = replace(job, plan=replace(job.plan, form=form), training=short)
    first = fit(attentive)
    tuned = fit(
        replace(attentive, start=Start(first.weights, freeze=True, coding=job.coding)), checkpoint=tmp_path / "c"
    )
    still = {name for name, tensor in first.weights.items() if torch.equal(tensor, tuned.weights[name])}
    assert still == {name for name in first.weights if is_encoder(form, name)}
    assert any("running_mean" in name for name in still) and len(still) < len(first.weights)


def test_pretraining_learns_to_fill_in_and_is_begun_from(job, tmp_path, made):
    scans = [case.scan for case in (*job.training_set, *job.held_out)]
    wide = replace(SMALL, patch_voxels=(16, 16, 16))
    planned = plan(wide, inputs=1, outputs=1, sizes=[s.shape[1:] for s in scans], batch=2, memory_bytes=1e9, flops=1e12)
    settings = replace(QUICK, steps=60, validate_every=20, learning_rate=4e-3)
    found = fit_reconstruction(scans, planned, settings)
    errors = [row["validation_loss"] for row in found.curve]
    assert found.scores["validation_loss"] == min(errors) < 0.8  # 1 is the error of saying the mean
    with pytest.raises(KeyboardInterrupt):
        fit_reconstruction(scans, planned, settings, checkpoint=tmp_path / "c", stop=Stopped(27))
    again = fit_reconstruction(scans, planned, settings, checkpoint=tmp_path / "c")
    assert again.curve == found.curve
    with pytest.raises(InputError, match="at least two scans"):
        fit_reconstruction(scans[:1], planned, settings)
    model = RefinerModel(
        planned.form, replace(job.coding, labels=(0,), groups=(0,)), "none", 1, planned.patch_voxels, 1, (2, 2, 2), (),
        (found,),
    )  # fmt: skip
    write_model(model, tmp_path / "pretrained")
    again = read_model(tmp_path / "pretrained")
    assert again.form == planned.form and "without labels" in (tmp_path / "pretrained" / "README.md").read_text()
    weights = best_of(again).weights
    begun = fitting._State(replace(job, start=Start(weights, coding=again.coding, channels=1)))
    own = dict(begun.network.named_parameters())
    assert torch.equal(own["bottleneck.conv1.conv.weight"], weights["bottleneck.conv1.conv.weight"])


def test_libraries_that_are_not_there_are_named(folder, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("monai", "torch") else real(name))
    with pytest.raises(MissingLibraryError, match=r"needs torch, monai: pip install 'atlasseg\[refiner\]'"):
        unet.check(model=folder)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_a_gpu_learns_and_says_the_same(job, made, model):
    found = fit(replace(job, device="cuda"))
    assert found.scores["validation_dice"] > found.scores["fused_dice"]
    new = made("PIR", 9)
    for mixed, atol in ((False, 5e-3), (True, 0.05)):
        there, here = (
            unet.refined(new.target, new.fused, model, mixed_precision=mixed, device=device).dense()
            for device in ("cuda", "cpu")
        )
        np.testing.assert_allclose(there, here, atol=atol)
