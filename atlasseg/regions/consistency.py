"""Make a segmentation consistent with the regions of its scan: the last stage of the pipeline.

1. The fused probabilities take up what intensity says where they are uncertain (`evidence.with_intensity`).
2. Intensity and posterior become channels of one image, in units of the noise; a method of this stage cuts it into
   regions.
3. Each region takes the label of its summed posterior, neighbours across which intensity is even counting as well
   (`label_field.decide`).
4. Islands, parts of a label much smaller than its largest part, go to the neighbour that explains them best.
5. Optional topology: only the largest component of a label stays, and its holes are filled.
6. A label that was there and is no longer is put back, unless it may vanish.

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

Partition = Callable[..., LabelMap]
"""A method of this stage: cuts an Image into regions 1..R (0: no region), given `noise_sd` by keyword."""

LabelChoice = tuple[int, ...] | Literal["all"]
"""Some labels, or all of them but background."""

VOTING_THRESHOLD = 3.0
"""Merge threshold of regions that vote, where none is given: far below that of regions that stand alone, since a
region that straddles two structures takes one of them whole."""

MARGIN_VOXELS = 4
"""How far beyond the labels regions are looked for."""

_AHEAD = np.float32(1 + 1e-5)  # by this much a label that was decided for leads in its voxel, so that a tie is none


@dataclass(frozen=True)
class Change:
    """Change of one label.

    Parameters
    ----------
    label : int
        0 is background.
    voxels_before, voxels_after : int
        Its size.
    parts_before, parts_after : int
        Its connected parts (by faces, edges or corners).
    by_region : int
        Voxels that it gained by intensity and the votes of regions.
    islands : int
        Parts of it that went to a neighbour.
    holes : int
        Voxels of background that filled its holes.
    restored : int
        Voxels that were put back because it had vanished.
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
    """A segmentation made consistent.

    Parameters
    ----------
    probabilities : ProbabilityMap
        With the evidence of intensity; where a region, topology or restoration chose another label than the most
        probable one, the two have exchanged their probabilities.
    changes : tuple of Change
        One a label, ascending, background included.
    voxels_changed : int
        Voxels whose label changed.
    """

    probabilities: ProbabilityMap
    changes: tuple[Change, ...]
    voxels_changed: int

    @property
    def labels(self) -> LabelMap:
        """One label a voxel."""
        return self.probabilities.label_map()

    def rows(self) -> list[dict[str, Any]]:
        """The changes as rows of a table."""
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
        The scan, with one channel or several.
    segmentation : ProbabilityMap or LabelMap
        Fused labels, on the scan's grid; a LabelMap is taken as certain.
    method : callable, optional
        Cuts the channels of `region_channels` into regions, given `noise_sd` by keyword, such as
        `split_and_merge.partition` with parameters of its own bound to it. Where None no region votes, and only islands
        and topology are seen to.
    intensity_exponent, window_voxels : float
        How much intensity counts where the labels are uncertain, and over which window their intensities are measured:
        `exponent` and `sigma_voxels` of `evidence.with_intensity`; an exponent of 0 leaves the probabilities alone.
    posterior_weight : float
        What a difference in probability of 1 counts when regions are cut, in noise standard deviations; 0 or more.
    field_weight, edge_contrast : float
        How much the neighbours of a region count when it decides on its label, and the contrast, in noise standard
        deviations, that parts them: `weight` and `edge_contrast` of `label_field.decide`. At a weight of 0 each region
        decides alone, which is best for structures of few voxels' thickness: the field shrinks them. 0.3 serves those
        of ten and more, such as hippocampi at 1 mm.
    min_component_fraction : float
        Smallest size of a connected component, as a fraction of its label's largest component; 0 to 1. Smaller ones,
        of background too, go to the neighbouring label that explains them best. 0 keeps all components.
    largest_part : tuple of int, or "all"
        Labels of which only the largest part stays, whatever the size of the others.
    fill_holes : tuple of int, or "all"
        Labels whose holes, background that they enclose, become theirs.
    removable_labels : tuple of int, or "all"
        Labels that the votes may remove. Every other label that they remove is put back.

    Returns
    -------
    Consistent
        The segmentation and what changed.

    Raises
    ------
    GeometryError
        Image and segmentation are on different grids.
    InputError
        A parameter is out of range, or names a label that the segmentation does not have.
    """
    if not image.grid.matches(segmentation.grid):
        raise GeometryError(
            f"image {image.name!r} and segmentation {segmentation.name!r} must lie on one grid: shapes {image.shape} "
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
    """Set `VOTING_THRESHOLD` for a region method that merges and has no stopping criterion."""
    if not step.method.has_parameter("merge_threshold") or {"merge_threshold", "regions"} & step.arguments.keys():
        return step
    return replace(step, arguments={**step.arguments, "merge_threshold": VOTING_THRESHOLD})


def region_channels(
    image: Image, probabilities: ProbabilityMap, *, posterior_weight: float = Regions.posterior_weight
) -> Image:
    """Intensity and posterior as the channels of one image, in units of the intensities' noise.

    Labels that meet, in one uncertain voxel or across a face, get different channels; labels that never meet may share
    one, so that a brain of a hundred labels takes a handful of channels and not a hundred.

    Parameters
    ----------
    image : Image
        The scan.
    probabilities : ProbabilityMap
        On its grid.
    posterior_weight : float
        What a difference in probability of 1 counts, in noise standard deviations. At 0 only intensity is left.

    Returns
    -------
    Image
        (I, J, K, C + colors).
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
    # a switch from one label to another moves two channels, so 1 / sqrt(2) makes it count once
    flat *= np.float32(posterior_weight / np.sqrt(2))
    return Image(np.concatenate([scaled, colored], axis=-1), image.affine, image.name)


