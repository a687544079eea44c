"""A small fusion problem: a scan and candidates on its grid, oblique, flipped and anisotropic."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.ndimage import gaussian_filter

from atlasseg.volume import Atlas, Image, LabelMap, Mask

SHAPE = (7, 9, 5)


def _affine():
    a = 0.4
    out = np.eye(4)
    out[:3, :3] = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.diag([-0.8, 1.1, 2])
    out[:3, 3] = -30, 12, 400
    return out


class Problem:
    """Images and labels as arrays (N, I, J, K), and the same as data types."""

    def __init__(self, number=4, *, labels=(0, 2, 5), seed=0, masks=False, not_annotated=None, channels=1):
        rng = np.random.default_rng(seed)
        x = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)

        def one():
            centre = (np.array(SHAPE) - 1) / 2 + rng.uniform(-1, 1, 3)
            r = np.sqrt((((x - centre) / (np.array(SHAPE) * [0.42, 0.4, 0.45])) ** 2).sum(-1))
            said = np.array(labels)[2 - np.digitize(r, [0.6, 1.0])]
            image = np.stack(
                [ndimage.gaussian_filter(2 - r + rng.normal(0, 0.3, SHAPE), 0.5) for _ in range(channels)], -1
            )
            return image if channels > 1 else image[..., 0], said.astype(np.int32)

        self.affine = _affine()
        self.scan, self.truth = one()
        images, said = zip(*[one() for _ in range(number)], strict=True)
        self.images, self.labels = np.stack(images), np.stack(said)
        self.masks = np.ones((number, *SHAPE), bool)
        if masks:
            for n in range(number):
                self.masks[n].swapaxes(0, n % 3)[: n % 2 + 1] = False
        self.not_annotated = not_annotated or [frozenset()] * number
        self.target = Image(self.scan, self.affine, "scan")
        self.candidates = [
            Atlas(
                f"a{n}",
                Image(self.images[n], self.affine),
                LabelMap(self.labels[n], self.affine),
                Mask(self.masks[n], self.affine) if masks else None,
                self.not_annotated[n],
            )
            for n in range(number)
        ]

    @property
    def disagreement(self):
        """(I, J, K) where those that see a voxel differ."""
        low = np.where(self.masks, self.labels, 2**30).min(0)
        high = np.where(self.masks, self.labels, -(2**30)).max(0)
        return self.masks.any(0) & (low != high)


@pytest.fixture
def problem():
    return Problem


def _standardised(channels, mask):
    """What every method does to intensities first, written out."""
    out = np.zeros(channels.shape)
    for c in range(channels.shape[-1]):
        known = channels[mask][:, c].astype(np.float32)
        clipped = np.clip(channels[..., c].astype(np.float32), *np.percentile(known, [1, 99]))
        out[..., c] = (clipped - clipped[mask].mean()) / clipped[mask].std()
    out[~mask] = 0
    return out


@pytest.fixture
def standardised():
    return _standardised


def _neighbours(shape, spacing):
    for axis in range(3):
        for step in (-1, 1):
            yield axis, step, min(spacing) / spacing[axis]


def _shifted(w, axis, step):
    out = np.zeros_like(w)
    to, of = [slice(None)] * 4, [slice(None)] * 4
    to[axis], of[axis] = (slice(1, None), slice(None, -1)) if step < 0 else (slice(None, -1), slice(1, None))
    out[tuple(to)] = w[tuple(of)]
    return out


def _staple_by_hand(
    said, seen, labels, spacing, *, whole, local_sigma=None, beta=0.0, disagreement=None, iterations=100, tolerance=1e-5
):
    """STAPLE on dense arrays: said, seen (N, I, J, K); posteriors (I, J, K, L)."""
    n, shape = said.shape[0], said.shape[1:]
    one = (said[..., None] == labels) & seen[..., None]
    share = one.sum(0) / np.maximum(seen.sum(0), 1)[..., None]
    if disagreement is None:
        disagreement = (share.max(-1) < 1) & seen.any(0)
    used = seen.any(0) if whole else disagreement
    count = used[..., None].astype(float)

    def m_step(w):
        theta = np.einsum("nijka,ijkb->nab", one.astype(float), w * count)
        total = theta.sum(1, keepdims=True)
        return np.divide(theta, total, out=np.zeros_like(theta), where=total > 0)

    if local_sigma is None:
        prior = np.broadcast_to((share * count).sum((0, 1, 2)) / used.sum(), share.shape)
    else:
        smooth = share
        if local_sigma:
            smooth = np.stack([gaussian_filter(s, local_sigma, mode="nearest") for s in np.moveaxis(share, -1, 0)], -1)
        prior = np.where(share > 0, smooth, 0)
    local = local_sigma is not None
    theta = m_step(np.eye(len(labels))[share.argmax(-1)])
    colour = np.indices(shape).sum(0) % 2

    def e_step(w):
        for turn in (0, 1) if beta else (None,):
            field = sum(weight * _shifted(w, axis, step) for axis, step, weight in _neighbours(shape, spacing))
            new = prior * np.exp(beta * field)
            for i in range(n):
                new = new * np.where(seen[i][..., None], theta[i][np.searchsorted(labels, said[i])], 1)
            total = new.sum(-1, keepdims=True)
            new = np.divide(new, total, out=np.zeros_like(new), where=total > 0)
            new = np.where(disagreement[..., None], new, share if (local or beta) else new)
            w = new if turn is None else np.where((colour == turn)[..., None] & disagreement[..., None], new, w)
        return w

    w = e_step(np.where(disagreement[..., None], prior, share) if beta else prior)
    for _ in range(iterations):
        before, theta = theta, m_step(w)
        w = e_step(w)
        if np.abs(theta - before).max() < tolerance:
            break
    return np.where(disagreement[..., None], w, share)


@pytest.fixture
def staple_by_hand():
    return _staple_by_hand
