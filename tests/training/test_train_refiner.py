"""The refiner by command: no leak, killed and resumed, begun from another model, and used by a recipe."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from atlasseg import io, pipeline
from atlasseg.app.train import graceful_interrupt
from atlasseg.atlases.library import read_library
from atlasseg.cli import app
from atlasseg.errors import InputError
from atlasseg.evaluation.overlap import count, dice
from atlasseg.recipe import Refinement, parse_recipe, read_recipe
from atlasseg.refinement.unet import refined
from atlasseg.store.cache import Cache
from atlasseg.training import fitting, leave_one_out, split_folds, train_refiner

PLAIN = """
[data]
atlases = "atlases"
targets = "targets"
out = "out"
[preprocessing]
steps = ["intensity"]
[registration]
steps = ["rigid"]
[fusion]
method = "majority"
[refiner]
levels = 3
width = 4
patch_voxels = [16, 16, 8]
prior_channels = 4
[training]
folds = 3
n_models = 1
steps = 24
validate_every = 4
learning_rate = 1e-2
[augmentation]
probability = 0.3
"""
REFINED = '[refinement]\nmethod = "unet"\n[refinement.unet]\nmodel = "model"\n'


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def place(dataset):
    (dataset / "recipe.toml").write_text(PLAIN + REFINED)
    return dataset


def called(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def curves(folder):
    return (folder / "curves.tsv").read_text()


@pytest.mark.posix
def test_killed_and_resumed_to_the_last_digit_then_used(place):
    recipe, out, work, cache = place / "recipe.toml", place / "model", place / "model.work", place / "cache"
    for kind in ("images", "labels"):
        (place / "targets" / kind / "head4.nii.gz").unlink()
    run = ("run", recipe, "--jobs", 1, "--set", "output.report=false")
    early = called(*run)
    assert early.exit_code == 1 and "expected a model of the refiner" in early.output  # before anything is registered

    command = [sys.executable, "-m", "atlasseg", "train", recipe, "--out", out, "--cache", cache, "--device", "cpu"]
    process = subprocess.Popen(
        [str(part) for part in command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    checkpoint = work / "network_0.safetensors"
    until = time.monotonic() + 300
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[0].decode()
    assert process.returncode == -signal.SIGKILL, said
    assert not out.exists()

    resumed = called("train", recipe, "--out", out, "--cache", cache)
    assert resumed.exit_code == 0, resumed.output
    assert "network 1: validation Dice" in resumed.output and not work.exists()
    anew = called("train", recipe, "--out", place / "anew", "--cache", cache, "--torchscript")
    assert anew.exit_code == 0, anew.output
    assert curves(out) == curves(place / "anew") and len(curves(out).splitlines()) == 1 + 6
    assert (out / "member_0.safetensors").read_bytes() == (place / "anew/member_0.safetensors").read_bytes()
    assert (place / "anew/member_0.ts").exists()

    header = json.loads((out / "model.json").read_text())
    assert set(header["record"]["data"]) == {"head0", "head1", "head2"}
    assert len(header["record"]["folds"]) == 3 and header["record"]["versions"]["atlasseg"]
    assert max(header["coding"]["groups"]) == 3 and len(header["coding"]["labels"]) > 4

    done = called(*run)
    assert done.exit_code == 0, done.output
    assert set(pd.read_csv(place / "out/metrics.tsv", sep="\t").target) == {"head3"}
    refined = io.read_label_map(place / "out/head3/head3_desc-majority_dseg.nii.gz")
    library = read_library(place / "atlases")
    atlases = [library.read(id_) for id_ in library.ids]
    scan = io.read_image(place / "targets/images/head3.nii.gz")
    fused = pipeline.segment(scan, atlases, replace(read_recipe(recipe), refinement=Refinement()))
    assert (refined.array != fused.labels.array).any()

    # an atlas as a target of the others: the model may know it
    with pytest.raises(InputError, match=r"atlases that are missing here \(head1\), perhaps on the target itself"):
        pipeline.segment(atlases[1].image, [atlases[0], atlases[2]], read_recipe(recipe))

    # begun from that model on other labels, its encoder left as it is
    tuned = called(
        "train", recipe, "--out", place / "tuned", "--cache", cache, "--init", out, "--freeze", "encoder",
        "--lr", 0.001, "--set", "training.steps=2",
    )  # fmt: skip
    assert tuned.exit_code == 0, tuned.output
    seen = json.loads((place / "tuned/model.json").read_text())["record"]["begun_from"]
    assert set(seen) == {"head0", "head1", "head2"}
    assert "validated on scans that its initial weights were trained on (head" in " ".join(tuned.output.split())
    wrong = called("train", recipe, "--out", place / "x", "--init", out, "--set", "refiner.width=8")
    assert wrong.exit_code == 2 and "its width is 4, but the recipe's [refiner] width is 8" in wrong.output


def test_no_atlas_votes_for_itself_and_no_validation_case_trains(place, monkeypatch):
    library = read_library(place / "atlases")
    atlases = [library.read(id_) for id_ in library.ids]
    for n, atlas in enumerate(atlases):  # every atlas draws a label that no other has
        atlas.labels.array[5 + n, 5, 5] = 900 + n
    jobs = []

    def caught(job, **given):
        jobs.append(job)
        return real(job, **given)

    real = fitting.fit
    monkeypatch.setattr(fitting, "fit", caught)
    tables = PLAIN.replace("n_models = 1", "n_models = 3").replace("steps = 24", "steps = 1")
    (place / "recipe.toml").write_text(tables)
    recipe = read_recipe(place / "recipe.toml")
    model = train_refiner(atlases, recipe)
    assert len(model.members) == len(jobs) == 3
    validated = [case.id for job in jobs for case in job.held_out]
    assert sorted(validated) == ["head0", "head1", "head2"]
    for job in jobs:
        learned, held = {case.id for case in job.training_set}, {case.id for case in job.held_out}
        assert not learned & held and learned | held == {"head0", "head1", "head2"}
        for case in (*job.training_set, *job.held_out):
            own = job.coding.codes(np.array([900 + int(case.id[-1])]))[0]
            assert ((case.truth == own).sum() + case.outside[own]) == 1
            assert not case.shares[case.codes == own].any()  # its own vote is nowhere in what it was fused to


def test_copies_of_a_scan_share_a_fold():
    contents = {f"atlas{n}": f"scan{n // 2}" for n in range(14)}
    folds = split_folds(contents, 3, seed=1)
    assert sorted(id_ for fold in folds for id_ in fold) == sorted(contents)
    for fold in folds:
        assert all(f"atlas{int(id_[5:]) ^ 1}" in fold for id_ in fold)
    assert folds == split_folds(dict(reversed(contents.items())), 3, seed=1) != split_folds(contents, 3, seed=2)
    assert len(split_folds({"a": "x", "b": "y"}, 5, seed=0)) == 2
    with pytest.raises(InputError, match="copies of one scan"):
        split_folds({"a": "x", "b": "x"}, 5, seed=0)


def test_requests_that_cannot_be_met(place, monkeypatch):
    recipe, out = place / "recipe.toml", place / "model"
    few = called("train", recipe, "--out", out, "--without", "head0", "--without", "head1")
    assert few.exit_code == 2 and "at least 3 atlases for training, got 1" in few.output
    small = called("train", recipe, "--out", out, "--gpu-memory", "100KB")
    assert small.exit_code == 2 and "expected a network within 0.00 GB" in small.output
    slow = called("train", recipe, "--out", out, "--gflop", "0.002", "--cache", place / "cache")
    assert slow.exit_code == 2 and "and 0 GFLOP per step" in slow.output
    for given, said in (
        (("--gpu-memory", "much"), "memory: expected an amount such as 8GB, got 'much'"),
        (("--freeze", "encoder"), "Give it with --init"),
        (("--init", place / "nowhere"), "expected a model of the refiner, got none"),
        (("--set", "training.optimiser=adm"), "'sgd', 'rmsprop', 'adam' or 'adamw'"),
        (("--set", "refiner.patch_voxels=[10,16,8]"), "multiples of 4"),
    ):
        done = called("train", recipe, "--out", out, "--cache", place / "cache", *given)
        assert done.exit_code == 2 and said in " ".join(done.output.split()), done.output
    taken = called("train", recipe, "--out", place / "atlases")
    assert taken.exit_code == 2 and "expected a new folder or a model" in taken.output
    if not torch.cuda.is_available():
        no_gpu = called("train", recipe, "--out", out, "--device", "cuda")
        assert no_gpu.exit_code == 2 and "torch finds no CUDA GPU" in no_gpu.output
    assert not out.exists()


def test_fused_atlases_are_kept_by_their_content(place):
    recipe = parse_recipe({"registration": {"steps": ["rigid"]}, "fusion": {"method": "majority"}})
    library = read_library(place / "atlases")
    atlases = [library.read(id_) for id_ in library.ids]
    cache = place / "cache"
    first = list(leave_one_out(atlases, recipe, executor=Cache(cache)))
    kept = list(cache.glob("fusion.majority/*"))
    assert len(kept) == 3
    again = list(leave_one_out(atlases, recipe, executor=Cache(cache)))
    for mine, theirs in zip(first, again, strict=True):
        assert mine.id == theirs.id and np.array_equal(mine.truth.array, theirs.truth.array)
        assert np.array_equal(mine.fused.values, theirs.fused.values)
        assert mine.target.grid.matches(theirs.target.grid)
    for file in kept:
        file.write_bytes(file.read_bytes()[:100])
    first_labels = np.array(atlases[0].labels.array)
    first_labels[5, 5, 5] = 901
    atlases[0] = replace(atlases[0], labels=replace(atlases[0].labels, array=first_labels))
    changed = list(leave_one_out(atlases, recipe, executor=Cache(cache)))
    assert 901 in changed[0].truth.values and len(list(cache.glob("fusion.majority/*"))) == 5


def test_ctrl_c_is_heard_once_and_obeyed_twice():
    before = signal.getsignal(signal.SIGINT)
    with graceful_interrupt() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_leaves_a_checkpoint_and_no_model(place, monkeypatch):
    real = fitting._attempt

    def pressed(state, *given):
        if state.numbers["step"] == 2:
            signal.raise_signal(signal.SIGINT)
        return real(state, *given)

    monkeypatch.setattr(fitting, "_attempt", pressed)
    done = called("train", place / "recipe.toml", "--out", place / "model", "--cache", place / "cache")
    assert done.exit_code == 130 and "no file is incomplete" in done.output
    assert [p.name for p in (place / "model.work").iterdir()] == ["network_0.safetensors"]
    assert not (place / "model").exists()
    monkeypatch.setattr(fitting, "_attempt", real)
    other = called("train", place / "recipe.toml", "--out", place / "model", "--set", "fusion.method=global_weighted")
    assert other.exit_code == 2 and "expected the checkpoint of this training" in " ".join(
        other.output.split()
    )  # of other segmentations


def test_pretrained_on_scans_without_labels(place):
    recipe = place / "recipe.toml"
    settings = ("--set", "training.steps=6", "--set", "training.validate_every=3")
    done = called("pretrain", recipe, "--scans", place / "targets", "--out", place / "pretrained", *settings)
    assert done.exit_code == 0, done.output
    assert "mean squared error of the reconstruction" in done.output
    used = called("run", recipe, "--set", "refinement.unet.model=pretrained", "--jobs", 1)
    assert used.exit_code == 1  # a model without labels refines nothing
    begun = called("train", recipe, "--out", place / "model", "--init", place / "pretrained", *settings)
    assert begun.exit_code == 0, begun.output
    one = called("pretrain", recipe, "--scans", place / "targets/images/head3.nii.gz", "--out", place / "x")
    assert one.exit_code == 2 and "at least two scans" in one.output


def test_hippocampi_are_better_after_a_short_training(real_data):
    root = real_data / "hippocampus"
    library, targets = read_library(root / "atlases"), read_library(root / "targets")
    atlases = [library.read(id_) for id_ in library.ids[:5]]
    tables = {
        "preprocessing": {"steps": ["intensity"]},
        "registration": {"steps": ["affine"]},
        "fusion": {"method": "majority"},
        "refiner": {"levels": 3, "width": 8, "patch_voxels": [16, 32, 24]},
        "training": {"n_models": 1, "steps": 60, "validate_every": 20, "learning_rate": 1e-2, "ema_decay": 0.9},
    }
    recipe = parse_recipe(tables)
    model = train_refiner(atlases, recipe)
    assert model.members[0].scores["validation_dice"] > model.members[0].scores["fused_dice"]
    for id_ in targets.ids[:1]:
        case = targets.read(id_)
        alignment = pipeline.align(case.image, atlases, recipe)
        fused = pipeline.fuse(alignment, recipe.fusion.method).probabilities
        found = refined(alignment.target, fused, model, device="cpu")
        before, after = (dice(count(each.mode, case.segmentation.array)).mean() for each in (fused, found))
        assert after > before
