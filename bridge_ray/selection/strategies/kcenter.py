"""Farthest first: each row is the one farthest from all rows chosen before it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bridge_ray.selection.problem import Problem


def rank(problem: Problem, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Gonzalez 1985, from the most central row; the gain is the distance 1 - cos to the nearest chosen row.

    Costs n x d multiplications per choice. The first row has no distance: NaN.
    """
    vectors = problem.vectors
    distance = np.full(len(vectors), np.inf)
    chosen, gains = np.empty(count, np.int64), np.empty(count)
    row = int(np.argmax(vectors @ vectors.mean(axis=0)))
    for step in range(count):
        chosen[step], gains[step] = row, distance[row] if step else np.nan
        distance = np.minimum(distance, 1 - vectors @ vectors[row])
        distance[chosen[: step + 1]] = -np.inf  # never twice, even where all rows are equal
        row = int(np.argmax(distance))
    return chosen, gains
