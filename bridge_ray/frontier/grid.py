"""Which cells a frontier has: system x budget x training rows x seed, and the config of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from bridge_ray import config
from bridge_ray.config import Config, Phase, SharedAccount
from bridge_ray.errors import UserError
from bridge_ray.frontier.systems import ASKED_FOR, SYSTEMS, configured
from bridge_ray.selection.rank import examples_in_budget
from bridge_ray.teacher.ledger import Cap
from bridge_ray.teacher.teach import Payer

REFERENCE = 0.05
NOT_YET = "not yet run"  # why a cell is missing, where nothing else is the reason

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Grid:
    """What is asked for; ``corpora`` are shares of the training rows, ``lengths`` multiples of the student's epochs.

    Systems whose budget does not matter are run once, and all but the core ones at the ``reference`` budget alone.
    ``split`` is the one that is reported on.
    """

    systems: tuple[str, ...]
    budgets: tuple[float, ...]
    seeds: int
    reference: float
    corpora: tuple[float, ...] = (1.0,)
    lengths: tuple[float, ...] = (1.0,)
    split: str = "test"


@dataclass(frozen=True)
class Cell:
    """``budget`` is a share of ``rows``, the training rows; 0 for a system to which no budget matters."""

    system: str
    budget: float
    rows: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.system}-b{self.budget:g}-n{self.rows}-s{self.seed}"

    def __str__(self) -> str:
        bought = f" at {self.budget * 100:g} %" if self.budget else ""
        return f"{self.system}{bought}, {self.rows} rows, seed {self.seed}"


def cell_of(fields: Mapping[str, Any]) -> Cell:
    """The cell that an entry of frontier.json is about."""
    return Cell(fields["system"], fields["budget"], fields["rows"], fields["seed"])


def grid(
    systems: tuple[str, ...],
    budgets: Sequence[float],
    seeds: int,
    reference: float | None = None,
    corpora: Sequence[float] = (1.0,),
    lengths: Sequence[float] = (1.0,),
    split: str = "test",
) -> Grid:
    """A grid in order, checked. Raises UserError with one line that names the option."""
    for option, values, most in (("budgets", budgets, 1.0), ("corpora", corpora, 1.0), ("lengths", lengths, math.inf)):
        if not values or not all(0 < value <= most for value in values):
            bound = "numbers above 0" if most == math.inf else "shares above 0 and at most 1"
            raise UserError(f"--{option} {','.join(f'{value:g}' for value in values)}: give {bound}")
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: give a number of at least 1")
    made = Grid(
        systems,
        tuple(sorted(set(budgets))),
        seeds,
        (REFERENCE if REFERENCE in budgets else min(budgets)) if reference is None else reference,
        tuple(sorted(set(corpora))),
        tuple(sorted(set(lengths))),
        split,
    )
    if made.reference not in made.budgets:
        raise UserError(f"--reference {made.reference:g}: is not one of --budgets; add it there")
    return made


def check(asked: Grid, settings: Config, rows: int) -> None:
    """Raise UserError where the grid does not suit the recipe; ``rows`` are its training rows."""
    bought = [examples_in_budget(rows, _budget(settings, share).budget) for share in asked.budgets]
    for (less, few), (more, many) in pairwise(zip(asked.budgets, bought, strict=True)):
        if few == many:
            raise UserError(f"--budgets {less:g},{more:g}: both buy {few} of {rows} rows; leave one out")
    if len(asked.lengths) > 1 and settings.corpus.dev == 0:
        raise UserError("--lengths: the dev split chooses between them, and there are no dev rows; set corpus.dev")


def cells(asked: Grid, first_seed: int, rows: int) -> list[Cell]:
    """The grid's cells in the order in which they are made: seed by seed, what is cheap and shared first, and the
    teacher's own last, so that of a cap they take what the rationales leave.

    ``rows`` are the recipe's training rows. A smaller corpus has the core systems alone.
    """
    found = []
    sizes = sorted((max(1, math.floor(share * rows + 1e-9)) for share in asked.corpora), reverse=True)
    for seed in range(first_seed, first_seed + asked.seeds):
        for size in sizes:
            of_size = [cell for name in asked.systems for cell in _of(name, asked, size, seed, size == sizes[0])]
            found += sorted(of_size, key=lambda cell: _turn(cell, asked))
    return sorted(found, key=lambda cell: cell.system in ASKED_FOR)


def _of(name: str, asked: Grid, rows: int, seed: int, whole: bool) -> list[Cell]:
    """A system's cells at one size and seed; ``whole``: at the largest size."""
    budgets = {"all": asked.budgets, "reference": (asked.reference,), "none": (0.0,)}[SYSTEMS[name].budgets]
    if not whole and SYSTEMS[name].budgets != "all":
        return []
    return [Cell(name, budget, rows, seed) for budget in budgets]


def _turn(cell: Cell, asked: Grid) -> tuple[bool, bool, float]:
    """No budget, then the core systems from the reference budget on, which the others share; then the others."""
    core = SYSTEMS[cell.system].budgets == "all"
    return cell.budget > 0, cell.budget > 0 and not core, cell.budget if cell.budget != asked.reference else 0.0


def settings_of(base: Config, asked: Grid, cell: Cell, rows: int, length: float = 1.0, split: str = "test") -> Config:
    """The config of a cell's run with students trained ``length`` times as long. Raises UserError.

    ``rows`` are the recipe's training rows, of which a generated corpus is a part.
    """
    made = {"corpus.made": base.corpus.made or rows} if base.corpus.source == "generated" else {}
    fields = {"seed": cell.seed, "corpus.train": cell.rows, **made, "evaluate.split": split}
    sized = config.changed(_budget(base, cell.budget or asked.reference), fields, base.name)
    longer = tuple(_stretched(phase, length) for phase in sized.student.curriculum)
    student = sized.student.model_copy(update={"curriculum": longer})
    return configured(sized.model_copy(update={"student": student}), cell.system)


def _budget(base: Config, share: float) -> Config:
    """With a share of the rows as the budget, and nothing else: who pays, and how much at most, is no part of a cell,
    see ``payer``."""
    return base.model_copy(update={"budget": config.Budget(fraction=share)})


def payer(base: Config) -> Payer | None:
    """The account that all cells pay from, under what else bounds the recipe; None where nothing does.

    It pays for all that the teacher is asked: rationales, and test questions where the teacher is a system. Where an
    account and bounds are both given, the lower ones count. A cell that was made under a lower cap is the same cell: a
    higher one lets the frontier go on.
    """
    shared = base.budget.account
    bounds: list[config.Budget | SharedAccount] = [base.budget, *([] if shared is None else [shared])]
    queries, usd = _lowest(one.max_queries for one in bounds), _lowest(one.max_usd for one in bounds)
    if queries is None and usd is None:
        return None
    return Payer(shared.name if shared else f"{base.name}-frontier", Cap(queries, usd))


def _lowest(bounds: Iterable[Number | None]) -> Number | None:
    return min((bound for bound in bounds if bound is not None), default=None)


def _stretched(phase: Phase, length: float) -> Phase:
    updates = None if phase.updates is None else max(1, round(phase.updates * length))
    return phase.model_copy(update={"epochs": phase.epochs * length, "updates": updates})
