"""The stages together, in memory: choice of atlases, cropping, failed registrations, and back onto the scan's grid."""

import numpy as np
import pytest

from atlasseg import io, pipeline
from atlasseg.atlases.library import read_library
from atlasseg.errors import InputError
from atlasseg.pipeline import align, segment
from atlasseg.recipe import parse_recipe
from atlasseg.transforms import Affine
from atlasseg.volume import Atlas

TABLES = {
    "preprocessing": {"steps": ["intensity"]},
    "registration": {"steps": ["affine"]},
    "fusion": {"method": "majority"},
}


@pytest.fixture
def case(dataset):
    library = read_library(dataset / "atlases")
    scan = io.read_image(dataset / "targets/images/head3.nii.gz")
    return scan, [library.read(id_) for id_ in library.ids]


def dice(a, b, label):
    return 2 * ((a == label) & (b == label)).sum() / ((a == label).sum() + (b == label).sum())


def test_a_crop_changes_little_and_comes_back_onto_the_whole_grid(case):
    scan, atlases = case
    whole = segment(scan, atlases, parse_recipe(TABLES))
    only = []
    for atlas in atlases:
        thalami = np.where(np.isin(atlas.segmentation.array, [10, 49]), atlas.segmentation.array, 0)
        only.append(Atlas(atlas.id, atlas.image, atlas.segmentation.with_array(thalami)))
    tables = {**TABLES, "preprocessing": {"steps": ["intensity"], "crop_margin_mm": 4.0}}
    cropped = segment(scan, only, parse_recipe(tables))
    assert cropped.labels.shape == scan.shape and cropped.labels.grid.matches(scan.grid)
    assert np.prod(cropped.alignment.target.shape) < np.prod(scan.shape)
    assert dice(cropped.labels.array, whole.labels.array, 10) > 0.8
    assert cropped.probabilities.entropy().shape == scan.shape


@pytest.mark.parametrize("by", ["thumbnails", "first_step"])
def test_fewer_atlases_can_be_chosen_before_registration(case, by):
    scan, atlases = case
    found = align(scan, atlases, parse_recipe({**TABLES, "selection": {"before": 2, "by": by}}))
    assert len(found.candidates) == 2
    whole = align(scan, atlases, parse_recipe(TABLES))
    by_id = {c.atlas.id: c.similarity for c in whole.candidates}
    for candidate in found.candidates:  # the same registration as without a choice
        assert candidate.similarity == pytest.approx(by_id[candidate.atlas.id], rel=1e-6)


@pytest.mark.parametrize("redundancy", [0.0, 0.5])
def test_fewer_atlases_can_be_chosen_after_registration(case, redundancy):
    scan, atlases = case
    found = align(scan, atlases, parse_recipe({**TABLES, "selection": {"after": 1, "redundancy": redundancy}}))
    voting = [c for c in found.candidates if c.qc.keep]
    assert len(found.candidates) == 3 and len(voting) == 1
    assert voting[0].similarity == max(c.similarity for c in found.candidates)
    assert all("not among the 1" in c.qc.reason for c in found.candidates if not c.qc.keep)


def test_a_registration_that_failed_does_not_vote(case):
    scan, atlases = case
    more = [*atlases, *(Atlas(f"{a.id}-again", a.image, a.labels) for a in atlases)]

    def astray(scans):
        good = pipeline.register(scans, parse_recipe(TABLES))
        turned = Affine(np.diag([-1.0, 1.0, -1.0, 1.0])) @ good.transforms[1]
        return pipeline.RegistrationResult((good.transforms[0], turned, *good.transforms[2:]), good.start, good.stop)

    found = align(scan, more, parse_recipe(TABLES), registrar=astray)
    dropped = [c.atlas.id for c in found.candidates if not c.qc.keep]
    assert dropped == [more[1].id]
    forgiving = parse_recipe({**TABLES, "registration": {"steps": ["affine"], "drop_failed": False}})
    kept = align(scan, more, forgiving, registrar=astray)
    assert all(c.qc.keep for c in kept.candidates)


def test_without_atlases_or_steps_there_is_nothing_to_do(case):
    scan, atlases = case
    with pytest.raises(InputError, match="no atlas"):
        segment(scan, [], parse_recipe(TABLES))
    with pytest.raises(InputError, match="steps is empty"):
        segment(scan, atlases, parse_recipe({"fusion": {"method": "majority"}}))


@pytest.mark.parametrize("contrast", ["auto", "same"])
def test_another_contrast_is_told_once_and_mapped(case, contrast, caplog):
    scan, atlases = case
    inverse = scan.with_array(scan.array.max() - scan.array)
    fusion = {"method": "local_weighted", "local_weighted": {"contrast": contrast}}
    recipe = parse_recipe({**TABLES, "fusion": fusion})
    found = segment(inverse, atlases, recipe)
    told = [r.getMessage() for r in caplog.records if "differ from the scan in contrast" in r.getMessage()]
    if contrast == "same":
        assert not told and not found.contrast
    else:
        assert told == [f"head3: {found.contrast}"]
        assert found.contrast.startswith(f"{len(atlases)} of {len(atlases)} atlases differ")
    assert not segment(scan, atlases, recipe).contrast
