"""Successive halving over pairs of a registration and a fusion, on a growing number of left-out cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Search", "search"]

FIRST_CASES = 2
"""Left-out cases of the first round; each round has twice as many."""

KEPT = 0.5
"""Share of the registrations, and of the fusions of each, that goes on to the next round."""

FEWEST = 2
"""Pairs that are compared to the end."""

TIE = 0.001
"""Dice within which two pairs are equal: the faster one is chosen."""

Pair = tuple[str, str]
Measure = Callable[[str, int, Sequence[str]], dict[str, tuple[float, float]]]
"""Called with a registration, a case and fusions; returns Dice and seconds of each fusion."""


@dataclass
class Search:
    """Outcome of a search.

    Parameters
    ----------
    dice, seconds : dict
        Of each pair of a registration and a fusion: Dice, and seconds, by case.
    finalists : list of (str, str)
        Pairs of the last round.
    cases : list of int
        Cases that all finalists have.
    complete : bool
        Whether the search came to its end; otherwise the time was over.
    """

    dice: dict[Pair, dict[int, float]] = field(default_factory=dict)
    seconds: dict[Pair, dict[int, float]] = field(default_factory=dict)
    finalists: list[Pair] = field(default_factory=list)
    cases: list[int] = field(default_factory=list)
    complete: bool = False

    def mean(self, pair: Pair, cases: Sequence[int] | None = None) -> float:
        """Compute the mean Dice of a pair.

        Parameters
        ----------
        pair : (str, str)
            Registration and fusion.
        cases : sequence of int, optional
            Cases. Default: all that were measured.

        Returns
        -------
        float
            0 to 1.
        """
        known = self.dice[pair]
        return float(np.mean([known[case] for case in (known if cases is None else cases)]))

    def cost(self, pair: Pair) -> float:
        """Compute the mean time of a pair for one case.

        Parameters
        ----------
        pair : (str, str)
            Registration and fusion.

        Returns
        -------
        float
            Seconds.
        """
        return float(np.mean(list(self.seconds[pair].values())))

    def best(self, cases: Sequence[int] | None = None) -> Pair | None:
        """Find the best finalist; of those within `TIE` of it the fastest.

        Parameters
        ----------
        cases : sequence of int, optional
            Cases that decide. Default: all that every finalist has.

        Returns
        -------
        (str, str) or None
            Registration and fusion; None if nothing was measured.
        """
        chosen = self.cases if cases is None else cases
        if not self.finalists or not chosen:
            return None
        highest = max(self.mean(pair, chosen) for pair in self.finalists)
        return min((p for p in self.finalists if self.mean(p, chosen) >= highest - TIE), key=self.cost)

    def nested_dice(self) -> list[float]:
        """List the Dice of each case by the finalist that is best on the other cases.

        Returns
        -------
        list of float
            Empty with fewer than two cases.
        """
        found = []
        for case in self.cases if len(self.cases) > 1 else ():
            pair = self.best([other for other in self.cases if other != case])
            assert pair is not None
            found.append(self.dice[pair][case])
        return found


def search(
    registrations: Sequence[str],
    fusions: Sequence[str],
    cases: Sequence[int],
    measure: Measure,
    *,
    fits: Callable[[str], bool] = lambda registration: True,
) -> Search:
    """Find the best pair of a registration and a fusion.

    In each round all remaining pairs are measured on the cases of the round, of which there are twice as many as in the
    round before [1]_. The better half of the registrations, each judged by its best fusion, goes on with the better
    half of its fusions. A registration is computed once for a case, for all its fusions.

    Parameters
    ----------
    registrations, fusions : sequence of str
        Names, in the order in which they are tried.
    cases : sequence of int
        Left-out cases, in the order in which they are used.
    measure : callable
        Measures a registration on a case with some fusions.
    fits : callable
        Called with a registration before it is measured: whether there is time left for it. The first False ends the
        search; results do not depend on it otherwise.

    Returns
    -------
    Search

    References
    ----------
    .. [1] Jamieson, Talwalkar (2016), Non-stochastic best arm identification and hyperparameter optimization, AISTATS.
    """
    found = Search()
    alive = {registration: list(fusions) for registration in registrations}
    count = min(FIRST_CASES, len(cases))
    while alive:
        for case in cases[:count]:
            for registration, chosen in alive.items():
                pairs = [(registration, fusion) for fusion in chosen]
                missing = [
                    fusion for pair, fusion in zip(pairs, chosen, strict=True) if case not in found.dice.get(pair, {})
                ]
                if not missing:
                    continue
                if not fits(registration):
                    _conclude(found, alive, cases[:count])
                    return found
                for fusion, (dice, seconds) in measure(registration, case, missing).items():
                    found.dice.setdefault((registration, fusion), {})[case] = dice
                    found.seconds.setdefault((registration, fusion), {})[case] = seconds
        _conclude(found, alive, cases[:count])
        if count == len(cases):
            found.complete = True
            return found
        alive = _halve(found, alive)
        count = min(2 * count, len(cases))
    return found


def _conclude(found: Search, alive: dict[str, list[str]], cases: Sequence[int]) -> None:
    """Set the finalists: all remaining pairs on the cases that they share, or those of a first case cut off."""
    pairs = [(registration, fusion) for registration, chosen in alive.items() for fusion in chosen]
    shared = [case for case in cases if all(case in found.dice.get(pair, {}) for pair in pairs)]
    if not shared:
        pairs = [pair for pair in pairs if pair in found.dice]
        shared = list(cases[:1]) if pairs else []
    found.finalists, found.cases = pairs, shared


def _halve(found: Search, alive: dict[str, list[str]]) -> dict[str, list[str]]:
    """Keep the better half of the registrations, and of the fusions of each, in their order."""
    ranked = {
        registration: sorted(chosen, key=lambda fusion, r=registration: -found.mean((r, fusion), found.cases))  # type: ignore[misc]
        for registration, chosen in alive.items()
    }
    order = sorted(alive, key=lambda registration: -found.mean((registration, ranked[registration][0]), found.cases))
    kept = order[: max(FEWEST, round(KEPT * len(order)))]
    best = {r: ranked[r][: max(FEWEST, round(KEPT * len(ranked[r])))] for r in kept}
    return {r: [fusion for fusion in alive[r] if fusion in best[r]] for r in alive if r in kept}
