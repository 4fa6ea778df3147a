"""A frontier: its cells planned and checked, made with every stage that they share made once, and put on record."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.console import Console

from bridge_ray import job, pipeline, placement, storage
from bridge_ray.config import Config
from bridge_ray.errors import UserError
from bridge_ray.frontier import grid, making, questions, terminal
from bridge_ray.frontier.cells import Lacks, Planned, Trial, answers_of, numbers_of, pending
from bridge_ray.frontier.grid import Cell, Grid
from bridge_ray.frontier.summary import Bootstrap, summarise
from bridge_ray.frontier.systems import SYSTEMS
from bridge_ray.pipeline import Run
from bridge_ray.progress import Progress
from bridge_ray.report import frontier_page
from bridge_ray.report.summary import percent
from bridge_ray.report.write import versions
from bridge_ray.selection.rank import examples_in_budget
from bridge_ray.stage import Stage, done
from bridge_ray.statistics import Questions
from bridge_ray.stopping import Stop
from bridge_ray.teacher import provider
from bridge_ray.teacher.asks import is_free

if TYPE_CHECKING:
    from bridge_ray.workshop import Room


@dataclass(frozen=True)
class Frontier:
    """A prepared frontier: nothing has been written or bought yet."""

    base: Run
    grid: Grid
    planned: tuple[Planned, ...]
    kept: Mapping[str, dict[str, Any]]  # cell name -> its numbers, of the cells that are there already
    corpora: Mapping[tuple[int, int], pa.Table]  # (seed, training rows) -> records.EXAMPLE
    questions: Questions

    @property
    def missing(self) -> list[Planned]:
        return [one for one in self.planned if one.cell.name not in self.kept]


def run(settings: Config, asked: Grid, stop: Stop, concurrency: int | None = None) -> None:
    """Perform the frontier, and print what came of it; ``concurrency`` is how many trainings at once, None: as many
    as have room. Raises UserError with one line."""
    prepared = prepare(settings, asked)
    frontier = replace(prepared, base=job.announced(settings, lambda: prepared.base))
    with job.watched(frontier.base) as progress:
        found = execute(frontier, progress, stop.check, concurrency)
    terminal.show(found, frontier.base.home, settings.storage, Console())


def prepare(settings: Config, asked: Grid) -> Frontier:
    """As ``draft``, and check that the teacher can be reached and that the bill is bounded. Raises UserError."""
    frontier = draft(settings, asked)
    if frontier.missing:
        pipeline.check_models(settings)
    if teaching := _asking(frontier):
        _check_bounded(frontier, teaching)
        provider.check(settings.teacher, settings.corpus)
    return frontier


def draft(settings: Config, asked: Grid) -> Frontier:
    """Read and check everything that a user can get wrong, without asking the provider anything. Raises UserError."""
    base = pipeline.read(settings)
    rows = sum(split == "train" for split in base.corpus["split"].to_pylist())
    grid.check(asked, settings, rows)
    corpora: dict[tuple[int, int], pa.Table] = {}
    planned = tuple(_planned(settings, asked, cell, rows, corpora) for cell in grid.cells(asked, settings.seed, rows))
    kept = {one.cell.name: there for one in planned if (there := numbers_of(one, base.home)) is not None}
    numbers = {seed: questions.of(corpus, asked.split) for (seed, _), corpus in corpora.items()}
    frontier = Frontier(base, asked, planned, kept, corpora, numbers)
    for one in _asking(frontier):
        pipeline.check_terms(Run(one.config, base.corpus, {}, base.root))
    return frontier


def _asking(frontier: Frontier) -> list[Planned]:
    """The missing cells for which the teacher may be asked."""
    return [one for one in frontier.missing if any(map(one.asks, pending(one, frontier.base.root)))]


def _check_bounded(frontier: Frontier, teaching: Sequence[Planned]) -> None:
    """Raise UserError where money would be spent without a bound: the recipe's fraction is none here, as ``budgets``
    stand in its place, and the default ones buy the whole corpus."""
    settings = frontier.base.config
    if is_free(settings.teacher) or grid.payer(settings) is not None:
        return
    most: defaultdict[tuple[int, bool], int] = defaultdict(int)  # seeds share no question in the worst case
    for one in teaching:
        rows, tested = one.cell.rows, not one.cell.budget
        test = len(frontier.questions[one.cell.seed])
        queries = test if tested else examples_in_budget(rows, one.config.budget)
        most[one.cell.seed, tested] = max(most[one.cell.seed, tested], queries)
    raise UserError(
        f"budget: this frontier may take {sum(most.values()):,} queries of {settings.teacher.model}, and nothing "
        "bounds the bill (budget.fraction does not: --budgets stands in its place); set budget.max_usd (see --plan)"
    )


def _planned(settings: Config, asked: Grid, cell: Cell, rows: int, corpora: dict[tuple[int, int], pa.Table]) -> Planned:
    """``corpora``, by seed and rows, are read as they are needed."""

    def of(length: float, split: str) -> tuple[Config, Stage]:
        made = grid.settings_of(settings, asked, cell, rows, length, split)
        place = (cell.seed, cell.rows)
        if place not in corpora:
            corpora[place] = pipeline.read(made).corpus
        return made, pipeline.stages(made, corpora[place], grid.payer(settings))["evaluate"]

    lengths = asked.lengths if _trained(cell) else (1.0,)
    several = len(lengths) > 1
    trials = [Trial(one, of(one, asked.split)[1], of(one, "dev")[1] if several else None) for one in lengths]
    return Planned(cell, of(1.0, asked.split)[0], tuple(trials))


def _trained(cell: Cell) -> bool:
    """Whether the cell's model is a student that was trained: the others have no length."""
    return SYSTEMS[cell.system].student and cell.system != "student_base"


