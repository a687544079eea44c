"""Training of the refiner on a library: leave-one-out fusion, then one network per fold."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from atlasseg import io
from atlasseg.errors import InputError
from atlasseg.pipeline import Executor, Registrar, call_directly, provenance
from atlasseg.recipe import Recipe
from atlasseg.refinement.examples import Example, count_channels, mean_spacing_mm, scan_digests
from atlasseg.training.examples import FEWEST_ATLASES, Progress, leave_one_out
from atlasseg.volume import Atlas

if TYPE_CHECKING:
    from atlasseg.refinement.network.model import RefinerModel
    from atlasseg.training.correcting import Start

log = logging.getLogger(__name__)


def train_refiner(
    atlases: Sequence[Atlas],
    recipe: Recipe,
    *,
    examples: Sequence[Example] | None = None,
    device: str = "cpu",
    memory_bytes: float | None = None,
    step_flops: float | None = None,
    start: Start | None = None,
    versions: Mapping[str, str] | None = None,
    checkpoints: Path | None = None,
    registrar: Registrar | None = None,
    executor: Executor = call_directly,
    progress: Progress = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
) -> RefinerModel:
    """Train the refiner for a recipe on a library: leave-one-out fusion, then one network per fold.

    No atlas votes for itself. The atlases are split into folds; copies of one scan are in the same fold. Each network
    is trained on all folds except its own, which is used to select its weights and to calibrate it.

    Parameters
    ----------
    atlases : sequence of Atlas
        At least three. The result does not depend on their order.
    recipe : Recipe
        The stages up to fusion are run. Its tables [refiner], [training] and [augmentation] are the settings.
    examples : sequence of Example, optional
        Leave-one-out segmentations of all atlases, if they were computed before.
    device : str
        "cpu" or "cuda".
    memory_bytes : float, optional
        Maximum memory of a training step.
    step_flops : float, optional
        Maximum number of floating-point operations of a training step.
    start : Start, optional
        Initial weights from another model.
    versions : mapping, optional
        Version of each piece of software, stored with the model.
    checkpoints : path, optional
        Folder of checkpoints, from which an interrupted training resumes.
    registrar, executor, progress
        As for `leave_one_out`; `progress` is also called with the plan and after each validation.
    stop : callable, optional
        Called after each atlas and each step. If it returns True, the state is saved and KeyboardInterrupt is raised.

    Returns
    -------
    RefinerModel

    Raises
    ------
    InputError
        There are too few atlases, their numbers of channels differ among each other or from the initial weights, no
        network is within the limits, or as for `leave_one_out`.
    TrainingError
        The loss is not finite.
    """
    from atlasseg.refinement.network import require_libraries

    require_libraries()
    from atlasseg.refinement.network.cases import case_of, encode_labels
    from atlasseg.refinement.network.model import RefinerModel
    from atlasseg.training.budget import budget
    from atlasseg.training.correcting import Job, Start
    from atlasseg.training.fitting import fit
    from atlasseg.training.planning import plan

    if len(atlases) < FEWEST_ATLASES:
        raise InputError(f"refiner: expected at least {FEWEST_ATLASES} atlases for training, got {len(atlases)}")
    count = count_channels({atlas.id: atlas.image for atlas in atlases})
    start = start or Start()
    if start.channels not in (None, count):
        raise InputError(
            f"initial weights: expected those of scans with {count} channels, got {start.channels} channels"
        )
    settings, training = recipe.refiner, recipe.training
    contents = {atlas.id: io.content_hash(atlas.image, place=False) for atlas in atlases}
    folds = split_folds(contents, training.folds, training.seed)
    if training.n_models > len(folds):
        log.info("%d networks, one per fold, instead of %d", len(folds), training.n_models)
    if examples is None:
        fused = leave_one_out(atlases, recipe, registrar=registrar, executor=executor, progress=progress)
        examples = collect_until(stop, fused)
    examples = sorted(examples, key=lambda example: contents[example.id])
    labels = sorted({int(v) for e in examples for v in (*e.fused.label_values, *e.truth.values)})
    coding = encode_labels([e.fused for e in examples], labels, channels=settings.prior_channels)
    cases = [case_of(e.target, e.fused, coding, candidates=settings.candidates, example=e) for e in examples]
    spacing_mm = mean_spacing_mm(example.target.affine for example in examples)
    del examples
    made = provenance(atlases, recipe)
    memory, flops = budget(device, memory_bytes, step_flops)
    planned_under = partial(
        plan,
        settings,
        inputs=count + (0 if settings.prior == "none" else coding.channels),
        outputs=len(coding),
        sizes=[case.frame.size for case in cases],
        batch=training.batch,
    )
    planned = planned_under(memory_bytes=memory, flops=flops)
    log.info("plan: %s", planned.text())
    progress(f"plan: {planned.text()}")
    members = []
    of = [made, settings.candidates, {atlas.id: sorted(atlas.not_annotated) for atlas in atlases}]
    for number, fold in enumerate(folds[: training.n_models]):
        _warn_of_known_scans(number, fold, scan_digests(made), start)
        job = Job(
            number,
            planned,
            coding,
            settings.prior,
            training,
            recipe.augmentation,
            tuple(case for case in cases if case.id not in fold),
            tuple(case for case in cases if case.id in fold),
            device,
            start,
            replan=lambda most: planned_under(memory_bytes=most, flops=flops).text(),
            data=json.dumps(of, sort_keys=True),
        )
        file = checkpoints / f"network_{number}.safetensors" if checkpoints is not None else None
        members.append(fit(job, checkpoint=file, progress=progress, stop=stop))
    return RefinerModel(
        planned.form,
        coding,
        settings.prior,
        settings.candidates,
        planned.patch_voxels,
        count,
        spacing_mm,
        recipe.augmentation.flips,
        tuple(members),
        made,
        {
            "recipe": recipe.text,
            "versions": dict(versions or {}),
            "plan": planned.text(),
            "data": contents,
            "begun_from": dict(start.seen),
            "folds": [sorted(fold) for fold in folds],
            "refiner": asdict(settings),
            "training": asdict(training),
            "augmentation": asdict(recipe.augmentation),
        },
    )


def collect_until(stop: Callable[[], bool], examples: Iterable[Example]) -> list[Example]:
    """Collect all examples. KeyboardInterrupt is raised if `stop` returns True after one of them."""
    found = []
    for example in examples:
        found.append(example)
        if stop():
            raise KeyboardInterrupt
    return found


def _warn_of_known_scans(number: int, fold: frozenset[str], scans: Mapping[str, str], start: Start) -> None:
    """Warn if the validation fold of a network contains scans that the initial weights were trained on."""
    known = set(start.seen.values())
    met = sorted(id_ for id_ in fold if scans[id_] in known)
    if met:
        log.warning(
            "network %d is validated on scans that its initial weights were trained on (%s): its validation score is "
            "too optimistic",
            number + 1,
            ", ".join(met),
        )


def split_folds(contents: Mapping[str, str], folds: int, seed: int) -> list[frozenset[str]]:
    """Split atlases into random folds, with copies of one scan in one fold. There are at most as many folds as scans.

    Parameters
    ----------
    contents : mapping of str to str
        Digest of the scan of each atlas.
    folds : int
        Number of folds.
    seed : int
        Seed of the random numbers.

    Returns
    -------
    list of frozenset of str
        Ids of the atlases of each fold.

    Raises
    ------
    InputError
        All atlases are copies of one scan.
    """
    scans = sorted(set(contents.values()))
    if len(scans) < 2:
        raise InputError(
            "atlases: expected at least two different scans, got copies of one scan. Validation needs another scan."
        )
    order = np.random.default_rng(seed).permutation(len(scans))
    number = min(folds, len(scans))
    fold_of = {scans[index]: place % number for place, index in enumerate(order)}
    return [frozenset(id_ for id_, scan in contents.items() if fold_of[scan] == fold) for fold in range(number)]
