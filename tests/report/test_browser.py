"""The pages in a real browser: Chromium, without a screen, drawing WebGL 2 in software."""

import io
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image as Picture

from atlasseg.labels import Label, LabelTable
from atlasseg.phantoms import tilted_grid
from atlasseg.report import CohortReport, TargetReport, TargetSummary, figures, render, render_cohort
from atlasseg.report.viewer import Candidate
from atlasseg.volume import Image, LabelMap

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRAWS_IN_SOFTWARE = [
    "--headless=new",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-gpu-rasterization",
]
PATIENCE_MS = 240_000

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=DRAWS_IN_SOFTWARE, timeout=PATIENCE_MS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Opens a page and returns it; at the end nothing may have been said in its console, or asked of a network."""
    heard, opened = [], []

    def visited(path, *, width=1280, height=900, before=""):
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: heard.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: heard.append(str(error)))
        here = path.as_uri()
        page.on("request", lambda r: heard.append(r.url) if not r.url.startswith((here, "data:", "blob:")) else None)
        if before:
            page.add_init_script(before)
        page.goto(here)
        opened.append(page)
        return page

    yield visited
    for page in opened:
        page.close()
    assert heard == []


@pytest.fixture(scope="module")
def scene():
    """An egg of two labels, left and right, in a scan of noise."""
    shape = (29, 33, 26)
    grid = tilted_grid(shape, spacing_mm=(1.4, 1.3, 1.6), axes="LPS")
    points = np.argwhere(np.ones(shape, bool)) @ grid.affine[:3, :3].T + grid.affine[:3, 3] - grid.centre_mm
    inside = ((points / (13, 15, 14)) ** 2).sum(1) < 1
    labels = LabelMap(np.where(inside, np.where(points[:, 0] < 0, 10, 49), 0).reshape(shape), grid.affine)
    noise = np.random.default_rng(0).normal(100, 20, shape)
    entropy = np.random.default_rng(1).random(shape).astype(np.float32) * inside.reshape(shape)
    return Image(noise, grid.affine), labels, entropy


@pytest.fixture(scope="module")
def target_page(scene, tmp_path_factory):
    image, labels, entropy = scene
    moved = labels.with_array(np.roll(labels.array, 3, axis=0))
    part = labels.cropped((4, 4, 4), (25, 19, 12))
    report = TargetReport(
        target="one <b>",
        image=image,
        labels=labels,
        table=LabelTable((Label(10, "Left <Thalamus>"), Label(49, "Right & Thalamus"))),
        fusion="joint",
        entropy=entropy,
        candidates=[Candidate("atlas a<1>", moved, note="similarity 0.91"), Candidate("atlas b", part, (4, 4, 4))],
    )
    path = tmp_path_factory.mktemp("page") / "one.html"
    path.write_text(render(report), encoding="utf-8")
    return path


def ready(page):
    page.wait_for_selector("#viewer[data-state=ready], #viewer[data-state=failed]", state="attached")
    assert page.locator("#viewer").get_attribute("data-state") == "ready", page.locator(".wait").text_content()
    page.locator("#viewer canvas").scroll_into_view_if_needed()
    return page


def drawn(page):
    """What the canvas shows, (rows, columns, 3)."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    shot = page.locator("#viewer canvas").screenshot(timeout=PATIENCE_MS, animations="disabled")
    return np.asarray(Picture.open(io.BytesIO(shot)).convert("RGB")).astype(int)


def colored(picture):
    """Share of the pixels that are not grey."""
    return float((np.ptp(picture, axis=2) > 20).mean())


def test_the_volume_is_drawn_and_controls_work(visit, target_page):
    page = ready(visit(target_page))
    first = drawn(page)
    assert len(np.unique(first)) > 50 and 0.2 < (first.max(2) > 20).mean() < 0.98  # a picture, not a blank
    assert colored(first) > 0.05

    slider = page.locator("input[data-axis='2']")
    where = page.locator("output[data-mm='2']").text_content()
    slider.fill(str(int(slider.input_value()) + 3))
    assert page.locator("output[data-mm='2']").text_content() != where
    moved = drawn(page)
    assert (moved != first).any()

    page.locator("#viewer-labels").uncheck()
    bare = drawn(page)
    assert colored(bare) < 0.1 * colored(moved)
    page.locator("#viewer-labels").check()
    assert (drawn(page) == moved).all()

    page.locator("#viewer-uncertainty").check()
    assert (drawn(page) != moved).any()
    page.locator("#viewer-uncertainty").uncheck()
    page.locator("#viewer-outlines").check()
    outlined = drawn(page)
    assert (outlined == bare).all(2).mean() > 1.05 * (moved == bare).all(2).mean()  # what is within shows the scan
    page.locator("#viewer-outlines").uncheck()
    page.locator("#viewer-opacity").fill("90")
    assert np.ptp(drawn(page), axis=2).mean() > 1.2 * np.ptp(moved, axis=2).mean()


