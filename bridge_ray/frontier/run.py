"""Perform a frontier's cells, sharing every stage that they have in common, and keep each cell as it ends.

A cell is two files under ``STORAGE/runs/NAME/cells/``: its predictions and, written last, its numbers. A cell that is
there is not performed again, whether or not its stages still are: cells can be carried to another machine.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.console import Console

from bridge_ray import job, pipeline, placement, storage
from bridge_ray.config import Config
from bridge_ray.errors import Outage, UserError
from bridge_ray.frontier import grid, terminal
from bridge_ray.frontier.grid import Cell, Grid
from bridge_ray.frontier.summary import Bootstrap, summarise
from bridge_ray.frontier.systems import SYSTEMS
from bridge_ray.pipeline import Run
from bridge_ray.progress import Progress
from bridge_ray.report import frontier_page
from bridge_ray.report.summary import percent
from bridge_ray.report.write import versions
from bridge_ray.selection.rank import examples_in_budget
from bridge_ray.stage import Done, Stage, done, perform
from bridge_ray.stopping import Stop
from bridge_ray.teacher import provider
from bridge_ray.teacher.asks import price_of
from bridge_ray.teacher.teach import Unpaid

BOUGHT = "teach"  # the stage whose time is the teacher's, and whose answers are paid for
BREAKDOWN = ("unparsable", "by_domain", "by_answer_type")  # what is kept of a cell's evaluation beside its accuracy
MAY_LACK_ROWS = (*placement.TRAINERS, "amplify")  # stages that a cell may have too little for: the others go on


@dataclass(frozen=True)
class Trial:
    """A cell's students trained for one length. ``dev`` is asked where several lengths are to be chosen from."""

    length: float
    final: Stage
    dev: Stage | None


@dataclass(frozen=True)
class Planned:
    """A cell and how it is made; ``fingerprint`` covers all trials, so the config and the corpus."""

    cell: Cell
    config: Config
    trials: tuple[Trial, ...]

    @property
    def fingerprint(self) -> str:
        """16 hex digits."""
        parts = [[trial.length, trial.final.fingerprint] for trial in self.trials]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Frontier:
    """A prepared frontier: nothing has been written or bought yet."""

    base: Run
    grid: Grid
    planned: tuple[Planned, ...]
    kept: Mapping[str, dict[str, Any]]  # cell name -> its numbers, of the cells that are there already
    corpora: Mapping[tuple[int, int], pa.Table]  # (seed, training rows) -> records.EXAMPLE
    questions: Mapping[int, NDArray[np.uint64]]  # see summary.Bootstrap

    @property
    def missing(self) -> list[Planned]:
        return [one for one in self.planned if one.cell.name not in self.kept]


def run(settings: Config, asked: Grid, stop: Stop) -> None:
    """Perform the frontier, and print what came of it. Raises UserError with one line."""
    prepared = prepare(settings, asked)
    frontier = replace(prepared, base=job.announced(settings, lambda: prepared.base))
    with job.watched(frontier.base) as progress:
        found = execute(frontier, progress, stop.check)
    terminal.show(found, frontier.base.home, settings.storage, Console())


def prepare(settings: Config, asked: Grid) -> Frontier:
    """As ``draft``, and check that the teacher can be reached and that the bill is bounded. Raises UserError."""
    frontier = draft(settings, asked)
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
    kept = {one.cell.name: there for one in planned if (there := _kept(one, base.home)) is not None}
    questions = {seed: _questions(corpus, asked.split) for (seed, _), corpus in corpora.items()}
    frontier = Frontier(base, asked, planned, kept, corpora, questions)
    for one in _asking(frontier):
        pipeline.check_terms(Run(one.config, base.corpus, {}, base.root))
    return frontier


def _asking(frontier: Frontier) -> list[Planned]:
    """The missing cells for which the teacher may be asked."""
    return [one for one in frontier.missing if _will_ask(one, frontier.base.root)]


def _check_bounded(frontier: Frontier, teaching: Sequence[Planned]) -> None:
    """Raise UserError where money would be spent without a bound: the recipe's fraction is none here, as ``budgets``
    stand in its place, and the default ones buy the whole corpus."""
    settings = frontier.base.config
    price = price_of(settings.teacher)
    free = settings.teacher.standin is not None or price.input == price.output == 0
    if free or grid.payer(settings) is not None:
        return
    most: defaultdict[tuple[int, bool], int] = defaultdict(int)  # seeds share no question in the worst case
    for one in teaching:
        rows, tested = one.cell.rows, not one.cell.budget
        questions = len(frontier.questions[one.cell.seed])
        queries = questions if tested else examples_in_budget(rows, one.config.budget)
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


def _questions(corpus: pa.Table, split: str) -> NDArray[np.uint64]:
    """A number for each question of the split, in order of their ids: a hash of what is asked. All sizes of a corpus
    have the same ones, and a file's splits for two seeds have some of them in common."""
    rows = corpus.filter(pc.equal(corpus["split"], split)).select(["question", "context", "options"]).to_pylist()
    digests = [hashlib.sha256(json.dumps(row).encode()).digest() for row in rows]
    return np.array([int.from_bytes(digest[:8]) for digest in digests], dtype=np.uint64)


