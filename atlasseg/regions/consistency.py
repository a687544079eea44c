"""Consistency of a segmentation with the homogeneous regions of its scan: the last stage of the pipeline.

1. Uncertain fused probabilities are updated by the likelihood of the intensities (`evidence.with_intensity`).
2. Intensity and posterior are the channels of one image, in units of the noise. A method of this stage partitions it
   into regions.
3. Each region takes the label of its summed posterior; neighbours without an intensity edge count as well
   (`label_field.random_walk_labels`).
4. Islands, parts of a label much smaller than its largest part, are given to the neighbour of highest probability.
5. Optional topology: only the largest component of a label is kept, and its holes are filled.
6. A label that disappeared is restored, unless it is removable.

The changes are reported for each label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import GeometryError, InputError
from atlasseg.recipe.tables import Regions, Step
from atlasseg.regions.adjacency_graph import adjacency_graph, face_areas_mm2
from atlasseg.regions.evidence import with_intensity
from atlasseg.regions.label_field import check, random_walk_labels
from atlasseg.regions.noise import noise_sd
from atlasseg.volume import Float32, Float64, Image, Int32, Int64, LabelMap, ProbabilityMap

__all__ = ["Change", "Consistent", "make_consistent", "region_channels"]

Partition = Callable[..., LabelMap]
"""A method of this stage: partitions an Image into regions 1..R (0: no region); it takes the keyword `noise_sd`."""

LabelChoice = tuple[int, ...] | Literal["all"]
"""Some labels, or all labels except background."""

VOTING_THRESHOLD = 3.0
"""Default merge threshold of regions that vote. It is far below that of a partition without labels, since a region that
covers parts of two structures gives both parts one label."""

MARGIN_VOXELS = 4
"""Margin around the labels in which regions are computed."""

_AHEAD = np.float32(1 + 1e-5)  # lead of the chosen label of a voxel over the others, so that there are no ties


@dataclass(frozen=True)
class Change:
    """Change of one label.

    Parameters
    ----------
    label : int
        0 is background.
    voxels_before, voxels_after : int
        Number of voxels of the label.
    parts_before, parts_after : int
        Number of connected parts of the label (by faces, edges or corners).
    by_region : int
        Voxels that the label gained by intensity and the votes of regions.
    islands : int
        Number of parts that were given to a neighbour.
    holes : int
        Number of background voxels in filled holes.
    restored : int
        Number of restored voxels of a label that had disappeared.
    """

    label: int
    voxels_before: int
    voxels_after: int
    parts_before: int
    parts_after: int
    by_region: int
    islands: int
    holes: int
    restored: int


@dataclass(frozen=True, eq=False)
class Consistent:
    """Segmentation that is consistent with the regions, and its changes.

    Parameters
    ----------
    probabilities : ProbabilityMap
        Probabilities with the likelihood of the intensities. Where a region, topology or restoration chose another
        label than the most probable one, both labels have exchanged their probabilities.
    changes : tuple of Change
        One change per label, ascending, background included.
    voxels_changed : int
        Number of voxels with another label.
    """

    probabilities: ProbabilityMap
    changes: tuple[Change, ...]
    voxels_changed: int

    @property
    def labels(self) -> LabelMap:
        """The most probable label of each voxel."""
        return self.probabilities.label_map()

    def rows(self) -> list[dict[str, Any]]:
        """Convert the changes to rows of a table.

        Returns
        -------
        list of dict
        """
        return [asdict(change) for change in self.changes]


def make_consistent(
    image: Image,
    segmentation: ProbabilityMap | LabelMap,
    *,
    method: Partition | None = None,
    intensity_exponent: float = Regions.intensity_exponent,
    window_voxels: float = Regions.window_voxels,
    posterior_weight: float = Regions.posterior_weight,
    field_weight: float = Regions.field_weight,
    edge_contrast: float = Regions.edge_contrast,
    min_component_fraction: float = Regions.min_component_fraction,
    largest_part: LabelChoice = Regions.largest_part,
    fill_holes: LabelChoice = Regions.fill_holes,
    removable_labels: LabelChoice = Regions.removable_labels,
) -> Consistent:
    """Make a segmentation consistent with the regions of its scan.

    Parameters
    ----------
    image : Image
        The scan, with one or several channels.
    segmentation : ProbabilityMap or LabelMap
        Fused labels on the scan's grid. A LabelMap is certain everywhere.
    method : callable, optional
        Partitions the channels of `region_channels` into regions, with the keyword `noise_sd`: for example
        `split_and_merge.partition`, or a partial of it with other parameters. None: no regions, only islands and
        topology are corrected.
    intensity_exponent, window_voxels : float
        Weight of the intensities where the labels are uncertain, and window in which their distributions are estimated:
        `exponent` and `sigma_voxels` of `evidence.with_intensity`. With an exponent of 0 probabilities do not change.
    posterior_weight : float
        Contrast of a probability difference of 1 in the partition, in noise standard deviations; 0 or more.
    field_weight, edge_contrast : float
        Weight of the neighbours of a region in the choice of its label, and the contrast of an edge in noise standard
        deviations: `weight` and `edge_contrast` of `label_field.random_walk_labels`. With a weight of 0 each region is
        labelled independently, which is best for structures that are few voxels thick: the field shrinks them. 0.3 is
        suitable for structures of ten voxels and more, such as hippocampi at 1 mm.
    min_component_fraction : float
        Smallest size of a connected component, as a fraction of its label's largest component; 0 to 1. Smaller ones,
        also of background, are given to the neighbouring label of highest probability. 0 keeps all components.
    largest_part : tuple of int, or "all"
        Labels of which only the largest part is kept.
    fill_holes : tuple of int, or "all"
        Labels whose holes (enclosed background) are filled.
    removable_labels : tuple of int, or "all"
        Labels that may disappear. Other labels that disappear are restored.

    Returns
    -------
    Consistent
        The segmentation and its changes.

    Raises
    ------
    GeometryError
        Image and segmentation are on different grids.
    InputError
        A parameter is out of range, or names a label that the segmentation does not have.
    """
    if not image.grid.matches(segmentation.grid):
        raise GeometryError(
            f"image {image.name!r} and segmentation {segmentation.name!r}: expected one grid, got shapes {image.shape} "
            f"and {segmentation.shape}, affines {image.affine.tolist()} and {segmentation.affine.tolist()}"
        )
    if not posterior_weight >= 0:
        raise InputError(f"posterior_weight: expected 0 or more, got {posterior_weight}")
    check(weight=field_weight, edge_contrast=edge_contrast)
    if not 0 <= min_component_fraction <= 1:
        raise InputError(f"min_component_fraction: expected 0 to 1, got {min_component_fraction}")
    given = (
        ProbabilityMap.from_labels(segmentation, label_values=(0,))
        if isinstance(segmentation, LabelMap)
        else segmentation
    )
    updated = with_intensity(image, given, exponent=intensity_exponent, sigma_voxels=window_voxels)
    known = [int(v) for v in given.label_values if v != 0]
    only, filled, removable = (
        _resolve_labels(choice, known, name)
        for choice, name in (
            (largest_part, "largest_part"),
            (fill_holes, "fill_holes"),
            (removable_labels, "removable_labels"),
        )
    )
    before = given.mode
    voted = (
        updated.mode if method is None else _vote(image, updated, method, posterior_weight, field_weight, edge_contrast)
    )
    regained = dict(zip(*np.unique(voted[voted != before], return_counts=True), strict=True))
    labels, restored = _restore_vanished(before, voted, removable)
    labels, islands = _remove_islands(image, updated, labels, min_component_fraction, only)
    holes = {}
    for label in filled:
        labels, holes[label] = _fill_holes(labels, label)
    labels, again = _restore_vanished(before, labels, removable)
    restored |= again
    every = np.union1d(given.label_values, 0)
    changes = _list_changes(before, labels, every, regained=regained, islands=islands, holes=holes, restored=restored)
    return Consistent(_with_labels(updated, labels), changes, int((labels != before).sum()))


def _list_changes(
    before: Int32,
    after: Int32,
    every: Int32,
    *,
    regained: Mapping[int, int],
    islands: Mapping[int, int],
    holes: Mapping[int, int],
    restored: Mapping[int, int],
) -> tuple[Change, ...]:
    """List the change of each of the labels `every` that occurs before or after."""
    sizes = [_sizes(mode, every) for mode in (before, after)]
    parts = [_part_counts(mode, every) for mode in (before, after)]
    counts = (regained, islands, holes, restored)
    return tuple(
        Change(
            int(label),
            int(sizes[0][n]),
            int(sizes[1][n]),
            int(parts[0][n]),
            int(parts[1][n]),
            *(int(count.get(int(label), 0)) for count in counts),
        )
        for n, label in enumerate(every)
        if sizes[0][n] or sizes[1][n]
    )


def voting_step(step: Step) -> Step:
    """Set `VOTING_THRESHOLD` for a region method that merges and has no stopping criterion in the recipe."""
    if not step.method.has_parameter("merge_threshold") or {"merge_threshold", "regions"} & step.arguments.keys():
        return step
    return replace(step, arguments={**step.arguments, "merge_threshold": VOTING_THRESHOLD})


def region_channels(
    image: Image, probabilities: ProbabilityMap, *, posterior_weight: float = Regions.posterior_weight
) -> Image:
    """Combine intensity and posterior as the channels of one image, in units of the noise of the intensities.

    Labels that meet, in one uncertain voxel or across a face, get different channels. Labels that never meet may share
    a channel, so that a brain with a hundred labels needs only a few channels.

    Parameters
    ----------
    image : Image
        The scan.
    probabilities : ProbabilityMap
        Probabilities on the grid of the image.
    posterior_weight : float
        Contrast of a probability difference of 1, in noise standard deviations. With 0 only intensity is used.

    Returns
    -------
    Image
        Image with (I, J, K, C + colors) values.
    """
    scaled = _scale_to_noise(image, noise_sd(image))
    if posterior_weight == 0:
        return Image(scaled, image.affine, image.name)
    labels = np.union1d(probabilities.label_values, probabilities.mode)
    color = _colors(probabilities, labels)
    colored = np.zeros((*image.shape, int(color.max()) + 1), np.float32)
    flat = colored.reshape(-1, colored.shape[-1])
    mode_color = color[np.searchsorted(labels, probabilities.mode.reshape(-1))]
    flat[np.arange(len(flat)), mode_color] = 1
    flat[probabilities.voxels] = 0
    at = (probabilities.entry_voxels, color[np.searchsorted(labels, probabilities.labels)])
    np.add.at(flat, at, probabilities.values)
    # a change of label changes two channels; the factor 1 / sqrt(2) makes the distance that of one
    flat *= np.float32(posterior_weight / np.sqrt(2))
    return Image(np.concatenate([scaled, colored], axis=-1), image.affine, image.name)


def _scale_to_noise(image: Image, sd: Float64) -> Float32:
    """Scale the channels (I, J, K, C) to units of their noise."""
    out: Float32 = np.divide(image.channels, np.where(sd > 0, sd, 1.0), dtype=np.float32)
    return out


def _colors(probabilities: ProbabilityMap, labels: Int32) -> Int64:
    """Greedy graph colouring (L,) of the labels: different for labels that meet, most neighbours first."""
    count = labels.size
    meet = np.zeros((count, count), bool)
    rows = np.searchsorted(labels, probabilities.mode)
    for axis in range(3):
        along = np.moveaxis(rows, axis, 0)
        meet[along[1:].reshape(-1), along[:-1].reshape(-1)] = True
    entries = np.searchsorted(labels, probabilities.labels)
    lengths = np.diff(probabilities.offsets)
    for shift in range(1, int(lengths.max()) if lengths.size else 0):
        same = probabilities.entry_voxels[shift:] == probabilities.entry_voxels[:-shift]
        meet[entries[shift:][same], entries[:-shift][same]] = True
    meet |= meet.T
    np.fill_diagonal(meet, False)
    color = np.full(count, -1, np.int64)
    for row in np.argsort(-meet.sum(axis=1), kind="stable"):
        taken = set(color[meet[row]].tolist())
        color[row] = next(c for c in range(count) if c not in taken)
    return color


def _resolve_labels(choice: LabelChoice, known: Sequence[int], name: str) -> tuple[int, ...]:
    if choice == "all":
        return tuple(known)
    unknown = sorted({int(label) for label in choice} - {*known})
    if unknown:
        raise InputError(f"{name}: expected labels among {', '.join(map(str, known))}, got {unknown[0]}")
    return tuple(int(label) for label in choice)


def _vote(
    image: Image,
    given: ProbabilityMap,
    method: Partition,
    posterior_weight: float,
    field_weight: float,
    edge_contrast: float,
) -> Int32:
    """Label (I, J, K) by the choice of each region; in a tie the smaller label."""
    from scipy.sparse import coo_array

    concerned = given.mode != 0
    concerned.reshape(-1)[given.voxels] = True
    if not concerned.any():
        return given.mode
    box = []
    for axis, n in enumerate(given.shape):
        found = np.flatnonzero(concerned.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append((max(0, int(found[0]) - MARGIN_VOXELS), min(n, int(found[-1]) + 1 + MARGIN_VOXELS)))
    start, stop = np.array(box).T
    part = given.cropped(start, stop)
    channels = region_channels(image.cropped(start, stop), part, posterior_weight=posterior_weight)
    regions = method(channels, noise_sd=(1.0,) * channels.array.shape[-1]).array.reshape(-1)

    labels = np.union1d(part.label_values, part.mode)
    flat = part.mode.reshape(-1)
    certain = np.ones(flat.size, bool)
    certain[part.voxels] = False
    rows = np.concatenate([regions[certain], regions[part.entry_voxels]]).astype(np.int64)
    columns = np.searchsorted(labels, np.concatenate([flat[certain], part.labels]))
    weights = np.concatenate([np.ones(int(certain.sum())), part.values])
    count = int(regions.max()) + 1
    sums = coo_array((weights, (rows, columns)), shape=(count, labels.size)).tocsc()
    crop = image.cropped(start, stop)
    shown = Image(_scale_to_noise(crop, noise_sd(crop)), crop.affine)
    graph = adjacency_graph(shown, LabelMap(regions.reshape(part.shape), crop.affine))
    chosen = random_walk_labels(
        graph,
        sums[graph.labels],
        weight=field_weight,
        edge_contrast=edge_contrast,
        face_mm2=float(face_areas_mm2(crop.affine).mean()),
    )
    decision = np.zeros(count, np.int32)
    decision[graph.labels] = labels[chosen]
    out = given.mode.copy()
    inside = out[tuple(slice(a, b) for a, b in box)]
    has_region = (regions != 0).reshape(inside.shape)
    inside[has_region] = decision[regions].reshape(inside.shape)[has_region]
    return out


def _parts(labels: Int32) -> Int32:
    """Number the connected parts (by corners) of equal labels (I, J, K) from 1, background included."""
    from skimage.measure import label

    return np.asarray(label(labels.astype(np.int64), background=int(labels.min()) - 1, connectivity=3), np.int32)


def _remove_islands(
    image: Image, given: ProbabilityMap, labels: Int32, share: float, only: Sequence[int]
) -> tuple[Int32, dict[int, int]]:
    """Give islands to the neighbours of highest probability; return the labels and the number of islands per label."""
    parts = _parts(labels)
    graph = adjacency_graph(image, LabelMap(parts, image.affine))
    label_of = np.zeros(graph.labels.size, np.int32)
    label_of[parts.reshape(-1) - 1] = labels.reshape(-1)
    is_island = np.zeros(label_of.size, bool)
    for label in np.unique(label_of):
        rows = np.flatnonzero(label_of == label)
        largest = rows[np.argmax(graph.sizes[rows])]
        small = graph.sizes[rows] < share * graph.sizes[largest]
        is_island[rows] = (small | (int(label) in only)) & (rows != largest)
    if not is_island.any():
        return labels, {}
    posterior = _summed_posterior(given, parts, is_island)
    before = label_of.copy()
    neighbours = _neighbour_lists(graph.edges, is_island)
    for _ in range(int(is_island.sum())):  # an island may be given to another island
        moved = False
        for row in np.flatnonzero(is_island)[np.argsort(graph.sizes[is_island], kind="stable")]:
            candidates = [n for n in neighbours[row] if label_of[n] != before[row]]
            anchored = [n for n in candidates if not is_island[n]] or candidates
            if not anchored:
                continue
            best = max(
                anchored,
                key=lambda n, row=row: (  # type: ignore[misc]
                    posterior.get((row, int(label_of[n])), 0.0),
                    -float(np.linalg.norm(graph.means[n] - graph.means[row])),
                    -int(label_of[n]),
                ),
            )
            moved |= label_of[row] != label_of[best]
            label_of[row] = label_of[best]
        if not moved:
            break
    gone = before[label_of != before]
    values, counts = np.unique(gone, return_counts=True)
    return label_of[parts - 1], dict(zip(values.tolist(), counts.tolist(), strict=True))


def _neighbour_lists(edges: Int32, wanted: NDArray[np.bool_]) -> dict[int, list[int]]:
    """Neighbours of each requested row."""
    out: dict[int, list[int]] = {int(row): [] for row in np.flatnonzero(wanted)}
    for a, b in edges[wanted[edges].any(axis=1)].tolist():
        if wanted[a]:
            out[a].append(b)
        if wanted[b]:
            out[b].append(a)
    return out


def _summed_posterior(given: ProbabilityMap, parts: Int32, wanted: NDArray[np.bool_]) -> dict[tuple[int, int], float]:
    """Sum the probability over each requested part: (row of part, label) to sum."""
    rows = parts.reshape(-1) - 1
    certain = np.ones(rows.size, bool)
    certain[given.voxels] = False
    flat = np.concatenate([np.flatnonzero(certain & wanted[rows]), given.entry_voxels])
    first = flat.size - given.labels.size
    labels = np.concatenate([given.mode.reshape(-1)[flat[:first]], given.labels])
    values: Float64 = np.concatenate([np.ones(first), given.values])
    keep = wanted[rows[flat]]
    out: dict[tuple[int, int], float] = {}
    for row, label, value in zip(rows[flat][keep].tolist(), labels[keep].tolist(), values[keep].tolist(), strict=True):
        out[row, label] = out.get((row, label), 0.0) + value
    return out


def _fill_holes(labels: Int32, label: int) -> tuple[Int32, int]:
    """Fill background enclosed by `label`; an axis of one voxel does not open a hole."""
    from scipy.ndimage import binary_fill_holes

    mask = labels == label
    thick = [n > 1 for n in mask.shape]
    squeezed = mask.reshape([n for n, t in zip(mask.shape, thick, strict=True) if t] or [1])
    hole = binary_fill_holes(squeezed).reshape(mask.shape) & (labels == 0)
    if not hole.any():
        return labels, 0
    out = labels.copy()
    out[hole] = label
    return out, int(hole.sum())


def _restore_vanished(before: Int32, labels: Int32, removable: Sequence[int]) -> tuple[Int32, dict[int, int]]:
    """Restore each label that disappeared at its largest part; return the labels and the voxels per label."""
    restored: dict[int, int] = {}
    out = labels
    while True:
        lost = [int(v) for v in np.setdiff1d(before, out) if v != 0 and int(v) not in removable]
        if not lost:
            return out, restored
        out = out.copy()
        for label in lost:
            parts = _parts((before == label).astype(np.int32))
            parts[before != label] = 0
            largest = parts == np.argmax(np.bincount(parts.reshape(-1))[1:]) + 1
            out[largest] = label
            restored[label] = int(largest.sum())


def _sizes(labels: Int32, every: Int32) -> Int64:
    return np.bincount(np.searchsorted(every, labels.reshape(-1)), minlength=every.size).astype(np.int64)


def _part_counts(labels: Int32, every: Int32) -> Int64:
    parts = _parts(labels).reshape(-1)
    first = np.unique(parts, return_index=True)[1]
    return _sizes(labels.reshape(-1)[first], every)


def _with_labels(given: ProbabilityMap, labels: Int32) -> ProbabilityMap:
    """Change the most probable labels of a map: where it changes, both labels exchange their probabilities."""
    voxels = given.entry_voxels
    old, new = given.mode.reshape(-1)[voxels], labels.reshape(-1)[voxels]
    entries = given.labels.copy()
    values = given.values.copy()
    changed = old != new
    entries[changed & (given.labels == old)] = new[changed & (given.labels == old)]
    entries[changed & (given.labels == new)] = old[changed & (given.labels == new)]
    values[changed & (entries == new)] *= _AHEAD
    return ProbabilityMap.from_entries(
        labels, given.affine, voxels, entries, values, label_values=given.label_values, name=given.name
    )
