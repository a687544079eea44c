"""The stages in their order, for one scan: data types in, data types out, no files.

::

    scan -> preprocess -> register -> propagate -> fuse -> refine -> regions -> labels with their probabilities

:mod:`atlasseg.app` runs this over many scans and writes what comes out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from atlasseg import io
from atlasseg.atlases.organs import organs_of
from atlasseg.atlases.selection import choose, likenesses, select, thumbnails
from atlasseg.errors import InputError
from atlasseg.fusion.contrast import match_contrast
from atlasseg.localisation import OrganLocation, surroundings
from atlasseg.localisation.agreement import find_disagreeing
from atlasseg.organ_mask import extract_mask, fill_mask, widen
from atlasseg.plausibility import Finding, check
from atlasseg.preprocessing.crop import box_around
from atlasseg.preprocessing.foreground import foreground
from atlasseg.propagation import propagate
from atlasseg.recipe import Preprocessing, Recipe, Regions, Step
from atlasseg.regions.consistency import Change, make_consistent, voting_step
from atlasseg.registration.fit import RegistrationFit, measure_fit
from atlasseg.registration.outliers import RegistrationQC, find_failures
from atlasseg.registration.quality import RegistrationQuality
from atlasseg.transforms import Transform
from atlasseg.volume import Atlas, Grid, Image, LabelMap, Mask, ProbabilityMap, check_channels

__all__ = ["Alignment", "Segmentation", "align", "segment"]

log = logging.getLogger(__name__)

Progress = Callable[[str], None]
"""Told the name of each stage as it begins."""

Executor = Callable[..., Any]
"""``executor(function, *data, **given)`` is what the function returns: computed, or kept from before."""


def call_directly(function: Callable[..., Any], /, *data: Any, **given: Any) -> Any:
    """Call it and keep nothing."""
    return function(*data, **given)


@dataclass(frozen=True, eq=False)
class Candidate:
    """An atlas carried onto the target's grid, and how well that went.

    `similarity` is the mean local correlation with the target, from 0 to 1, where both are known.
    """

    atlas: Atlas
    transform: Transform
    similarity: float
    quality: RegistrationQuality
    qc: RegistrationQC


@dataclass(frozen=True, eq=False)
class Scans:
    """What a registration is given: the preprocessed target and atlases, in the atlases' order.

    `initial_transforms` are those of the first registration step, where the selection of atlases has computed them.
    `starts` are transforms that the first step starts from, where the organ was localised.
    `filled` is the mask that the labels are to fill, if any.
    """

    target: Image
    target_mask: Mask | None
    atlases: tuple[Atlas, ...]
    atlas_masks: tuple[Mask | None, ...]
    initial_transforms: tuple[Transform, ...] | None = None
    filled: Mask | None = None
    starts: tuple[Transform, ...] | None = None

    @property
    def images(self) -> list[Image]:
        """The atlases' images."""
        return [atlas.image for atlas in self.atlases]


@dataclass(frozen=True, eq=False)
class RegistrationResult:
    """Transforms from the target's points to each atlas's, and the box of the target's voxels that is worked on."""

    transforms: tuple[Transform, ...]
    start: tuple[int, int, int]
    stop: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Alignment:
    """A scan with all atlases on its grid, ready for fusion.

    Parameters
    ----------
    target : Image
        Preprocessed scan, perhaps cropped.
    candidates : tuple of Candidate
        Atlases on the grid of the target.
    grid : Grid
        Grid of the scan before cropping.
    start : (3,) int
        Voxel of `grid` at which the target begins.
    label_values : tuple of int
        Labels of all atlases, ascending.
    seconds : mapping of str to float
        Duration of each stage.
    target_mask : Mask, optional
        Voxels, on the grid of the target, in which similarity was measured. None: all.
    findings : tuple of Finding
        Implausible properties of the scan and its registrations.
    filled : Mask, optional
        Mask, on the grid of the target, that the labels fill. None: they are as they were fused.
    localisation : OrganLocation, optional
        Where the organ was found, if the recipe localises it.
    """

    target: Image
    candidates: tuple[Candidate, ...]
    grid: Grid
    start: tuple[int, int, int]
    label_values: tuple[int, ...]
    seconds: Mapping[str, float]
    target_mask: Mask | None = None
    findings: tuple[Finding, ...] = ()
    filled: Mask | None = None
    localisation: OrganLocation | None = None


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Segmentation of one scan, on the grid of the scan.

    Parameters
    ----------
    labels : LabelMap
        The label of each voxel.
    probabilities : ProbabilityMap
        The probability of each label at each voxel.
    alignment : Alignment
        Registrations of the atlases and what was computed with them.
    seconds : mapping of str to float
        Duration of each stage.
    changes : tuple of Change
        What the stage `regions` changed in each label, if it was run.
    contrast : str
        What was done about atlases of another contrast than the scan's; empty where nothing was.
    """

    labels: LabelMap
    probabilities: ProbabilityMap
    alignment: Alignment
    seconds: Mapping[str, float] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    contrast: str = ""


Registrar = Callable[[Scans], RegistrationResult]
"""Registers the atlases to the target, as `register` does by a recipe's steps."""


