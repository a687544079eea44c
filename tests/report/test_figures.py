import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon
from PIL import Image as Picture

from atlasseg.errors import GeometryError
from atlasseg.labels import Label, LabelTable
from atlasseg.phantoms import tilted_grid
from atlasseg.report import figures
from atlasseg.volume import Grid, Image, LabelMap

SHAPE = (17, 13, 11)
TABLE = LabelTable((Label(7, "seven <&>"), Label(12, "twelve")))


def scene(axes="LSA", angles_degrees=(9, -6, 12), spacing_mm=(0.8, 1.1, 1.7)):
    """A scan whose one bright spot lies toward right, anterior and superior, in a label that fills the middle."""
    grid = tilted_grid(SHAPE, spacing_mm=spacing_mm, angles_degrees=angles_degrees, centre_mm=(3, -2, 40), axes=axes)
    points = np.argwhere(np.ones(SHAPE, bool)) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    inside = (np.abs((points - grid.centre_mm) / (4.6, 4.7, 4.4)) < 1).all(1).reshape(SHAPE)
    spot = np.linalg.norm(points - grid.centre_mm - (2, 2.5, 2.5), axis=1).reshape(SHAPE) < 2.4
    labels = np.where(inside, 7, 0)
    labels[spot] = 12
    image = Image((20 + 30 * inside + 100 * spot).astype(np.float32), grid.affine)
    return image, LabelMap(labels, grid.affine)


def png(svg, kind=r"<image "):
    data = re.search(kind + r'[^>]*href="data:image/png;base64,([^"]+)"', svg)[1]
    return np.asarray(Picture.open(io.BytesIO(base64.b64decode(data))))


def view_box(svg):
    return [float(x) for x in re.search(r'viewBox="0 0 (\S+) (\S+)"', svg).groups()]


def letters(svg):
    """The four marks: left, right, top, bottom."""
    return re.findall(r"<text x=[^>]*>([A-Z])</text>", svg)


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS", "PSR", "ILA"])
@pytest.mark.parametrize("convention", ["radiological", "neurological"])
def test_the_bright_spot_is_on_the_side_that_the_marks_say(axes, convention):
    image, labels = scene(axes)
    panels = figures.mosaic(image, labels, table=TABLE, columns=3, convention=convention)
    assert [p.plane for p in panels] == ["axial"] * 3 + ["coronal"] * 3 + ["sagittal"] * 3
    for plane in figures.PLANES:
        brightest = max((p for p in panels if p.plane == plane), key=lambda p: png(p.svg).astype(int).sum())
        picture = png(brightest.svg)
        rows, columns = np.nonzero(picture > 200)
        left, right, top, bottom = letters(brightest.svg)
        assert rows.mean() < (picture.shape[0] - 1) / 2  # anterior and superior are up
        assert (columns.mean() > (picture.shape[1] - 1) / 2) == (right in "RA")
        expected = {"axial": ("RL", "A", "P"), "coronal": ("RL", "S", "I"), "sagittal": ("AP", "S", "I")}[plane]
        sides = expected[0] if plane == "sagittal" or convention == "radiological" else expected[0][::-1]
        assert (left + right, top, bottom) == (sides, *expected[1:])


def test_places_ascend_and_are_those_of_the_voxels():
    image, labels = scene("LPS", angles_degrees=(0, 0, 0))
    panels = figures.mosaic(image, labels, table=TABLE, columns=3)
    for plane, axis in (("axial", 2), ("coronal", 1), ("sagittal", 0)):
        found = [p.position_mm for p in panels if p.plane == plane]
        assert found == sorted(found)
        # of an upright grid, every slice lies at a voxel's own coordinate
        step = image.grid.spacing_mm[axis]
        off = (np.array(found) - image.affine[axis, 3]) / step
        np.testing.assert_allclose(off, np.round(off), atol=1e-9)
    assert panels[0].place == f"S {panels[0].position_mm:.0f} mm"
    fine = figures.mosaic(*scene(spacing_mm=(0.2, 0.3, 0.4)), table=TABLE)[0]
    assert fine.place == f"S {fine.position_mm:.1f} mm"


