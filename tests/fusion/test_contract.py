"""One contract for every fusion method: whatever is in the package is held to it, and so are the variants below."""

from functools import partial

import numpy as np
import pytest
from scipy import ndimage

from atlasseg import methods
from atlasseg.errors import GeometryError, InputError
from atlasseg.volume import Atlas, Image, LabelMap, Mask, ProbabilityMap

METHODS = methods.names("fusion")
VARIANTS = [
    ("generative", {"mode": "semi_local"}),
    ("generative", {"mode": "global"}),
    ("joint", {"nonnegative": False}),
    ("local_weighted", {"similarity": "rank", "top": 3}),
    ("local_weighted", {"similarity": "inverse_difference"}),
    ("local_weighted", {"similarity": "block_mean_squares"}),
    ("local_weighted", {"similarity": "block_correlation"}),
    ("local_weighted", {"similarity": "block_mutual_information"}),
    ("nearest_patches", {"search": "patch_match"}),
    ("staple", {"prior": "local", "mrf_beta": 0.5}),
]
SHAPE = (9, 11, 7)
SPACING = (0.9, 1.4, 2.1)
ROUNDING = 1e-4  # sums of float32 products in another order
LABELS = (0, 3, 17)
FLOORS = {
    "generative": 0.98,
    "global_weighted": 0.91,
    "joint": 0.96,
    "local_weighted": 0.91,
    "majority": 0.86,
    "nearest_patches": 0.96,
    "nonlocal_staple": 0.96,
    "simple": 0.86,
    "staple": 0.82,
    "steps": 0.81,
}
"""Share of voxels that a method gets right, from five candidates that were not registered: these have 0.81 to 0.91.

Any other method has to be as good as the worst of them. STAPLE, and STEPS with it, are little better than that here.
"""


def called(case):
    name, options = case
    return "-".join([name, *map(str, options.values())])


@pytest.fixture(params=[*((name, {}) for name in METHODS), *VARIANTS], ids=called)
def fuse(request):
    name, options = request.param
    return partial(methods.get("fusion", name).function, **options)


@pytest.fixture
def not_drawn(fuse):
    """Only for methods that do not draw candidates at random, by their number and place."""
    if fuse.keywords.get("search") == "patch_match":
        pytest.skip("its draws depend on the number and the order of the candidates")


@pytest.fixture
def floor(request):
    """For a test that takes `fuse` too."""
    return FLOORS.get(called(request.node.callspec.params["fuse"]), 0.8)


def affine():
    """Oblique, flipped along the first axis, anisotropic."""
    a, b = 0.3, -0.2
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    out = np.eye(4)
    out[:3, :3] = turn @ np.diag([-SPACING[0], SPACING[1], SPACING[2]])
    out[:3, 3] = 120, -40, 7
    return out


def anatomy(seed, *, labels=LABELS, gain=1.0, shape=SHAPE):
    """Image and labels of two nested ellipsoids around a place that varies with the seed."""
    rng = np.random.default_rng(seed)
    centre = (np.array(shape) - 1) / 2 + rng.uniform(-0.8, 0.8, 3)
    x = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    r = np.sqrt((((x - centre) / (np.array(shape) * [0.36, 0.33, 0.4])) ** 2).sum(-1))
    said = np.where(r < 0.55, labels[2], np.where(r < 1, labels[1], labels[0]))
    image = np.where(r < 0.55, 3.0, np.where(r < 1, 2.0, 0.5)) + rng.normal(0, 0.1, shape)
    return gain * ndimage.gaussian_filter(image, 0.5), said


def atlas(seed, **kw):
    rest = {name: kw.pop(name) for name in ("mask", "not_annotated") if name in kw}
    image, said = anatomy(seed, **kw)
    return Atlas(f"atlas{seed}", Image(image, affine()), LabelMap(said, affine()), **rest)


def scan(seed=100, **kw):
    return Image(anatomy(seed, **kw)[0], affine(), "scan")


