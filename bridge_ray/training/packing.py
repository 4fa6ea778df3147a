"""Rows of unequal length to micro-batches of about equal work: no padding, the same number on every rank."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence


def pack(lengths: Sequence[int], ranks: int, capacity: int) -> list[list[list[int]]]:
    """Rank -> micro-batch -> indices of its rows; every row is in one, and none holds more than ``capacity`` tokens.

    Longest first into the emptiest (LPT: Graham 1969), with as few micro-batches per rank as that allows. None is
    empty: there must be at least as many rows as ranks, a multiple of them, and no row above the capacity.
    """
    assert len(lengths) % ranks == 0 and max(lengths) <= capacity, (len(lengths), ranks, max(lengths), capacity)
    micros = max(1, math.ceil(sum(lengths) / (ranks * capacity)))
    parts = _spread(lengths, ranks * micros)
    while max(sum(lengths[index] for index in part) for part in parts) > capacity:
        micros += 1
        parts = _spread(lengths, ranks * micros)
    return [parts[rank * micros : (rank + 1) * micros] for rank in range(ranks)]


def _spread(lengths: Sequence[int], count: int) -> list[list[int]]:
    """``count`` parts of about equal sums, the fullest ones spread over the ranks."""
    parts: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, number) for number in range(count)]
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        filled, number = heapq.heappop(emptiest)
        parts[number].append(index)
        heapq.heappush(emptiest, (filled + lengths[index], number))
    return parts