def test_voxels_have_their_true_aspect():
    grid = Grid(SHAPE, np.diag([0.5, 2.0, 3.0, 1.0]))
    labels = LabelMap(np.full(SHAPE, 7), grid.affine)
    panels = figures.mosaic(Image(np.zeros(SHAPE), grid.affine), labels, table=TABLE, columns=1)
    sizes = {p.plane: view_box(p.svg) for p in panels}
    assert sizes == {"axial": [8.5, 26.0], "coronal": [8.5, 33.0], "sagittal": [26.0, 33.0]}
    assert 'scale(0.25 1)"' in panels[0].svg  # outlines are in half voxels


def inside_of(path, shape):
    """Which voxels have their centre inside of path data in half voxels, by the even-odd rule."""
    centres = np.argwhere(np.ones(shape, bool))[:, ::-1] * 2 + 1
    odd = np.zeros(len(centres), bool)
    for x, y, rest in re.findall(r"M(-?\d+) (-?\d+)l([^z]*)z", path):
        steps = np.array([int(n) for n in re.findall(r"-?\d+", rest)]).reshape(-1, 2)
        corners = np.cumsum(np.vstack(([int(x), int(y)], steps)), axis=0)
        odd ^= Polygon(corners).contains_points(centres)
    return odd.reshape(shape)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(7, 9), (1, 6), (5, 1)]))
def test_an_outline_holds_the_voxels_of_its_label_and_no_others(seed, shape):
    picture = np.random.default_rng(seed).choice(np.array([0, 7, 12, -3], np.int32), shape)
    found = dict(figures._outlines(picture))
    assert set(found) == set(np.unique(picture).tolist()) - {0}
    for label, path in found.items():
        np.testing.assert_array_equal(inside_of(path, shape), picture == label)


def test_outlines_have_holes_and_runs_are_joined():
    picture = np.full((5, 7), 7)
    picture[2, 3] = 0
    ((_, path),) = figures._outlines(picture)
    assert path.count("M") == 2
    assert max(abs(int(n)) for n in re.findall(r"-?\d+", path)) == 12  # the long side is one step, not six


def test_labels_of_the_pictures_are_named_and_escaped():
    image, labels = scene()
    panels = figures.mosaic(image, labels, table=TABLE)
    assert any("<title>seven &lt;&amp;&gt;</title>" in p.svg for p in panels)
    assert all(re.search(r'role="img" aria-label="[^"]*slice at [^"]+"', p.svg) for p in panels)
    assert not any("seven <" in p.svg for p in panels)
    names = [n for p in panels for n in re.findall(r'id="([^"]+)"', p.svg)]
    assert len(names) == len(set(names)) and all(f'href="#{n}"' in "".join(p.svg for p in panels) for n in names)


def test_uncertainty_is_shown_where_it_is():
    image, labels = scene("RAS", angles_degrees=(0, 0, 0))
    assert figures.where_to_look(image, labels, np.zeros(SHAPE, np.float32), table=TABLE) == []
    entropy = np.zeros(SHAPE, np.float32)
    entropy[9, 7, 4], entropy[8, 6, 5] = 1.5, 0.25
    panels = figures.where_to_look(image, labels, entropy, table=TABLE)
    places = [p.position_mm for p in panels]
    np.testing.assert_allclose(places, image.affine[[2, 1, 0], 3] + np.array([4, 7, 9]) * image.spacing_mm[::-1])
    veil = png(panels[0].svg, r'<image class="entropy" ')
    assert tuple(veil[..., :3].reshape(-1, 3).max(0)) == figures.UNCERTAIN_RGB
    assert np.count_nonzero(veil[..., 3]) == 1 and veil[..., 3].max() == 255
    mosaic = figures.mosaic(image, labels, table=TABLE, entropy=entropy, columns=17)
    assert sum('class="entropy"' in p.svg for p in mosaic if p.plane == "axial") == 2


def test_the_reference_is_outlined_and_stays_in_the_picture():
    image, labels = scene("RAS")
    nothing = labels.with_array(np.zeros(SHAPE, np.int32))
    panels = figures.mosaic(image, nothing, table=TABLE, reference=labels)
    assert all('class="reference"' in p.svg and 'class="outlines"' not in p.svg for p in panels)
    assert all("no label in it" in p.svg for p in panels)


