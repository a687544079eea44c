"""Figures for a paper, as the command draws them from the tables of a run, a comparison and a BIDS derivative."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from atlasseg import io
from atlasseg.app.figures import draw_slices
from atlasseg.cli import app
from atlasseg.report import plot_agreement, plot_groups, plot_scores
from atlasseg.volume import Image, LabelMap

IDS = [f"p{n}" for n in range(6)]


def figure(*words):
    return CliRunner().invoke(app, ["figure", *map(str, words)])


@pytest.fixture
def results(tmp_path):
    """Tables of a run on six targets: two structures, one without a reference in the last target."""
    rng = np.random.default_rng(0)
    volumes, metrics = [], []
    for n, id_ in enumerate(IDS):
        for label, name, size in ((1, "Thalamus", 6000), (2, "Caudate", 400)):
            true = size * (1 + 0.1 * n)
            missing = n == 5 and label == 2
            volumes.append([id_, label, name, 1, true + size * rng.normal(0.02, 0.01), np.nan if missing else true])
            metrics += [[id_, "joint", label, name, m, rng.uniform(0.8, 1), ""] for m in ("dice", "hausdorff_95_mm")]
        metrics.append([id_, "joint", None, "foreground", "dice", 0.9, ""])
    columns = ["target", "label", "name", "voxels", "volume_mm3", "reference_mm3"]
    write(pd.DataFrame(volumes, columns=columns), tmp_path / "volumes.tsv")
    columns = ["target", "method", "label", "name", "metric", "value", "note"]
    write(pd.DataFrame(metrics, columns=columns), tmp_path / "metrics.tsv")
    write(pd.DataFrame({"id": IDS, "group": list("xyxyxy")}), tmp_path / "participants.tsv")
    return tmp_path


def write(table, path):
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")


def test_scores_are_drawn_for_each_structure_and_their_numbers_written(results):
    done = figure("scores", results, "--out", results / "dice.png")
    assert done.exit_code == 0, done.output
    assert imread(results / "dice.png").shape[1] == 2130  # 7.1 inches at 300 dpi
    numbers = pd.read_csv(results / "dice.tsv", sep="\t").set_index("structure")
    assert list(numbers.index) == ["Thalamus", "Caudate"]
    table = pd.read_csv(results / "metrics.tsv", sep="\t")
    own = table[(table.name == "Caudate") & (table.metric == "dice")].value
    assert numbers.loc["Caudate", ["mean", "sd", "median"]].tolist() == pytest.approx(
        [own.mean(), own.std(), own.median()], rel=1e-5
    )
    (axes,) = plot_scores(table[table.label.notna()]).axes
    (line, *_) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), table[(table.name == "Thalamus") & (table.metric == "dice")].value)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["Thalamus", "Caudate"]
    assert figure("scores", results, "--groups", "--out", results / "all.svg").exit_code == 0
    assert "foreground" in (results / "all.tsv").read_text()


def test_methods_of_a_comparison_are_drawn_beside_each_other(results):
    table = pd.read_csv(results / "metrics.tsv", sep="\t")
    both = pd.concat([table, table.assign(method="majority", value=table.value - 0.1)])
    write(both, results / "comparison.tsv")
    (results / "metrics.tsv").unlink()
    assert figure("scores", results, "--structures", "Caudate", "--out", results / "dice.pdf").exit_code == 0
    numbers = pd.read_csv(results / "dice.tsv", sep="\t").set_index("method")
    assert numbers.loc["joint", "mean"] - numbers.loc["majority", "mean"] == pytest.approx(0.1, abs=1e-5)
    assert [text.get_text() for text in plot_scores(both).legends[0].get_texts()] == ["joint", "majority"]


def test_agreement_has_a_panel_and_a_row_for_each_structure(results):
    done = figure("agreement", results, "--out", results / "agreement.png")
    assert done.exit_code == 0, done.output
    numbers = pd.read_csv(results / "agreement.tsv", sep="\t").set_index("structure")
    assert numbers["pairs"].tolist() == [6, 5]
    volumes = pd.read_csv(results / "volumes.tsv", sep="\t")
    own = volumes[volumes.name == "Thalamus"]
    assert numbers.loc["Thalamus", "bias"] == pytest.approx((own.volume_mm3 - own.reference_mm3).mean(), rel=1e-5)
    drawn, _ = plot_agreement(own)
    assert drawn.axes[0].get_ylabel() == "difference (ml)"
    np.testing.assert_allclose(drawn.axes[0].lines[-1].get_ydata(), (own.volume_mm3 - own.reference_mm3) / 1000)


def test_groups_of_a_run_and_of_a_bids_derivative(results):
    options = ["--participants", results / "participants.tsv", "--by", "group"]
    done = figure("groups", results, *options, "--out", results / "groups.png")
    assert done.exit_code == 0, done.output
    numbers = pd.read_csv(results / "groups.tsv", sep="\t").set_index("structure")
    volumes = pd.read_csv(results / "volumes.tsv", sep="\t")
    wide = volumes.pivot(index="target", columns="name", values="volume_mm3")
    assert numbers.loc["Caudate", "mean_y"] == pytest.approx(wide["Caudate"].iloc[1::2].mean(), rel=1e-5)
    drawn, _ = plot_groups(wide, pd.Series(list("xyxyxy"), index=IDS))
    assert [text.get_text() for text in drawn.axes[0].get_xticklabels()] == ["x", "y"]
    derivative = results / "derivative"
    derivative.mkdir()
    sessions = [wide.assign(session_id=f"ses-{n}") for n in (1, 2)]
    table = pd.concat(sessions).rename_axis("participant_id").reset_index()
    write(table, derivative / "group_volumes.tsv")
    done = figure("groups", derivative, *options, "--out", results / "bids.png")
    assert done.exit_code == 2 and "Choose a session with --session" in flat(done)
    done = figure("groups", derivative, *options, "--session", "2", "--out", results / "bids.png")
    assert done.exit_code == 0, done.output
    assert pd.read_csv(results / "bids.tsv", sep="\t").set_index("structure").loc["Caudate", "p"] == pytest.approx(
        numbers.loc["Caudate", "p"]
    )


def test_slices_find_the_scan_by_the_sidecar_and_a_reference_below(tmp_path):
    labels = np.zeros((10, 12, 8), np.int32)
    labels[3:7, 4:9, 2:6] = 1
    affine = np.diag([1.0, 1, 2, 1])
    io.write_image(Image(labels * 50 + np.arange(8.0), affine), tmp_path / "scan.nii.gz")
    io.write_label_map(LabelMap(labels, affine), tmp_path / "seg.nii.gz")
    io.write_label_map(LabelMap(labels[::-1].copy(), affine), tmp_path / "drawn.nii.gz")
    done = figure("slices", tmp_path / "seg.nii.gz", "--out", tmp_path / "a.png")
    assert done.exit_code == 2 and "Give it with --scan" in flat(done)
    (tmp_path / "seg.json").write_text(json.dumps({"Sources": [str(tmp_path / "scan.nii.gz")]}))
    done = figure("slices", tmp_path / "seg.nii.gz", "--out", tmp_path / "a.png")
    assert done.exit_code == 0, done.output
    draw_slices(tmp_path / "seg.nii.gz", tmp_path / "b.png", reference=tmp_path / "drawn.nii.gz", filled=True)
    one, two = (imread(tmp_path / name)[..., :3] for name in ("a.png", "b.png"))
    assert two.shape[:2] == (2 * one.shape[0], one.shape[1])
    assert np.ptp(two, axis=2).max() > 0.3, "labels are drawn in colour"


def flat(done):
    return " ".join(done.output.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("scores", ".", "--metric", "dise"), "expected one of dice, hausdorff_95_mm, got 'dise'"),
        (("scores", ".", "--structures", "Thalamis"), "no structure 'Thalamis'.*Thalamus"),
        (("scores", "elsewhere"), "elsewhere: expected the folder of a run on targets with labels/"),
        (("agreement", "elsewhere"), r"elsewhere: expected the output folder of a run, got no volumes\.tsv"),
        (("groups", ".", "--participants", "participants.tsv", "--by", "sex"), "no column 'sex'"),
        (("groups", ".", "--participants", "nobody.tsv", "--by", "sex"), "expected a table of participants, got no"),
        (("groups", ".", "--participants", "others.tsv", "--by", "group"), "ids of the scans in the first column"),
        (("groups", ".", "--participants", "some.tsv", "--by", "group"), "no row for 3 of 6 scans: p3, p4, p5"),
    ],
)
def test_results_that_cannot_be_drawn(results, monkeypatch, words, message):
    monkeypatch.chdir(results)
    write(pd.DataFrame({"id": IDS[:3], "group": list("xyx")}), results / "some.tsv")
    write(pd.DataFrame({"id": ["q"], "group": ["x"]}), results / "others.tsv")
    done = figure(*words, "--out", "out.png")
    assert done.exit_code == 2
    assert re.search(message, flat(done)), done.output
    assert not (results / "out.png").exists()


def test_a_figure_has_a_known_format(results):
    done = figure("scores", results, "--out", results / "dice.docx")
    assert done.exit_code == 2 and "expected a figure in one of the formats" in flat(done)
