"""Instances: numbers, labels and masks agree, and touching spheres part where they are thin."""

import numpy as np
import pytest
from scipy.ndimage import label as components

from atlasseg.errors import InputError
from atlasseg.regions.instances import instances
from atlasseg.volume import LabelMap

OBLIQUE = np.array([[1.1, 0.2, 0, 5], [-0.3, 1.4, 0.1, -7], [0.0, 0.1, 2.5, 30], [0, 0, 0, 1.0]])


def scattered():
    labels = np.zeros((9, 11, 7), np.int32)
    labels[0:2, 0:2, 0:2] = 70
    labels[6:8, 5:9, 3:5] = 70
    labels[4, 4, 4] = 3
    labels[0, 10, 0:3] = 3
    return LabelMap(labels, OBLIQUE)


def test_components_are_numbered_by_label_and_first_voxel():
    labels = scattered()
    found = instances(labels)
    assert found.labels.tolist() == [3, 3, 70, 70]
    np.testing.assert_array_equal(found.instance.array > 0, labels.array > 0)
    for n, value in enumerate(found.labels, start=1):
        inside = found.instance.array == n
        assert (labels.array[inside] == value).all() and components(inside)[1] == 1
    assert found.instance.array[0, 10, 0] == 1 and found.instance.array[0, 0, 0] == 3


def test_rows_give_size_and_centre():
    rows = instances(scattered()).rows()
    assert [r["voxels"] for r in rows] == [3, 1, 8, 16]
    centre = OBLIQUE[:3, :3] @ [0, 10, 1] + OBLIQUE[:3, 3]
    assert [rows[0][k] for k in ("x_mm", "y_mm", "z_mm")] == pytest.approx(centre.tolist())
    assert rows[1]["volume_mm3"] == pytest.approx(abs(np.linalg.det(OBLIQUE)))


def test_labels_below_zero_are_structures_too():
    found = instances(LabelMap(np.array([[[-3, -3, 0, 3, -3]]]), OBLIQUE))
    assert found.labels.tolist() == [-3, -3, 3]
    np.testing.assert_array_equal(found.instance.array, [[[1, 1, 0, 3, 2]]])


def test_masks_are_one_a_label():
    masks = dict(instances(scattered()).masks())
    assert sorted(masks) == [3, 70]
    np.testing.assert_array_equal(masks[70].array, scattered().array == 70)


def test_stuff_is_one_instance_and_specks_are_none():
    found = instances(scattered(), stuff=(70,), smallest_voxels=2)
    assert found.labels.tolist() == [3, 70] and found.instance.array[4, 4, 4] == 0
    assert (found.instance.array == 2).sum() == 24
    assert (instances(LabelMap(np.zeros((3, 2, 4)), OBLIQUE)).labels).size == 0


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 2.0)])
def test_touching_balls_part_by_watershed_and_only_by_it(spacing):
    affine = np.diag([*spacing, 1])
    at = np.stack(
        np.meshgrid(*[np.arange(n) * s for n, s in zip((31, 17, 17), spacing, strict=True)], indexing="ij"), -1
    )
    middle = 8 * np.array(spacing)
    one = np.linalg.norm(at - (8, middle[1], middle[2]), axis=-1) < 7
    other = np.linalg.norm(at - (20, middle[1], middle[2]), axis=-1) < 7
    labels = LabelMap(np.where(one | other, 5, 0), affine)
    assert instances(labels).labels.size == 1
    found = instances(labels, split="watershed", depth_mm=1.0)
    assert found.labels.tolist() == [5, 5]
    assert (found.instance.array[one & ~other] == 1).all() and (found.instance.array[other & ~one] == 2).all()
    assert instances(labels, split="watershed", depth_mm=6.0).labels.size == 1
    ball = LabelMap(np.where(one, 5, 0), affine)
    assert instances(ball, split="watershed").labels.size == 1


def test_a_slice_can_be_cut_too():
    labels = np.zeros((15, 1, 7), np.int32)
    labels[1:7, 0, 1:6] = labels[8:14, 0, 1:6] = labels[7, 0, 3] = 2
    found = instances(LabelMap(labels, np.eye(4)), split="watershed", depth_mm=0.5)
    assert found.labels.size == 2


def test_what_cannot_be_done_is_said():
    with pytest.raises(InputError, match="'components' or 'watershed', got 'cut'"):
        instances(scattered(), split="cut")
    with pytest.raises(InputError, match="depth_mm"):
        instances(scattered(), depth_mm=-1.0)