def check(result, target, labels):
    """What holds for every result: grid, labels, and probabilities that are such."""
    assert isinstance(result, ProbabilityMap)
    assert result.grid.matches(target.grid)
    assert set(labels) <= set(result.label_values.tolist())
    assert set(np.unique(result.mode).tolist()) <= {0, *labels}
    assert (np.diff(result.voxels) > 0).all() and (result.values > 0).all()
    if result.voxels.size:
        np.testing.assert_allclose(np.add.reduceat(result.values, result.offsets[:-1]), 1, atol=1e-5)
        best = np.maximum.reduceat(result.values, result.offsets[:-1])
        held = np.stack([result.probability(v).reshape(-1)[result.voxels] for v in result.label_values.tolist()])
        of_mode = held[np.searchsorted(result.label_values, result.mode.reshape(-1)[result.voxels]), range(best.size)]
        np.testing.assert_array_equal(of_mode, best)
    return result


def same(a, b):
    np.testing.assert_array_equal(a.label_values, b.label_values)
    np.testing.assert_allclose(a.dense(), b.dense(), atol=ROUNDING)


def test_probabilities_grid_and_labels(fuse, floor):
    target = scan()
    before = target.array.copy()
    candidates = [atlas(n) for n in range(5)]
    result = check(fuse(target, candidates), target, LABELS)
    assert result.voxels.size  # the candidates do not agree everywhere
    truth = anatomy(100)[1]
    assert (result.mode == truth).mean() > floor
    np.testing.assert_array_equal(target.array, before)


def test_order_does_not_matter(fuse, not_drawn):
    target, candidates = scan(), [atlas(n, gain=1.0 + 0.2 * n) for n in range(5)]
    forth = fuse(target, candidates)
    back = fuse(target, [candidates[n] for n in (3, 0, 4, 2, 1)])
    same(forth, back)


def test_same_seed_same_answer(fuse):
    target, candidates = scan(), [atlas(n) for n in range(4)]
    np.testing.assert_array_equal(fuse(target, candidates).dense(), fuse(target, candidates).dense())


def test_unanimous_comes_back(fuse):
    said = anatomy(1)[1]
    candidates = [Atlas(f"a{n}", Image(anatomy(n)[0], affine()), LabelMap(said, affine())) for n in range(4)]
    result = check(fuse(scan(), candidates), scan(), LABELS)
    np.testing.assert_array_equal(result.mode, said)
    np.testing.assert_array_equal(result.confidence(), 1)


@pytest.mark.parametrize("number", [1, 2])
def test_few_atlases(fuse, number):
    candidates = [atlas(n) for n in range(number)]
    result = check(fuse(scan(), candidates), scan(), LABELS)
    if number == 1:
        np.testing.assert_array_equal(result.mode, candidates[0].segmentation.array)
    agree = candidates[0].segmentation.array == candidates[-1].segmentation.array
    np.testing.assert_array_equal(result.mode[agree], candidates[0].segmentation.array[agree])


def test_identical_atlases(fuse):
    twin = atlas(1)
    candidates = [Atlas(f"t{n}", twin.image, twin.labels) for n in range(3)] + [atlas(2)]
    check(fuse(scan(), candidates), scan(), LABELS)
    clones = [Atlas(f"t{n}", scan(), twin.labels) for n in range(3)]
    np.testing.assert_array_equal(fuse(scan(), clones).mode, twin.segmentation.array)


def test_label_in_one_atlas_only(fuse):
    candidates = [atlas(n) for n in range(4)] + [atlas(4, labels=(0, 3, 99))]
    result = check(fuse(scan(), candidates), scan(), (*LABELS, 99))
    assert result.probability(17).max() > 0.5


def test_atlas_without_a_label(fuse):
    candidates = [atlas(n) for n in range(4)] + [atlas(4, labels=(0, 3, 3))]
    result = check(fuse(scan(), candidates), scan(), LABELS)
    assert (result.mode == 17).any()


def test_atlas_without_labels(fuse):
    nothing = atlas(4, labels=(0, 0, 0))
    check(fuse(scan(), [atlas(n) for n in range(4)] + [nothing]), scan(), LABELS)
    alone = fuse(scan(), [nothing])
    assert (alone.mode == 0).all() and alone.voxels.size == 0


