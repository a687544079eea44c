"""Evaluation result: every measure of every label, as rows, as a table, and by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Literal, overload

import numpy as np

from atlasseg.errors import InputError
from atlasseg.templating import render_macro

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FOREGROUND", "EvaluationResult", "Score", "mean_over_labels", "without_tolerance"]

FOREGROUND = "foreground"
"""Name of the group of all labels."""

Note = Literal["", "missed", "not in reference", "empty in both"]

SHOWN_METRICS = ("dice", "hausdorff_95_mm", "average_surface_distance_mm", "surface_dice")
"""Measures (without their tolerance) in the columns of a printed result; `EvaluationResult.to_frame` has all."""


@dataclass(frozen=True)
class Score:
    """One measure of one label or group of labels.

    Parameters
    ----------
    label : int, optional
        The label; None for a group of labels.
    name : str
        Name of the label or the group.
    metric : str
        ``dice``, ``jaccard``, ``volume_similarity``, ``sensitivity``, ``precision``, ``hausdorff_mm``,
        ``hausdorff_95_mm``, ``average_surface_distance_mm``, ``surface_dice_1mm`` or ``surface_dice_voxels_1mm`` (with
        the tolerance in its name).
    value : float
        Value of the measure: finite, or NaN with the note ``empty in both``.
    note : str
        ``missed`` if only the reference has the label, ``not in reference`` if only the segmentation has it; the value
        is then the worst of the measure. ``empty in both`` if neither has any label. Otherwise empty.
    """

    label: int | None
    name: str
    metric: str
    value: float
    note: Note = ""


class EvaluationResult(Sequence[Score]):
    """Result of an evaluation: a sequence of `Score` with every measure of every label and group.

    ``result["dice"]`` is one measure of all labels; ``result["dice", "hippocampus"]`` (by name) or
    ``result["dice", 17]`` (by value) is that of one label or group. It prints as a table.

    Parameters
    ----------
    scores : iterable of Score
        The measures.
    notes : iterable of str
        Remarks that are printed below the table.
    title : str
        Title of the table.

    Examples
    --------
    >>> result = EvaluationResult([Score(1, "left", "dice", 0.5), Score(None, "foreground", "dice", 0.75)])
    >>> result["dice"].to_dict(), result["dice", "left"], result["dice", "foreground"]
    ({'left': 0.5}, 0.5, 0.75)
    >>> [score.value for score in result]
    [0.5, 0.75]
    """

    def __init__(self, scores: Iterable[Score], *, notes: Iterable[str] = (), title: str = "") -> None:
        self.scores = tuple(scores)
        self.title = title
        marked: dict[str, list[str]] = {}
        for score in self.scores:
            if score.note in ("missed", "not in reference") and score.name not in marked.setdefault(score.note, []):
                marked[score.note].append(score.name)
        self.notes = (*notes, *(f"{note}: {', '.join(names)}" for note, names in marked.items()))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the measures."""
        return tuple(dict.fromkeys(score.metric for score in self.scores))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the labels and groups, labels first."""
        return tuple(dict.fromkeys(score.name for score in self.scores))

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Score]:
        return iter(self.scores)

    def __eq__(self, other: object) -> bool:
        return self.scores == other.scores if isinstance(other, EvaluationResult) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.scores)

    @overload
    def __getitem__(self, key: int) -> Score: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Score, ...]: ...
    @overload
    def __getitem__(self, key: str) -> pd.Series[float]: ...
    @overload
    def __getitem__(self, key: tuple[str, str | int]) -> float: ...
    def __getitem__(self, key: int | slice | str | tuple[str, str | int]) -> object:
        """Get a row by its number, one measure of all labels by its name, or one measure of one label or group.

        Returns
        -------
        Score, tuple of Score, Series or float
            The Series is indexed by the names of the labels and has no groups, so its mean is the mean over labels.

        Raises
        ------
        InputError
            The measure, label or group does not exist.
        """
        if isinstance(key, int | slice):
            return self.scores[key]
        if isinstance(key, str):
            import pandas as pd

            chosen = [score for score in self._of(key) if score.label is not None]
            return pd.Series([s.value for s in chosen], [s.name for s in chosen], name=key, dtype=np.float64)
        if not (isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str)):
            raise InputError(f'expected result["dice"] or result["dice", LABEL], got {key!r}')
        metric, which = key
        found = [s.value for s in self._of(metric) if which in (s.name, s.label)]
        if not found or which is None:
            raise InputError(f"expected a label or group of {', '.join(self.names)}, got {which!r}")
        return found[0]

    def _of(self, metric: str) -> list[Score]:
        found = [score for score in self.scores if score.metric == metric]
        if not found:
            raise InputError(f"expected a measure of {', '.join(self.metrics) or 'none'}, got {metric!r}")
        return found

    def mean(self) -> dict[str, float]:
        """Compute the mean of each measure over the labels, with equal weights; groups are not included.

        Returns
        -------
        dict of str to float
            Mean of each measure by name.
        """
        return mean_over_labels(self.scores)

    def to_frame(self, *, wide: bool = False) -> pd.DataFrame:
        """Convert all scores to a table.

        Parameters
        ----------
        wide : bool
            One row per label or group and one column per measure, instead of one row per score.

        Returns
        -------
        DataFrame
            Columns ``label`` (missing for a group), ``name``, ``metric``, ``value``, ``note``; or, wide, ``label``,
            ``name`` and the measures.
        """
        import pandas as pd

        table = pd.DataFrame([asdict(score) for score in self.scores], columns=[f.name for f in fields(Score)])
        table["label"] = table["label"].astype("Int64")
        if not wide:
            return table
        columns = {m: {s.name: s.value for s in self._of(m)} for m in self.metrics}
        rows = {score.name: score.label for score in self.scores}
        found = pd.DataFrame({"label": list(rows.values()), "name": list(rows)})
        found["label"] = found["label"].astype("Int64")
        return found.assign(**{m: [columns[m].get(name, np.nan) for name in rows] for m in self.metrics})

    def _shown(self) -> pd.DataFrame:
        """Printed table: some measures of each label, their means, and the groups."""
        import pandas as pd

        wide = self.to_frame(wide=True).set_index("name")
        columns = [m for m in self.metrics if without_tolerance(m) in SHOWN_METRICS]
        labels, groups = wide[wide["label"].notna()], wide[wide["label"].isna()]
        parts = [labels[columns]]
        if len(labels):
            parts.append(labels[columns].mean().to_frame("mean over labels").T)
        return pd.concat([*parts, groups[columns]]).rename_axis(None)

    def __repr__(self) -> str:
        title = self.title or "evaluation"
        if not self.scores:
            return f"EvaluationResult({title}: no label)"
        table = self._shown().to_string(float_format=lambda value: f"{value:.4g}", na_rep="n/a")
        return "\n".join([title, table, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        table = self._shown().to_html(float_format=lambda value: f"{value:.4g}", na_rep="n/a", border=0)
        title = self.title or "evaluation"
        return render_macro("notebook.html.j2", "evaluation", title=title, table=table, notes=self.notes)


def without_tolerance(metric: str) -> str:
    """Remove the tolerance from the name of a measure.

    Parameters
    ----------
    metric : str
        Name of the measure.

    Returns
    -------
    str
        Name without tolerance.

    Examples
    --------
    >>> without_tolerance("surface_dice_0.5mm"), without_tolerance("hausdorff_95_mm")
    ('surface_dice', 'hausdorff_95_mm')
    """
    return re.sub(r"_[0-9][^_]*mm$", "", metric)


def mean_over_labels(scores: Iterable[Score]) -> dict[str, float]:
    """Compute the mean of each measure over the labels, with equal weights; groups are not included.

    Parameters
    ----------
    scores : iterable of Score
        Measures of labels and groups.

    Returns
    -------
    dict of str to float
        Mean of each measure by name.

    Examples
    --------
    >>> mean_over_labels([Score(1, "a", "dice", 0.5), Score(2, "b", "dice", 1.0), Score(None, "all", "dice", 0.9)])
    {'dice': 0.75}
    """
    values: dict[str, list[float]] = {}
    for score in scores:
        if score.label is not None:
            values.setdefault(score.metric, []).append(score.value)
    return {metric: float(np.mean(found)) for metric, found in values.items()}
