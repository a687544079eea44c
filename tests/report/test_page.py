import dataclasses
import re
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import pytest

from atlasseg import io, templating
from atlasseg.evaluation import evaluate
from atlasseg.labels import Label, LabelTable
from atlasseg.phantoms import head, tilted_grid
from atlasseg.report import CohortReport, TargetReport, TargetSummary, figures, render, render_cohort
from atlasseg.report.viewer import Candidate

VOID = {"meta", "input", "br", "link", "img"}
TABLE = LabelTable((Label(10, "Left <Thalamus>", group="deep"), Label(49, "Right & Thalamus"), Label(99, "Nowhere")))


class Balanced(HTMLParser):
    """Fails where an element is closed that is not open; collects what the tests ask about."""

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.links, self.images = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[k] for k in ("href", "src") if k in found]
        if tag == "svg" and "slice" in found.get("class", ""):
            self.images.append(found.get("aria-label"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def full():
    made = head(grid=tilted_grid((17, 21, 14), spacing_mm=(2.7, 2.6, 2.8)), seed=1, subsamples=1)
    labels = made.labels.with_array(np.where(made.labels.array == 49, 0, made.labels.array))
    entropy = (np.random.default_rng(0).random(labels.shape) * (labels.array > 0)).astype(np.float32)
    rows = [(10, "Left <Thalamus>", "dice", 0.8125, ""), (49, "Right & Thalamus", "dice", 0.0, "missed")]
    rows += [(10, "Left <Thalamus>", "surface_dice_1.5mm", 0.71, ""), (49, "x", "hausdorff_95_mm", 88.25, "missed")]
    rows += [(None, "deep", "dice", 0.4062, "")]
    metrics = pd.DataFrame(rows, columns=["label", "name", "metric", "value", "note"])
    metrics["label"] = metrics["label"].astype("Int64")
    return TargetReport(
        target="sub-01 <b>",
        image=made.image,
        labels=labels,
        table=TABLE,
        fusion="local_weighted",
        entropy=entropy,
        reference=made.labels,
        volumes=pd.DataFrame(
            {"label": [10, 49, 99], "name": "n", "voxels": [1700, 0, 0], "volume_mm3": [1234.5, 0.0, 0.0]}
        ),
        metrics=metrics,
        atlases=pd.DataFrame(
            {
                "atlas": ["a1", "a<2>"],
                "similarity": [0.91, 0.12],
                "jacobian_min": [0.4, -0.2],
                "folded_percent": [0.0, 1.25],
                "voted": ["yes", "no"],
                "reason": ["", "far below the others"],
            }
        ),
        changes=pd.DataFrame(
            {
                "label": [0, 10, 49],
                "voxels_before": [5000, 1690, 0],
                "voxels_after": [4990, 1700, 0],
                "parts_before": [1, 4, 0],
                "parts_after": [1, 1, 0],
                "by_region": [0, 12, 0],
                "islands": [0, 3, 0],
                "holes": [0, 2, 0],
                "restored": [0, 0, 0],
            }
        ),
        seconds={"register": 3.21, "fuse": 0.5, "total": 75.0},
        recipe='[fusion]\nmethod = "<i>"\n',
        predicted={10: 0.625},
        candidates=[Candidate("a<2>", made.labels, note="similarity 0.12")],
        warnings=("NaN in <scan>",),
        versions={"atlasseg": "9.8.7"},
        home="../index.html",
    )


def words(page):
    """What a reader sees, tags left out."""
    body = re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_page_is_whole_and_the_same_every_time(full):
    page = render(full)
    assert page == render(full)
    parsed = Balanced(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    local = {"#" + i for i in parsed.ids} | {"../index.html"}
    assert all(link in local or link.startswith("data:image/png;base64,") for link in parsed.links)
    assert parsed.images and all(parsed.images)
    assert len(page) < 2_000_000
    assert "url(" not in page and "@import" not in page and "fetch(" not in page
    assert "default-src 'none'" in page  # the browser lets nothing else in


def test_names_cannot_become_markup(full):
    page = render(full)
    for given in ("sub-01 <b>", "Left <Thalamus>", "Right & Thalamus", "a<2>", "NaN in <scan>", 'method = "<i>"'):
        assert given not in page
    for shown in (
        "sub-01 &lt;b&gt;",
        "Left &lt;Thalamus&gt;",
        "Right &amp; Thalamus",
        "a&lt;2&gt;",
        "NaN in &lt;scan&gt;",
    ):
        assert shown in page


def test_page_says_what_was_done_and_what_to_check(full):
    seen = words(render(full))
    assert "segmented from 2 atlases, of which 1 voted, by local weighted fusion." in seen
    assert "1.23 ml in all" in seen
    assert "Dice is 0.406 on average and 0.000 for the worst structure" in seen
    assert "NaN in &lt;scan&gt;" in seen
    assert "a&lt;2&gt; did not vote: far below the others" in seen
    assert "1 structure in the reference but not found: Right &amp; Thalamus" in seen
    assert "Radiological convention" in seen and "oblique, up to 1" in seen
    assert "1 min 15 s" in seen and "9.8.7" in seen
    assert "Surface Dice, 1.5 mm" in seen


def test_surface_dice_of_voxels_is_in_the_table_on_disk_alone(full):
    row = full.metrics[full.metrics["metric"] == "surface_dice_1.5mm"]
    more = row.assign(metric="surface_dice_voxels_1.5mm", value=0.513)
    seen = words(render(dataclasses.replace(full, metrics=pd.concat([full.metrics, more], ignore_index=True))))
    assert "Surface Dice, 1.5 mm" in seen and "0.710" in seen and "0.513" not in seen


def test_figures_of_the_tables_are_those_given(full):
    page = render(full)
    rows = {m[0]: m[1] for m in re.findall(r'data-label="l(\d+)"(.*?)</tr>', page, flags=re.S)}
    assert "0.812" in rows["10"] and "0.71" in rows["10"] and "1\u202f234" in rows["10"] and "missed" not in rows["10"]
    assert "missed" in rows["49"] and "0.000" in rows["49"] and "88.25" in rows["49"]
    inside = full.labels.array == 10
    assert f"{full.entropy[inside].mean():.2f}" in rows["10"]
    groups = page[page.index("Groups of structures, each evaluated") :]
    assert "deep" in groups[:1500] and "0.406" in groups[:1500]
    for label, color in ((10, TABLE.color(10)), (99, TABLE.color(99))):
        assert f".l{label}{{--c:{figures.drawn_color(color)}}}" in page


def test_what_regions_changed_is_shown_of_labels_that_changed(full):
    page = render(full)
    section = page[page.index('<h2 id="regions">') :]
    section = section[: section.index("</section>")]
    rows = re.findall(r'<th scope="row".*?</tr>', section, flags=re.S)
    cells = [re.findall(r"<td.*?>(.*?)</td>", row) for row in rows]
    assert ["background" in rows[0], "Left &lt;Thalamus&gt;" in rows[1], len(rows)] == [True, True, 2]
    assert cells[1] == ["1\u202f690", "1\u202f700", "4", "1", "12", "3", "2", "0"]
    unchanged = full.changes[full.changes["label"] == 49]
    assert "no label was changed" in words(render(dataclasses.replace(full, changes=unchanged)))


def test_least_that_there_can_be(full):
    bare = TargetReport("t", full.image, full.labels, LabelTable(), "majority")
    seen = words(render(bare))
    Balanced(render(bare))
    assert "14 structures segmented by majority fusion." in seen and "label 10" in seen
    for absent in (
        "To check",
        "Where to look",
        "Dice",
        "Atlases",
        "Recipe",
        "regions",
        "reference (dotted)",
        "uncertainty",
    ):
        assert absent not in seen


def test_structures_found_nowhere_are_said_where_there_is_no_reference(full):
    seen = words(render(dataclasses.replace(full, metrics=None, reference=None)))
    assert "2 structures without a voxel in the segmentation" in seen


def test_nothing_labelled(full):
    empty = full.labels.with_array(np.zeros(full.labels.shape, np.int32))
    page = render(TargetReport("t", full.image, empty, LabelTable(), "majority", entropy=full.entropy * 0))
    Balanced(page)
    assert "0 structures" in words(page) and "Nothing was labelled." in page


def test_neurological_convention(full):
    seen = words(render(dataclasses.replace(full, convention="neurological")))
    assert (
        "Neurological convention: the patient&#x27;s left" in seen
        or "Neurological convention: the patient's left" in seen
    )


@pytest.mark.parametrize("case", ["hippocampus/targets", "mouse_brain/atlases"])
def test_real_scans(real_data, case):
    image_path = sorted((real_data / case / "images").glob("*.nii.gz"))[0]
    image = io.read_image(image_path)
    reference = io.read_label_map(real_data / case / "labels" / image_path.name)
    moved = reference.with_array(np.roll(reference.array, 1, axis=1))
    metrics = pd.DataFrame([dataclasses.asdict(s) for s in evaluate(moved, reference)])
    entropy = (moved.array != reference.array).astype(np.float32)
    page = render(
        TargetReport("t", image, moved, LabelTable(), "joint", entropy=entropy, reference=reference, metrics=metrics)
    )
    parsed = Balanced(page)
    assert len(parsed.images) == 15 + 3
    assert len(page) < 2_500_000
    dice = metrics[metrics["label"].notna() & (metrics["metric"] == "dice")]["value"]
    assert f"Dice is {dice.mean():.3f} on average" in words(page)


def summaries(full, **changes):
    first = TargetSummary("s1", "s1/s1.html", 3.5, "", 2, "", full.volumes, full.metrics)
    picture = figures.contact(full.image, full.labels, table=TABLE)
    better = full.metrics.assign(value=[0.9, 0.7, 0.8, 2.0, 0.85], note="")
    other = TargetSummary(
        "s2", "s2/s2.html", 4.5, "", 0, picture, full.volumes.assign(volume_mm3=[617.25, 9.0, 0.0]), better
    )
    failed = TargetSummary("s<3>", error="images/s3.nii.gz: truncated", seconds=0.1)
    return [dataclasses.replace(t, **changes) for t in (first, other)] + [failed]


def test_cohort_page(full):
    report = CohortReport("hippo<campus>", "joint", summaries(full), TABLE, 15, "a = '<u>'", {"atlasseg": "9.8.7"})
    page = render_cohort(report)
    assert page == render_cohort(report)
    parsed = Balanced(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {x for x in parsed.links if not x.startswith("data:image/jpeg")} == {"s1/s1.html", "s2/s2.html"}
    seen = words(page)
    assert "2 targets segmented from 15 atlases by joint fusion." in seen
    assert "Mean Dice 0.603 (targets: 0.406 to 0.800)." in seen
    assert "1 target failed." in seen and "s&lt;3&gt; : images/s3.nii.gz: truncated" in seen
    assert "Right &amp; Thalamus 0.000" in seen  # the worst of s1
    assert page.count("<circle") == 4 + 3 and "s2: 0.900" in page  # of Dice, and of volumes that are not 0


def test_cohort_without_reference_compares_volumes(full):
    page = render_cohort(CohortReport("c", "joint", summaries(full, metrics=None), TABLE))
    Balanced(page)
    assert "Dice" not in words(page)
    assert "s1: 1.33 times the median" in page and "s2: 0.67 times the median" in page  # 1234.5 and 617.25 of 925.9
    assert page.count("<circle") == 3  # a structure of no volume has no ratio


def test_cohort_of_one_and_of_none(full):
    for targets in (summaries(full, metrics=None)[:1], []):
        page = render_cohort(CohortReport("c", "joint", targets))
        Balanced(page)
        assert "<circle" not in page


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (1234.5, "1\u202f234"),
        (0.012345, "0.0123"),
        (-2.5, "\u22122.50"),
        (99.96, "100"),
        (0.99999, "1.00"),
        (1234567, "1\u202f234\u202f567"),
    ],
)
def test_significant_digits(value, shown):
    assert templating.significant(value) == shown


def test_units_follow_the_size():
    assert templating.volume(12.34) == "12.3 mm\u00b3" and templating.volume(12340) == "12.3 ml"
    assert [templating.duration(s) for s in (0.04, 59.94, 125, 7260)] == ["0.0 s", "59.9 s", "2 min 5 s", "2 h 1 min"]
    assert templating.fixed(-0.0001, 2) == "0.00"


@pytest.mark.parametrize("id_", ["a b", "ct#2", "50%", "what?", "a&b", 'say "so"', "Kö'lner", "a:b", "100%25"])
def test_links_lead_to_the_page_of_any_name(full, tmp_path, id_):
    """A link is opened as a browser does: up to the first ``#`` or ``?``, then decoded."""
    (tmp_path / id_).mkdir()
    (tmp_path / id_ / f"{id_}.html").write_text("found")
    href = f"{id_}/{id_}.html"
    one = summaries(full)[0]
    page = render_cohort(
        CohortReport("c", "joint", [dataclasses.replace(one, target=f"{id_}{n}", href=href) for n in range(6)], TABLE)
    )
    links = [link for link in Balanced(page).links if ".html" in link]
    assert len(links) >= 6  # the table and the dots
    for link in links:
        parts = urlsplit(link)
        assert not (parts.scheme or parts.query or parts.fragment)
        assert (tmp_path / unquote(parts.path)).read_text() == "found"
