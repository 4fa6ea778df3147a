"""Hard rows that together cover the corpus (the default)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bridge_ray.selection.lazy_greedy import lazy_greedy
from bridge_ray.selection.neighbours import graph
from bridge_ray.selection.problem import Problem


def rank(problem: Problem, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Lazy greedy on ``sum_j w_j log(1 + sum_{i in S} s_ij)`` with ``w_j = (1 - lambda) + lambda d_j`` per corpus row.

    ``lambda`` is ``difficulty_weight``. The formula is this project's default; the paper does not publish its own.
    """
    share = problem.difficulty_weight
    weights = problem.copies * ((1 - share) + share * problem.difficulty)
    near = graph(problem.vectors, problem.neighbours) if problem.graph is None else problem.graph
    return lazy_greedy(near, weights, count)
