"""Recommendation of a recipe for a library: settings tried leave-one-out within a time budget."""

from __future__ import annotations

import itertools
import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atlasseg.api.coercion import as_atlases, refuse
from atlasseg.api.segmentation import as_library
from atlasseg.atlases.library import AtlasLibrary
from atlasseg.atlases.selection import exclude_scan
from atlasseg.compute import costs
from atlasseg.doctor.anatomy import compare_all, shrink
from atlasseg.doctor.persons import find_crops, find_shared_steps, trace_source
from atlasseg.doctor.subjects import SUBJECTS, find_subjects, read_subjects
from atlasseg.errors import AtlasSegError, InputError
from atlasseg.evaluation import evaluate
from atlasseg.pipeline import align, fuse
from atlasseg.plausibility import pair_similarity, spread
from atlasseg.recipe import Recipe, parse_recipe
from atlasseg.recipe.template import format_template
from atlasseg.recommendation import (
    LibraryProperties,
    Search,
    Setting,
    describe_properties,
    list_fusions,
    list_registrations,
    search,
)
from atlasseg.store.cache import Cache, open_cache
from atlasseg.version import __version__
from atlasseg.volume import Atlas

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Recommendation", "recommend"]

log = logging.getLogger(__name__)

MOST_CASES = 12
"""Maximum number of left-out cases."""

MOST_VOTERS = 14
"""Maximum number of atlases that vote on a left-out case."""

SELECT_FROM, SELECTED = 30, 20
"""Number of atlases above which the recipe selects some for each target, and how many."""

PERSONS_SHARE = 0.25
"""Share of the time budget that the search for scans of one person may take."""


@dataclass(frozen=True, eq=False)
class Recommendation:
    """Recommended recipe of a library, with the evidence for it.

    Parameters
    ----------
    recipe : Recipe
        The recipe.
    text : str
        The recipe in TOML, with the reason of each setting, the expected Dice and the table of what was tried.
    expected_dice : float
        Mean over the left-out cases of the Dice of the setting that is best on the other cases; NaN where nothing could
        be left out.
    dice_sd : float
        Standard deviation of it between the cases.
    tried : DataFrame
        Settings that were tried: ``registration``, ``fusion``, ``cases``, ``dice``, ``seconds`` (for one case).
    not_tried : tuple of str
        Registrations that were not tried for want of time.
    remarks : tuple of str
        What was done, a sentence each.
    """

    recipe: Recipe
    text: str
    expected_dice: float
    dice_sd: float
    tried: pd.DataFrame
    not_tried: tuple[str, ...]
    remarks: tuple[str, ...]

    def __repr__(self) -> str:
        return "\n".join(["Recommendation", self.tried.to_string(index=False), *self.remarks])


