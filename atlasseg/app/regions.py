"""The regions stage on files, for the command ``regions``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from atlasseg import files, io
from atlasseg.app.outputs import write_table
from atlasseg.errors import InputError
from atlasseg.recipe import Step, parse_recipe
from atlasseg.regions import figures
from atlasseg.regions.adjacency_graph import AdjacencyGraph, adjacency_graph
from atlasseg.regions.consistency import Change, Consistent, LabelChoice, make_consistent, voting_step
from atlasseg.regions.instances import Split, instances
from atlasseg.regions.merging import Merges, merge
from atlasseg.regions.noise import noise_sd
from atlasseg.volume import Image, LabelMap

__all__ = ["consistent_files", "instance_files", "partition_files"]

ALIASES = {"growing": "region_growing"}
"""Shorter names of methods, for the command line."""


@dataclass(frozen=True, eq=False)
class Partitioned:
    """Regions of a volume, their graph, and the written files."""

    regions: LabelMap
    graph: AdjacencyGraph
    written: tuple[Path, ...]


def partition_files(
    volume: Path,
    out: Path,
    *,
    method: str,
    settings: Sequence[str] = (),
    seeds: Path | None = None,
    table: Path | None = None,
    pictures: Path | None = None,
) -> Partitioned:
    """Partition a volume into regions and write them.

    Parameters
    ----------
    volume : path
        Scan.
    out : path
        Output label map of the regions.
    method : str
        "split_and_merge", "region_growing" ("growing") or "watershed".
    settings : sequence of str
        Parameters of the method, each ``"key=value"``.
    seeds : path, optional
        Label map of seeds (growing) or markers (watershed).
    table : path, optional
        Output TSV with one row per region: size, mean, standard deviation and neighbours.
    pictures : path, optional
        Output folder for pictures: region borders and, for split and merge, octree blocks and dendrogram.

    Returns
    -------
    Partitioned
        The regions, with their graph and merges.

    Raises
    ------
    InputError
        The method has no such parameter, or has no seeds.
    """
    image = io.read_image(volume)
    step = _step(method, settings)
    given: dict[str, Any] = {}
    if seeds is not None:
        name = next((n for n in ("seeds", "markers") if step.method.takes(n)), None)
        if name is None:
            raise InputError(f"{step.name} takes no seeds, but {seeds} was given")
        given[name] = io.read_label_map(seeds)
    merges: Merges | None = None
    companions = step.method.needs.companions
    if "hierarchy" in companions:
        regions, merges = companions["hierarchy"](image, **step.arguments, **given)
    else:
        regions = step(image, **given)
    graph = adjacency_graph(image, regions)
    written = [out]
    io.write_label_map(regions, out, like=image)
    if table is not None:
        write_table(graph.table(), table)
        written.append(table)
    if pictures is not None:
        drawn = {"borders": figures.borders(image, regions)}
        if merges is not None and "blocks" in companions:
            blocks = companions["blocks"](image, **step.arguments)
            drawn["blocks"] = figures.borders(image, blocks, title="Octree blocks")
        if merges is not None and graph.labels.size > 1:
            drawn["dendrogram"] = figures.dendrogram(_tree(image, graph, step))
        for name, figure in drawn.items():
            path = pictures / f"{io.volume_id(volume)}_{name}.png"
            with files.atomic_write(path) as temporary:
                figure.savefig(temporary, format="png", dpi=100)
            written.append(path)
    return Partitioned(regions, graph, tuple(written))


def _step(method: str, settings: Sequence[str]) -> Step:
    """Make a method of this stage with checked parameters from command line options."""
    name = ALIASES.get(method, method)
    tables = {"fusion": {"method": "majority"}, "regions": {"method": name}}
    recipe = parse_recipe(tables, overrides=[f"regions.{name}.{s}" for s in settings], where="--set")
    assert recipe.regions is not None and recipe.regions.method is not None
    return recipe.regions.method


def _tree(image: Image, graph: AdjacencyGraph, step: Step) -> Merges:
    """Compute the merge tree of the regions up to a single one, with costs in units of the noise."""
    sd = tuple(value if value > 0 else 1.0 for value in noise_sd(image).tolist())
    return merge(graph, criterion=step.arguments.get("criterion", "ward"), regions=1, noise_sd=sd)


def consistent_files(
    volume: Path,
    segmentation: Path,
    out: Path,
    *,
    method: str | None,
    settings: Sequence[str] = (),
    field_weight: float,
    min_component_fraction: float,
    largest_part: LabelChoice,
    fill_holes: LabelChoice,
    removable_labels: LabelChoice,
    changes: Path | None = None,
) -> Consistent:
    """Make a segmentation consistent with the regions of its scan and write it to `out`.

    Parameters
    ----------
    volume : path
        Scan.
    segmentation : path
        Label map, or probabilities (4-D), on the grid of the scan.
    out : path
        Output label map.
    method, settings
        As for `partition_files`; without a method no region votes.
    field_weight, min_component_fraction, largest_part, fill_holes, removable_labels
        As for `regions.make_consistent`.
    changes : path, optional
        Output TSV with the changes of each label.

    Returns
    -------
    Consistent
        The segmentation and its changes.
    """
    image = io.read_image(volume)
    given = _read_segmentation(segmentation)
    step = None if method is None else voting_step(_step(method, settings))
    result = make_consistent(
        image,
        given,
        method=None if step is None else partial(step.method.function, **step.arguments),
        field_weight=field_weight,
        min_component_fraction=min_component_fraction,
        largest_part=largest_part,
        fill_holes=fill_holes,
        removable_labels=removable_labels,
    )
    io.write_label_map(result.labels, out, like=image)
    if changes is not None:
        io.write_tsv(result.rows(), changes, columns=[field.name for field in fields(Change)])
    return result


def _read_segmentation(path: Path) -> Any:
    """Read a ProbabilityMap from a 4-D file, or else a LabelMap."""
    import nibabel

    try:
        several = len(nibabel.load(path).shape) > 3 and nibabel.load(path).shape[3] > 1
    except Exception:
        several = False  # not a NIfTI file: `read_label_map` raises a clear error
    return io.read_probability_map(path) if several else io.read_label_map(path)


def instance_files(
    segmentation: Path,
    out: Path,
    *,
    by: Split = "components",
    depth_mm: float = 1.0,
    smallest_voxels: int = 1,
    stuff: tuple[int, ...] = (),
    table: Path | None = None,
    masks: Path | None = None,
) -> int:
    """Number the instances of each label and write them.

    Parameters
    ----------
    segmentation : path
        Label map.
    out : path
        Output volume of instance numbers.
    by, depth_mm, smallest_voxels, stuff
        As for `regions.instances` (`split` is `by`).
    table : path, optional
        Output TSV with number, label, size and centre of each instance.
    masks : path, optional
        Output folder for one binary mask per label.

    Returns
    -------
    int
        Number of instances.
    """
    labels = io.read_label_map(segmentation)
    found = instances(labels, split=by, depth_mm=depth_mm, smallest_voxels=smallest_voxels, stuff=stuff)
    io.write_label_map(found.instance, out, like=labels)
    if table is not None:
        columns = ["instance", "label", "voxels", "volume_mm3", "x_mm", "y_mm", "z_mm"]
        io.write_tsv(found.rows(), table, columns=columns)
    if masks is not None:
        for label, mask in found.masks():
            io.write_mask(mask, masks / f"{io.volume_id(segmentation)}_label-{label}_mask.nii.gz", like=labels)
    return int(found.labels.size)


def parse_labels(text: str, what: str) -> tuple[int, ...] | Literal["all"]:
    """Parse ``"all"``, or labels separated by commas."""
    if text.strip() == "all":
        return "all"
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"{what}: expected labels separated by commas, or 'all', got {text!r}") from None


def region_sizes(graph: AdjacencyGraph) -> dict[str, float]:
    """Summary of region sizes for the terminal."""
    return {
        "regions": float(graph.labels.size),
        "smallest": float(graph.sizes.min()),
        "median": float(np.median(graph.sizes)),
        "largest": float(graph.sizes.max()),
    }
