import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import nibabel
import numpy as np
import pytest

from atlasseg.labels import Label, LabelTable
from atlasseg.phantoms import tilted_grid
from atlasseg.report import viewer as module
from atlasseg.report.viewer import Candidate, script, viewer
from atlasseg.volume import Image, LabelMap

SHAPE = (23, 17, 15)
GRID = tilted_grid(SHAPE, spacing_mm=(0.8, 1.1, 1.7), angles_degrees=(9, -6, 12), centre_mm=(3, -2, 40), axes="PIL")
TABLE = LabelTable((Label(7, "seven </script>"), Label(300, "three hundred", color=(10, 20, 30))))


@pytest.fixture
def scan():
    rng = np.random.default_rng(0)
    labels = np.zeros(SHAPE, np.int32)
    labels[6:14, 5:10, 4:9] = 7
    labels[9:12, 6:8, 5:7] = 300
    return Image(rng.normal(100, 20, SHAPE), GRID.affine), LabelMap(labels, GRID.affine)


def unpacked(html, name):
    packed = re.search(rf'<script type="application/gzip" id="held-{name}">([^<]*)</script>', html)
    return gzip.decompress(base64.b64decode(packed[1]))


def volume(html, name):
    return nibabel.Nifti1Image.from_bytes(unpacked(html, name))


def facts(html):
    return json.loads(re.search(r'<script type="application/json" id="viewer-facts">(.*?)</script>', html)[1])


def test_volumes_come_back_where_they_were(scan):
    image, labels = scan
    entropy = np.linspace(0, 3, labels.array.size).reshape(SHAPE)
    html = viewer(image, labels, table=TABLE, entropy=entropy)
    told, shown = facts(html), volume(html, "labels")
    values = np.array(told["values"])[np.asarray(shown.dataobj)]
    assert shown.header["intent_code"] == 1002 and told["shape"] == list(shown.shape)
    np.testing.assert_allclose(shown.affine, told["affine"], atol=1e-5)
    for name in ("scan", "entropy"):
        np.testing.assert_allclose(volume(html, name).affine, shown.affine)
    inverse = np.linalg.inv(labels.affine) @ np.array(told["affine"])
    start = np.rint(inverse[:3, 3]).astype(int)
    box = tuple(slice(a, a + n) for a, n in zip(start, shown.shape, strict=True))
    np.testing.assert_array_equal(values, labels.array[box])
    assert (labels.array > 0).sum() == (values > 0).sum()  # nothing that is labelled is cropped away
    bits = np.asarray(volume(html, "entropy").dataobj)
    np.testing.assert_allclose(bits, np.minimum(entropy[box], 2.55), atol=0.0051)
    order = image.array[box].ravel().argsort()
    assert (np.diff(np.asarray(volume(html, "scan").dataobj).ravel()[order].astype(int)) >= 0).all()


def test_names_and_colours(scan):
    html = viewer(*scan, table=TABLE)
    told = facts(html)
    assert told["names"] == ["background", "seven </script>", "three hundred"] and told["values"] == [0, 7, 300]
    assert "seven </script>" not in html
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in told["colors"])


def test_candidates_on_a_part_of_the_grid(scan):
    image, labels = scan
    other = labels.with_array(np.where(labels.array == 300, 12, labels.array))
    part = LabelMap(labels.array[3:20, 2:15, 1:14], labels.cropped((3, 2, 1), (20, 15, 14)).affine)
    html = viewer(image, labels, table=TABLE, candidates=[Candidate("a", other), Candidate("b", part, (3, 2, 1))])
    told = facts(html)
    assert told["values"] == [0, 7, 12, 300]
    whole, a, b = (
        np.asarray(volume(html, "labels").dataobj).ravel(order="F"),
        *(np.frombuffer(unpacked(html, f"candidate-{n}"), np.uint8) for n in (0, 1)),
    )
    np.testing.assert_array_equal(b, whole)
    np.testing.assert_array_equal(a, np.where(whole == 3, 2, whole))


def test_a_page_stays_small(scan, monkeypatch):
    image, labels = scan
    noise = [labels.with_array(np.random.default_rng(n).choice([7, 300], SHAPE)) for n in range(4)]
    candidates = [Candidate(f"c{n}", each) for n, each in enumerate(noise)]
    html = viewer(image, labels, table=TABLE, candidates=candidates)
    packed = [len(found) for found in re.findall(r'id="held-candidate-\d">([^<]*)<', html)]
    assert len(packed) == 4 and "left out" not in html
    monkeypatch.setattr(module, "CANDIDATE_BYTES", sum(packed[:2]))
    html = viewer(image, labels, table=TABLE, candidates=candidates)
    assert html.count('id="held-candidate-') == html.count('<option value="candidate-') == 2
    assert "The last 2 candidates are left out" in html
    monkeypatch.setattr(module, "MOST_VOXELS", 500)
    html = viewer(image, labels, table=TABLE)
    shown = volume(html, "labels")
    assert np.prod(shown.shape) <= 500 and re.search("contains every (second|third|4th) voxel", html)
    values = np.array(facts(html)["values"])[np.asarray(shown.dataobj)]
    where = np.rint(np.argwhere(values == 7) @ (np.linalg.inv(labels.affine) @ shown.affine)[:3, :3].T).astype(int)
    where += np.rint((np.linalg.inv(labels.affine) @ shown.affine)[:3, 3]).astype(int)
    assert len(where) and (labels.array[tuple(where.T)] == 7).all()


def test_more_labels_than_a_byte_counts(scan):
    image, labels = scan
    many = labels.with_array(np.arange(labels.array.size).reshape(SHAPE) % 400)
    shown = volume(viewer(image, many, table=LabelTable()), "labels")
    assert shown.get_data_dtype() == np.uint16
    np.testing.assert_array_equal(np.asarray(shown.dataobj), many.array)


def test_nothing_labelled_nothing_uncertain(scan):
    image, labels = scan
    empty = labels.with_array(np.zeros(SHAPE, np.int32))
    html = viewer(image, empty, table=TABLE, entropy=np.zeros(SHAPE))
    assert "held-entropy" not in html and "uncertainty</label>" not in html and "Labels of" not in html
    assert volume(html, "scan").shape == SHAPE


def test_the_page_holds_niivue_as_it_was_released():
    bundle = unpacked(script(), "niivue")
    here = files("atlasseg.report") / "vendor" / "niivue"
    assert bundle == (here / "niivue.umd.js").read_bytes()
    assert hashlib.sha256(bundle).hexdigest() in (here / "README.md").read_text("utf-8")
    assert "Redistribution and use" in (here / "LICENSE").read_text("utf-8")


def test_everything_that_is_opened_is_closed(scan):
    class Balanced(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("input", "br"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    parser = Balanced()
    parser.feed(viewer(*scan, table=TABLE, candidates=[Candidate("<b>", scan[1], note="&")]) + script())
    assert parser.open == []
