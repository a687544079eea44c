"""Corrective learning, trained on a library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from atlasseg import io
from atlasseg.errors import InputError
from atlasseg.pipeline import Executor, Registrar, call_directly, provenance
from atlasseg.recipe import Recipe
from atlasseg.refinement.corrective_learning import CorrectiveModel, train
from atlasseg.training.examples import FEWEST_ATLASES, Progress, leave_one_out, segment_example
from atlasseg.volume import Atlas


def train_corrective(
    atlases: Sequence[Atlas],
    recipe: Recipe,
    *,
    cases: Sequence[Atlas] = (),
    samples_per_label: int = 100_000,
    seed: int = 0,
    versions: Mapping[str, str] | None = None,
    registrar: Registrar | None = None,
    executor: Executor = call_directly,
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
    recipe, registrar, executor, progress
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
    examples = list(leave_one_out(atlases, recipe, registrar=registrar, executor=executor, progress=progress))
    for number, case in enumerate(cases, 1):
        progress(f"case {case.id} ({number} of {len(cases)})")
        examples.append(segment_example(case, atlases, recipe, registrar=registrar, executor=executor))
    progress("classifiers")
    return train(
        examples,
        samples_per_label=samples_per_label,
        seed=seed,
        provenance=provenance(atlases, recipe),
        record={"cases": [case.id for case in cases], "recipe": recipe.text, "versions": dict(versions or {})},
    )
