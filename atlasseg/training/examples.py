"""Leave-one-out segmentations of a library: the training data of refinements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from atlasseg import io
from atlasseg.errors import InputError
from atlasseg.pipeline import Executor, Registrar, align, call_directly
from atlasseg.recipe import Recipe
from atlasseg.refinement.examples import Example
from atlasseg.volume import Atlas, ProbabilityMap

Progress = Callable[[str], None]
"""Function that is called with a short text at the start of each step."""

FEWEST_ATLASES = 3
"""Minimum number of atlases. With fewer, an atlas would be segmented from one other atlas at most."""


def leave_one_out(
    atlases: Sequence[Atlas],
    recipe: Recipe,
    *,
    registrar: Registrar | None = None,
    executor: Executor = call_directly,
    progress: Progress = lambda text: None,
) -> Iterator[Example]:
    """Segment each atlas from the others, with the registration and fusion of the recipe.

    An atlas never votes for itself, and neither does a copy of its scan under another id. The results are in the box
    of the atlas's grid to which the recipe crops.

    Parameters
    ----------
    atlases : sequence of Atlas
        Atlases of the library.
    recipe : Recipe
        The stages up to fusion are run.
    registrar, executor
        As for `pipeline.align`.
    progress : callable, optional
        Called with the id of each atlas before it is segmented.

    Raises
    ------
    InputError
        There is no other atlas for an atlas, or the input of a stage is wrong.
    """
    contents = {atlas.id: io.content_hash(atlas.image, place=False) for atlas in atlases}
    for number, atlas in enumerate(atlases, 1):
        others = [other for other in atlases if contents[other.id] != contents[atlas.id]]
        if not others:
            raise InputError(f"atlas {atlas.id}: expected another atlas in the library to segment it from, got none")
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
    """Segment an atlas from other atlases.

    Parameters
    ----------
    atlas : Atlas
        Atlas to segment.
    others : sequence of Atlas
        Atlases that vote; `atlas` must not be among them.
    recipe, registrar, executor
        As for `leave_one_out`, and so are the errors.

    Returns
    -------
    Example
    """
    alignment = align(atlas.image, others, recipe, mask=atlas.mask, registrar=registrar, executor=executor)
    voters = [candidate.atlas for candidate in alignment.candidates if candidate.qc.keep]
    fused: ProbabilityMap = executor(recipe.fusion.method, alignment.target, voters, mask=alignment.target_mask)
    start = alignment.start
    stop = tuple(a + n for a, n in zip(start, alignment.target.shape, strict=True))
    return Example(atlas.id, alignment.target, fused, atlas.segmentation.cropped(start, stop), atlas.not_annotated)
