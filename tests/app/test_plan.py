"""What a run will do, told before it does; and what it leaves for the next one."""

import re
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
from typer.testing import CliRunner

from atlasseg.app import plan
from atlasseg.cli import app
from atlasseg.compute import costs
from atlasseg.compute.workers import Workers
from atlasseg.errors import InputError
from atlasseg.recipe import parse_recipe

TABLES = {
    "data": {"atlases": "atlases", "targets": "targets", "out": "out"},
    "preprocessing": {"steps": ["intensity"]},
    "registration": {"steps": ["affine"]},
    "fusion": {"method": "majority"},
    "output": {"report": False},
}


@pytest.fixture
def recipe(dataset):
    import tomli_w

    path = dataset / "recipe.toml"
    path.write_text(tomli_w.dumps(TABLES))
    return path


def command(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, " ".join(done.output.split())


def planned(dataset, **tables):
    found = plan.estimate(parse_recipe({**TABLES, **tables}, base=dataset), workers=Workers(), limit_bytes=None)
    return found, {stage.stage: (stage.kept, stage.to_do) for stage in found.stages}


def test_a_network_needs_memory_too():
    network = {"refinement": {"method": "unet", "unet": {"model": "m"}}}
    plain, refined = (
        costs.estimate_memory(parse_recipe({**TABLES, **more}), atlases=14, voxels=5_000_000) for more in ({}, network)
    )
    assert refined.registering == plain.registering and refined.fusing > plain.fusing + 4e9


def test_a_plan_before_in_the_middle_and_after(recipe, dataset):
    found, stages = planned(dataset)
    assert stages == {
        "preprocessing.intensity": (0, 8),
        "registration.affine": (0, 6),
        "propagate": (0, 6),
        "measure_fit": (0, 6),
        "fusion.majority": (0, 2),
    }
    assert (found.targets, found.finished, found.broken) == (2, 0, {}) and found.seconds > 0
    assert not any(stage.measured for stage in found.stages)
    assert found.cache_bytes > 0 and found.result_bytes > 0 and found.memory.registering > 4e8

    assert command("run", recipe)[0] == 0
    found, stages = planned(dataset)
    assert found.finished == 2 and stages == {} and found.seconds == 0
    found, stages = planned(dataset, fusion={"method": "global_weighted"})
    assert found.finished == 0
    assert stages["registration.affine"] == (6, 0) and stages["fusion.global_weighted"] == (0, 2)
    assert {stage.stage for stage in found.stages if stage.measured} == stages.keys() - {"fusion.global_weighted"}
    assert found.seconds == sum(s.seconds for s in found.stages if s.to_do)


def test_the_plan_by_command_writes_no_result(recipe, dataset):
    (dataset / "targets/images/head4.nii.gz").write_text("this is no volume")
    status, output = command("run", recipe, "--dry-run", "--jobs", "2")
    assert status == 0
    assert "2 targets, 0 finished" in output and "registration.affine" in output
    assert re.search(r"head4: cannot be read: .*head4.nii.gz", output)
    assert "with 2 in parallel" in output and "GB to register" in output and "are free" in output
    assert not list((dataset / "out").glob("head*"))


def test_a_disk_that_cannot_hold_it(recipe, dataset, monkeypatch):
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    status, output = command("run", recipe, "--dry-run")
    assert status == 2 and "the disk is too small for this run" in output
    with pytest.raises(InputError, match="are needed"):
        planned(dataset)[0].check()


def test_what_is_finished_is_not_done_again_unless_something_changed(recipe, dataset):
    assert command("run", recipe)[0] == 0
    written = {path: path.stat().st_mtime_ns for path in (dataset / "out").glob("head*/*")}
    metrics = pd.read_csv(dataset / "out/metrics.tsv", sep="\t")
    assert command("run", recipe)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written
    pd.testing.assert_frame_equal(pd.read_csv(dataset / "out/metrics.tsv", sep="\t"), metrics)

    (dataset / "out/head3/head3_volumes.tsv").unlink()  # what is not whole is
    shutil.copy(dataset / "atlases/images/head0.nii.gz", dataset / "targets/images/head4.nii.gz")  # and what is new
    shutil.copy(dataset / "atlases/labels/head0.nii.gz", dataset / "targets/labels/head4.nii.gz")
    assert command("run", recipe)[0] == 0
    changed = {path.parent.name for path in written if path.stat().st_mtime_ns != written[path]}
    assert changed == {"head3", "head4"} and (dataset / "out/head3/head3_volumes.tsv").exists()


def test_with_no_room_only_what_is_finished_is_known(recipe, dataset):
    assert command("run", recipe, "--cache-limit", "0")[0] == 0
    assert [path.parent.name for path in (dataset / "out/.cache").glob("*/*")] == ["target"] * 2
    assert planned(dataset)[0].finished == 2


def test_the_cache_by_command(recipe, dataset):
    assert command("run", recipe)[0] == 0
    out = dataset / "out"
    status, output = command("cache", "ls", out)
    assert (
        status == 0
        and "registration.affine" in output
        and f"{len(list((out / '.cache').glob('*/*')))} results" in output
    )
    assert command("cache", "verify", out) == (0, "no damaged results")
    damaged = next((out / ".cache/propagate").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-50])
    status, output = command("cache", "verify", out / ".cache")
    assert status == 1 and "1 damaged results" in output and damaged.name in output.replace(" ", "")
    assert command("cache", "verify", out, "--remove")[0] == 0 and not damaged.exists()
    assert command("cache", "clear", out, "--stage", "propagate") == (0, "removed 5 results")
    assert command("cache", "clear", out, "--limit", "0.0001")[0] == 0
    assert sum(path.stat().st_size for path in (out / ".cache").rglob("*.entry")) <= 100_000
    assert command("cache", "clear", out)[0] == 0 and "the cache is empty" in command("cache", "ls", out)[1]
    assert command("cache", "ls", dataset / "nowhere")[0] == 2
