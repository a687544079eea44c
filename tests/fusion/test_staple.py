import numpy as np
import pytest

from atlasseg.errors import InputError
from atlasseg.fusion.staple import fuse
from atlasseg.volume import Atlas, Image, LabelMap

ROUNDING = 1e-5  # float32 probabilities; negligible ones are left out


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("region", ["disagreement", "whole"])
def test_expectation_maximisation(problem, region, masks, staple_by_hand):
    case = problem(4, masks=masks)
    result = fuse(case.target, case.candidates, region=region)
    expected = staple_by_hand(case.labels, case.masks, [0, 2, 5], case.target.spacing_mm, whole=region == "whole")
    for k, label in enumerate((0, 2, 5)):
        np.testing.assert_allclose(
            result.probability(label)[case.disagreement], expected[..., k][case.disagreement], atol=ROUNDING
        )


@pytest.mark.parametrize("sigma", [0.0, 1.2])
def test_local_prior(problem, sigma, staple_by_hand):
    case = problem(4)
    result = fuse(case.target, case.candidates, prior="local", prior_sigma_voxels=sigma)
    expected = staple_by_hand(
        case.labels, case.masks, [0, 2, 5], case.target.spacing_mm, whole=False, local_sigma=sigma
    )
    np.testing.assert_allclose(result.dense(), expected, atol=ROUNDING)


def test_markov_random_field(problem, staple_by_hand):
    case = problem(4)
    result = fuse(case.target, case.candidates, prior="local", prior_sigma_voxels=1.0, mrf_beta=0.8)
    plain = fuse(case.target, case.candidates, prior="local", prior_sigma_voxels=1.0)
    expected = staple_by_hand(
        case.labels, case.masks, [0, 2, 5], case.target.spacing_mm, whole=False, local_sigma=1.0, beta=0.8
    )
    np.testing.assert_allclose(result.dense(), expected, atol=ROUNDING)
    assert np.abs(result.dense() - plain.dense()).max() > 0.1


def test_same_labels_as_itk():
    """Five raters of two labels cannot tie, so ITK's start is defined and its labels are ours."""
    import SimpleITK as sitk

    rng = np.random.default_rng(3)
    truth = np.zeros((14, 16, 12), np.int32)
    truth[3:11, 4:13, 2:9] = 1
    said = [np.where(rng.random(truth.shape) < p, 1 - truth, truth) for p in (0.03, 0.05, 0.4, 0.45, 0.45)]
    affine = np.diag([-1.0, 1, 2, 1])
    image = Image(np.zeros(truth.shape), affine)
    ours = fuse(image, [Atlas(f"a{n}", image, LabelMap(s, affine)) for n, s in enumerate(said)], region="whole")
    theirs = sitk.MultiLabelSTAPLEImageFilter()
    theirs.SetTerminationUpdateThreshold(1e-5)
    labels = sitk.GetArrayFromImage(theirs.Execute([sitk.GetImageFromArray(s.astype(np.uint8)) for s in said]))
    disagreement = np.ptp(said, axis=0) > 0
    np.testing.assert_array_equal(ours.mode[disagreement], labels[disagreement])
    majority = np.sum(said, 0) // 3
    assert (ours.mode == truth).mean() > (majority == truth).mean()  # it found out who is good


def test_hundreds_of_raters_do_not_underflow():
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    truth = rng.integers(0, 3, (4, 5, 3))
    image = Image(np.zeros(truth.shape), affine)
    said = [np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 3, truth.shape)) for _ in range(400)]
    result = fuse(image, [Atlas(str(n), image, LabelMap(s, affine)) for n, s in enumerate(said)])
    np.testing.assert_array_equal(result.mode, truth)


@pytest.mark.parametrize("wrong", [{"region": "mars"}, {"prior": "belief"}, {"mrf_beta": -1.0}, {"tolerance": 0.0}])
def test_parameters(problem, wrong):
    case = problem()
    with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
        fuse(case.target, case.candidates, **wrong)
