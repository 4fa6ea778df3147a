"""A frontier's cells as a forecast reads them, pooled into sizes, and drawn again for the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bridge_ray.errors import UserError

RIVALS = ("direct", "direct_labels")
SYSTEMS = ("bridge", *RIVALS)
NEEDED = ("bridge", "direct")  # of SYSTEMS, without which there is no forecast
LEAST = 3  # budgets for a curve of three parameters
LADDER = (0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 1.0)  # budgets to propose


@dataclass(frozen=True)
class Cell:
    """One system at one size and seed: ``correct`` of ``n`` test questions, after ``queries`` of the teacher."""

    system: str
    budget: float  # share of the training rows
    rows: int  # training rows, N
    seed: int
    n: int
    correct: int
    queries: float
    keep: float = 1.0  # share of the rows that amplification explained, rho; 1 where it is not known

    @property
    def error(self) -> float:
        return 1 - self.correct / self.n

    @property
    def corpus(self) -> float:
        """Training rows with a rationale, rho N."""
        return self.rows * self.keep


@dataclass(frozen=True)
class Size:
    """One system's cells of the same corpus and budget, pooled over seeds."""

    rows: int
    budget: float
    queries: float
    corpus: float
    n: int
    correct: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @property
    def error(self) -> float:
        return 1 - self.accuracy


@dataclass(frozen=True)
class Measured:
    """What a forecast starts from: system -> its cells, of those with enough budgets; and the teacher's own score."""

    cells: Mapping[str, tuple[Cell, ...]]
    teacher: tuple[int, int] | None  # correct, n
    beaten: bool = False  # whether a size that was measured is better than the teacher

    @property
    def error(self) -> float | None:
        """The teacher's, None where it was not measured."""
        return None if self.teacher is None else 1 - self.teacher[0] / self.teacher[1]

    @property
    def bound(self) -> float:
        """The error below which no asymptote may lie: the teacher's; 0 where it was not measured, or is none."""
        return 0.0 if self.error is None or self.beaten else self.error


def read(cells: Iterable[Mapping[str, Any]], where: str, missing: Iterable[Mapping[str, Any]] = ()) -> Measured:
    """The cells of frontier.json, and those it has not yet; raises UserError where bridge or direct has too few budgets
    for a curve."""
    planned = {(cell["system"], cell["budget"]) for cell in missing}
    found: dict[str, list[Cell]] = {system: [] for system in SYSTEMS}
    correct = n = 0
    for cell in cells:
        if cell["system"] in found and cell["queries"] >= 1:  # a curve in queries has no value at none
            keep = {"keep": cell["keep"]} if cell.get("keep") else {}
            fields = {name: cell[name] for name in ("system", "budget", "rows", "seed", "n", "correct", "queries")}
            found[cell["system"]].append(Cell(**fields, **keep))
        elif cell["system"] == "teacher":
            correct, n = correct + cell["correct"], n + cell["n"]
    for system in NEEDED:
        _check(system, found[system], [budget for name, budget in planned if name == system], where)
    enough = {system: tuple(part) for system, part in found.items() if len(budgets(part)) >= LEAST}
    best = max(size.accuracy for part in enough.values() for size in sizes(part))
    return Measured(enough, (correct, n) if n else None, bool(n) and best > correct / n)


def _check(system: str, cells: Sequence[Cell], planned: Sequence[float], where: str) -> None:
    known = budgets(cells)
    if len(known) >= LEAST:
        return
    listed = f"only {share_list(known)}" if known else "no budget"
    coming = sorted({*known, *planned})
    todo = "give the frontier's command again: it goes on with the cells that are missing"
    if len(coming) < LEAST:
        asked = share_list(more(coming, LEAST - len(coming)))
        todo = f"add them: run the frontier again as before, but with --budgets {asked}"
    raise UserError(f"{where}: {system} has {listed}, and a curve needs {LEAST} budgets; {todo}")


def budgets(cells: Iterable[Cell]) -> list[float]:
    return sorted({cell.budget for cell in cells})


def more(known: Sequence[float], count: int) -> list[float]:
    """The known budgets and ``count`` new ones, each as far from all others as the ladder allows (in logarithms).

    Fewer where the ladder has no more.
    """
    chosen = list(known) or [0.05]
    for _ in range(count - (not known)):
        left = set(LADDER) - set(chosen)
        if left:
            chosen.append(max(left, key=lambda new: min(abs(math.log(new / old)) for old in chosen)))
    return sorted(chosen)


def share_list(shares: Iterable[float]) -> str:
    """Shares as the command line takes them: '0.03,0.05'."""
    return ",".join(f"{share:g}" for share in shares)


def sizes(cells: Iterable[Cell]) -> list[Size]:
    """The cells pooled, by corpus and then budget."""
    groups: dict[tuple[int, float], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.rows, cell.budget), []).append(cell)
    return [_pooled(groups[key]) for key in sorted(groups)]


def _pooled(cells: Sequence[Cell]) -> Size:
    queries, corpus = (float(np.mean([getattr(cell, name) for cell in cells])) for name in ("queries", "corpus"))
    n, correct = sum(cell.n for cell in cells), sum(cell.correct for cell in cells)
    return Size(cells[0].rows, cells[0].budget, queries, corpus, n, correct)


def resample(measured: Measured, generator: np.random.Generator) -> Measured:
    """A bootstrap draw: the seeds, the same for every system, and then each cell's questions on their own.

    So a question that several seeds or systems were asked counts as several; frontier.json's own intervals know better.
    Of an unfinished frontier, a draw that leaves a size without any cell is drawn again.
    """
    seeds = sorted({cell.seed for cells in measured.cells.values() for cell in cells})
    whole = {system: len(sizes(cells)) for system, cells in measured.cells.items()}
    while True:
        drawn = generator.choice(seeds, len(seeds))
        chosen = {
            system: [cell for seed in drawn for cell in cells if cell.seed == seed]
            for system, cells in measured.cells.items()
        }
        if all(len(sizes(cells)) == whole[system] for system, cells in chosen.items()):
            break
    again = {system: tuple(_asked_again(cell, generator) for cell in cells) for system, cells in chosen.items()}
    if measured.teacher is None:
        return replace(measured, cells=again)
    correct, n = measured.teacher
    return replace(measured, cells=again, teacher=(int(generator.binomial(n, correct / n)), n))


def _asked_again(cell: Cell, generator: np.random.Generator) -> Cell:
    return replace(cell, correct=int(generator.binomial(cell.n, cell.correct / cell.n)))