def _trained(cell: Cell) -> bool:
    """Whether the cell's model is a student that was trained: the others have no length."""
    return SYSTEMS[cell.system].student and cell.system != "student_base"


def _kept(planned: Planned, home: str) -> dict[str, Any] | None:
    """The cell's numbers if it is there, with its predictions. Raises UserError where they are of another config."""
    path = _path(home, planned.cell, ".json")
    numbers: dict[str, Any] | None = storage.read_json(path)
    if numbers is None or not storage.exists(_path(home, planned.cell, ".parquet")):
        return None
    if numbers["fingerprint"] != planned.fingerprint:
        raise UserError(
            f"{path} is of another config or corpus; give this frontier a --name of its own (it shares what is "
            "unchanged), or remove the file"
        )
    return numbers


def _path(home: str, cell: Cell, ending: str) -> str:
    return storage.join(home, "cells", cell.name + ending)


def _will_ask(planned: Planned, root: str) -> bool:
    """Whether the teacher may be asked for the cell."""
    stages = _pending(planned, root)
    return any(part.name == BOUGHT for part in stages) or (SYSTEMS[planned.cell.system].answers == "teacher")


def upstream(stage: Stage) -> list[Stage]:
    """The stage and all that it is made from, each once, inputs first."""
    found: dict[str, Stage] = {}

    def visit(part: Stage) -> None:
        if part.fingerprint not in found:
            for before in part.inputs.values():
                visit(before)
            found[part.fingerprint] = part

    visit(stage)
    return list(found.values())


def _pending(planned: Planned, root: str) -> list[Stage]:
    """The stages that the cell still needs; of several lengths, as if all were asked the final questions."""
    asked = [stage for trial in planned.trials for stage in (trial.dev, trial.final) if stage is not None]
    parts = {part.fingerprint: part for stage in asked for part in upstream(stage)}
    return [part for part in parts.values() if done(part, root) is None]


def execute(frontier: Frontier, progress: Progress, check: Callable[[], None]) -> dict[str, Any]:
    """Perform the cells that are not there yet; the frontier's record, which is written as each cell ends.

    ``check`` is called before every stage; what it raises ends the frontier. Raises UserError, before anything is
    written, where the cluster has no place for a stage.
    """
    base, done_cells = frontier.base, dict(frontier.kept)
    _say_what_is_left_out(frontier, progress)
    missing = frontier.missing
    _check_placement(frontier, missing, progress)
    lacking: dict[str, str] = {}
    clock = Clock(base.root)
    for left, one in zip(range(len(missing) - 1, -1, -1), missing, strict=True):
        try:
            numbers = _perform(one, frontier, progress, check, clock)
        except Lacks as reason:
            lacking[one.cell.name] = str(reason)
            progress.console.print(f"{one.cell}: left out: {reason}", markup=False, highlight=False, soft_wrap=True)
            continue
        done_cells[one.cell.name] = numbers
        record(frontier, done_cells, lacking)
        place = f"[{len(done_cells)}/{len(frontier.planned)}]"
        after = f"; about {clock.left(missing[-left:])} left" if left else ""
        said = f"{place} {one.cell}: {percent(numbers['accuracy'])} of {numbers['n']}, {numbers['queries']} queries"
        progress.console.print(said + after, markup=False, highlight=False, soft_wrap=True)
    return record(frontier, done_cells, lacking)


class Lacks(Exception):
    """A cell cannot be made, and the others can."""


