"""Training of corrective learning on a library."""

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

    The model stores how its training segmentations were made: the stages of the recipe with all parameters, and
    digests of the atlases. It refuses other stages and atlases. Therefore a model is never used on a scan that
    it was trained on, since the atlases without that scan are other atlases.

    Parameters
    ----------
    atlases : sequence of Atlas
        At least three.
    cases : sequence of Atlas, optional
        Further labelled scans for training. They are segmented from all atlases, and do not vote.
    recipe, registrar, executor, progress
        As for `leave_one_out`.
    samples_per_label, seed : int
        As for `corrective_learning.train`.
    versions : mapping, optional
        Version of each piece of software, for the record.

    Returns
    -------
    CorrectiveModel

    Raises
    ------
    InputError
        There are too few atlases, a case is also an atlas, or as for `leave_one_out`.
    """
    if len(atlases) < FEWEST_ATLASES:
        raise InputError(f"corrective learning: expected at least {FEWEST_ATLASES} atlases, got {len(atlases)}")
    library = {io.content_hash(atlas.image, place=False): atlas.id for atlas in atlases}
    for case in cases:
        same = library.get(io.content_hash(case.image, place=False))
        if same is not None:
            raise InputError(f"case {case.id}: expected a scan that is no atlas, got atlas {same} of the library")
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
