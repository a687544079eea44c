import itertools
import math
import re

import numpy as np
import pytest

from atlasseg.errors import GeometryError, InputError
from atlasseg.evaluation import FOREGROUND, evaluate, mean_over_labels, overlap, surface, surfels
from atlasseg.labels import Label, LabelTable
from atlasseg.phantoms import head, tilted_grid
from atlasseg.volume import LabelMap

SHAPE = (7, 9, 5)
GRID = tilted_grid(SHAPE)


def label_map(array):
    return LabelMap(np.asarray(array, np.int32), GRID.affine)


def boxes(**places):
    array = np.zeros(SHAPE, np.int32)
    for name, box in places.items():
        array[box] = int(name.removeprefix("label"))
    return label_map(array)


REFERENCE = boxes(label3=np.s_[1:3, 1:5, 1:4], label40=np.s_[3:6, 1:5, 1:4], label7=np.s_[1:6, 6:8, 0:2])


def values(scores, metric):
    return {s.name: s.value for s in scores if s.metric == metric}


def test_every_measure_of_every_label_and_group():
    table = LabelTable((Label(3, "left", group="pair"), Label(40, "right", group="pair"), Label(99, "absent")))
    scores = evaluate(REFERENCE, REFERENCE, table=table, surface_tolerance_mm=0.5)
    assert [s.name for s in scores if s.metric == "dice"] == ["left", "label 7", "right", "pair", FOREGROUND]
    assert [s.label for s in scores if s.metric == "dice"] == [3, 7, 40, None, None]
    of_one = [s for s in scores if s.name == "left"]
    assert {s.metric: s.value for s in of_one} == {
        **dict.fromkeys(overlap.METRICS, 1.0),
        "hausdorff_mm": 0.0,
        "hausdorff_95_mm": 0.0,
        "average_surface_distance_mm": 0.0,
        "surface_dice_0.5mm": 1.0,
        "surface_dice_voxels_0.5mm": 1.0,
    }
    assert all(s.note == "" and type(s.value) is float for s in scores)


def test_missed_structure_is_worst_and_stays_in_the_mean():
    found = boxes(label3=np.s_[1:3, 1:5, 1:4], label40=np.s_[3:6, 1:5, 1:4])
    scores = evaluate(found, REFERENCE)
    missed = {s.metric: s.value for s in scores if s.label == 7}
    worst = surface.worst_distance_mm(GRID)
    assert {s.note for s in scores if s.label == 7} == {"missed"}
    assert missed == {
        **dict.fromkeys(overlap.METRICS, 0.0),
        "hausdorff_mm": worst,
        "hausdorff_95_mm": worst,
        "average_surface_distance_mm": worst,
        "surface_dice_1mm": 0.0,
        "surface_dice_voxels_1mm": 0.0,
    }
    assert mean_over_labels(scores)["dice"] == pytest.approx(2 / 3)
    assert mean_over_labels(scores)["hausdorff_95_mm"] == pytest.approx(worst / 3)


def test_label_that_the_reference_lacks_is_worst_and_marked():
    found = label_map(np.where(REFERENCE.array == 7, 8, REFERENCE.array))
    scores = evaluate(found, REFERENCE)
    assert {s.label: s.note for s in scores} == {3: "", 7: "missed", 8: "not in reference", 40: "", None: ""}
    assert values(scores, "dice") == {"label 3": 1, "label 7": 0, "label 8": 0, "label 40": 1, FOREGROUND: 1}
    assert all(math.isfinite(s.value) for s in scores)


def test_groups_are_judged_as_one_structure():
    swapped = REFERENCE.array.copy()
    swapped[REFERENCE.array == 3], swapped[REFERENCE.array == 40] = 40, 3
    scores = evaluate(label_map(swapped), REFERENCE, groups={"pair": (3, 40), "nowhere": (77,)})
    assert values(scores, "dice") == {"label 3": 0, "label 7": 1, "label 40": 0, "pair": 1, FOREGROUND: 1}
    assert values(scores, "hausdorff_mm")["pair"] == 0


def test_labels_that_nobody_drew_are_left_out():
    drawn = label_map(np.where(REFERENCE.array == 7, 0, REFERENCE.array))
    scores = evaluate(REFERENCE, drawn, not_annotated={7}, groups={"all three": (3, 7, 40)})
    assert values(scores, "dice") == {"label 3": 1, "label 40": 1, "all three": 1, FOREGROUND: 1}
    assert values(evaluate(REFERENCE, drawn), "dice")["label 7"] == 0