def execute(
    frontier: Frontier, progress: Progress, check: Callable[[], None], concurrency: int | None = None
) -> dict[str, Any]:
    """Make the cells that are not there yet; the frontier's record, which is written as each cell ends.

    ``check`` is called before every stage; what it raises ends the frontier. Raises UserError, before anything is
    written, where the cluster has no place for a stage.
    """
    base, done_cells = frontier.base, dict(frontier.kept)
    _say_what_is_left_out(frontier, progress)
    missing, lacking, failed = frontier.missing, dict[str, str](), set[str]()
    room = _room(frontier, missing, progress, concurrency)
    clock = _clock(frontier, room)
    together = (missing, base, progress, check, clock)
    with closing(making.one_by_one(*together) if room is None else making.side_by_side(*together, room)) as outcomes:
        for one, outcome in outcomes:
            if isinstance(outcome, dict):
                done_cells[one.cell.name] = outcome
            elif isinstance(outcome, Lacks):
                lacking[one.cell.name] = str(outcome)
            else:
                failed.add(one.cell.name)
            found = record(frontier, done_cells, lacking)
            left = [other for other in missing if other.cell.name not in {*done_cells, *lacking, *failed}]
            time = clock.left(left) if left else None
            after = "" if time is None else f"; about {time} left"
            place = f"[{len(done_cells)}/{len(frontier.planned)}]"
            said = f"{place} {one.cell}: {_said(one, outcome)}{after}"
            progress.console.print(said, markup=False, highlight=False, soft_wrap=True)
    return found if missing else record(frontier, done_cells, lacking)


def _clock(frontier: Frontier, room: Room | None) -> making.Clock:
    """One that knows how long the stages took that are there."""
    clock = making.Clock(frontier.base.root, room)
    if frontier.missing:
        for part in {part.fingerprint: part for one in frontier.planned for part in one.parts()}.values():
            if before := done(part, frontier.base.root):
                clock.saw(before)
    return clock


