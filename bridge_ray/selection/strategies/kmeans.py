"""The row nearest to each of ``count`` k-means centroids, the centroid of the largest cluster first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bridge_ray.selection.neighbours import clusters
from bridge_ray.selection.problem import Problem


def rank(problem: Problem, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """A budget that cuts this ranking keeps the largest clusters. The objective has no gain per row: NaN."""
    centroids, labels = clusters(problem.vectors, count, problem.seed, problem.copies.astype(np.float32))
    sizes = np.bincount(labels, weights=problem.copies, minlength=count)
    taken = np.zeros(len(problem.vectors), bool)
    chosen = np.empty(count, np.int64)
    for step, cluster in enumerate(np.argsort(-sizes, kind="stable")):
        chosen[step] = np.argmax(np.where(taken, -np.inf, problem.vectors @ centroids[cluster]))
        taken[chosen[step]] = True  # two centroids may have the same nearest row
    return chosen, np.full(count, np.nan)