def segment(
    scan: Image,
    atlases: Sequence[Atlas],
    recipe: Recipe,
    *,
    mask: Mask | None = None,
    progress: Progress | None = None,
    registrar: Registrar | None = None,
    executor: Executor = call_directly,
) -> Segmentation:
    """Segment a scan with a library of atlases.

    Parameters
    ----------
    scan : Image
        The scan to segment.
        What to segment.
    atlases : sequence of Atlas
        One (single or probabilistic) or many; each on its own grid.
    recipe : Recipe
        Methods and parameters of the stages.
    mask : Mask, optional
        Where in the scan similarity is measured, on its grid.
    progress : callable, optional
        Told the name of each stage as it begins.
    registrar : callable, optional
        Takes the place of the recipe's registration steps.
    executor : callable
        Calls the functions of the stages; one that keeps their results may take its place.

    Returns
    -------
    Segmentation

    Raises
    ------
    InputError
        There is no atlas, or a stage cannot use what it was given; the message names the volume and the cause.
    """
    made = check_provenance(atlases, recipe)
    alignment = align(
        scan,
        atlases,
        recipe,
        mask=mask,
        progress=progress,
        registrar=registrar,
        executor=executor,
        check_plausibility=True,
    )
    return fuse(
        alignment,
        recipe.fusion.method,
        refinement=recipe.refinement.method,
        provenance=made,
        regions=recipe.regions,
        progress=progress,
        executor=executor,
    )


def align(
    scan: Image,
    atlases: Sequence[Atlas],
    recipe: Recipe,
    *,
    mask: Mask | None = None,
    progress: Progress | None = None,
    registrar: Registrar | None = None,
    executor: Executor = call_directly,
    check_plausibility: bool = False,
) -> Alignment:
    """Preprocess, register and propagate: all stages before fusion.

    Parameters
    ----------
    scan, atlases, recipe, mask, progress, registrar, executor
        As for `segment`.
    check_plausibility : bool
        Compare scan and registrations with those of the library, and log each finding as a warning.

    Returns
    -------
    Alignment
    """
    if not atlases:
        raise InputError(f"{scan.name or 'scan'}: there is no atlas to segment it with")
    _check_channels(scan, atlases, recipe)
    seconds: dict[str, float] = {}

    with _stage("preprocess", seconds, progress):
        scans = preprocess_scans(scan, atlases, mask, recipe.preprocessing, executor=executor)

    localised: OrganLocation | None = None
    if recipe.localisation.method is not None:
        with _stage("localise", seconds, progress):
            scans, localised = _localise(scans, recipe.localisation.method, executor)

    if recipe.selection.before is not None:
        with _stage("select", seconds, progress):
            scans = _select_atlases(scans, recipe, recipe.selection.before, executor)

    with _stage("register", seconds, progress):
        registered = register(scans, recipe, executor=executor) if registrar is None else registrar(scans)
        target = scans.target.cropped(registered.start, registered.stop)
        target_mask = scans.target_mask and scans.target_mask.cropped(registered.start, registered.stop)
        filled = scans.filled and scans.filled.cropped(registered.start, registered.stop)

    with _stage("propagate", seconds, progress):
        carried = [
            executor(
                propagate,
                atlas,
                transform,
                target.grid,
                interpolation=recipe.propagation.interpolation,
                fractions=recipe.propagation.fractions,
            )
            for atlas, transform in zip(scans.atlases, registered.transforms, strict=True)
        ]
        fits = [
            executor(measure_fit, target, target_mask, atlas, transform)
            for atlas, transform in zip(carried, registered.transforms, strict=True)
        ]
        candidates = flag_outliers(target, carried, registered.transforms, fits, drop=recipe.registration.drop_failed)
        if localised is not None and localised.found and recipe.registration.drop_failed:
            candidates = _drop_disagreeing(target, candidates)
        if recipe.selection.after is not None:
            candidates = _keep_most_similar(
                target, target_mask, candidates, recipe.selection.after, recipe.selection.redundancy
            )

    findings: tuple[Finding, ...] = ()
    if check_plausibility:
        with _stage("check", seconds, progress):
            as_read = {atlas.id: atlas for atlas in atlases}
            findings = check(
                scan,
                [as_read[atlas.id] for atlas in scans.atlases],
                registered.transforms,
                mask=mask,
                library=atlases,
                executor=executor,
            )
            for finding in findings:
                log.warning("%s", finding.message)

    labels = reduce(np.union1d, (a.label_values for a in atlases), np.zeros(1, np.int32))
    values = tuple(int(v) for v in labels)
    offset = localised.start if localised is not None and localised.found else (0, 0, 0)
    i, j, k = (a + b for a, b in zip(offset, registered.start, strict=True))
    start = (i, j, k)
    return Alignment(target, candidates, scan.grid, start, values, seconds, target_mask, findings, filled, localised)


