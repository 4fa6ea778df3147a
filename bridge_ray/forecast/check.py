"""Whether a system's fit says more about sizes that it did not see than "the next size scores like the last" does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bridge_ray.forecast.cells import Cell, Size, sizes
from bridge_ray.forecast.curve import fit


@dataclass(frozen=True)
class Guess:
    """One size that was left out: its error, what the fit of the others said, and the error of the size before it."""

    size: Size
    fitted: float
    carried: float


@dataclass(frozen=True)
class Check:
    """Guesses, and how wrong they were: mean absolute errors, in shares of the questions."""

    guesses: tuple[Guess, ...]

    @property
    def fitted(self) -> float:
        return _mean([abs(guess.fitted - guess.size.error) for guess in self.guesses])

    @property
    def carried(self) -> float:
        return _mean([abs(guess.carried - guess.size.error) for guess in self.guesses])

    @property
    def passed(self) -> bool:
        return self.fitted < self.carried


def _mean(errors: Sequence[float]) -> float:
    """Infinite without any: of an unfinished frontier, what is left out may have nothing smaller beside it."""
    return float(np.mean(errors)) if errors else math.inf


def ahead(cells: Sequence[Cell], bound: float) -> Check:
    """The largest budget, and where there are several corpora the largest, predicted from everything smaller."""
    largest, longest = max(cell.budget for cell in cells), max(cell.rows for cell in cells)
    guesses = _guesses([cell for cell in cells if cell.budget == largest], cells, bound)
    if any(cell.rows < longest for cell in cells):
        guesses += _guesses([cell for cell in cells if cell.rows == longest], cells, bound)
    return Check(tuple(guesses))


def one_by_one(cells: Sequence[Cell], bound: float) -> Check:
    """Every size that has a smaller one, predicted from all the others."""
    guesses = []
    for size in sizes(cells):
        guesses += _guesses([c for c in cells if (c.rows, c.budget) == (size.rows, size.budget)], cells, bound)
    return Check(tuple(guesses))


def _guesses(left_out: Sequence[Cell], cells: Sequence[Cell], bound: float) -> list[Guess]:
    hidden = set(left_out)
    seen = [cell for cell in cells if cell not in hidden]
    before = [(size, _last(size, sizes(seen))) for size in sizes(left_out)]
    curve = fit(seen, bound)
    return [Guess(size, curve.error(size.queries, size.corpus), last.error) for size, last in before if last]


def _last(size: Size, seen: Sequence[Size]) -> Size | None:
    """Of the sizes that are larger in nothing, the one with the most queries, and then rows."""
    smaller = [one for one in seen if one.rows <= size.rows and one.queries <= size.queries]
    return max(smaller, key=lambda one: (one.queries, one.rows), default=None)
