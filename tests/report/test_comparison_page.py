import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from atlasseg.evaluation.comparison import paired_tests, rank_methods
from atlasseg.report.comparison import _not_told_apart, _ticks, render_comparison

VOID = {"meta", "input", "br", "link", "img"}


def rendered(scores, *, metrics=None, **options):
    """The page on a table of scores, the rest of the figures made up around it."""
    if metrics is None:
        metrics = long_form(scores)
    versions = {"atlasseg": "9.8.7"}
    tests = paired_tests(scores)
    return render_comparison(
        metrics, scores, tests, rank_methods(scores), recipe='[fusion]\nmethod = "<i>"', versions=versions, **options
    )


def long_form(scores, labels=((2, "left <a>"), (7, "right & b"))):
    rows = []
    for method in scores.columns:
        for target, value in scores[method].items():
            for sign, (label, name) in zip((-1, 1), labels, strict=True):
                rows.append((target, method, label, name, "dice", value + 0.01 * sign, ""))
                rows.append((target, method, label, name, "hausdorff_95_mm", 4.0 + sign, ""))
            rows.append((target, method, None, "foreground", "dice", 0.123, ""))
            costs = {"seconds": 12.5, "peak_memory_mb": np.nan, "expected_calibration_error": 0.0321}
            rows += [(target, method, None, "all", metric, cost, "") for metric, cost in costs.items()]
    table = pd.DataFrame(rows, columns=["target", "method", "label", "name", "metric", "value", "note"])
    return table.astype({"label": "Int64"})


def of(targets, **methods):
    return pd.DataFrame(methods, index=pd.Index([f"t{n}" for n in range(targets)], name="target"))


def graded(targets, methods, *, step=0.01, noise=0.0):
    rng = np.random.default_rng(3)
    easy = 0.8 + 0.05 * rng.standard_normal(targets)
    noisy = {f"m_{n}": easy - step * n + noise * rng.standard_normal(targets) for n in range(methods)}
    return of(targets, **noisy)


def words(page):
    body = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", body))


class Balanced(HTMLParser):
    """Fails where an element is closed that is not open."""

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.links, self.pictures = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[k] for k in ("href", "src") if k in found]
        self.pictures += [found.get("aria-label")] if tag == "svg" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize(("targets", "methods"), [(1, 2), (3, 2), (8, 5), (15, 12)])
def test_page_is_whole_and_the_same_every_time(targets, methods):
    page = rendered(graded(targets, methods, noise=0.02))
    assert page == rendered(graded(targets, methods, noise=0.02))
    parsed = Balanced(page)
    assert len(parsed.ids) == len(set(parsed.ids)) and parsed.links == []
    assert len(parsed.pictures) == 2 and all("m 1" in said for said in parsed.pictures)
    assert "url(" not in page and "@import" not in page and "nan" not in words(page).lower()
    assert "left &lt;a&gt;" in page and "right &amp; b" in page and "left <a>" not in page and "<i>" not in page


def test_cover_says_whether_the_difference_is_significant():
    seen = words(rendered(graded(12, 3)))
    assert "m 0 has the best mean rank on 12 targets" in seen and "mean rank 1.00 of 3" in seen
    assert "The difference from every other method is significant" in seen

    seen = words(rendered(graded(3, 3)))
    assert "No difference can be significant with so few targets: for 3 pairs of methods on 3 targets" in seen
    assert "the smallest possible corrected p is 0.75" in seen

    seen = words(rendered(graded(12, 3, step=0.0, noise=0.01)))
    assert "Its difference from the other methods is not significant" in seen

    one = graded(12, 3)
    wiggle = np.where(np.arange(12) % 3 == 0, 0.02, -0.001)
    one["m_1"] = one["m_0"] + wiggle
    seen = words(rendered(one))
    assert "m 0 has the best mean rank" in seen and "Its difference from m 2 is significant" in seen
    assert "its difference from m 1 is not significant" in seen
    assert f"m 1 has the highest mean Dice, {one['m_1'].mean():.3f}." in seen

    even = of(4, a=[0.5, 0.6, 0.7, 0.8], b=[0.5, 0.6, 0.7, 0.8])
    assert "a and b share the first rank on 4 targets." in words(rendered(even))