def _check_channels(scan: Image, atlases: Sequence[Atlas], recipe: Recipe) -> None:
    """Check, before any work, that target and atlases have the same channels, and that all steps use them.

    Raises
    ------
    InputError
        An atlas has another number of channels, or a method uses one only.
    """
    check_channels(scan, atlases)
    count = scan.channels.shape[3]
    registrations = recipe.registration.steps if recipe.registration.prepared is None else ()
    steps = (*registrations, recipe.fusion.method, recipe.refinement.method)
    for step in steps if count > 1 else ():
        if step is not None and step.method.needs.channels != "all":
            raise InputError(
                f"{scan.name or 'scan'}: expected one channel for the {step.method.stage} {step.name}, got {count}. "
                "Choose another method, or one channel."
            )


def register(
    scans: Scans,
    recipe: Recipe,
    *,
    initial: Mapping[str, Transform] | None = None,
    executor: Executor = call_directly,
) -> RegistrationResult:
    """Run the recipe's registration steps one after the other, cropping the target after the first if it says so.

    Parameters
    ----------
    scans : Scans
    recipe : Recipe
    initial : mapping of str to Transform, optional
        Of every atlas, by its id: from points of the target to points of the atlas, where the first step starts.
    executor : callable
        As for `segment`.

    Raises
    ------
    InputError
        The recipe names no step.
    """
    if not recipe.registration.steps:
        raise InputError(f"recipe {recipe.name}: [registration] steps is empty; name at least one method")
    target, target_mask = scans.target, scans.target_mask
    start, stop = (0, 0, 0), target.shape
    margin_mm = recipe.preprocessing.crop_margin_mm
    transforms: Sequence[Transform] | None = scans.initial_transforms
    given = list(scans.starts) if scans.starts is not None else None
    if initial is not None:
        given = [initial[atlas.id] for atlas in scans.atlases]
    for number, step in enumerate(recipe.registration.steps):
        if number > 0 or transforms is None:
            transforms = executor(
                step,
                target,
                scans.images,
                initial=given if transforms is None else transforms,
                fixed_mask=target_mask,
                moving_masks=scans.atlas_masks,
            )
        if number == 0 and margin_mm is not None:
            labels = [atlas.segmentation for atlas in scans.atlases]
            box = box_around(labels, transforms, target.grid, margin_mm=margin_mm)
            if scans.filled is not None:  # all of the mask is needed, wherever the first step put the labels
                where = np.argwhere(scans.filled.array)
                box = np.minimum(box[0], where.min(axis=0)), np.maximum(box[1], where.max(axis=0) + 1)
            start, stop = (tuple(int(n) for n in corner) for corner in box)  # type: ignore[assignment]
            target = target.cropped(start, stop)
            target_mask = target_mask and target_mask.cropped(start, stop)
    return RegistrationResult(tuple(transforms or ()), start, stop)


