import re

import numpy as np

from atlasseg.labels import Label, LabelTable
from atlasseg.report.strips import MOST_DOTS, MOST_STRIPS, Axis, strips

TABLE = LabelTable((Label(3, "three <&>"),))
AXIS = Axis(0.0, 1.0, [(0.0, "0"), (1.0, "1")], lambda v: f"{v:.3f}")


def test_a_dot_a_target():
    drawn = strips(
        {"a": {3: 0.5}, "b<": {3: 2.0, 4: 0.25}, "c": {3: float("nan")}},
        table=TABLE,
        axis=AXIS,
        hrefs={"a": "a/a.html"},
        title="Dice",
    )
    assert re.findall(r'cx="([\d.]+)"', drawn.svg) == [
        "610.0",
        "970.0",
        "430.0",
    ]  # what is beyond the axis is at its end
    assert drawn.svg.count("<a ") == 1 and "three &lt;&amp;&gt;" in drawn.svg and "b&lt;: 2.000" in drawn.svg


def test_nothing_to_draw():
    assert strips({"a": {}, "b": {3: float("nan")}}, table=TABLE, axis=AXIS, hrefs={}, title="t") is None


def test_many_targets_are_drawn_as_boxes():
    rng = np.random.default_rng(0)
    values = {f"t{n}": {3: float(v)} for n, v in enumerate(rng.uniform(0.4, 0.6, MOST_DOTS))}
    values["far"] = {3: 0.05}
    drawn = strips(values, table=TABLE, axis=AXIS, hrefs={}, title="t")
    assert drawn.svg.count("<rect") == 1 and re.findall(r"<title>(\w+):", drawn.svg) == ["far"]
    q1, q3 = np.percentile([of[3] for of in values.values()], (25, 75))
    x, width = map(float, re.search(r'<rect x="([\d.]+)".*?width="([\d.]+)"', drawn.svg).groups())
    np.testing.assert_allclose([x, x + width], [AXIS.across(q1), AXIS.across(q3)], atol=0.11)
    assert len(drawn.svg) < 3000


def test_of_many_structures_those_that_differ_most():
    values = {t: {v: 0.5 + sign * v / 1000 for v in range(1, MOST_STRIPS + 6)} for t, sign in (("a", 1), ("b", -1))}
    drawn = strips(values, table=LabelTable(), axis=AXIS, hrefs={}, title="t")
    assert (
        "label 6<" in drawn.svg and "label 5<" not in drawn.svg and f"{MOST_STRIPS} of {MOST_STRIPS + 5}" in drawn.about
    )
