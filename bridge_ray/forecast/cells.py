"""A frontier's cells as a forecast reads them, pooled into sizes, and drawn again for the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge_ray.errors import UserError
from bridge_ray.statistics import Correct, Questions, places_in_common

RIVALS = ("direct", "direct_labels")
SYSTEMS = ("bridge", *RIVALS)
TEACHER = "teacher"
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
    correct: float  # a whole number, but in a draw of the bootstrap
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
    correct: float

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @property
    def error(self) -> float:
        return 1 - self.accuracy


@dataclass(frozen=True)
class Measured:
    """What a forecast starts from: system -> its cells, of those with enough budgets; and the teacher's own."""

    cells: Mapping[str, tuple[Cell, ...]]
    teacher: tuple[Cell, ...]  # of each seed that it was measured with
    beaten: bool = False  # whether a size that was measured is better than the teacher

    @property
    def error(self) -> float | None:
        """The teacher's, None where it was not measured."""
        n = sum(cell.n for cell in self.teacher)
        return 1 - sum(cell.correct for cell in self.teacher) / n if n else None

    @property
    def bound(self) -> float:
        """The error below which no asymptote may lie: the teacher's; 0 where it was not measured, or is none."""
        return 0.0 if self.error is None or self.beaten else self.error


@dataclass(frozen=True)
class Sample:
    """What the bootstrap draws from: the answers of each cell that was measured, and for each seed the places of its
    questions among those that several seeds were asked, -1 for the others."""

    answers: Mapping[Cell, Correct]
    common: Mapping[int, NDArray[np.int64]]


def read(cells: Iterable[Mapping[str, Any]], where: str, missing: Iterable[Mapping[str, Any]] = ()) -> Measured:
    """The cells of frontier.json, and those it has not yet; raises UserError where bridge or direct has too few budgets
    for a curve."""
    planned = {(cell["system"], cell["budget"]) for cell in missing}
    found: dict[str, list[Cell]] = {system: [] for system in (*SYSTEMS, TEACHER)}
    for cell in cells:
        system = cell["system"]
        if system == TEACHER or (system in found and cell["queries"] >= 1):  # a curve in queries has no value at none
            keep = {"keep": cell["keep"]} if cell.get("keep") else {}
            fields = {name: cell[name] for name in ("system", "budget", "rows", "seed", "n", "correct", "queries")}
            found[system].append(Cell(**fields, **keep))
    teacher = tuple(found.pop(TEACHER))
    for system in NEEDED:
        _check(system, found[system], [budget for name, budget in planned if name == system], where)
    enough = {system: tuple(part) for system, part in found.items() if len(budgets(part)) >= LEAST}
    best = max(size.accuracy for part in enough.values() for size in sizes(part))
    measured = Measured(enough, teacher)
    return replace(measured, beaten=measured.error is not None and best > 1 - measured.error)


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


def sample_of(measured: Measured, answers: Callable[[Cell], Correct], questions: Questions) -> Sample:
    """Of every cell that was measured."""
    cells = [cell for some in (*measured.cells.values(), measured.teacher) for cell in some]
    seeds = sorted({cell.seed for cell in cells})
    common = places_in_common([questions[seed] for seed in seeds])
    return Sample({cell: answers(cell) for cell in cells}, dict(zip(seeds, common, strict=True)))


def resample(measured: Measured, sample: Sample, generator: np.random.Generator) -> Measured:
    """A bootstrap draw: the seeds, the same for every system, and then a random weight for each question (a Bayesian
    bootstrap; Rubin 1981), the same for every system, too, and for all seeds that were asked it.

    Of an unfinished frontier, a draw that leaves a size without any cell is drawn again.
    """
    seeds = sorted({cell.seed for cells in measured.cells.values() for cell in cells})
    while True:
        drawn = generator.choice(seeds, len(seeds))
        if all(len(sizes(_of(drawn, cells))) == len(sizes(cells)) for cells in measured.cells.values()):
            break
    weights = _weights([sample.common[seed] for seed in drawn], generator)

    def again(cells: Sequence[Cell]) -> tuple[Cell, ...]:
        return tuple(
            replace(cell, correct=cell.n * float(np.average(sample.answers[cell], weights=weight)))
            for seed, weight in zip(drawn, weights, strict=True)
            for cell in _of([seed], cells)
        )

    teacher = again(measured.teacher) or measured.teacher
    return replace(measured, cells={name: again(cells) for name, cells in measured.cells.items()}, teacher=teacher)


def _of(seeds: Iterable[int], cells: Sequence[Cell]) -> list[Cell]:
    return [cell for seed in seeds for cell in cells if cell.seed == seed]


def _weights(common: Sequence[NDArray[np.int64]], generator: np.random.Generator) -> list[NDArray[np.float64]]:
    """A weight for each question of each seed that was drawn: those ``common`` to several seeds have one, as often as
    they are drawn, the others a new one each time."""
    several = generator.standard_exponential(1 + max(int(places.max(initial=0)) for places in common))
    return [np.where(places < 0, generator.standard_exponential(len(places)), several[places]) for places in common]