def recommend(
    library: Any,
    *,
    minutes: float = 10.0,
    cache: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Recommendation:
    """Recommend a recipe for a library, by settings tried leave-one-out within a time budget.

    Candidate settings follow from the voxel size, the field of view and the labels of the library. Successive halving
    tries all of them on few left-out atlases, and the best on more. No atlas of the same person votes on a left-out
    one: persons are read from ``subjects.tsv``, and found as ``atlasseg doctor`` finds them. The order of the settings
    is fixed: the time decides only how far the search goes.

    Parameters
    ----------
    library : AtlasLibrary, path or list of atlases
        The library or its folder; atlases or pairs (image, labels).
    minutes : float
        Time budget, above 0. A registration that has begun is finished.
    cache : path, optional
        Folder that keeps registrations and fusions, to continue later with more time. Default: a temporary folder.
    progress : callable, optional
        Called with the text of each step.

    Returns
    -------
    Recommendation

    Raises
    ------
    InputError
        An atlas cannot be read, the library has probabilities in place of labels, or the time is not above 0.

    Examples
    --------
    >>> import atlasseg
    >>> library = atlasseg.read_library(atlasseg.sample_data() / "atlases").only(["atlas1"])
    >>> atlasseg.recommend(library, minutes=1).recipe.fusion.method.name
    'majority'
    """
    if not (isinstance(minutes, int | float) and math.isfinite(minutes) and minutes > 0):
        raise InputError(
            f"minutes: expected a number above 0, got {minutes!r}. Give the time that the search may take."
        )
    if progress is not None and not callable(progress):
        raise refuse(progress, "progress", "a function that takes the name of a step")
    tell = progress or (lambda text: None)
    begun = time.perf_counter()
    tell("read the library")
    source = as_library(library)
    atlases = as_atlases(source, what="library")
    uncertain = [atlas.id for atlas in atlases if atlas.labels is not atlas.segmentation]
    if uncertain:
        raise InputError(f"library: expected atlases with label maps, got label probabilities of {uncertain[0]}.")
    persons, remarks = _find_persons(source, atlases, 60 * minutes, tell)
    known = describe_properties(atlases, persons=len(set(persons)))
    registrations = {setting.name: setting for setting in list_registrations(known)}
    fusions = {setting.name: setting for setting in list_fusions(known)}
    if known.persons < 2:
        whom = "one atlas" if len(atlases) == 1 else f"{len(atlases)} atlases of one person"
        remarks.append(
            f"The library has {whom}: none can be left out, so nothing was tried. The recipe holds the default "
            "registration and, for a single atlas, no fusion. Add labelled scans of other persons to compare settings."
        )
        return _conclude(known, registrations, fusions, Search(), [], source, remarks)
    if known.persons == 2:
        remarks.append(
            "The library shows two persons: each is segmented from the other, which compares registrations, but says "
            "little of fusions of several atlases."
        )
    cases = spread(len(atlases), MOST_CASES)
    cases = [cases[n] for n in np.random.default_rng(0).permutation(len(cases))]
    with nullcontext(cache) if cache is not None else tempfile.TemporaryDirectory() as folder:
        trial = _Trial(
            atlases, persons, registrations, fusions, open_cache(Path(folder), None), begun + 60 * minutes, tell
        )
        found = search(list(registrations), list(fusions), cases, trial.measure, fits=trial.fits)
    if not found.complete:
        remarks.append(f"The time of {minutes:g} min was over before the search ended. More minutes try more.")
    if any(len(trial.voters(case)) == MOST_VOTERS for case in cases):
        remarks.append(f"At most {MOST_VOTERS} atlases voted on each left-out case: with more the Dice may be higher.")
    return _conclude(known, registrations, fusions, found, cases, source, remarks)


class _Trial:
    """Leave-one-out measurements of settings, with kept registrations and the time that is left."""

    def __init__(
        self,
        atlases: Sequence[Atlas],
        persons: Sequence[int],
        registrations: Mapping[str, Setting],
        fusions: Mapping[str, Setting],
        cache: Cache,
        end: float,
        tell: Callable[[str], None],
    ) -> None:
        self.atlases, self.persons = atlases, persons
        self.registrations, self.fusions = registrations, fusions
        self.cache, self.end, self.tell = cache, end, tell
        self.taken: dict[str, float] = {}

    def voters(self, case: int) -> list[Atlas]:
        """Atlases that may vote on a case: not the case itself, nor another scan of its person."""
        others = [n for n, person in enumerate(self.persons) if person != self.persons[case]]
        atlas = self.atlases[case]
        return exclude_scan(atlas.id, atlas.image, [self.atlases[others[k]] for k in spread(len(others), MOST_VOTERS)])

    def fits(self, registration: str) -> bool:
        """Whether a registration with its fusions fits into the time left, by its last time and default rates."""
        rates = costs.SECONDS
        voxels = max(math.prod(atlas.image.shape) for atlas in self.atlases)
        default = (rates["registration"] + rates["propagate"]) * min(len(self.atlases), MOST_VOTERS) + rates["fusion"]
        rough_s = default * voxels / 1e6
        known_s = self.taken.get(registration, min(self.taken.values(), default=rough_s))
        needed_s = min(known_s, rough_s)  # the first measurement includes the compilation of kernels
        return time.perf_counter() + needed_s <= self.end

    def measure(self, registration: str, case: int, fusions: Sequence[str]) -> dict[str, tuple[float, float]]:
        """Segment a case with one registration and several fusions; a setting that fails has Dice 0."""
        begun = time.perf_counter()
        atlas = self.atlases[case]
        self.tell(f"{registration}: {atlas.id}")
        base = _parse(self.registrations[registration], self.fusions[fusions[0]])
        try:
            alignment = align(atlas.image, self.voters(case), base, mask=atlas.mask, executor=self.cache)
        except AtlasSegError as error:
            log.warning("%s: registration %s failed: %s", atlas.id, registration, error)
            return dict.fromkeys(fusions, (0.0, time.perf_counter() - begun))
        shared = time.perf_counter() - begun
        found = {}
        for name in fusions:
            start = time.perf_counter()
            recipe = _parse(self.registrations[registration], self.fusions[name])
            try:
                result = fuse(
                    alignment,
                    recipe.fusion.method,
                    refinement=recipe.refinement.method,
                    regions=recipe.regions,
                    executor=self.cache,
                )
                scores = evaluate(
                    result.labels, atlas.segmentation, not_annotated=atlas.not_annotated, surfaces=False
                ).mean()
                dice = scores.get("dice", 0.0)
            except AtlasSegError as error:
                log.warning("%s: %s with %s failed: %s", atlas.id, registration, name, error)
                dice = 0.0
            found[name] = dice, shared + time.perf_counter() - start
        self.taken[registration] = time.perf_counter() - begun
        return found


def _parse(*settings: Setting) -> Recipe:
    return parse_recipe(_merge(*settings))


def _merge(*settings: Setting) -> dict[str, dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {}
    for setting in settings:
        for section, table in setting.tables.items():
            merged[section] = {**merged.get(section, {}), **table}
    return merged


def _find_persons(
    source: Any, atlases: Sequence[Atlas], budget_s: float, tell: Callable[[str], None]
) -> tuple[list[int], list[str]]:
    """Number of the person that each atlas shows, and how it was found."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    tell("look for scans of one person")
    subjects: dict[str, str] = {}
    table = find_subjects(source.root) if isinstance(source, AtlasLibrary) else None
    if table is not None:
        try:
            subjects = read_subjects(table)
        except InputError as error:
            raise InputError(f"{table}: {error}. Correct the table, or remove it.") from error
    count = len(atlases)
    pairs = [
        (a, b)
        for a, b in itertools.combinations(range(count), 2)
        if atlases[a].id in subjects and subjects[atlases[a].id] == subjects.get(atlases[b].id)
    ]
    traces = [trace_source(atlas.image) for atlas in atlases]
    pairs += [(pair.first, pair.second) for pair in (*find_crops(traces), *find_shared_steps(traces))]
    if table is not None:
        how = f"Persons: by {table.name} and by identical intensities."
    elif count < 2:
        how = ""
    else:
        small = [shrink(atlas.image) for atlas in atlases]
        start = time.perf_counter()
        pair_similarity(small[0], small[1], None, None)
        needed = (time.perf_counter() - start) * (2 * count + 20)
        if needed <= PERSONS_SHARE * budget_s:
            likeness = compare_all(small, tell)
            pairs += [(pair.first, pair.second) for pair in likeness.persons]
            how = "Persons: by identical intensities and by similarity after affine registration."
            odd = ", ".join(atlases[each.scan].id for each in likeness.contrasts)
            how += f" Of another contrast than most: {odd}." if odd else " All have one contrast, as far as was seen."
        else:
            how = (
                f"Persons: by identical intensities alone, for want of time. If a person was scanned twice, list the "
                f"scans in {SUBJECTS}."
            )
    first, second = (np.array([pair[n] for pair in pairs], int) for n in (0, 1))
    links = coo_array((np.ones(len(pairs)), (first, second)), shape=(count, count))
    return connected_components(links, directed=False)[1].tolist(), [how] if how else []


def _conclude(
    known: LibraryProperties,
    registrations: Mapping[str, Setting],
    fusions: Mapping[str, Setting],
    found: Search,
    cases: Sequence[int],
    source: Any,
    remarks: list[str],
) -> Recommendation:
    """Write the recipe with its reasons."""
    import pandas as pd

    pair = found.best()
    nested = found.nested_dice()
    dice = [found.dice[pair][case] for case in found.cases] if pair is not None else []
    chosen = pair or (next(iter(registrations)), "majority" if known.atlases == 1 else next(iter(fusions)))
    registration, fusion = registrations[chosen[0]], fusions[chosen[1]]
    rows = [
        {
            "registration": a,
            "fusion": b,
            "cases": len(values),
            "dice": found.mean((a, b)),
            "seconds": found.cost((a, b)),
        }
        for (a, b), values in found.dice.items()
    ]
    tried = pd.DataFrame(rows, columns=["registration", "fusion", "cases", "dice", "seconds"])
    tried = tried.sort_values(["cases", "dice"], ascending=False, kind="stable").reset_index(drop=True)
    measured = {a for a, _ in found.dice}
    not_tried = tuple(name for name in registrations if name not in measured)
    expected = nested or dice
    mean = float(np.mean(expected)) if expected else math.nan
    sd = float(np.std(expected, ddof=1)) if len(expected) > 1 else math.nan
    if pair is None and known.persons > 1:
        remarks.append("There was no time to try a setting: the recipe is the default one. Give more minutes.")
    elif pair is not None:
        remarks.append(_describe_expected(pair, found, mean, sd, nested=bool(nested)))
        if not_tried:
            remarks.append(f"Registrations not tried for want of time: {', '.join(not_tried)}.")
    tables: dict[str, Any] = _merge(registration, fusion)
    if isinstance(source, AtlasLibrary):
        tables = {"data": {"atlases": [str(source.root.resolve())]}, **tables}
    reasons = dict.fromkeys(registration.tables, f"{registration.name}: {registration.reason}.")
    reasons |= dict.fromkeys(fusion.tables, f"{fusion.name}: {fusion.reason}.")
    if known.atlases > SELECT_FROM:
        tables["selection"] = {"before": SELECTED}
        reasons["selection"] = f"of {known.atlases} atlases those most like the target; this was not tried here."
    evidence = "" if pair is None else f" Best of {len(found.dice)} pairs of settings that were tried."
    reasons = {section: f"Chosen: {text}{evidence}" for section, text in reasons.items()}
    title = f"Recipe of atlasseg {__version__}, recommended by 'atlasseg recommend'. The library: {known.describe()}"
    text = format_template(tables, title=title, brief=True, remarks=[*remarks, *_table_lines(tried)], reasons=reasons)
    recipe = parse_recipe(tables, name="recommended")
    return Recommendation(recipe, text, mean, sd, tried, not_tried, tuple(remarks))


def _describe_expected(pair: tuple[str, str], found: Search, mean: float, sd: float, *, nested: bool) -> str:
    """Sentence about the expected Dice."""
    values = [found.dice[pair][case] for case in found.cases]
    text = f"Chosen: registration {pair[0]}, fusion {pair[1]}. Expected Dice {mean:.3f}"
    if nested:
        return (
            f"{text}, standard deviation {sd:.3f} between {len(values)} left-out cases: for each case the setting that "
            "is best on the other cases. The rounds before the last one used the same cases, so it may be slightly "
            f"optimistic. The chosen setting itself: {np.mean(values):.3f}, from {min(values):.3f} to "
            f"{max(values):.3f}."
        )
    return f"{text}, on one left-out case, on which it was chosen too: it is optimistic. Give more minutes."


def _table_lines(tried: pd.DataFrame) -> list[str]:
    """Lines of the table of what was tried."""
    if tried.empty:
        return []
    lines = [f"{'registration':<20}{'fusion':<22}{'cases':>5}{'Dice':>8}{'seconds a case':>16}"]
    lines += [
        f"{row.registration:<20}{row.fusion:<22}{row.cases:>5}{row.dice:>8.3f}{row.seconds:>16.1f}"
        for row in tried.itertuples()
    ]
    return ["Tried, by the number of left-out cases and the mean Dice on them:", *lines]