def test_methods_left_out_are_named_with_their_reason():
    page = rendered(graded(3, 2), left_out={"joint+mend_er": "its model was trained <elsewhere>"})
    assert "Left out joint+mend er: its model was trained &lt;elsewhere&gt;" in words(page.replace("</h2>", " "))
    Balanced(page)
    assert "Left out" not in rendered(graded(3, 2))


def test_figures_are_those_given():
    scores = of(6, slow_one=[0.8, 0.7, 0.9, 0.6, 0.8, 0.7], other=[0.7, 0.6, 0.8, 0.5, 0.9, 0.6])
    metrics = long_form(scores)
    metrics.loc[metrics.index[0], "note"] = "missed"
    page = rendered(scores, metrics=metrics)
    row = re.search(r'<tr><th scope="row" data-value="slow_one">slow one</th>(.*?)</tr>', page).group(1)
    cells = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td.*?</td>", row)]
    assert cells == ["0.7500", "0.1049", "0.600 t3", "4.00", "1", "0.0321", "12.5", "–", "1.17"]
    heat = re.search(r'<tr><th scope="row">left &lt;a&gt;</th>(.*?)</tr>', page).group(1)
    found = re.findall(r'<span class="(tint[ a-z]*)" style="--tint:1.00">(.*?)</span>', heat)
    assert found == [("tint", "<b>0.740</b>"), ("tint below", "0.673")]
    test = words(re.search(r"<tbody>\s*(<tr><th[^>]*>slow one</th><td[^>]*>other.*?)</tbody>", page, re.S).group(1))
    assert "0.0667" in test and "5 : 1" in test and "no" in test
    dots = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', page)]
    values = np.r_[scores["slow_one"], scores["other"]]
    slope, shift = np.polyfit(values, dots, 1)
    np.testing.assert_allclose(slope * values + shift, dots, atol=0.1)  # they are written to 0.1
    assert slope > 0


def test_diagram_joins_what_lies_less_than_the_difference_apart():
    assert _not_told_apart([1, 2, 3], 0.5) == []
    assert _not_told_apart([1, 2, 3], 1.0) == []
    assert _not_told_apart([1, 2, 3], 1.1) == [(0, 1), (1, 2)]
    assert _not_told_apart([1, 1.5, 3, 3.2, 5], 1.75) == [(0, 1), (1, 3)]
    assert _not_told_apart([1, 2, 3], 9) == [(0, 2)]
    scores = graded(15, 4)
    page = rendered(scores)
    axis = {int(n): float(x) for x, n in re.findall(r'<text class="axis" x="([\d.]+)" y="43.0">(\d)</text>', page)}
    bars = [
        [float(a) + 4, float(b) - 4] for a, b in re.findall(r'class="together" d="M([\d.]+) [\d.]+H([\d.]+)"', page)
    ]
    assert len(axis) == 4 and rank_methods(scores).critical_difference == pytest.approx(1.211, abs=1e-3)
    np.testing.assert_allclose(bars, [[axis[n], axis[n + 1]] for n in (1, 2, 3)], atol=0.1)


@pytest.mark.parametrize(("low", "high"), [(0.61, 0.87), (0.0, 1.0), (0.7, 0.7), (0.8412, 0.8433)])
def test_ticks_span_the_values(low, high):
    ticks = _ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 9
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_in_a_browser(tmp_path):
    (tmp_path / "page.html").write_text(rendered(graded(8, 5, noise=0.02)))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    made = subprocess.run(
        [*command, "--disable-background-networking", "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert len(re.findall(r"<table class=.sorts.", made.stdout)) == 4
    assert re.search(r'<th scope="col"[^>]*><button type="button">', made.stdout)  # the script ran to its end
