"""Greedy maximisation of how well a few chosen rows cover the weighted corpus.

The objective ``F(S) = sum_j w_j log(1 + sum_{i in S} s_ij)`` is monotone and submodular for w, s >= 0, so greedy
reaches at least 1 - 1/e of the optimum (Nemhauser, Wolsey and Fisher 1978). A gain can only shrink as S grows, so
an old gain is an upper bound and most need no update (Minoux 1978): the same choice as plain greedy, far sooner.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bridge_ray.selection.neighbours import Graph

Floats = NDArray[np.float64]


def objective(graph: Graph, weights: Floats, chosen: Iterable[int]) -> float:
    """F of the chosen rows; ``weights`` is (n,), not negative."""
    mass = np.zeros(len(weights))
    for row in chosen:
        _add(graph, mass, row)
    return float(weights @ np.log1p(mass))


def lazy_greedy(graph: Graph, weights: Floats, count: int) -> tuple[NDArray[np.int64], Floats]:
    """Choose ``count`` <= n rows: indices (count,) int64 in the order chosen, marginal gains (count,) float64.

    Equal gains go to the lower index. A step costs the lengths of the neighbour lists it looks at. Of a part of a
    graph, whose rows touch more rows than can be chosen, ``weights`` are those of all that are touched.
    """
    assert count <= len(graph), f"cannot choose {count} of {len(graph)} rows"
    mass = np.zeros(len(weights))
    heap = [(-gain(graph, weights, mass, row), row, 0) for row in range(len(graph))]
    heapq.heapify(heap)
    chosen: list[int] = []
    gains: list[float] = []
    while len(chosen) < count:
        bound, row, known_at = heap[0]
        if known_at < len(chosen):
            heapq.heapreplace(heap, (-gain(graph, weights, mass, row), row, len(chosen)))
            continue
        heapq.heappop(heap)
        _add(graph, mass, row)
        chosen.append(row)
        gains.append(-bound)
    return np.array(chosen, np.int64), np.array(gains)


def gain(graph: Graph, weights: Floats, mass: Floats, row: int) -> float:
    """What F grows by if ``row`` is added, where ``mass`` (n,) is the similarity each row has gathered so far."""
    rows, similarities = graph.around(row)
    return float(np.sum(weights[rows] * np.log1p(similarities / (1 + mass[rows]))))


def _add(graph: Graph, mass: Floats, row: int) -> None:
    rows, similarities = graph.around(row)
    mass[rows] += similarities
