"""Small volumes in every form in which a user may give them."""

import numpy as np
import pytest

from atlasseg import io
from atlasseg.volume import Atlas, Image, LabelMap, Mask


@pytest.fixture(scope="session")
def heads(_small_heads):
    return _small_heads


@pytest.fixture
def forms(tmp_path, heads):
    """One scan and its labels as a path, ours, and images of nibabel, SimpleITK and ANTs."""
    scan, labels = heads[0].image, heads[0].labels
    io.write_image(scan, tmp_path / "scan.nii.gz")
    io.write_label_map(labels, tmp_path / "labels.nii.gz")
    return {
        "ours": (scan, labels),
        "path": (tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz"),
        "text": (str(tmp_path / "scan.nii.gz"), str(tmp_path / "labels.nii.gz")),
        "nibabel": (scan.to_nibabel(), labels.to_nibabel()),
        "sitk": (scan.to_sitk(), labels.to_sitk()),
        "ants": (scan.to_ants(), labels.to_ants()),
    }


@pytest.fixture(scope="session")
def tiny():
    """A scan of a few voxels on an oblique grid, with labels, mask and atlas."""
    affine = np.array([[0.9, 0.2, 0, -5], [-0.1, 1.4, 0.3, 2], [0, 0.1, 2.0, 7], [0, 0, 0, 1.0]])
    rng = np.random.default_rng(0)
    image = Image(rng.normal(100, 20, (9, 8, 7)).astype(np.float32), affine, "tiny")
    array = np.zeros((9, 8, 7), np.int32)
    array[2:5, 2:6, 1:5], array[5:7, 2:6, 1:5] = 3, 7
    labels = LabelMap(array, affine, "tiny")
    return {"image": image, "labels": labels, "mask": Mask(array > 0, affine), "atlas": Atlas("tiny", image, labels)}
