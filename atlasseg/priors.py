"""Priors of tissue classes: files on any grid, or a probabilistic library that is registered to the scan."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from atlasseg import io
from atlasseg.atlases.library import AtlasLibrary, read_library
from atlasseg.errors import GeometryError, InputError
from atlasseg.labels import LabelTable
from atlasseg.pipeline import Progress, segment
from atlasseg.recipe import Recipe
from atlasseg.recipe.defaults import default_recipe
from atlasseg.resampling import resample_fractions
from atlasseg.volume import Atlas, Float64, Image, Mask, ProbabilityMap

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Prior:
    """Where class probabilities come from: a map that lies where the scans lie, or a library to be registered."""

    paths: tuple[Path, ...]
    probabilities: ProbabilityMap | None = None
    library: AtlasLibrary | None = None
    atlases: tuple[Atlas, ...] = ()

    @property
    def classes(self) -> tuple[int, ...]:
        """Labels that are classes, ascending; what is outside (0) is none."""
        maps = [self.probabilities] if self.probabilities is not None else [a.labels for a in self.atlases]
        values: set[int] = set()
        for each in maps:
            values |= set((each.label_values if isinstance(each, ProbabilityMap) else each.values).tolist())
        return tuple(sorted(values - {0}))

    def name(self, value: int) -> str:
        """What the class of that label is called."""
        if self.library is not None:
            return self.library.table.name(value)
        if len(self.paths) > 1:
            return io.volume_id(self.paths[value - 1])
        return LabelTable().name(value)


def read_prior(paths: Sequence[Path]) -> Prior:
    """Read the folder of a library, one 4-D file, or one 3-D file a class in the order of the classes.

    Raises
    ------
    InputError
        A file cannot be read or its values are no probabilities, or a folder is given beside other paths.
    GeometryError
        Files are not on one grid.
    """
    if any(path.is_dir() for path in paths):
        if len(paths) > 1:
            raise InputError(f"a prior is one library, one 4-D file or one file a class, got {_listed(paths)}")
        library = read_library(paths[0])
        return Prior(tuple(paths), library=library, atlases=tuple(library.read(id_) for id_ in library.ids))
    if len(paths) == 1:
        return Prior(tuple(paths), io.read_probability_map(paths[0], labels="numbered"))
    return Prior(tuple(paths), io.read_probability_map(list(paths), labels=range(1, len(paths) + 1)))


def on_scan(prior: Prior, scan: Image, inside: Mask, recipe: Recipe, progress: Progress) -> Float64:
    """(N, K) probability of each class at the N voxels of the region, on the scan's own grid.

    Raises
    ------
    GeometryError
        Prior and region do not overlap.
    """
    if prior.probabilities is not None:
        found = prior.probabilities
        if not found.grid.matches(scan.grid):
            log.warning(
                "%s: on another grid than %s (%s and %s voxels); it is resampled, lying where the header says",
                _listed(prior.paths),
                scan.name,
                " x ".join(map(str, found.shape)),
                " x ".join(map(str, scan.shape)),
            )
            found = resample_fractions(found, scan.grid)
    else:
        first = scan if scan.array.ndim == 3 else replace(scan, array=scan.array[..., 0])
        found = segment(first, prior.atlases, _registering(recipe), mask=inside, progress=progress).probabilities
    values = np.stack([found.probability(value)[inside.array] for value in prior.classes], axis=1).astype(np.float64)
    if not values.any():
        raise GeometryError(
            f"{_listed(prior.paths)}: 0 at every voxel of the region of {scan.name}: they do not overlap in space; "
            "a prior in another space needs its template, as a probabilistic library"
        )
    return values


def _registering(recipe: Recipe) -> Recipe:
    """What carries a library's probabilities onto the scan: the recipe's registration, or the usual one."""
    steps = recipe.registration.steps
    registration = recipe.registration
    if not steps:
        registration = default_recipe("probabilistic").registration
    return replace(recipe, registration=registration)


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths) or "prior"
