"""Boosted trees as plain arrays: copied from scikit-learn after training, stored in files, and evaluated here.

Unlike a pickled model, a file of arrays can be checked and runs no code when it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numba import njit

from atlasseg.errors import InputError
from atlasseg.threads import run_slices
from atlasseg.volume import Float32, Float64, Int32, Int64

LEAF = -1


@dataclass(frozen=True, eq=False)
class Trees:
    """Sum of binary trees; its logistic function is a probability.

    Parameters
    ----------
    baseline : (1,) float64
        Initial value of the sum, in log-odds.
    roots : (T,) int64
        Root node of each tree.
    feature : (N,) int32
        Column that a node tests, `LEAF` for a leaf.
    threshold : (N,) float64
        Values up to the threshold go to the left.
    left, right : (N,) int32
        Child nodes; they follow their parent in the same tree.
    value : (N,) float64
        Value of a leaf, in log-odds.
    """

    baseline: Float64
    roots: Int64
    feature: Int32
    threshold: Float64
    left: Int32
    right: Int32
    value: Float64

    @classmethod
    def of(cls, grown: Any) -> Trees:
        """Copy the trees of a fitted binary HistGradientBoostingClassifier of scikit-learn without categories."""
        grown_trees = [each.nodes for (each,) in grown._predictors]
        sizes = np.array([nodes.size for nodes in grown_trees])
        roots = np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.int64)
        nodes = np.concatenate(grown_trees)
        leaf = nodes["is_leaf"].astype(bool)
        shift = np.repeat(roots, sizes)
        return cls(
            np.array(grown._baseline_prediction, np.float64).reshape(1),
            roots,
            np.where(leaf, LEAF, nodes["feature_idx"]).astype(np.int32),
            np.where(leaf, 0.0, nodes["num_threshold"]),
            np.where(leaf, 0, nodes["left"] + shift).astype(np.int32),
            np.where(leaf, 0, nodes["right"] + shift).astype(np.int32),
            np.where(leaf, nodes["value"], 0.0),
        )

    def probability(self, features: Float32) -> Float64:
        """Compute the probability (n,) of each row of (n, F) features, the same for any number of threads."""
        from scipy.special import expit

        sums = np.empty(len(features))
        run_slices(_sum_leaves, len(sums), features, *(getattr(self, field.name) for field in fields(self)), sums)
        out: Float64 = expit(sums)
        return out

    def check(self, columns: int, where: str) -> None:
        """Check that every path through the trees ends in a leaf and uses existing columns.

        Raises
        ------
        InputError
            The arrays are damaged or belong to another model.
        """
        count = self.feature.size
        inner = self.feature != LEAF
        own = np.arange(count)
        ends = np.append(self.roots[1:], count)
        end = np.repeat(ends, np.diff(np.append(self.roots, count)).clip(0)) if self.roots.size else own[:0]
        sound = (
            all(getattr(self, f.name).ndim == 1 for f in fields(self))
            and self.baseline.size == 1
            and {a.size for a in (self.threshold, self.left, self.right, self.value)} == {count}
            and (count == 0 or (self.roots.size > 0 and self.roots[0] == 0))
            and bool((np.diff(np.append(self.roots, count)) > 0).all())
            and bool(((self.feature >= LEAF) & (self.feature < columns)).all())
            and all(bool(((a > own) & (a < end))[inner].all()) for a in (self.left, self.right))
            and all(bool(np.isfinite(a).all()) for a in (self.baseline, self.threshold, self.value))
        )
        if not sound:
            raise InputError(f"{where}: expected valid trees, got damaged ones. Train the model again.")


@njit(cache=True, nogil=True)
def _sum_leaves(
    start: int,
    stop: int,
    features: Float32,
    baseline: Float64,
    roots: Int64,
    feature: Int32,
    threshold: Float64,
    left: Int32,
    right: Int32,
    value: Float64,
    out: Float64,
) -> None:
    for row in range(start, stop):
        total = baseline[0]
        for root in roots:
            node = root
            while feature[node] != LEAF:
                here = features[row, feature[node]]
                node = left[node] if here <= threshold[node] else right[node]
            total += value[node]
        out[row] = total


def join_trees(parts: list[Trees]) -> tuple[dict[str, Any], Int64, Int64]:
    """Join the trees of several classifiers to one set of arrays, with the numbers of trees and nodes of each."""
    arrays = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Trees)}
    trees = np.array([part.roots.size for part in parts], np.int64)
    nodes = np.array([part.feature.size for part in parts], np.int64)
    return arrays, trees, nodes
