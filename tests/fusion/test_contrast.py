"""Other contrast: found, mapped away, and every fusion that compares intensities holds."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from atlasseg import methods
from atlasseg.errors import InputError
from atlasseg.evaluation import overlap
from atlasseg.fusion import majority
from atlasseg.fusion.contrast import SHRINKAGE_VOXELS, _spread, match_contrast, measure_agreement
from atlasseg.volume import Atlas, Image, LabelMap, Mask, ProbabilityMap

COMPARING = [name for name in methods.names("fusion") if methods.get("fusion", name).needs.compares_intensities]
CASES = Path(__file__).parents[3] / "shared" / "cases" / "methods" / "t2"
SHAPE = (18, 22, 14)
AFFINE = np.array([[-0.9, 0.1, 0, 3], [0.1, 1.2, 0, -7], [0, 0, 1.6, 40], [0, 0, 0, 1]])
T1 = {0: 0.1, 1: 0.35, 2: 0.65, 3: 1.0}
"""Intensity of each label: air, fluid, grey and white matter."""
OPTIONS = {"steps": {"top": 3}}
"""With the default of 8 places for 7 atlases it would not look at intensities."""
CONTRASTS = {
    "inverted": {0: 1.0, 1: 0.75, 2: 0.45, 3: 0.1},
    "t2": {0: 0.05, 1: 1.0, 2: 0.6, 3: 0.3},
    "random": {0: 0.5, 1: 0.9, 2: 0.15, 3: 0.55},
    "two labels alike": {0: 0.2, 1: 0.9, 2: 0.5, 3: 0.5},
}


def anatomy(seed, *, spread=0.5):
    """(I, J, K) labels of three nested, wobbling ellipsoids."""
    rng = np.random.default_rng(seed)
    x = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    centre = (np.array(SHAPE) - 1) / 2 + rng.uniform(-spread, spread, 3)
    r = np.sqrt((((x - centre) / (np.array(SHAPE) * 0.45)) ** 2).sum(-1))
    r += ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 2.5) * 0.6 * spread
    return np.digitize(-r, [-1.0, -0.75, -0.4])


def image_of(labels, contrast, seed, *, noise=0.04, gain=1.0):
    """An image whose tissues have the intensities of `contrast`, with partial volume and noise."""
    clean = np.vectorize(contrast.get)(labels).astype(float)
    smooth = ndimage.gaussian_filter(clean, 0.6)
    return gain * (smooth + np.random.default_rng([seed, 5]).normal(0, noise, labels.shape))


def scan(contrast, *, seed=100, **kw):
    return Image(image_of(anatomy(seed), contrast, seed, **kw), AFFINE, "scan")


def atlas(seed, contrast=T1, **kw):
    labels = anatomy(seed)
    return Atlas(f"a{seed}", Image(image_of(labels, contrast, seed, **kw), AFFINE), LabelMap(labels, AFFINE))


def dice(result, seed=100):
    return float(np.mean(overlap.dice(overlap.count(result.mode, anatomy(seed)))))


@pytest.fixture(scope="module")
def library():
    return [atlas(n, gain=1.0 + 50 * n) for n in range(7)]


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("name", COMPARING)
def test_every_fusion_holds(name, contrast, library):
    """Within 0.02 of the vote that does not look at intensities; some of them lost 0.5 and more."""
    target = scan(CONTRASTS[contrast])
    fused = methods.get("fusion", name).function(target, library, **OPTIONS.get(name, {}))
    assert dice(fused) > dice(majority.fuse(target, library)) - 0.02


@pytest.mark.parametrize("name", COMPARING)
def test_one_contrast_changes_nothing(name, library):
    """Where contrasts agree, the result is the same to the last digit, whatever the scale of intensities."""
    fuse = methods.get("fusion", name).function
    target = scan(T1, gain=3000.0, noise=0.1)
    found, taken = fuse(target, library), fuse(target, library, contrast="same")
    np.testing.assert_array_equal(found.mode, taken.mode)
    np.testing.assert_array_equal(found.values, taken.values)
    match = match_contrast(target, library)
    assert all(a is b for a, b in zip(match.candidates, library, strict=True)) and not match.message


def test_who_compares_can_be_told_of_the_contrast():
    for name in methods.names("fusion"):
        made = methods.get("fusion", name)
        assert made.has_parameter("contrast") == made.needs.compares_intensities, name


def test_agreement_by_hand(library):
    """Window by window, with a mask."""
    seen = np.ones(SHAPE, bool)
    seen[:8] = False
    candidate = replace(library[1], mask=Mask(seen, AFFINE))
    target, where = scan(CONTRASTS["random"]), np.zeros(SHAPE, bool)
    where[5:13:2, 6:16:3, 4:10:2] = True
    r, spans = [], []
    for x in np.argwhere(where & seen):
        box = tuple(slice(max(a - 2, 0), a + 3) for a in x)
        a, b = target.array[box][seen[box]].astype(float), candidate.image.array[box][seen[box]].astype(float)
        r.append(((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std()))
        spans.append((a.var(), b.var()))
    spans = np.array(spans)
    r = np.array(r)[(spans > 1e-3 * spans.mean(0)).all(1)]
    r = r[np.abs(r) >= 0.3]
    expected = (r * np.abs(r)).sum() / (r**2).sum()
    np.testing.assert_allclose(measure_agreement(target, [candidate], where), [[expected]], rtol=1e-5)


def test_a_sample_of_voxels_is_spread_over_all_of_them():
    voxels = np.arange(100, 201)
    np.testing.assert_array_equal(_spread(voxels, 101), voxels)
    np.testing.assert_array_equal(_spread(voxels, 6), [100, 120, 140, 160, 180, 200])
    np.testing.assert_array_equal(_spread(voxels, 1), [100])


def test_agreement_of_a_scan_with_itself_and_its_inverse(library):
    where = np.ones(SHAPE, bool)
    target = scan(T1)
    inverse = target.with_array(7 - 3 * target.array)
    atlases = [replace(library[0], image=image) for image in (target, inverse)]
    np.testing.assert_allclose(measure_agreement(target, atlases, where), [[1], [-1]], rtol=1e-6)
    flat = [replace(library[0], image=target.with_array(np.full(SHAPE, 3.0)))]
    assert np.isnan(measure_agreement(target, flat, where)).all()


def test_conditional_expectation_by_hand(library):
    """Two intensities and two labels: each cell of the map is a shrunk mean that can be counted."""
    rng = np.random.default_rng(0)
    labels = np.zeros(SHAPE, int)
    labels[9:] = 1
    other = labels.copy()
    other[8, ::3] = 1
    own = rng.integers(0, 2, SHAPE)
    aim = np.array([[10.0, 40.0], [90.0, 20.0]])[labels, own]  # by label and intensity
    target = Image(aim, AFFINE, "scan")
    candidates = [
        Atlas(f"a{n}", Image(own, AFFINE), LabelMap(said, AFFINE)) for n, said in enumerate((labels, labels, other))
    ]
    match = match_contrast(target, candidates, contrast="different")
    assert match.maps == (("label and intensity",),) * 3
    share = (labels + labels + other) / 3
    near = ndimage.binary_dilation(labels != other, np.ones((9, 9, 9)))
    most = share > 0.5
    weight = np.maximum(share, 1 - share) ** 4 * near
    k = SHRINKAGE_VOXELS
    expected = np.zeros(SHAPE)
    of_bin = [np.average(aim[own == b], weights=weight[own == b]) for b in (0, 1)]
    for label in (0, 1):
        inside = most == label
        mass = weight[inside].sum()
        for b in (0, 1):
            fallback = ((weight * aim)[inside].sum() + k * of_bin[b]) / (mass + k)
            cell = inside & (own == b)
            value = ((weight * aim)[cell].sum() + k * fallback) / (weight[cell].sum() + k)
            expected[(labels == label) & (own == b)] = value
    np.testing.assert_allclose(match.candidates[0].image.array, expected, rtol=1e-5)


def test_fractions_mix_the_labels_expectations(library):
    target = scan(CONTRASTS["random"])
    soft = []
    for each in library:
        onehot = np.stack([each.labels.array == v for v in range(4)], -1).astype(float)
        share = ndimage.gaussian_filter(onehot, (0.7, 0.7, 0.7, 0))
        soft.append(replace(each, labels=ProbabilityMap.from_dense(share, range(4), AFFINE)))
    match = match_contrast(target, soft)
    assert match.changed == tuple(range(7))
    pure = [replace(soft[0], labels=LabelMap(np.full(SHAPE, v), AFFINE)) for v in range(4)]
    # the map itself does not depend on the candidate's own labels where the others outvote it
    mixed = sum(
        match_contrast(target, [each, *soft[1:], *soft[1:]], contrast="different").candidates[0].image.array
        * soft[0].labels.probability(v)
        for v, each in enumerate(pure)
    )
    whole = match_contrast(target, [soft[0], *soft[1:], *soft[1:]], contrast="different").candidates[0].image.array
    assert np.corrcoef(mixed.ravel(), whole.ravel())[0, 1] > 0.99


def test_only_those_that_differ_are_mapped(library):
    """Atlases of both contrasts in one library, and a T1 target."""
    t2 = [atlas(n, CONTRASTS["t2"]) for n in (20, 21, 22)]
    match = match_contrast(scan(T1), [*library[:3], *t2, *library[3:]])
    assert match.changed == (3, 4, 5)
    assert match.message.startswith("3 of 10 atlases differ from the scan in contrast (agreement 0.")
    assert "atlas intensities were mapped to the scan's contrast: 3 by " in match.message


TEXTURE = 2 * ndimage.gaussian_filter(np.random.default_rng(7).normal(0, 1, SHAPE), 0.8)


@pytest.mark.parametrize("name", ["joint", "nearest_patches", "generative", "local_weighted"])
def test_labels_of_another_order_are_found_where_windows_agree(name):
    """The same texture in all images is stronger than the contrast of labels: correlations in windows see no change."""

    def textured(labels, contrast, seed):
        image = np.vectorize(contrast.get)(labels) + TEXTURE + np.random.default_rng(seed).normal(0, 0.03, SHAPE)
        return Image(image, AFFINE, "scan")

    labels = [anatomy(n) for n in range(7)]
    atlases = [Atlas(f"a{n}", textured(each, T1, n), LabelMap(each, AFFINE)) for n, each in enumerate(labels)]
    same, other = textured(anatomy(100), T1, 100), textured(anatomy(100), CONTRASTS["random"], 100)
    assert not match_contrast(same, atlases).changed
    match = match_contrast(other, atlases)
    assert match.changed == tuple(range(7)) and match.maps[0] == ("label and intensity",)
    assert np.median(match.agreement) > 0.9 and "here within labels, not between them" in match.message
    fused = methods.get("fusion", name).function(other, atlases, **OPTIONS.get(name, {}))
    assert dice(fused) > dice(majority.fuse(other, atlases)) - 0.02


def test_a_bad_registration_is_no_other_contrast(library):
    shift = (5, 5, 2)
    image, labels = (np.roll(each.array, shift, axis=(0, 1, 2)) for each in (library[0].image, library[0].labels))
    stray = Atlas("stray", Image(image, AFFINE), LabelMap(labels, AFFINE))
    match = match_contrast(scan(T1), [stray, *library[1:]])
    assert match.agreement[0] < 0.85 and not match.changed


def test_a_noisy_scan_has_no_other_contrast(library):
    """Noise of half the contrast between grey and white matter, in scan and atlases."""
    noisy = [atlas(n, noise=0.2) for n in range(7)]
    match = match_contrast(scan(T1, noise=0.2), noisy)
    assert not match.changed and (match.agreement > 0.95).all()


def test_each_channel_on_its_own(library):
    def two(image, other):
        return image.with_array(np.stack([image.array, other], -1))

    labels = [each.labels.array for each in library]
    second = [image_of(said, CONTRASTS["random"], n + 50) for n, said in enumerate(labels)]
    candidates = [replace(a, image=two(a.image, b)) for a, b in zip(library, second, strict=True)]
    inverted = 2 - image_of(anatomy(100), CONTRASTS["random"], 60)
    match = match_contrast(two(scan(T1), inverted), candidates)
    assert all(kinds[0] == "" and kinds[1] for kinds in match.maps)
    for before, after in zip(candidates, match.candidates, strict=True):
        np.testing.assert_array_equal(before.image.array[..., 0], after.image.array[..., 0])
        assert np.corrcoef(after.image.array[..., 1].ravel(), before.image.array[..., 1].ravel())[0, 1] < -0.8


def test_what_lies_outside_a_mask_teaches_nothing(library):
    seen = np.ones(SHAPE, bool)
    seen[:, 12:] = False
    spoilt = library[0].image.array.copy()
    spoilt[~seen] = 1e6
    honest, lying = (
        replace(library[0], image=library[0].image.with_array(array), mask=Mask(seen, AFFINE))
        for array in (library[0].image.array, spoilt)
    )
    target = scan(CONTRASTS["t2"])
    images = [match_contrast(target, [each, *library[1:]]).candidates[0].image.array for each in (honest, lying)]
    np.testing.assert_array_equal(images[0][seen], images[1][seen])


def test_noise_is_ignored(library):
    """Where nothing relates the intensities, all atlases have the same vote."""
    noise = Image(np.random.default_rng(3).normal(0, 1, SHAPE), AFFINE, "noise")
    match = match_contrast(noise, library, contrast="different")
    assert set(match.maps) == {("ignored",)} and "ignored" in match.message
    assert all(np.ptp(each.image.array) == 0 for each in match.candidates)


def test_order_and_threads(library):
    target = scan(CONTRASTS["t2"])
    forth = match_contrast(target, library).candidates
    back = match_contrast(target, library[::-1]).candidates[::-1]
    for a, b in zip(forth, back, strict=True):
        np.testing.assert_allclose(a.image.array, b.image.array, rtol=1e-5)


def test_few_and_unanimous():
    one = atlas(1)
    for candidates in ([one], [one, replace(one, id="twin")]):
        match = match_contrast(scan(CONTRASTS["t2"]), candidates)
        assert not match.changed  # nothing is fused, so nothing is compared


def test_what_is_refused(library):
    with pytest.raises(InputError, match="contrast: expected auto, same or different, got 'other'"):
        match_contrast(scan(T1), library, contrast="other")
    with pytest.raises(InputError, match="channels"):
        match_contrast(Image(np.zeros((*SHAPE, 2)), AFFINE), library)


def test_it_is_logged(library, caplog):
    with caplog.at_level(logging.WARNING):
        methods.get("fusion", "local_weighted").function(scan(CONTRASTS["t2"]), library)
    heard = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("scan: 7 of 7 atlases differ from the scan in contrast") for line in heard)


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no {CASES}")
@pytest.mark.parametrize("name", COMPARING)
def test_t1_atlases_on_a_t2_scan(name):
    """The case that was reported: joint fell to 0.688 where the majority vote had 0.847."""
    from atlasseg import io

    target = io.read_image(CASES / "t2" / "images" / "t2_101.nii.gz")
    truth = io.read_label_map(CASES / "t2" / "labels" / "t2_101.nii.gz")
    warped = CASES / "fuse" / "warped"
    candidates = [
        Atlas(f"atlas{n}", *(read(warped / kind / f"atlas{n}.nii.gz") for read, kind in reading))
        for reading in [((io.read_image, "images"), (io.read_label_map, "labels"))]
        for n in range(1, 7)
    ]
    fused = methods.get("fusion", name).function(target, candidates)
    vote = majority.fuse(target, candidates)
    found, wanted = (np.mean(overlap.dice(overlap.count(r.mode, truth.array))) for r in (fused, vote))
    assert found > wanted - 0.02