def _said(one: Planned, outcome: Mapping[str, Any] | Exception) -> str:
    """How the cell has ended."""
    if isinstance(outcome, Mapping):
        return f"{percent(outcome['accuracy'])} of {outcome['n']}, {outcome['queries']} queries"
    if isinstance(outcome, Lacks):
        return f"left out: {outcome}"
    kind = "" if isinstance(outcome, UserError) else f"{type(outcome).__name__}: "
    return f"failed: {kind}{str(outcome).removeprefix(f'{one.cell}: ')}"


def _say_what_is_left_out(frontier: Frontier, progress: Progress) -> None:
    """A command that asks for less than an earlier one makes a page of less, which nobody should find out by chance."""
    found = storage.read_json(storage.join(frontier.base.home, "frontier.json"))
    asked = {one.cell.name for one in frontier.planned}
    before = [grid.cell_of(cell) for cell in found["cells"]] if found else []
    left_out = [cell for cell in before if cell.name not in asked]
    if left_out:
        progress.console.print(
            f"not asked for: {len(left_out)} of the cells that this frontier has had, {left_out[0]} among them; they "
            "stay in cells/, and frontier.json and its page are made without them",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _room(frontier: Frontier, missing: Sequence[Planned], progress: Progress, concurrency: int | None) -> Room | None:
    """How many stages of the missing cells run side by side; None where all are made one after another. Raises
    UserError where the cluster has no place for one of them."""
    names = dict.fromkeys(part.name for one in missing for part in pending(one, frontier.base.root))
    wanted = [name for name in pipeline.NAMES if name in names]
    say = progress.console.print
    placement.check(frontier.base.config, wanted, lambda warning: say(warning, soft_wrap=True))
    if len(missing) < 2 or concurrency == 1 or not {*placement.ENGINES, *placement.TRAINERS} & names.keys():
        return None
    from bridge_ray import workshop

    room = workshop.room(frontier.base.config, concurrency)
    if room.single:
        return None
    if _asking(frontier):
        workshop.check_key(frontier.base.config.teacher)
    return room


def record(frontier: Frontier, cells: Mapping[str, dict[str, Any]], lacking: Mapping[str, str]) -> dict[str, Any]:
    """Write frontier.json and its page from the cells that are there, in the grid's order."""
    base, asked = frontier.base, frontier.grid
    there = [cells[one.cell.name] for one in frontier.planned if one.cell.name in cells]
    absent = [one.cell for one in frontier.planned if one.cell.name not in cells]
    answers = {
        (cell.system, cell.budget, cell.rows, cell.seed): answers_of(base.home, cell)
        for cell in (one.cell for one in frontier.planned)
        if cell.name in cells
    }
    bootstrap = Bootstrap(base.config.evaluate.resamples, frontier.questions)
    found = {
        "name": base.config.name,
        "job": dict(base.job),
        "config": base.config.model_dump(mode="json"),
        "split": asked.split,
        "systems": {name: SYSTEMS[name].meaning for name in asked.systems},
        "grid": {
            "systems": list(asked.systems),
            "budgets": list(asked.budgets),
            "seeds": [base.config.seed + number for number in range(asked.seeds)],
            "reference": asked.reference,
            "corpora": list(asked.corpora),
            "lengths": list(asked.lengths),
        },
        "cells": there,
        "missing": [
            {"system": cell.system, "budget": cell.budget, "rows": cell.rows, "seed": cell.seed}
            | {"reason": lacking.get(cell.name, grid.NOT_YET)}
            for cell in absent
        ],
        **summarise(there, answers, asked.reference, bootstrap, asked.split),
        "versions": versions(),
    }
    questions.write(base.home, frontier.questions)
    storage.write_json(storage.join(base.home, "frontier.json"), found)
    storage.write_bytes(storage.join(base.home, "frontier.html"), frontier_page.render(found).encode())
    return found
