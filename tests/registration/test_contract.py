"""What every registration method must hold to, since results are kept atlas by atlas."""

from functools import partial

import numpy as np
import pytest

from atlasseg import methods
from atlasseg.atlases.library import read_library, read_targets
from atlasseg.transforms import grid_points


@pytest.mark.parametrize("name", methods.names("registration"))
def test_an_atlas_gets_the_same_transform_whatever_others_are_registered(name, dataset):
    if name == "syn":
        pytest.importorskip("ants")
    library = read_library(dataset / "atlases")
    moving = [library.read(id_).image for id_ in library.ids[:2]]
    fixed, _ = read_targets([dataset / "targets"])[0].read()
    register = methods.get("registration", name).function
    if name in ("itk_bspline", "elastix"):
        register = partial(register, iterations=2)  # they take their time
    together = register(fixed, moving)
    for n, image in enumerate(moving):
        (alone,) = register(fixed, [image])
        points_mm = grid_points(fixed.grid)
        np.testing.assert_array_equal(alone(points_mm), together[n](points_mm))