def test_measures_are_those_of_the_masks():
    one = head(grid=tilted_grid((20, 23, 15), spacing_mm=(2.3, 2.4, 2.7)), seed=1, subsamples=1)
    other = head(grid=one.labels.grid, seed=2, subsamples=1)
    scores = evaluate(one.labels, other.labels, groups={"white": (2, 41)})
    for label in (3, 24, 50):
        mask, reference = one.labels.array == label, other.labels.array == label
        apart = surface.surface_distances(mask, reference, one.labels.grid)
        mine = {s.metric: s.value for s in scores if s.label == label}
        assert mine["dice"] == pytest.approx(2 * (mask & reference).sum() / (mask.sum() + reference.sum()))
        assert mine["hausdorff_95_mm"] == apart.hausdorff_mm(95)
        assert mine["surface_dice_voxels_1mm"] == apart.surface_dice_voxels(1)
        assert mine["surface_dice_1mm"] == surfels.surface_dice(mask, reference, one.labels.grid, tolerance_mm=1)
        assert mine["surface_dice_1mm"] != mine["surface_dice_voxels_1mm"]
    mask, reference = (np.isin(x.labels.array, (2, 41)) for x in (one, other))
    assert values(scores, "surface_dice_1mm")["white"] == surfels.surface_dice(
        mask, reference, one.labels.grid, tolerance_mm=1
    )
    assert values(scores, "average_surface_distance_mm")["white"] == pytest.approx(
        surface.surface_distances(mask, reference, one.labels.grid).average_mm()
    )


def test_two_empty_maps_are_told_and_have_no_value():
    empty = label_map(np.zeros(SHAPE))
    result = evaluate(empty, empty)
    assert {(s.name, s.note) for s in result} == {(FOREGROUND, "empty in both")}
    assert all(math.isnan(s.value) for s in result) and result.mean() == mean_over_labels([]) == {}
    assert result.metrics == evaluate(REFERENCE, REFERENCE).metrics
    assert "all measures are undefined" in repr(result)
    one_empty = evaluate(empty, REFERENCE)
    assert one_empty["dice"].tolist() == [0, 0, 0] and one_empty["dice", FOREGROUND] == 0


def test_axes_in_another_order_or_direction_are_brought_into_line():
    table = LabelTable((Label(3, "left"), Label(7, "behind"), Label(40, "right")))
    found = label_map(np.where(REFERENCE.array == 7, 3, REFERENCE.array))
    straight = evaluate(found, REFERENCE, table=table)
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            turn = np.zeros((4, 4))
            turn[3, 3] = 1
            for n, (axis, flip) in enumerate(zip(order, flips, strict=True)):
                turn[axis, n] = flip
                turn[axis, 3] = 0 if flip > 0 else SHAPE[axis] - 1
            array = np.flip(found.array.transpose(order), [n for n in range(3) if flips[n] < 0])
            turned = evaluate(LabelMap(array, GRID.affine @ turn), REFERENCE, table=table)
            assert turned == straight
            assert ("were reoriented to those of the reference" in repr(turned)) == (
                order != (0, 1, 2) or min(flips) < 0
            )


def test_a_result_is_read_by_name_as_a_table_and_as_text():
    table = LabelTable((Label(3, "left", group="pair"), Label(40, "right", group="pair"), Label(7, "behind")))
    found = label_map(np.where(REFERENCE.array == 7, 0, REFERENCE.array))
    result = evaluate(found, REFERENCE, table=table)
    assert result["dice"].to_dict() == {"left": 1, "behind": 0, "right": 1}
    assert result["dice"].mean() == result.mean()["dice"] == pytest.approx(2 / 3)
    assert result["dice", "behind"] == result["dice", 7] == 0 and result["dice", "pair"] == 1
    assert result[0] is result.scores[0] and list(result) == list(result.scores) and len(result[:3]) == 3
    long = result.to_frame()
    assert list(long.columns) == ["label", "name", "metric", "value", "note"] and len(long) == len(result)
    wide = result.to_frame(wide=True)
    assert list(wide["name"]) == ["left", "behind", "right", "pair", FOREGROUND]
    assert wide.set_index("name")["dice"].to_dict() == {
        "left": 1,
        "behind": 0,
        "right": 1,
        "pair": 1,
        FOREGROUND: 2 * 60 / 140,
    }
    text = repr(result)
    assert text.startswith("segmentation against reference\n") and "note: missed: behind" in text
    assert re.search(r"mean over labels +0\.6667", text) and re.search(r"behind +0 ", text)
    assert "<table" in result._repr_html_() and "missed: behind" in result._repr_html_()
    with pytest.raises(InputError, match=r"expected a measure of dice, jaccard.*got 'dcie'"):
        result["dcie"]
    with pytest.raises(InputError, match=r"a label or group of left, behind, right, pair.*got 'nowhere'"):
        result["dice", "nowhere"]
    with pytest.raises(InputError, match="expected result"):
        result[None]


def test_a_reference_on_another_grid_is_refused():
    moved = GRID.affine.copy()
    moved[0, 3] += 0.5
    with pytest.raises(GeometryError, match=r"'ours' and reference 'theirs': expected one grid.* 0.5 mm apart"):
        evaluate(LabelMap(REFERENCE.array, GRID.affine, "ours"), LabelMap(REFERENCE.array, moved, "theirs"))
    nearly = GRID.affine + 1e-7
    nearly[3] = GRID.affine[3]
    assert evaluate(REFERENCE, LabelMap(REFERENCE.array, nearly))


def test_bad_requests():
    with pytest.raises(InputError, match="surface_tolerance_mm: expected 0 or more, got -1"):
        evaluate(REFERENCE, REFERENCE, surface_tolerance_mm=-1)
    with pytest.raises(InputError, match="group 'foreground': this name is reserved"):
        evaluate(REFERENCE, REFERENCE, groups={FOREGROUND: (3,)})