def test_not_annotated(fuse):
    """Nobody drew 17 in two of four: they must not vote it down."""
    knowing = [atlas(n) for n in range(2)]
    silent = [atlas(n, labels=(0, 3, 0), not_annotated=frozenset({17})) for n in (2, 3)]
    result = check(fuse(scan(), knowing + silent), scan(), LABELS)
    core = (knowing[0].segmentation.array == 17) & (knowing[1].segmentation.array == 17)
    core &= (silent[0].segmentation.array == 0) & (silent[1].segmentation.array == 0)
    assert core.any()
    assert (result.mode[core] == 17).all()


def test_field_of_view(fuse):
    """Outside its mask a candidate has no vote: what its labels say there changes nothing."""
    seen = np.ones(SHAPE, bool)
    seen[:, 6:] = False
    honest = atlas(1, mask=Mask(seen, affine()))
    image, said = anatomy(1)
    said[~seen] = 17
    lying = Atlas("atlas1", Image(image, affine()), LabelMap(said, affine()), Mask(seen, affine()))
    others = [atlas(n) for n in (0, 2, 3)]
    result = check(fuse(scan(), [honest, *others]), scan(), LABELS)
    same(result, fuse(scan(), [lying, *others]))


def test_nobody_sees(fuse):
    seen = np.zeros(SHAPE, bool)
    seen[:6] = True
    candidates = [atlas(n, mask=Mask(seen, affine())) for n in range(3)]
    result = check(fuse(scan(), candidates), scan(), LABELS)
    assert (result.mode[6:] == 0).all()
    np.testing.assert_array_equal(result.confidence()[6:], 1)


def test_an_atlas_that_sees_nothing(fuse, not_drawn):
    blind = atlas(3, mask=Mask(np.zeros(SHAPE, bool), affine()))
    others = [atlas(n) for n in range(3)]
    result = check(fuse(scan(), [*others, blind]), scan(), LABELS)
    np.testing.assert_array_equal(result.mode, fuse(scan(), others).mode)


def test_fractions(fuse):
    """Candidates that carry fractions serve as well."""
    candidates = []
    for n in range(4):
        hard = atlas(n)
        onehot = np.stack([hard.segmentation.array == v for v in LABELS], -1).astype(float)
        soft = ndimage.gaussian_filter(onehot, (0.6, 0.6, 0.6, 0))
        soft[soft < 0.01] = 0
        candidates.append(Atlas(hard.id, hard.image, ProbabilityMap.from_dense(soft, LABELS, affine())))
    result = check(fuse(scan(), candidates), scan(), LABELS)
    assert (result.mode == anatomy(100)[1]).mean() > 0.8


def test_constant_images(fuse):
    """Nothing to be learned from intensities: no NaN, and still a segmentation."""
    flat = Image(np.full(SHAPE, 7.0), affine())
    candidates = [Atlas(f"a{n}", flat, atlas(n).labels) for n in range(4)]
    check(fuse(flat, candidates), flat, LABELS)
    check(fuse(scan(), candidates), scan(), LABELS)


def test_constant_patches(fuse):
    """Half of the scan, part of a candidate and a whole candidate have one intensity: patches without spread."""
    image, _ = anatomy(100)
    image[:5] = 0
    candidates = [atlas(n) for n in range(3)]
    part = candidates[1].image.array.copy()
    part[:, :, 3:] = 2
    candidates[1] = Atlas("part", Image(part, affine()), candidates[1].labels)
    candidates[2] = Atlas("flat", Image(np.ones(SHAPE), affine()), candidates[2].labels)
    target = Image(image, affine(), "scan")
    result = check(fuse(target, candidates), target, LABELS)
    said = np.stack([each.segmentation.array for each in candidates])
    np.testing.assert_array_equal(result.mode[(said == said[0]).all(0)], said[0][(said == said[0]).all(0)])


