import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from atlasseg.errors import InputError
from atlasseg.fusion import staple
from atlasseg.fusion.steps import fuse

ROUNDING = 1e-5  # float32 probabilities; negligible ones are left out


def test_all_candidates_is_staple(problem):
    case = problem(4, masks=True)
    options = {"prior": "local", "prior_sigma_voxels": 1.0, "mrf_beta": 0.3, "tolerance": 1e-5}
    ours = fuse(case.target, case.candidates, top=4, **options)
    np.testing.assert_allclose(
        ours.dense(), staple.fuse(case.target, case.candidates, **options).dense(), atol=ROUNDING
    )


@pytest.mark.parametrize(("prior", "beta"), [("local", 0.7), ("global", 0.0)])
def test_the_top_candidates_alone_take_part(problem, standardised, staple_by_hand, prior, beta):
    """The same as STAPLE of candidates that see a voxel where they are among the top, same voxels."""
    case = problem(5)
    everywhere = np.ones(case.scan.shape, bool)
    t = standardised(case.scan[..., None], everywhere)[..., 0]

    def mean(v):
        return gaussian_filter(v, 1.5, mode="constant", truncate=4)

    g = mean(np.ones(t.shape))
    scores = []
    for image in case.images:
        a = standardised(image[..., None], everywhere)[..., 0]
        cov = mean(t * a) / g - mean(t) * mean(a) / g**2
        scores.append(cov / np.sqrt((mean(t * t) / g - (mean(t) / g) ** 2) * (mean(a * a) / g - (mean(a) / g) ** 2)))
    top = (np.array(scores) >= np.sort(scores, axis=0)[-3]) | ~case.disagreement
    ours = fuse(case.target, case.candidates, top=3, prior=prior, prior_sigma_voxels=0.0, mrf_beta=beta, tolerance=1e-6)
    expected = staple_by_hand(
        case.labels, top, [0, 2, 5], case.target.spacing_mm, whole=False, disagreement=case.disagreement, beta=beta,
        local_sigma=0.0 if prior == "local" else None, tolerance=1e-6,
    )  # fmt: skip
    np.testing.assert_allclose(ours.dense()[case.disagreement], expected[case.disagreement], atol=ROUNDING)


@pytest.mark.parametrize("wrong", [{"top": 0}, {"prior": "belief"}, {"sigma_voxels": -2.0}, {"max_iterations": 0}])
def test_parameters(problem, wrong):
    case = problem()
    with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
        fuse(case.target, case.candidates, **wrong)
