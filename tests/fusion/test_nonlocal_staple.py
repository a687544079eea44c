import numpy as np
import pytest

from atlasseg.errors import InputError
from atlasseg.fusion import staple
from atlasseg.fusion.nonlocal_staple import fuse

ROUNDING = 1e-3  # float32 intensities and fractions
LABELS = np.array([0, 2, 5])


def spread(case, standardised, patch, window, sigma_i, sigma_d):
    """(N, V, L) votes a_i at the voxels of disagreement, offset by offset, without fractions below a thousandth."""
    shape = case.scan.shape
    t = np.pad(standardised(case.scan[..., None], np.ones(shape, bool))[..., 0], patch, mode="edge")
    width = 2 * patch + 1
    out = []
    for image, said, mask in zip(case.images, case.labels, case.masks, strict=True):
        a = np.pad(standardised(image[..., None], mask)[..., 0], patch, mode="edge")
        rows = []
        for x in np.argwhere(case.disagreement):
            here = t[tuple(slice(n, n + width) for n in x)]
            logs, labels = [], []
            for o in np.ndindex(*[2 * window + 1] * 3):
                y = x + o - window
                if (y < 0).any() or (y >= shape).any() or not mask[tuple(y)]:
                    continue
                d = ((a[tuple(slice(n, n + width) for n in y)] - here) ** 2).mean()
                logs.append(-d / (2 * sigma_i**2) - ((y - x) ** 2).sum() / (2 * sigma_d**2))
                labels.append(said[tuple(y)])
            row = np.zeros(3)
            if logs:
                w = np.exp(np.array(logs) - max(logs))
                row = np.array([w[np.array(labels) == v].sum() for v in LABELS]) / w.sum()
                row[row <= 1e-3] = 0
                row /= row.sum()
            rows.append(row)
        out.append(rows)
    return np.array(out)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("prior", ["local", "global"])
def test_against_dense_arrays(problem, standardised, prior, masks):
    case = problem(3, masks=masks)
    said = spread(case, standardised, 1, 1, 0.4, 1.2)
    share = said.sum(0) / said.sum((0, 2))[:, None]
    speaks = said.sum(-1) > 0
    f = share if prior == "local" else np.where(share > 0, share.mean(0), 0)

    def m_step(w):
        theta = np.einsum("nva,vb->nab", said, w)
        total = theta.sum(1, keepdims=True)
        return np.divide(theta, total, out=np.zeros_like(theta), where=total > 0)

    theta = m_step(np.eye(3)[share.argmax(-1)])
    for _ in range(100):
        likelihood = np.where(speaks[..., None], np.einsum("nva,nab->nvb", said, theta), 1).prod(0)
        w = f * likelihood
        w /= w.sum(-1, keepdims=True)
        before, theta = theta, m_step(w)
        if np.abs(theta - before).max() < 1e-6:
            break
    result = fuse(
        case.target, case.candidates, patch_radius_voxels=1, search_radius_voxels=1, sigma_intensity=0.4,
        sigma_voxels=1.2, prior=prior, tolerance=1e-6,
    )  # fmt: skip
    np.testing.assert_allclose(result.dense()[case.disagreement], w, atol=ROUNDING)
    assert (result.mode[case.disagreement] == LABELS[w.argmax(-1)]).mean() > 0.995


def test_without_a_window_it_is_staple(problem):
    case = problem(4)
    ours = fuse(case.target, case.candidates, search_radius_voxels=0, prior="local", tolerance=1e-6)
    theirs = staple.fuse(case.target, case.candidates, prior="local", prior_sigma_voxels=0.0, tolerance=1e-6)
    np.testing.assert_allclose(ours.dense(), theirs.dense(), atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"prior": "belief"}, {"search_radius_voxels": -1}, {"sigma_intensity": 0.0}, {"max_iterations": 0}]
)
def test_parameters(problem, wrong):
    case = problem()
    with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
        fuse(case.target, case.candidates, **wrong)