def fuse(
    alignment: Alignment,
    method: Step,
    *,
    refinement: Step | None = None,
    provenance: Mapping[str, Any] | None = None,
    regions: Regions | None = None,
    progress: Progress | None = None,
    executor: Executor = call_directly,
) -> Segmentation:
    """Fuse the candidates that did not fail, refine and see to regions if asked, and go back onto the scan's own grid.

    Parameters
    ----------
    alignment : Alignment
    method : Step
        Of fusion.
    refinement : Step, optional
    provenance : mapping, optional
        How the fused segmentation is made, for a refinement that was trained on such: see `provenance`.
    regions : Regions, optional
    progress, executor
        As for `segment`.
    """
    seconds = dict(alignment.seconds)
    with _stage("fuse", seconds, progress):
        voters: Sequence[Atlas] = [c.atlas for c in alignment.candidates if c.qc.keep]
        method, voters, contrast = _match_contrast(method, alignment.target, voters)
        fused: ProbabilityMap = executor(method, alignment.target, voters, mask=alignment.target_mask)
    if refinement is not None:
        if contrast and refinement.method.needs.model is not None:
            log.warning(
                "%s: refinement %s was trained on scans of the atlases' contrast; its result here is not reliable",
                alignment.target.name, refinement.name,
            )  # fmt: skip
        with _stage("refine", seconds, progress):
            fused = executor(refinement, alignment.target, fused, provenance=provenance)
    changes: tuple[Change, ...] = ()
    if regions is not None:
        with _stage("regions", seconds, progress):
            consistent = executor(
                make_consistent,
                alignment.target,
                fused,
                method=regions.method and voting_step(regions.method),
                **{f.name: getattr(regions, f.name) for f in fields(regions) if f.name != "method"},
            )
            fused, changes = consistent.probabilities, consistent.changes
    if alignment.filled is not None:
        fused = executor(fill_mask, fused, alignment.filled)
    probabilities = fused.padded_to(alignment.grid, alignment.start)
    return Segmentation(probabilities.label_map(), probabilities, alignment, seconds, changes, contrast)


def _match_contrast(method: Step, target: Image, voters: Sequence[Atlas]) -> tuple[Step, Sequence[Atlas], str]:
    """A fusion and its candidates, brought to the target's contrast if it compares intensities, and what was done.

    It is done here, before the fusion, so that it is told even where the fusion's result is kept from an earlier run.
    """
    if not method.method.needs.compares_intensities:
        return method, voters, ""
    match = match_contrast(target, voters, contrast=method.arguments.get("contrast", "auto"))
    if match.message:
        log.warning("%s: %s", target.name or "scan", match.message)
    if method.method.has_parameter("contrast"):
        method = replace(method, arguments={**method.arguments, "contrast": "same"})
    return method, match.candidates, match.message


def provenance(atlases: Sequence[Atlas], recipe: Recipe) -> dict[str, dict[str, Any]]:
    """All that a fused segmentation depends on but its scan: methods with their parameters, and the atlases' content.

    Returns
    -------
    dict
        Of the stages before refinement and of ``atlases``, name to value, as JSON holds them; where a method ran
        (``device``) is left out.
    """

    def to_json(value: Any) -> Any:
        if isinstance(value, Step):
            parameters = {p.name: value.arguments.get(p.name, p.default) for p in value.method.parameters}
            return {"method": value.name, **{name: to_json(v) for name, v in parameters.items() if name != "device"}}
        if isinstance(value, tuple | list):
            return [to_json(each) for each in value]
        return str(value) if isinstance(value, Path) else value

    stages = ["preprocessing", "selection", "registration", "propagation", "fusion"]
    if recipe.localisation.method is not None:  # without it, provenances are those of models trained earlier
        stages.insert(1, "localisation")
    made = {
        stage: {f.name: to_json(getattr(getattr(recipe, stage), f.name)) for f in fields(getattr(recipe, stage))}
        for stage in stages
    }
    return {
        **made,
        "atlases": {
            atlas.id: [io.content_hash(part) for part in (atlas.image, atlas.labels, atlas.mask) if part is not None]
            for atlas in atlases
        },
    }


