"""Every atlas of a library segmented from the others: what there is to learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from atlasseg import io
from atlasseg.errors import InputError
from atlasseg.pipeline import Executor, Registrar, align, call_directly
from atlasseg.recipe import Recipe
from atlasseg.refinement.examples import Example
from atlasseg.volume import Atlas, ProbabilityMap

Progress = Callable[[str], None]
"""Told what is being done, in a few words, as it begins."""

FEWEST_ATLASES = 3
"""With fewer, an atlas segmented from the others is segmented from one at most."""


def leave_one_out(
    atlases: Sequence[Atlas],
    recipe: Recipe,
    *,
    registrar: Registrar | None = None,
    executor: Executor = call_directly,
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
    registrar, executor
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
        yield segment_example(atlas, others, recipe, registrar=registrar, executor=executor)


def segment_example(
    atlas: Atlas,
    others: Sequence[Atlas],
    recipe: Recipe,
    *,
    registrar: Registrar | None = None,
    executor: Executor = call_directly,
) -> Example:
    """An atlas segmented from others, which must not hold it, by a recipe up to fusion. The rest as `leave_one_out`."""
    alignment = align(atlas.image, others, recipe, mask=atlas.mask, registrar=registrar, executor=executor)
    voters = [candidate.atlas for candidate in alignment.candidates if candidate.qc.keep]
    fused: ProbabilityMap = executor(recipe.fusion.method, alignment.target, voters, mask=alignment.target_mask)
    start = alignment.start
    stop = tuple(a + n for a, n in zip(start, alignment.target.shape, strict=True))
    return Example(atlas.id, alignment.target, fused, atlas.segmentation.cropped(start, stop), atlas.not_annotated)