def test_nothing_labelled_shows_the_middle_of_the_scan():
    image, labels = scene("RAS")
    panels = figures.mosaic(image, labels.with_array(np.zeros(SHAPE, np.int32)), table=TABLE)
    assert [p.plane for p in panels] == list(figures.PLANES)
    assert png(panels[0].svg).shape == (SHAPE[1], SHAPE[0])


def test_the_picture_is_cropped_around_the_labels():
    shape = (60, 50, 40)
    labels = np.zeros(shape, np.int32)
    labels[30:40, 20:25, 10:30] = 7
    panels = figures.mosaic(Image(np.zeros(shape), np.eye(4)), LabelMap(labels, np.eye(4)), table=TABLE, columns=1)
    margin = 2 * int(figures.MARGIN * 20)
    assert view_box(panels[0].svg) == [10 + margin, 5 + margin]


def test_several_channels_show_the_first():
    image, labels = scene("RAS")
    both = Image(np.stack([image.array, -image.array], axis=-1), image.affine)
    first, single = (figures.contact(i, labels, table=TABLE) for i in (both, image))
    assert first == single


@pytest.mark.parametrize("convention", ["radiological", "neurological"])
@pytest.mark.parametrize("axes", ["RAS", "PSR", "ILA"])
def test_contact_sheet_shows_the_planes_as_the_large_pictures_do(axes, convention):
    image, labels = scene(axes, angles_degrees=(0, 0, 0))
    html = figures.contact(image, labels, table=TABLE, convention=convention)
    data = re.search(r'src="data:image/jpeg;base64,([^"]+)"', html)[1]
    sheet = np.asarray(Picture.open(io.BytesIO(base64.b64decode(data)))).astype(int)
    assert sheet.shape[0] == figures.CONTACT_PIXELS and 'alt="Axial, coronal and sagittal' in html
    panels = figures.mosaic(image, labels, table=TABLE, columns=1, convention=convention)
    begin = 0
    for panel in panels:
        width_mm, height_mm = view_box(panel.svg)
        tile = sheet[:, begin : begin + round(figures.CONTACT_PIXELS * width_mm / height_mm)]
        begin += tile.shape[1] + 2
        grey = np.asarray(Picture.fromarray(png(panel.svg)).resize(tile.shape[1::-1], Picture.Resampling.BILINEAR))
        plain = np.ptp(tile, axis=2) < 12  # outside the labels
        assert plain.mean() > 0.3 and np.abs(tile.mean(2) - grey)[plain].mean() < 6
        assert (~plain).mean() > 0.1
    assert begin == sheet.shape[1] + 2


def test_tilt():
    assert figures.tilt_degrees(tilted_grid(SHAPE, axes="PSR", angles_degrees=(0, 0, 0))) == pytest.approx(0, abs=1e-5)
    assert figures.tilt_degrees(tilted_grid(SHAPE, axes="LAS", angles_degrees=(0, 14, 0))) == pytest.approx(14)


def test_colours_can_be_seen_on_a_dark_scan():
    assert figures.drawn_color((230, 159, 0)) == "#e69f00"  # bright enough: as given
    for dark in ((0, 0, 0), (0, 0, 128), (60, 60, 122)):
        red, green, blue = (int(figures.drawn_color(dark)[n : n + 2], 16) for n in (1, 3, 5))
        assert (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255 > 0.37


def test_volumes_must_share_the_grid():
    image, labels = scene("RAS")
    elsewhere = LabelMap(labels.array, labels.affine + np.eye(4)[:, 3:] @ np.zeros((1, 4)) + np.diag([1, 0, 0, 0]))
    with pytest.raises(GeometryError, match="labels: expected the scan's grid"):
        figures.mosaic(image, elsewhere, table=TABLE)
    with pytest.raises(GeometryError, match="reference: expected the scan's grid"):
        figures.mosaic(image, labels, table=TABLE, reference=elsewhere)
    with pytest.raises(GeometryError, match=r"entropy: expected the scan's shape .*, got \(3, 3, 3\)"):
        figures.mosaic(image, labels, table=TABLE, entropy=np.zeros((3, 3, 3)))
