"""Names are text: whatever they hold, a page has the same elements, and a reader sees them as they are."""

import json
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from atlasseg import templating
from atlasseg.api.registration import PairwiseRegistration
from atlasseg.evaluation import evaluate
from atlasseg.evaluation.comparison import Comparison, paired_tests, rank_methods
from atlasseg.labels import Label, LabelTable
from atlasseg.phantoms import head, tilted_grid
from atlasseg.report import CohortReport, TargetReport, TargetSummary, figures, render, render_cohort, tissue_page
from atlasseg.report.comparison import comparison_sections, render_comparison
from atlasseg.report.viewer import Candidate
from atlasseg.tissues import Tissues
from atlasseg.transforms import Affine
from atlasseg.volume import Atlas, Image, ProbabilityMap

PLAIN = "an ordinary name"
HOSTILE = ("<script>x()</script>&lt;b", "\"&'>{{ 7 }}{% raw %}]]><!--")
VOID = {"meta", "input", "br", "link", "img"}
MACROS_ONLY = ("macros", "target_sections", "comparison_sections", "figures", "viewer", "notebook")


class Parsed(HTMLParser):
    """Elements, attributes and texts of a page, in order; fails where an element is closed that is not open."""

    def __init__(self, page):
        super().__init__()
        self.found, self.open, self.scripts = [], [], 0
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.found.append((tag, [(k, unquote(v) if k == "href" and v[:5] != "data:" else v) for k, v in attrs]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.found.append(("/" + tag, []))

    def handle_data(self, data):
        if self.open[-1:] == ["script"] and '"names"' in data:
            data = json.loads(data)
        if self.found and self.found[-1][0] == "":
            data = self.found.pop()[1] + data
        self.found.append(("", data))

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")


@pytest.fixture(scope="module")
def scene():
    made = head(grid=tilted_grid((17, 21, 14), spacing_mm=(2.7, 2.6, 2.8)), seed=1, subsamples=1)
    labels = made.labels.with_array(np.where(made.labels.array == 49, 0, made.labels.array))
    entropy = (np.random.default_rng(0).random(labels.shape) * (labels.array > 0)).astype(np.float32)
    return made.image, labels, made.labels, entropy


def table(name):
    return LabelTable((Label(10, name, group=name), Label(49, f"b {name}"), Label(99, f"c {name}")))


def volumes(name):
    return pd.DataFrame({"label": [10, 49, 99], "name": name, "voxels": [1700, 0, 0], "volume_mm3": [1234.5, 9.0, 0.0]})


def metrics(name):
    rows = [(10, name, "dice", 0.8, ""), (49, name, "dice", 0.0, name), (99, name, "hausdorff_95_mm", 3.0, "missed")]
    rows += [(None, name, "dice", 0.4, "")]
    return pd.DataFrame(rows, columns=["label", "name", "metric", "value", "note"]).astype({"label": "Int64"})


def target_report(scene, name, **changes):
    image, labels, reference, entropy = scene
    columns = ["voxels_before", "voxels_after", "parts_before", "parts_after", "by_region", "islands", "holes"]
    given = {
        "entropy": entropy,
        "reference": reference,
        "volumes": volumes(name),
        "metrics": metrics(name),
        "atlases": pd.DataFrame(
            {"atlas": [name, "b"], "similarity": 0.5, "voted": ["no", "yes"], "reason": [name, ""]}
        ),
        "changes": pd.DataFrame({"label": [0, 10], **{key: [3, 4] for key in columns}, "restored": [0, 1]}),
        "seconds": {name: 3.0, "total": 4.0},
        "recipe": name,
        "predicted": {10: 0.6},
        "candidates": [Candidate(name, reference, note=name)],
        "warnings": (name,),
        "versions": {name: name, "atlasseg": name},
        "home": f"{name}.html",
    }
    return TargetReport(name, image, labels, table(name), name, **{**given, **changes})


def cohort_report(scene, name, comparison=""):
    picture = figures.contact(*scene[:2], table=table(name))
    targets = [
        TargetSummary(
            f"{n}{name}",
            f"{name}/{name}.html",
            1.0 + n,
            picture=picture,
            volumes=volumes(name).assign(volume_mm3=[800.0 + n if n else 9000.0, 5.0, 0.0]),
            metrics=metrics(name),
            predicted={10: 0.5 + 0.01 * n},
            findings=[(name, name)] if n == 2 else [],
        )
        for n in range(7)
    ]
    targets.append(TargetSummary(name, error=name))
    return CohortReport(name, name, targets, table(name), 3, name, {name: name}, comparison)


def compared(name):
    scores = pd.DataFrame(
        {name: np.linspace(0.7, 0.8, 9), f"b {name}": np.linspace(0.6, 0.7, 9), f"c {name}": np.linspace(0.5, 0.6, 9)},
        index=pd.Index([f"{n} {name}" for n in range(9)], name="target"),
    )
    rows = [
        (target, method, label, name, "dice", value, "")
        for method in scores
        for target, value in scores[method].items()
        for label in (2, None)
    ]
    long = pd.DataFrame(rows, columns=["target", "method", "label", "name", "metric", "value", "note"])
    return long.astype({"label": "Int64"}), scores, paired_tests(scores), rank_methods(scores)


def tissue_report(scene, name):
    image, _, reference, _ = scene
    inside = reference.array > 0
    labels = reference.with_array(np.where(inside, 1 + np.arange(inside.size).reshape(inside.shape) % 2, 0))
    bias = Image(np.linspace(1, 2, inside.size, dtype=np.float32).reshape(inside.shape), image.affine)
    means = np.ones((2, 1))
    found = Tissues(labels, ProbabilityMap.from_labels(labels), image, bias, means, means)
    rows = pd.DataFrame(
        {"label": [1, 2], "name": name, "voxels": 5, "volume_mm3": [2000.0, 3.0], "fraction_volume_mm3": [1900.0, 4.0]}
    )
    names = LabelTable((Label(1, name), Label(2, f"b {name}")))
    return tissue_page.TissueReport(
        name, name, image, found, names, rows, {"total": 3.0}, name, (name,), {name: name, "atlasseg": name}
    )


def target_page(scene, name):
    return render(target_report(scene, name))


def target_page_without_reference(scene, name):
    return render(target_report(scene, name, metrics=None, reference=None, viewer=False))


def cohort_page(scene, name):
    return render_cohort(cohort_report(scene, name, comparison_sections(*compared(name))))


def comparison_page(scene, name):
    return render_comparison(*compared(name), recipe=name, versions={name: name}, left_out={name: name})


def tissues(scene, name):
    return tissue_page.render(tissue_report(scene, name))


def notebook(scene, name):
    image, labels, reference, _ = scene
    named = Image(image.array, image.affine, name)
    evaluated = evaluate(labels, reference, table=table(name))
    object.__setattr__(evaluated, "title", name)
    object.__setattr__(evaluated, "notes", (name,))
    values = (
        named,
        Atlas(name, named, labels),
        PairwiseRegistration(named, named, Affine.identity(), name),
        evaluated,
        Comparison.from_metrics(compared(name)[0]),
    )
    return "".join(value._repr_html_() for value in values)


PAGES = (target_page, target_page_without_reference, cohort_page, comparison_page, tissues, notebook)


def renamed(found, name):
    """What was found, with the ordinary name in place of another, also where underscores of methods are spaces."""
    if isinstance(found, str):
        return found.replace(name, PLAIN)
    if isinstance(found, dict):
        return {key: renamed(value, name) for key, value in found.items()}
    return type(found)(renamed(each, name) for each in found) if isinstance(found, list | tuple) else found


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_same_elements_whatever_the_names(scene, page):
    ordinary = Parsed(page(scene, PLAIN))
    assert sum(PLAIN in str(each) for each in ordinary.found) >= 4
    for name in HOSTILE:
        awkward = Parsed(page(scene, name))
        assert awkward.scripts == ordinary.scripts
        assert renamed(awkward.found, name) == ordinary.found, name


@pytest.mark.parametrize("template", MACROS_ONLY)
def test_macros_use_nothing_but_their_arguments(template):
    """Also in branches that no test takes."""
    from jinja2 import meta, nodes

    environment = templating.environment()
    parsed = environment.parse(environment.loader.get_source(environment, f"{template}.html.j2")[0])
    assigned = {name.name for name in parsed.find_all(nodes.Name) if name.ctx == "store"}
    assert meta.find_undeclared_variables(parsed) - assigned <= {"asset"}


def test_a_name_that_is_missing_is_an_error():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="value"):
        templating.render_macro("target_sections.html.j2", "groups", heads=[], rows=[("a", [{"decimals": 2}])])
    with pytest.raises(UndefinedError, match="target"):
        templating.render("target.html.j2")
