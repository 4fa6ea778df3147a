"""A random order: the control that every other strategy has to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bridge_ray.selection.problem import Problem


def rank(problem: Problem, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    chosen = np.random.default_rng(problem.seed).permutation(len(problem.vectors))[:count]
    return chosen, np.full(count, np.nan)