def check_provenance(atlases: Sequence[Atlas], recipe: Recipe) -> Mapping[str, Any]:
    """The `provenance` that the recipe's refinement asks for, empty where it asks for none.

    Raises
    ------
    InputError
        The refinement cannot be used on what is made so: better said before hours are spent.
    """
    step = recipe.refinement.method
    if step is None or not step.method.takes("provenance"):
        return {}
    made = provenance(atlases, recipe)
    step.check(provenance=made)
    return made


def preprocess_scans(
    scan: Image,
    atlases: Sequence[Atlas],
    mask: Mask | None,
    recipe: Preprocessing,
    *,
    executor: Executor = call_directly,
) -> Scans:
    """Treat target and atlases alike."""
    if recipe.mask == "brain":
        return _preprocess_brains(scan, atlases, mask, recipe, executor)
    target = preprocess(scan, recipe.steps, executor=executor)
    treated = [
        replace(atlas, image=preprocess(atlas.image, recipe.steps, reference=target, executor=executor))
        for atlas in atlases
    ]
    masks = [_mask(atlas.image, atlas.mask, recipe, executor) for atlas in treated]
    return Scans(target, _mask(target, mask, recipe, executor), tuple(treated), tuple(masks))


def _preprocess_brains(
    scan: Image, atlases: Sequence[Atlas], mask: Mask | None, recipe: Preprocessing, executor: Executor
) -> Scans:
    """Find the brain of the target, and treat all scans inside their brains."""
    brain: Mask = executor(extract_mask, scan, list(atlases))
    if mask is not None:
        brain = brain.with_array(brain.array & mask.array)
        if not brain.array.any():
            raise InputError(
                f"{scan.name or 'scan'}: expected a mask that shares voxels with the brain, got one that does not. "
                'Remove the mask, or set [preprocessing] mask = "given".'
            )
    brains = [Mask(atlas.segmentation.array != 0, atlas.image.affine, atlas.id) for atlas in organs_of(atlases)]
    target = preprocess(scan, recipe.steps, mask=brain, executor=executor)
    treated = tuple(
        replace(atlas, image=preprocess(atlas.image, recipe.steps, reference=target, mask=inside, executor=executor))
        for atlas, inside in zip(atlases, brains, strict=True)
    )
    around = [executor(widen, each, margin_mm=recipe.mask_margin_mm) for each in (brain, *brains)]
    filled = brain if recipe.fill_mask else None
    return Scans(target, around[0], treated, tuple(around[1:]), filled=filled)


def _localise(scans: Scans, step: Step, executor: Executor) -> tuple[Scans, OrganLocation]:
    """Find the organ, and restrict the scans to it: target to the box, atlases to those that found it."""
    name = scans.target.name or "scan"
    found: OrganLocation = executor(
        step, scans.target, scans.atlases, target_mask=scans.target_mask, atlas_masks=scans.atlas_masks
    )
    if found.message:
        log.warning("%s: %s", name, found.message)
    if not found.found or found.region is None:
        return scans, found
    dropped = [pose for pose in found.poses if not pose.keep]
    for pose in dropped:
        log.warning("%s: atlas %s left out: %s", name, pose.atlas, pose.reason)
    kept = [n for n, pose in enumerate(found.poses) if pose.keep]
    region = found.region.array
    if scans.target_mask is not None:
        valid = region & scans.target_mask.cropped(found.start, found.stop).array
        region = valid if valid.any() else region
    near = []
    for n in kept:
        mask, around = scans.atlas_masks[n], executor(surroundings, scans.atlases[n])
        near.append(around if mask is None else around.with_array(around.array & mask.array))
    return replace(
        scans,
        target=scans.target.cropped(found.start, found.stop),
        target_mask=found.region.with_array(region),
        atlases=tuple(scans.atlases[n] for n in kept),
        atlas_masks=tuple(near),
        starts=tuple(found.transforms[n] for n in kept),
    ), found


