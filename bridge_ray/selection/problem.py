"""What a selection strategy is given, and what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bridge_ray.selection.neighbours import Graph


@dataclass(frozen=True)
class Problem:
    """n distinct rows to rank; near-duplicates have been merged into them.

    ``vectors`` (n, d) float32 unit rows (or zeros); ``difficulty`` (n,) float64 in [0, 1], the mean over the merged
    rows; ``copies`` (n,) int64, how many rows of the corpus each one stands for. Where the ``graph`` is known already
    it need not be built from the vectors; its neighbours may then be more than the n rows, and difficulty and copies
    are those of all of them, the n rows that can be chosen first or not among them.
    """

    vectors: NDArray[np.float32]
    difficulty: NDArray[np.float64]
    copies: NDArray[np.int64]
    difficulty_weight: float
    neighbours: int
    seed: int
    graph: Graph | None = None


# Called with (problem, count), count <= n; returns distinct row indices (count,), best first, and their gains
# (count,): the marginal gain of the strategy's objective, NaN where it has none.
Strategy = Callable[[Problem, int], tuple[NDArray[np.int64], NDArray[np.float64]]]
