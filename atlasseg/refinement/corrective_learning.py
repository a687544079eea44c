"""Corrective learning: classifiers, trained on the library, that correct the errors of registration and fusion.

Each atlas is segmented from the others, by the registration and fusion that are used for targets, and compared with
its own labels. Around each label a classifier then learns from intensities, fused probabilities and position where
the fusion is wrong. :mod:`atlasseg.training` makes the examples.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from atlasseg import io
from atlasseg.errors import GeometryError, InputError
from atlasseg.files import atomic_write, check_seal, seal
from atlasseg.labels import LabelTable
from atlasseg.methods import Data, method
from atlasseg.refinement._features import Scene, Window
from atlasseg.refinement._trees import Trees, join_trees
from atlasseg.refinement.examples import Example, count_channels, differences, mean_spacing_mm, patient_spacing_mm
from atlasseg.version import __version__
from atlasseg.volume import Bool, Float32, Image, ProbabilityMap

__all__ = ["CorrectiveModel", "correct", "read_model", "train", "write_model"]

log = logging.getLogger(__name__)

FORMAT = 3
METHOD = "corrective_learning"
HEADER, TREES, TABLE = "model.json", "trees.npz", "labels.tsv"

FEWEST_OF_A_CLASS = 30
"""Minimum number of samples of a label, and of other labels, to train its classifier."""

ROWS_AT_ONCE = 65536
"""Number of voxels whose features are in memory together when a model is applied."""

SPACING_RATIO = 1.5
"""Maximum ratio of the voxel sizes of scan and training without a warning."""


@dataclass(frozen=True, eq=False)
class CorrectiveModel:
    """Classifiers of the labels, and the properties that a scan and a recipe must share with the training.

    Parameters
    ----------
    classifiers : mapping of int to Trees
        Trees of each label with enough samples, background (0) included.
    labels : tuple of int
        All labels of the training library.
    channels : int
        Number of channels of its scans.
    spacing_mm : tuple of three floats
        Mean voxel size of its scans along their right, anterior and superior axes.
    window : Window
        Features of the classifiers.
    provenance : mapping
        How the training segmentations were made: see `pipeline.provenance`.
    record : mapping
        For information: versions, recipe, numbers of samples, parameters of the training.
    """

    classifiers: Mapping[int, Trees]
    labels: tuple[int, ...]
    channels: int
    spacing_mm: tuple[float, float, float]
    window: Window
    provenance: Mapping[str, Any]
    record: Mapping[str, Any]


def check(*, model: Path, provenance: Mapping[str, Any] | None = None) -> None:
    """Check that the model exists and was trained on segmentations of the same `provenance`.

    Raises
    ------
    InputError
        As for `refine`.
    """
    trained = read_model(model)
    if provenance is None:
        return
    version = trained.record.get("versions", {}).get("atlasseg", __version__)
    if version != __version__:
        log.warning(
            "%s: trained by atlasseg %s, used by %s; registration and fusion may differ slightly",
            model,
            version,
            __version__,
        )
    found = differences(trained.provenance, provenance)
    if found:
        raise InputError(
            f"{model}: expected a model for this recipe and library, got another one: {'; '.join(found)}. "
            "Train one for this recipe and library with atlasseg atlases correct."
        )


@method("refinement", model="model", check=check)
def refine(
    target: Image, fused: ProbabilityMap, *, model: Path, provenance: Data[Mapping[str, Any] | None] = None
) -> ProbabilityMap:
    r"""Correct a fused segmentation by classifiers that were trained on the errors of the fusion.

    Each label :math:`l` has a classifier for the voxels in and near it (dilated by a few voxels). From a patch of
    intensities, a patch of fused probabilities, a coarse view of both around them, and the position relative to the
    label's centre and extent, it gives the probability :math:`q_l(x)` that voxel :math:`x` is of label :math:`l`.
    This is corrective learning [1]_, with gradient boosting [2]_ instead of AdaBoost, and probabilities instead of
    labels. The refined probability is

    .. math::

        p_l(x) = \frac{q_l(x)}{\sum_m q_m(x)}

    If a label has no classifier at :math:`x` (because :math:`x` is too far from it, or the label was too rare in
    training), its fused probability replaces :math:`q`. Voxels in certain surroundings do not
    change.

    Parameters
    ----------
    target : Image
        The scan, preprocessed as in training; on the grid of `fused`.
    fused : ProbabilityMap
        Fused label probabilities.
    model : Path
        Folder written by ``atlasseg atlases correct``.
    provenance : mapping, optional
        How `fused` was made; it must be the same as in training. The pipeline passes it.

    Returns
    -------
    ProbabilityMap

    Raises
    ------
    InputError
        The model does not exist, is damaged, or does not match. The message names the difference.

    References
    ----------
    .. [1] Wang, H., Das, S. R., Suh, J. W., et al. (2011). A learning-based wrapper method to correct systematic errors
       in automatic image segmentation: consistently improved performance in hippocampus, cortex and brain
       segmentation. NeuroImage 55(3), 968-985.
    .. [2] Friedman, J. H. (2001). Greedy function approximation: a gradient boosting machine. Annals of Statistics
       29(5), 1189-1232.
    """
    check(model=model, provenance=provenance)
    return correct(target, fused, read_model(model))


def correct(target: Image, fused: ProbabilityMap, model: CorrectiveModel) -> ProbabilityMap:
    """Refine by a model in memory; see `refine`.

    Parameters
    ----------
    target : Image
        The scan, preprocessed as in training.
    fused : ProbabilityMap
        Fused label probabilities.
    model : CorrectiveModel
        The model.

    Returns
    -------
    ProbabilityMap

    Raises
    ------
    InputError
        The number of channels or a label of `fused` differs from the training library.
    GeometryError
        They are on different grids.
    """
    name = target.name or "target"
    if not target.grid.matches(fused.grid):
        raise GeometryError(
            f"{name}: scan and segmentation are on different grids: shapes {target.shape} and {fused.shape}, affines "
            f"{target.affine.tolist()} and {fused.affine.tolist()}"
        )
    if target.channels.shape[3] != model.channels:
        raise InputError(
            f"{name}: expected {model.channels} channels as in the training, got {target.channels.shape[3]}"
        )
    unknown = sorted(set(fused.label_values.tolist()) - set(model.labels))
    if unknown:
        raise InputError(f"{name}: expected labels of the training, got others: {', '.join(map(str, unknown))}")
    ratio = np.asarray(patient_spacing_mm(target.affine)) / model.spacing_mm
    if max(ratio.max(), 1 / ratio.min()) > SPACING_RATIO:
        log.warning("%s: expected voxels of the model's training, got %s times their size", name, ratio.round(2))

    scene = Scene(target, fused, model.window)
    labels, values, at = [fused.labels], [fused.values.copy()], [fused.entry_voxels]
    by_label = np.argsort(fused.labels, kind="stable")
    mode = fused.mode.reshape(-1)
    certain = np.ones(mode.size, bool)
    certain[fused.voxels] = False
    alone = np.zeros(mode.size, bool)  # certain voxels in the region of another label's classifier
    spoken = np.zeros(mode.size, bool)  # voxels in the region of their fused label's classifier
    for label, trees in model.classifiers.items():
        region = scene.region(label)
        if region is None:
            continue
        here = np.zeros(mode.size, bool)
        here[region.voxels] = True
        alone |= here & certain
        spoken |= here & (mode == label)
        first, last = np.searchsorted(fused.labels, (label, label + 1), sorter=by_label)
        own = by_label[first:last]
        values[0][own[here[at[0][own]]]] = 0
        for begin in range(0, region.voxels.size, ROWS_AT_ONCE):
            voxels = region.voxels[begin : begin + ROWS_AT_ONCE]
            at.append(voxels)
            labels.append(np.full(voxels.size, label, np.int32))
            values.append(trees.probability(scene.features(region, voxels)).astype(np.float32))
    rest = np.flatnonzero(alone & ~spoken)
    return ProbabilityMap.from_entries(
        fused.mode,
        fused.affine,
        np.concatenate([*at, rest]),
        np.concatenate([*labels, mode[rest]]),
        np.concatenate([*values, np.ones(rest.size, np.float32)]),
        label_values=fused.label_values,
        name=fused.name,
    )


def train(
    examples: Sequence[Example],
    *,
    intensity_radius_voxels: int = 2,
    probability_radius_voxels: int = 1,
    dilation_voxels: int = 2,
    scales_voxels: tuple[int, ...] = (3, 6),
    samples_per_label: int = 100_000,
    iterations: int = 200,
    learning_rate: float = 0.05,
    leaves: int = 15,
    features_share: float = 0.2,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
) -> CorrectiveModel:
    """Train one classifier per label on the errors of examples.

    Memory: the examples with their smoothed volumes (21 bytes per voxel with the defaults and one channel), and the
    samples of one label, 17 bytes per feature during training (224 features with the defaults and one channel: 380 MB
    for 100 000 samples).

    Parameters
    ----------
    examples : sequence of Example
        Atlases, each segmented from the others. The result does not depend on their order.
    intensity_radius_voxels, probability_radius_voxels : int
        Radii r of the patches, which have ``2 r + 1`` voxels along each axis.
    dilation_voxels : int
        Dilation of the fused label to the region of its classifier, at least 1.
    scales_voxels : tuple of int
        Distances of the smoothed features beyond the patches: see `Scene.features`.
    samples_per_label : int
        Maximum number of training voxels of a classifier, drawn at random, the same number from each example.
    iterations : int
        Number of trees of a classifier.
    learning_rate : float
        Factor of the values of each tree.
    leaves : int
        Maximum number of leaves of a tree.
    features_share : float
        Fraction of the features, drawn at random, from which each split is chosen; above 0 to 1.
    seed : int
        Seed of the random draws.
    provenance, record : mapping, optional
        See `CorrectiveModel`.

    Returns
    -------
    CorrectiveModel

    Raises
    ------
    InputError
        There are no examples, their numbers of channels differ, a parameter is out of range, or no label has enough
        samples.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    examples = sorted(examples, key=lambda example: example.id)
    if not examples:
        raise InputError("examples: expected at least one, got none")
    channels = count_channels({example.id: example.target for example in examples})
    if min(intensity_radius_voxels, probability_radius_voxels) < 0 or dilation_voxels < 1:
        raise InputError(
            "expected radii of 0 or more and a dilation of 1 or more, got "
            f"{intensity_radius_voxels}, {probability_radius_voxels} and {dilation_voxels}"
        )
    if min(scales_voxels, default=1) < 1 or not 0 < features_share <= 1:
        raise InputError(
            f"expected scales of 1 or more and features_share above 0 to 1, got {scales_voxels} and {features_share}"
        )
    window = Window(intensity_radius_voxels, probability_radius_voxels, dilation_voxels, scales_voxels)
    every = sorted({int(v) for e in examples for v in (*e.fused.label_values, *e.truth.values)} | {0})
    scenes = [Scene(example.target, example.fused, window) for example in examples]
    share = max(1, samples_per_label // len(examples))
    classifiers, samples = {}, {}
    for label in every:
        features, answer = _draw_samples(examples, scenes, label, share, seed)
        positive = int(answer.sum())
        samples[label] = {"of it": positive, "others": answer.size - positive}
        if min(positive, answer.size - positive) < FEWEST_OF_A_CLASS:
            log.info("label %d: too few samples (%s), not corrected", label, samples[label])
            continue
        grown = HistGradientBoostingClassifier(
            learning_rate=learning_rate,
            max_iter=iterations,
            max_leaf_nodes=leaves,
            max_features=features_share,
            early_stopping=False,
            random_state=seed,
        ).fit(features, answer)
        classifiers[label] = Trees.of(grown)
        log.info("label %d: trained on %d samples, %d of it", label, answer.size, positive)
    if not classifiers:
        raise InputError(
            f"expected a label with at least {FEWEST_OF_A_CLASS} samples of it and as many of others, got none in "
            f"{len(examples)} examples"
        )
    given = {
        "samples_per_label": samples_per_label,
        "iterations": iterations,
        "learning_rate": learning_rate,
        "leaves": leaves,
        "features_share": features_share,
        "seed": seed,
    }
    return CorrectiveModel(
        classifiers,
        tuple(every),
        channels,
        mean_spacing_mm(example.target.affine for example in examples),
        window,
        provenance or {},
        {**(record or {}), "training": given, "samples": {str(label): n for label, n in samples.items()}},
    )


def _draw_samples(
    examples: Sequence[Example], scenes: Sequence[Scene], label: int, share: int, seed: int
) -> tuple[Float32, Bool]:
    """Features (n, F), and whether each voxel has the label (n,), of at most `share` voxels of each example."""
    rows, answers = [], []
    for number, (example, scene) in enumerate(zip(examples, scenes, strict=True)):
        if label in example.not_annotated or (label == 0 and example.not_annotated):
            continue  # this label was not annotated here
        region = scene.region(label)
        if region is None:
            continue
        voxels = region.voxels
        if voxels.size > share:
            generator = np.random.default_rng((seed, label & 0xFFFFFFFF, number))  # labels may be negative
            drawn = generator.choice(voxels.size, share, replace=False)
            voxels = voxels[np.sort(drawn)]
        rows.append(scene.features(region, voxels))
        answers.append(example.truth.array.reshape(-1)[voxels] == label)
    if not rows:
        return np.zeros((0, 0), np.float32), np.zeros(0, bool)
    return np.concatenate(rows), np.concatenate(answers)


def write_model(model: CorrectiveModel, folder: str | Path, *, table: LabelTable | None = None) -> None:
    """Write a model into a folder: ``model.json``, ``trees.npz`` and ``labels.tsv``. Reading them runs no code.

    Parameters
    ----------
    model : CorrectiveModel
        The model.
    folder : path
        Folder of the model.
    table : LabelTable, optional
        Names of the labels.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    folder = Path(folder)
    arrays, trees, nodes = join_trees(list(model.classifiers.values()))
    with atomic_write(folder / TREES) as aside, aside.open("wb") as file:
        np.savez_compressed(
            file, labels=np.array(list(model.classifiers), np.int64), trees=trees, nodes=nodes, **arrays
        )
    io.write_label_table((table or LabelTable()).completed(model.labels), folder / TABLE)
    header = {
        "format": FORMAT,
        "method": METHOD,
        "labels": list(model.labels),
        "channels": model.channels,
        "spacing_mm": list(model.spacing_mm),
        "window": asdict(model.window),
        "provenance": dict(model.provenance),
        **model.record,
    }
    io.write_json(header, folder / HEADER)
    seal(folder, [HEADER, TABLE, TREES])


def read_model(folder: str | Path) -> CorrectiveModel:
    """Read a model written by `write_model`.

    Parameters
    ----------
    folder : path
        Folder of the model.

    Returns
    -------
    CorrectiveModel

    Raises
    ------
    InputError
        There is no model, it has another format, or a file is damaged. The message names the file.
    """
    folder = Path(folder)
    try:
        stamp = tuple((folder / name).stat().st_mtime_ns for name in (HEADER, TREES))
    except OSError:
        raise InputError(
            f"{folder}: expected a model of corrective learning, got none. Train one with atlasseg atlases correct."
        ) from None
    return _read(folder, stamp)


@lru_cache(maxsize=2)
def _read(folder: Path, stamp: tuple[int, ...]) -> CorrectiveModel:
    """Read the model of a folder whose files were last changed at `stamp`; cached for many targets."""
    check_seal(folder, [HEADER, TABLE, TREES], remedy="train the model again")
    header = io.read_json(folder / HEADER)
    if (header.get("method"), header.get("format")) != (METHOD, FORMAT):
        raise InputError(
            f"{folder / HEADER}: expected a model of {METHOD!r} in format {FORMAT}, got one of "
            f"{header.get('method')!r} in format {header.get('format')!r}"
        )
    try:
        sizes = {name: value for name, value in header["window"].items() if name != "scales_voxels"}
        scales = tuple(int(scale) for scale in header["window"]["scales_voxels"])
        window = Window(**{name: int(value) for name, value in sizes.items()}, scales_voxels=scales)
        with np.load(folder / TREES, allow_pickle=False) as arrays:
            classifiers = _split_trees({name: arrays[name] for name in arrays.files})
        model = CorrectiveModel(
            classifiers,
            tuple(int(v) for v in header["labels"]),
            int(header["channels"]),
            tuple(float(v) for v in header["spacing_mm"]),  # type: ignore[arg-type]
            window,
            header["provenance"],
            {name: header[name] for name in ("versions", "recipe", "cases", "training", "samples") if name in header},
        )
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise InputError(f"{folder}: expected a model, got a damaged one ({error!r}). Train it again.") from error
    for trees in model.classifiers.values():
        trees.check(window.columns(model.channels), str(folder / TREES))
    return model


def _split_trees(arrays: Mapping[str, Any]) -> dict[int, Trees]:
    """Split the arrays of all classifiers: label to its trees."""
    parts: dict[int, Trees] = {}
    tree = node = 0
    counts = zip(arrays["labels"].tolist(), arrays["trees"].tolist(), arrays["nodes"].tolist(), strict=True)
    for number, (label, trees, nodes) in enumerate(counts):
        ends = {"baseline": (number, number + 1), "roots": (tree, tree + trees)}
        cut = {f.name: slice(*ends.get(f.name, (node, node + nodes))) for f in fields(Trees)}
        parts[label] = Trees(**{name: arrays[name][here] for name, here in cut.items()})
        tree, node = tree + trees, node + nodes
    return parts