def _drop_disagreeing(target: Image, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Leave out the candidates whose labels lie elsewhere than those of the others."""
    voting = [n for n, c in enumerate(candidates) if c.qc.keep]
    reasons = dict(zip(voting, find_disagreeing([candidates[n].atlas for n in voting]), strict=True))
    for n, reason in reasons.items():
        if reason:
            log.warning("%s: atlas %s left out: %s", target.name, candidates[n].atlas.id, reason)
    return tuple(
        replace(c, qc=replace(c.qc, keep=False, weight=0.0, reason=reasons[n])) if reasons.get(n) else c
        for n, c in enumerate(candidates)
    )


def _select_atlases(scans: Scans, recipe: Recipe, count: int, executor: Executor) -> Scans:
    """The scans with the `count` atlases that look most like the target, in the library's order."""
    initial: Sequence[Transform] | None = None
    if recipe.selection.by == "first_step":
        step = recipe.registration.steps[0]
        given = {} if scans.starts is None else {"initial": scans.starts}
        initial = executor(
            step, scans.target, scans.images, **given, fixed_mask=scans.target_mask, moving_masks=scans.atlas_masks
        )
    chosen = select(
        scans.target,
        scans.atlases,
        count=count,
        transforms=scans.starts if initial is None else initial,
        metric=recipe.selection.metric,
        redundancy=recipe.selection.redundancy,
        mask=scans.target_mask,
    )
    kept = sorted(chosen)
    log.info("%s: atlases chosen: %s", scans.target.name, ", ".join(scans.atlases[n].id for n in kept))
    return replace(
        scans,
        atlases=tuple(scans.atlases[n] for n in kept),
        atlas_masks=tuple(scans.atlas_masks[n] for n in kept),
        initial_transforms=None if initial is None else tuple(initial[n] for n in kept),
        starts=None if scans.starts is None else tuple(scans.starts[n] for n in kept),
    )


def _keep_most_similar(
    target: Image, mask: Mask | None, candidates: Sequence[Candidate], count: int, redundancy: float
) -> tuple[Candidate, ...]:
    """Let only the `count` candidates most similar to the target vote, of those whose registration did not fail."""
    likeness = None
    if redundancy > 0:
        likeness = likenesses(thumbnails(target, [c.atlas for c in candidates], mask=mask))
    scores = np.array([c.similarity if c.qc.keep else -np.inf for c in candidates])
    chosen = choose(scores, count=count, likeness=likeness, redundancy=redundancy)
    reason = f"not among the {count} atlases chosen by similarity"
    return tuple(
        c if n in chosen or not c.qc.keep else replace(c, qc=replace(c.qc, keep=False, reason=reason))
        for n, c in enumerate(candidates)
    )


def preprocess(
    image: Image,
    steps: Sequence[Step],
    *,
    reference: Image | None = None,
    mask: Mask | None = None,
    executor: Executor = call_directly,
) -> Image:
    """Run `steps` in order; one that matches to a reference is for the atlases, whose reference is the target.

    With a `mask`, the steps that know of masks estimate inside it.
    """
    inside = {} if mask is None else {"mask": mask}
    for step in steps:
        if reference is not None or not step.method.takes("reference"):
            image = executor(step, image, reference=reference, **inside)
    return image


def _mask(image: Image, given: Mask | None, preprocessing: Preprocessing, executor: Executor) -> Mask | None:
    """Where similarity is to be measured."""
    if preprocessing.mask == "foreground":
        mask: Mask = executor(foreground, image)
        return mask
    return given if preprocessing.mask == "given" else None


def flag_outliers(
    target: Image,
    carried: Sequence[Atlas],
    transforms: Sequence[Transform],
    fits: Sequence[RegistrationFit],
    *,
    drop: bool,
) -> tuple[Candidate, ...]:
    """Find the candidates whose registration failed, by how they all fit."""
    checks = find_failures([each.similarity for each in fits], names=[atlas.id for atlas in carried])
    candidates = []
    for atlas, transform, found, qc in zip(carried, transforms, fits, checks, strict=True):
        if not qc.keep:
            log.warning("%s: atlas %s %s: %s", target.name, atlas.id, "left out" if drop else "kept", qc.reason)
            qc = qc if drop else replace(qc, keep=True)
        candidates.append(Candidate(atlas, transform, found.similarity, found.quality, qc))
    return tuple(candidates)


@contextmanager
def _stage(name: str, seconds: dict[str, float], progress: Progress | None) -> Iterator[None]:
    """Announce a stage and time it."""
    if progress is not None:
        progress(name)
    begun = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - begun
