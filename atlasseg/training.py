"""What can be learned from a library alone: every atlas segmented from the others, and what was wrong with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from atlasseg import io
from atlasseg.errors import InputError
from atlasseg.pipeline import Call, Registrar, align, at_once, provenance
from atlasseg.recipe import Recipe
from atlasseg.refinement.corrective_learning import CorrectiveModel, Example, train
from atlasseg.volume import Atlas, ProbabilityMap

log = logging.getLogger(__name__)

Progress = Callable[[str], None]
"""Told what is being done, in a few words, as it begins."""

FEWEST_ATLASES = 3
"""With fewer, an atlas segmented from the others is segmented from one at most."""


def leave_one_out(
    atlases: Sequence[Atlas],
    recipe: Recipe,
    *,
    registrar: Registrar | None = None,
    call: Call = at_once,
    progress: Progress = lambda text: None,
) -> Iterator[Example]:
    """Segment every atlas from the others, by the recipe's own registration and fusion.

    An atlas never votes for itself, and neither does a copy of its scan under another id. The results lie on the box
    of the atlas's own grid that the recipe crops to.

    Parameters
    ----------
    atlases : sequence of Atlas
    recipe : Recipe
        Of its stages those up to fusion are run.
    registrar, call
        As for `pipeline.align`.
    progress : callable, optional
        Told the atlas's id as its turn comes.

    Raises
    ------
    InputError
        An atlas has no other to be segmented from, or a stage cannot use what it was given.
    """
    contents = {atlas.id: io.content_hash(atlas.image, place=False) for atlas in atlases}
    for number, atlas in enumerate(atlases, 1):
        others = [other for other in atlases if contents[other.id] != contents[atlas.id]]
        if not others:
            raise InputError(f"atlas {atlas.id}: the library holds no other atlas to segment it from")
        progress(f"{atlas.id} ({number} of {len(atlases)}) from {len(others)} others")
        yield segmented(atlas, others, recipe, registrar=registrar, call=call)


def segmented(
    atlas: Atlas,
    others: Sequence[Atlas],
    recipe: Recipe,
    *,
    registrar: Registrar | None = None,
    call: Call = at_once,
) -> Example:
    """An atlas segmented from others, which must not hold it, by a recipe up to fusion. The rest as `leave_one_out`."""
    alignment = align(atlas.image, others, recipe, mask=atlas.mask, registrar=registrar, call=call)
    voters = [candidate.atlas for candidate in alignment.candidates if candidate.verdict.keep]
    fused: ProbabilityMap = call(recipe.fusion.method, alignment.target, voters)
    start = alignment.start
    stop = tuple(a + n for a, n in zip(start, alignment.target.shape, strict=True))
    return Example(atlas.id, alignment.target, fused, atlas.segmentation.cropped(start, stop), atlas.not_annotated)


def train_corrective(
    atlases: Sequence[Atlas],
    recipe: Recipe,
    *,
    cases: Sequence[Atlas] = (),
    samples_per_label: int = 100_000,
    seed: int = 0,
    versions: Mapping[str, str] | None = None,
    registrar: Registrar | None = None,
    call: Call = at_once,
    progress: Progress = lambda text: None,
) -> CorrectiveModel:
    """Train corrective learning for a recipe on a library.

    The model remembers how the segmentations were made that it learned on: the recipe's stages with all parameters, and
    the content of every atlas. It is refused where they are not the same, so that a model is never used on a scan that
    it was trained on: such a scan does not vote for itself, and the atlases are then other ones.

    Parameters
    ----------
    atlases : sequence of Atlas
        Three at least.
    cases : sequence of Atlas, optional
        Further labelled scans, segmented from all atlases as a target is. They are to learn on, and do not vote.
    recipe, registrar, call, progress
        As for `leave_one_out`.
    samples_per_label, seed : int
        As for `corrective_learning.train`.
    versions : mapping, optional
        Version of each piece of software, for the record.

    Raises
    ------
    InputError
        There are too few atlases, a case is an atlas too, or as for `leave_one_out`.
    """
    if len(atlases) < FEWEST_ATLASES:
        raise InputError(f"corrective learning needs at least {FEWEST_ATLASES} atlases, got {len(atlases)}")
    library = {io.content_hash(atlas.image, place=False): atlas.id for atlas in atlases}
    for case in cases:
        same = library.get(io.content_hash(case.image, place=False))
        if same is not None:
            raise InputError(f"case {case.id} is atlas {same} of the library: it would vote for itself")
    examples = list(leave_one_out(atlases, recipe, registrar=registrar, call=call, progress=progress))
    for number, case in enumerate(cases, 1):
        progress(f"case {case.id} ({number} of {len(cases)})")
        examples.append(segmented(case, atlases, recipe, registrar=registrar, call=call))
    progress("classifiers")
    return train(
        examples,
        samples_per_label=samples_per_label,
        seed=seed,
        provenance=provenance(atlases, recipe),
        record={"cases": [case.id for case in cases], "recipe": recipe.text, "versions": dict(versions or {})},
    )