class Clock:
    """How long what is left will take, from what stages of the same name took."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._took: defaultdict[str, list[float]] = defaultdict(list)

    def saw(self, part: Done) -> None:
        self._took[part.name].append(part.seconds)

    def left(self, planned: Sequence[Planned]) -> timedelta:
        parts = {part.fingerprint: part.name for one in planned for part in _pending(one, self._root)}
        means = {name: float(np.mean(seconds)) for name, seconds in self._took.items()}
        other = float(np.mean(list(means.values()))) if means else 0.0
        return timedelta(seconds=round(sum(means.get(name, other) for name in parts.values())))


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


def _check_placement(frontier: Frontier, missing: Sequence[Planned], progress: Progress) -> None:
    names = dict.fromkeys(part.name for one in missing for part in _pending(one, frontier.base.root))
    wanted = [name for name in pipeline.NAMES if name in names]
    say = progress.console.print
    placement.check(frontier.base.config, wanted, lambda warning: say(warning, soft_wrap=True))


def _perform(
    planned: Planned, frontier: Frontier, progress: Progress, check: Callable[[], None], clock: Clock
) -> dict[str, Any]:
    """Make the cell and keep it; its numbers."""

    def made(stage: Stage) -> Done:
        for part in upstream(stage):
            check()
            clock.saw(finished := _stage(part, planned, frontier, progress))
        return finished

    system = SYSTEMS[planned.cell.system].answers
    on_dev = {
        trial.length: made(trial.dev).metrics["systems"][system]["accuracy"]
        for trial in planned.trials
        if trial.dev is not None
    }
    best = max(planned.trials, key=lambda trial: (on_dev.get(trial.length, 0.0), -trial.length))
    final = made(best.final)
    rows = storage.read_table(storage.join(final.location, "predictions.parquet")).sort_by("id")
    name = pa.array([planned.cell.system] * rows.num_rows)
    named = rows.set_column(rows.schema.get_field_index("system"), "system", name)
    numbers = _numbers(planned, best, final, named, frontier.base.root)
    if on_dev:
        tried = [{"length": length, "dev_accuracy": accuracy} for length, accuracy in on_dev.items()]
        numbers |= {"dev_accuracy": on_dev[best.length], "tried": tried}
    storage.write_table(_path(frontier.base.home, planned.cell, ".parquet"), named)
    storage.write_json(_path(frontier.base.home, planned.cell, ".json"), numbers)
    return numbers


def _stage(part: Stage, planned: Planned, frontier: Frontier, progress: Progress) -> Done:
    settings = planned.config
    try:
        return perform(part, frontier.base.root, settings.name, settings.engine, settings.training, progress)
    except Unpaid as error:
        raise UserError(
            f"{planned.cell}: {error}; raise it (budget.max_queries, budget.max_usd or budget.account), or leave "
            "larger --budgets out, and run it again: the cells that are there stay"
        ) from error
    except Outage as error:
        raise Outage(f"{planned.cell}: {error}; the cells that are there stay") from error
    except UserError as error:
        if part.name in MAY_LACK_ROWS:
            raise Lacks(f"{part.name}: {str(error).removeprefix(f'{part.name}: ')}") from error
        raise


def _numbers(planned: Planned, trial: Trial, final: Done, rows: pa.Table, root: str) -> dict[str, Any]:
    """What frontier.json says of a cell. Its cost is that of its model in an empty storage: what the teacher was asked
    and paid, and the seconds of all local stages that the model was made by, each counted whole and with all attempts
    that an interruption took. ``precision`` are the number formats that its models were trained in, one if all is well.
    """
    parts = [done(part, root) for part in upstream(trial.final)[:-1]]
    made = {part.name: part for part in parts if part is not None}
    assert len(made) == len(parts), "a stage of the cell is not done"
    taught, correct = made.pop(BOUGHT, None), int(np.sum(rows["correct"].to_numpy(zero_copy_only=False)))
    asked = final.metrics["eval_queries"]  # of the teacher, where it is the system
    cell, scores = planned.cell, final.metrics["systems"][SYSTEMS[planned.cell.system].answers]
    return {
        "system": cell.system,
        "budget": cell.budget,
        "rows": cell.rows,
        "seed": cell.seed,
        "length": trial.length,
        "n": rows.num_rows,
        "correct": correct,
        "accuracy": round(correct / rows.num_rows, 4),
        **{name: scores[name] for name in BREAKDOWN},
        "queries": taught.metrics["queries"] if taught else asked,
        "usd": taught.metrics["usd"] if taught else None if asked else 0.0,
        "keep": _explained(made.get("amplify")),
        "precision": sorted({part.metrics["precision"] for part in made.values() if "precision" in part.metrics}),
        "local_hours": round(sum(part.seconds for part in made.values()) / 3600, 4),
        "fingerprint": planned.fingerprint,
    }


def _explained(amplify: Done | None) -> float | None:
    """The share of the corpus that has a rationale, the teacher's or the TA's; None where the TA explained nothing."""
    if amplify is None:
        return None
    rows = amplify.metrics["rows"]
    return round(1 - (rows["label_only"] + rows["errored"]) / rows["corpus"], 4)


def record(frontier: Frontier, cells: Mapping[str, dict[str, Any]], lacking: Mapping[str, str]) -> dict[str, Any]:
    """Write frontier.json and its page from the cells that are there, in the grid's order."""
    base, asked = frontier.base, frontier.grid
    there = [cells[one.cell.name] for one in frontier.planned if one.cell.name in cells]
    absent = [one.cell for one in frontier.planned if one.cell.name not in cells]
    answers = dict(_answers(base.home, frontier.planned, cells))
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
    storage.write_json(storage.join(base.home, "frontier.json"), found)
    storage.write_bytes(storage.join(base.home, "frontier.html"), frontier_page.render(found).encode())
    return found


def _answers(
    home: str, planned: Sequence[Planned], cells: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, float, int, int], NDArray[np.float64]]]:
    """(system, budget, rows, seed) -> 1 for a question that was answered correctly, else 0, in order of their ids."""
    for one in planned:
        cell = one.cell
        if cell.name in cells:
            rows = storage.read_table(_path(home, cell, ".parquet"), ["correct"])
            correct = rows["correct"].to_numpy(zero_copy_only=False).astype(np.float64)
            yield (cell.system, cell.budget, cell.rows, cell.seed), correct
