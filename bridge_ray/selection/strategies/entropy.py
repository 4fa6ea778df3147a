"""The hardest rows, wherever they lie."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bridge_ray.selection.problem import Problem


def rank(problem: Problem, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """By falling difficulty, ties by lower index; the gain is the difficulty."""
    chosen = np.argsort(-problem.difficulty, kind="stable")[:count]
    return chosen, problem.difficulty[chosen]
