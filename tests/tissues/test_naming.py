"""Names of tissue classes: right in every contrast, and told where they may not be."""

import logging

import numpy as np
import pytest

import atlasseg
from atlasseg import io
from atlasseg.errors import InputError
from atlasseg.phantoms import tissue
from atlasseg.tissues import mixture
from atlasseg.tissues.naming import _reorder, check_brain, name_classes
from atlasseg.volume import Image, Mask

NAMES = ("CSF", "GM", "WM")
BRIGHTNESS = {"T1": (0.3, 0.7, 1.0), "T2": (1.0, 0.6, 0.3), "PD": (1.0, 0.8, 0.5), "FLAIR": (0.2, 1.0, 0.65)}


def dice(found, truth):
    return [2 * ((found == k) & (truth == k)).sum() / ((found == k).sum() + (truth == k).sum()) for k in (1, 2, 3)]


@pytest.fixture(scope="module", params=BRIGHTNESS)
def brain(request):
    made = tissue((34, 38, 30), noise_percent=2, bias_percent=0, seed=4, brightness=BRIGHTNESS[request.param])
    return request.param, made, mixture.classify(made.image, made.mask, bias_order=0)


@pytest.mark.parametrize("names", [NAMES, ("WM", "CSF", "GM"), ("white matter", "grey_matter", "Cerebrospinal Fluid")])
def test_names_go_to_the_right_classes_in_every_contrast(brain, names):
    contrast, made, found = brain
    named, reason = name_classes(found, names)
    truth_of = {"c": 1, "g": 2, "w": 3}
    wanted = [truth_of[name[0].lower()] for name in names]
    in_order = np.array([0, *np.argsort(wanted) + 1])  # label of the result for each tissue of the truth
    least = 0.7 if contrast == "FLAIR" else 0.9  # the border of fluid and grey matter is as bright as white matter
    assert min(dice(named.labels.array, in_order[made.truth.array])) > least
    assert ("T2" if contrast == "PD" else contrast) in reason.replace("PD", "T2")
    stated, _ = name_classes(found, names, contrast)
    np.testing.assert_array_equal(stated.labels.array, named.labels.array)


def test_all_of_a_result_follows_the_names(brain):
    _, _, found = brain
    named, _ = name_classes(found, NAMES)
    for label in (1, 2, 3):
        old = int(np.argmin(np.abs(found.means[:, 0] - named.means[label - 1, 0]))) + 1
        expected = found.probabilities.probability(old)
        np.testing.assert_array_equal(named.probabilities.probability(label), expected)
        np.testing.assert_array_equal(named.labels.array == label, found.labels.array == old)
        assert named.sds[label - 1, 0] == found.sds[old - 1, 0]
    np.testing.assert_array_equal(named.probabilities.mode, named.labels.array)
    inside = named.probabilities.entries
    assert all(np.all(np.diff(each) > 0) for each in np.split(inside.labels, inside.offsets[1:-1]))


def test_the_order_of_the_classes_does_not_matter(brain):
    """A model may return its classes in any order: names go by means, not by place."""
    contrast, _, found = brain
    mixed = _reorder(found, [2, 0, 1])
    for stated in ("auto", contrast, "ascending"):
        expected, _ = name_classes(found, NAMES, stated)
        named, _ = name_classes(mixed, NAMES, stated)
        np.testing.assert_array_equal(named.labels.array, expected.labels.array)
        np.testing.assert_array_equal(named.means, expected.means)


def test_other_names_and_ascending_order_stay_as_they_are(brain, caplog):
    _, _, found = brain
    assert name_classes(found, ("dark", "middle", "bright"))[0] is found
    assert name_classes(found, NAMES, "ascending")[0] is found
    with caplog.at_level(logging.WARNING):
        assert name_classes(found, ("CSF", "GM", "tumour"))[0] is found
    assert "for any contrast" in caplog.text
    with pytest.raises(InputError, match="contrast T2"):
        name_classes(found, ("dark", "middle", "bright"), "T2")


def test_a_region_without_an_inside_is_doubted(caplog):
    values = np.random.default_rng(0).choice([10.0, 50.0, 90.0], (20, 22, 18)) + np.linspace(0, 1, 18)
    scan, inside = Image(values, np.eye(4)), Mask(np.ones(values.shape), np.eye(4))
    found = mixture.classify(scan, inside, bias_order=0, partial_volume=False)
    with caplog.at_level(logging.WARNING):
        name_classes(found, NAMES)
    assert "names may be exchanged" in caplog.text


def test_volumes_of_no_brain_are_told(caplog):
    made = tissue((34, 38, 30), noise_percent=2, bias_percent=0, seed=4)
    found = mixture.classify(made.image, made.mask, bias_order=0)
    with caplog.at_level(logging.WARNING):
        check_brain(found, NAMES, whole_foreground=False)
    assert not caplog.records
    wide = made.image.affine @ np.diag([8, 8, 8, 1.0])
    large = mixture.classify(Image(made.image.array, wide), Mask(made.mask.array, wide), bias_order=0)
    with caplog.at_level(logging.WARNING):
        check_brain(large, NAMES, whole_foreground=True)
    assert "largest human brain" in caplog.text and "Give a mask of the brain" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        check_brain(found, ("GM", "CSF", "WM"), whole_foreground=False)
    fraction = found.probabilities.probability(1).sum() / found.probabilities.mode.astype(bool).sum()
    assert ("expected GM" in caplog.text) == (fraction < 0.2)
    check_brain(large, ("bone", "fat", "air"), whole_foreground=True)


def test_the_collected_shells_are_named_alike_in_both_contrasts(cases):
    folder = cases.parent / "methods" / "misc" / "tissue"
    t1, t2 = (io.read_image(folder / f"{name}.nii.gz") for name in ("t1", "t2"))
    named = [atlasseg.tissue(scan, "mixture", names=NAMES, bias_order=0) for scan in (t1, t2)]
    same = named[0].labels.array == named[1].labels.array
    assert same[named[0].labels.array > 0].mean() > 0.98
    assert named[0].means[0, 0] < named[0].means[2, 0] and named[1].means[0, 0] > named[1].means[2, 0]


def test_names_are_checked():
    made = tissue((20, 22, 18), noise_percent=2, bias_percent=0)
    with pytest.raises(InputError, match="expected 3 different names"):
        atlasseg.tissue(made.image, "mixture", mask=made.mask, names=("GM", "WM"), bias_order=0)