def _scale_to_noise(image: Image, sd: Float64) -> Float32:
    """(I, J, K, C) the channels in units of their noise."""
    out: Float32 = np.divide(image.channels, np.where(sd > 0, sd, 1.0), dtype=np.float32)
    return out


def _colors(probabilities: ProbabilityMap, labels: Int32) -> Int64:
    """(L,) a color for each label, different for any two that meet: greedy, the one with most neighbours first."""
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
        raise InputError(f"{name}: the segmentation has no label {unknown[0]}; it has {', '.join(map(str, known))}")
    return tuple(int(label) for label in choice)


def _vote(
    image: Image,
    given: ProbabilityMap,
    method: Partition,
    posterior_weight: float,
    field_weight: float,
    edge_contrast: float,
) -> Int32:
    """(I, J, K) labels after the regions have decided on theirs; ties go to the smaller label."""
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
    """(I, J, K) the connected parts (by corners) of equal labels, numbered from 1, background's among them."""
    from skimage.measure import label

    return np.asarray(label(labels.astype(np.int64), background=int(labels.min()) - 1, connectivity=3), np.int32)


def _remove_islands(
    image: Image, given: ProbabilityMap, labels: Int32, share: float, only: Sequence[int]
) -> tuple[Int32, dict[int, int]]:
    """Give islands to the neighbours that explain them best; returns the labels and the number of islands by label."""
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
    for _ in range(int(is_island.sum())):  # an island may go to one that itself goes on
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
    """Neighbours of each wanted row."""
    out: dict[int, list[int]] = {int(row): [] for row in np.flatnonzero(wanted)}
    for a, b in edges[wanted[edges].any(axis=1)].tolist():
        if wanted[a]:
            out[a].append(b)
        if wanted[b]:
            out[b].append(a)
    return out


def _summed_posterior(given: ProbabilityMap, parts: Int32, wanted: NDArray[np.bool_]) -> dict[tuple[int, int], float]:
    """(row of part, label) -> probability summed over the part, for the wanted parts."""
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
    """Background that `label` encloses becomes its own; along an axis of one voxel nothing is open."""
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
    """Put back every label that vanished, where it was largest; returns the labels and the voxels by label."""
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
    """The map with other most probable labels: where one changed, the two exchange their probabilities."""
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