def test_nan_never_reaches_a_fusion():
    image, _ = anatomy(3)
    image[4, 5, 3] = np.nan
    with pytest.raises(InputError, match=r"broken.*got 1 NaN"):
        Image(image, affine(), "broken")
    onehot = np.zeros((*SHAPE, 2))
    onehot[..., 0] = 1
    onehot[2, 2, 2] = np.nan
    with pytest.raises(InputError, match=r"broken.*NaN"):
        ProbabilityMap.from_dense(onehot, (0, 3), affine(), name="broken")


def test_intensities_of_any_scale(fuse):
    """A scan of 0 to 1.7e6 and atlases of 0 to 112 are the same anatomy."""
    candidates = [atlas(n) for n in range(4)]
    other = [atlas(n, gain=10.0 ** (2 * n - 2)) for n in range(4)]
    small, large = fuse(scan(), candidates), fuse(scan(gain=5e5), other)
    assert (small.mode == large.mode).mean() > 0.99


@pytest.mark.parametrize("labels", [(0, 16777217, 16777219), (0, -5, 2147483647), (0, -2147483648, -1)])
def test_extreme_labels(fuse, labels):
    """Beyond 2^24 float32 would merge neighbours; negative ones are labels too."""
    plain = fuse(scan(), [atlas(n, labels=(0, 1, 2)) for n in range(3)])
    result = check(fuse(scan(), [atlas(n, labels=labels) for n in range(3)]), scan(), labels)
    certain = plain.confidence() > 0.6
    np.testing.assert_array_equal(result.mode[certain], np.array(labels)[plain.mode[certain]])


def test_many_atlases(fuse):
    shape = (4, 5, 3)
    candidates = [
        Atlas(f"a{n}", Image(image, affine()), LabelMap(said, affine()))
        for n, (image, said) in ((n, anatomy(n, shape=shape)) for n in range(300))
    ]
    target = Image(anatomy(1000, shape=shape)[0], affine())
    check(fuse(target, candidates), target, LABELS)


def test_several_channels(fuse):
    def two(image):
        return Image(np.stack([image, 5 - image**2], -1), affine(), "two")

    candidates = [Atlas(f"a{n}", two(anatomy(n)[0]), atlas(n).labels) for n in range(4)]
    check(fuse(two(anatomy(100)[0]), candidates), scan(), LABELS)


VOTES_ALONE = ("majority", "simple", "staple")
"""Methods that look at no intensities."""


def test_every_channel_counts(request, fuse, not_drawn):
    """Two channels give the same in either order, though each of them alone gives something else."""
    name, _ = request.node.callspec.params["fuse"]
    if name == "steps":
        fuse = partial(fuse, top=3)

    def of(*seeds):
        return Image(np.stack([anatomy(seed)[0] for seed in seeds], -1) if len(seeds) > 1 else anatomy(seeds[0])[0],
                     affine(), "scan")  # fmt: skip

    def fused(channels):
        candidates = [Atlas(f"a{n}", of(*(n + 50 * c for c in channels)), atlas(n).labels) for n in range(7)]
        return fuse(of(*(100 + 50 * c for c in channels)), candidates)

    same(fused([0, 1]), fused([1, 0]))
    apart = np.abs(fused([0]).dense() - fused([1]).dense()).max()
    assert (apart == 0) if name in VOTES_ALONE else (apart > 10 * ROUNDING)


def test_no_candidates(fuse):
    with pytest.raises(InputError, match="candidate"):
        fuse(scan(), [])


def test_another_grid(fuse):
    image, said = anatomy(3)
    moved = affine()
    moved[0, 3] += 5
    stray = Atlas("stray", Image(image, moved), LabelMap(said, moved))
    with pytest.raises(GeometryError, match="stray"):
        fuse(scan(), [atlas(0), stray])
    small = Atlas("cut", Image(image[1:], affine()), LabelMap(said[1:], affine()))
    with pytest.raises(GeometryError, match="cut"):
        fuse(scan(), [atlas(0), small])


@pytest.mark.parametrize("name", METHODS)
def test_described(name):
    """`atlasseg methods fusion` has something to say about the method and each of its parameters."""
    method = methods.get("fusion", name)
    assert method.summary and method.references
    for parameter in method.parameters:
        assert parameter.description, parameter.name
        assert parameter.default is not parameter.name