def test_candidates_are_stepped_through(visit, target_page):
    page = ready(visit(target_page))
    assert page.locator("#viewer-candidate option").all_text_contents() == [
        "the segmentation",
        "atlas a<1>, similarity 0.91",
        "atlas b",
    ]
    pictures = [drawn(page)]
    for chosen in ("candidate-0", "candidate-1", "labels"):
        page.locator("button[data-step='1']").click()
        assert page.locator("#viewer-candidate").input_value() == chosen
        page.wait_for_timeout(300)
        pictures.append(drawn(page))
    assert (pictures[0] == pictures[3]).all()
    assert (pictures[0] != pictures[1]).any() and (pictures[1] != pictures[2]).any()
    page.locator("#viewer-candidate").select_option("candidate-0")
    page.wait_for_timeout(300)
    assert (drawn(page) == pictures[1]).all()


def test_single_structures_are_found_and_hidden(visit, target_page, scene):
    page = ready(visit(target_page))
    page.locator("#viewer-filter").fill("left <thal")
    shown = page.locator(".list li:visible")
    assert shown.count() == 1
    shown.locator("button").click()
    assert page.locator("#viewer-where").text_content().startswith("Left <Thalamus>, uncertainty")
    labels = scene[1]
    grid = labels.grid
    centre = np.argwhere(labels.array == 10).mean(0) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    for axis, letters in enumerate(("LR", "PA", "IS")):
        side, mm, _ = page.locator(f"output[data-mm='{axis}']").text_content().split()
        assert float(mm) * (1 if side == letters[1] else -1) == pytest.approx(centre[axis], abs=2)
    there = drawn(page)
    shown.locator("input").uncheck()
    assert (drawn(page) != there).any()
    page.locator("#viewer-filter").fill("")
    page.locator("button[data-all=false]").click()
    assert colored(drawn(page)) < 0.1 * colored(there)


def test_everything_works_by_keyboard(visit, target_page):
    page = ready(visit(target_page))
    page.locator("#viewer canvas").focus()
    before = drawn(page)
    for key, axis in (("ArrowLeft", 0), ("ArrowUp", 1), ("PageUp", 2)):
        slider = page.locator(f"input[data-axis='{axis}']")
        was = int(slider.input_value())
        page.keyboard.press(key)
        assert int(slider.input_value()) == was + 1, key  # left in the picture is the body's right
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("PageDown")
    assert (drawn(page) == before).all()
    for key, box in (("l", "labels"), ("o", "outlines"), ("u", "uncertainty")):
        was = page.locator(f"#viewer-{box}").is_checked()
        page.keyboard.press(key)
        assert page.locator(f"#viewer-{box}").is_checked() is not was
    page.keyboard.press("]")
    assert page.locator("#viewer-candidate").input_value() == "candidate-0"
    page.keyboard.press("[")
    assert page.locator("#viewer-candidate").input_value() == "labels"
    page.locator("input[data-axis='0']").focus()
    was = page.locator("output[data-mm='0']").text_content()
    page.keyboard.press("ArrowRight")
    assert page.locator("output[data-mm='0']").text_content() != was


def test_without_webgl_the_page_says_so(visit, target_page):
    page = visit(target_page, before="HTMLCanvasElement.prototype.getContext = () => null")
    page.wait_for_selector("#viewer[data-state=failed]", state="attached")
    assert "no WebGL 2" in page.locator(".wait").text_content()


@pytest.mark.parametrize("width", [1280, 800, 400])
def test_nothing_reaches_beyond_the_window(visit, target_page, width):
    page = visit(target_page, width=width)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_everything_has_a_name(visit, target_page):
    """Every control and picture says what it is to those who do not see it."""
    page = ready(visit(target_page))
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, select, button, canvas, img, svg[role=img]")]
             .filter((e) => !(e.getAttribute("aria-label") || e.alt || e.labels?.length || e.textContent.trim()))
             .map((e) => e.outerHTML)"""
    )
    assert unnamed == []


def test_cohort_page(visit, scene, tmp_path):
    picture = figures.contact(*scene[:2], table=LabelTable())
    targets = [
        TargetSummary(
            f"t{n}",
            f"t{n}/t{n}.html",
            n,
            picture=picture,
            volumes=pd.DataFrame({"label": [10], "name": ["a"], "voxels": [5], "volume_mm3": [50.0 + n if n else 9.0]}),
        )
        for n in range(8)
    ]
    path = tmp_path / "index.html"
    path.write_text(render_cohort(CohortReport("all", "joint", targets)), encoding="utf-8")
    page = visit(path, width=1000)
    assert page.locator("ul.sheet img").evaluate_all("(all) => all.every((i) => i.naturalWidth > 100)")
    names = page.locator("section:has(#targets) tbody th")
    assert names.first.text_content() == "t0"  # the one that stands out, by its volume
    page.locator("section:has(#targets) thead button", has_text="Seconds").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert names.first.text_content() == "t7"
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 1000
