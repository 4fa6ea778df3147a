"""From embeddings and difficulties to the ranking that the teacher's budget cuts.

A strategy ranks once, and a budget is a prefix of the ranking: raising 3 % to 5 % buys only the difference.
"""

from __future__ import annotations

import logging
import math

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bridge_ray import config
from bridge_ray.errors import UserError
from bridge_ray.records import SELECTION
from bridge_ray.selection.neighbours import clusters, merge_near_duplicates, nearest, normalise
from bridge_ray.selection.problem import Problem
from bridge_ray.selection.strategies import STRATEGIES

log = logging.getLogger(__name__)

MAX_CLUSTERS = 32  # in the table, for people to read

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]


def examples_in_budget(n: int, budget: config.Budget) -> int:
    """How many of n train rows the budget can buy if each takes one query: at least 1. Money is not counted here."""
    # fraction * n in floating point can fall just short of a whole number: 0.29 * 100 = 28.999999999999996.
    rows = n if budget.fraction is None else math.floor(budget.fraction * n + 1e-9)
    return max(1, rows if budget.max_queries is None else min(rows, budget.max_queries))


def rank_length(n: int, budget: config.Budget) -> int:
    """How many of n train rows to rank: 10 % of them, or the budget if it is larger."""
    return min(n, max(math.ceil(n / 10), examples_in_budget(n, budget)))


def rank(vectors: NDArray[np.float32], difficulty: Floats, settings: config.Select, count: int, seed: int) -> pa.Table:
    """The ``count`` best rows in the order to buy them, as a table of schema ``records.SELECTION``.

    ``vectors`` (n, d) are raw embeddings, ``difficulty`` (n,) is in [0, 1]; row i is the example of id i.
    Near-duplicates come last: none is ranked while a row without a ranked near-duplicate is left.
    Where all embeddings are equal, bridge ranks by difficulty and the geometric strategies by id; where all
    difficulties are equal, bridge ranks by coverage and entropy by id; each with a warning in the log.
    Raises UserError if there are fewer than ``count`` rows or an embedding is not finite.
    """
    assert len(vectors) == len(difficulty), f"{len(vectors)} vectors, {len(difficulty)} difficulties"
    if not 0 < count <= len(vectors):
        raise UserError(f"select: cannot rank {count} of {len(vectors)} train rows; lower budget or raise corpus.train")
    unit = normalise(vectors)
    for caution in cautions(int(unit.any(axis=1).sum()), difficulty):
        log.warning(caution)
    chosen, gains = _rank(unit, difficulty, settings, count, seed)
    return _table(unit, chosen, gains, seed)


def cautions(spread: int, difficulty: Floats) -> list[str]:
    """What a person should know before trusting a selection; ``spread`` is how many rows differ from the mean."""
    rows, found = len(difficulty), []
    if rows > 1 and spread == 0:
        found.append(f"all {rows} embeddings are equal: position in embedding space cannot guide the selection")
    if rows > 1 and np.ptp(difficulty) == 0:
        found.append(f"all {rows} rows are equally difficult: difficulty cannot guide the selection")
    return found


def cluster_count(rows: int) -> int:
    """Clusters that a selection is read by: the root of the rows, at most 32."""
    return min(MAX_CLUSTERS, math.ceil(math.sqrt(rows)))


def _rank(
    unit: NDArray[np.float32], difficulty: Floats, settings: config.Select, count: int, seed: int
) -> tuple[Rows, Floats]:
    """Ask the strategy to rank one row per group of near-duplicates; then the other rows, hardest first."""
    kept, group, copies = np.unique(merge_near_duplicates(unit), return_inverse=True, return_counts=True)
    problem = Problem(
        vectors=unit[kept],
        difficulty=np.bincount(group, weights=difficulty) / copies,
        copies=copies,
        difficulty_weight=settings.difficulty_weight,
        neighbours=settings.neighbours,
        seed=seed,
    )
    first, gains = STRATEGIES[settings.strategy](problem, min(count, len(kept)))
    others = np.setdiff1d(np.arange(len(unit)), kept)
    others = others[np.argsort(-difficulty[others], kind="stable")][: count - len(first)]
    return np.concatenate([kept[first], others]), np.concatenate([gains, np.full(len(others), np.nan)])


def _table(unit: NDArray[np.float32], chosen: Rows, gains: Floats, seed: int) -> pa.Table:
    _, labels = clusters(unit, cluster_count(len(unit)), seed)
    by, _ = nearest(unit, unit[chosen])
    by[chosen] = np.arange(len(chosen))  # a chosen row covers itself, also where another is just as near
    columns = {
        "id": chosen,
        "rank": np.arange(len(chosen)),
        "gain": gains,
        "cluster": labels[chosen],
        "covers": np.bincount(by, minlength=len(chosen)),
    }
    return pa.table(columns, schema=SELECTION)
