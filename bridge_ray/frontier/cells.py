"""A frontier's cell: how it is made from stages, what it says of itself, and where it is kept.

A cell is two files under ``STORAGE/runs/NAME/cells/``: its predictions and, written last, its numbers. A cell that is
there is not made again, whether or not its stages still are: cells can be carried to another machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from bridge_ray import storage
from bridge_ray.config import Config
from bridge_ray.errors import Outage, TooFew, UserError
from bridge_ray.frontier.grid import Cell
from bridge_ray.frontier.systems import SYSTEMS
from bridge_ray.stage import Done, Stage, done
from bridge_ray.statistics import Correct
from bridge_ray.teacher.teach import Unpaid

BOUGHT = "teach"  # the stage whose time is the teacher's, and whose answers are paid for
BREAKDOWN = ("unparsable", "by_domain", "by_answer_type")  # what is kept of a cell's evaluation beside its accuracy

Perform = Callable[[Stage], Done]


class Lacks(Exception):
    """There is nothing to learn from for a cell: the others can be made."""


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

    def parts(self) -> list[Stage]:
        """All that the cell is made from, each once; of several lengths, as if all were asked the final questions."""
        asked = [stage for trial in self.trials for stage in (trial.dev, trial.final) if stage is not None]
        return list({part.fingerprint: part for stage in asked for part in upstream(stage)}.values())

    def asks(self, part: Stage) -> bool:
        """Whether the stage asks the teacher: for rationales, or test questions where the teacher is the system."""
        return part.name == BOUGHT or (part.name == "evaluate" and SYSTEMS[self.cell.system].answers == "teacher")


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


def pending(planned: Planned, root: str) -> list[Stage]:
    """Those of its parts that are not there yet."""
    return [part for part in planned.parts() if done(part, root) is None]


def file_of(home: str, cell: Cell, ending: str) -> str:
    """Where a cell's file is, ``.json`` or ``.parquet``, in the frontier's folder."""
    return storage.join(home, "cells", cell.name + ending)


def answers_of(home: str, cell: Cell) -> Correct:
    """Whether the model of a cell that is there answered each question correctly, in order of their ids."""
    rows = storage.read_table(file_of(home, cell, ".parquet"), ["correct"])
    return rows["correct"].to_numpy(zero_copy_only=False).astype(np.float64)


def numbers_of(planned: Planned, home: str) -> dict[str, Any] | None:
    """The cell's numbers if it is there, with its predictions. Raises UserError where they are of another config."""
    file = file_of(home, planned.cell, ".json")
    numbers: dict[str, Any] | None = storage.read_json(file)
    if numbers is None or not storage.exists(file_of(home, planned.cell, ".parquet")):
        return None
    if numbers["fingerprint"] != planned.fingerprint:
        raise UserError(
            f"{file} is of another config or corpus; give this frontier a --name of its own (it shares what is "
            "unchanged), or remove the file"
        )
    return numbers


def make(planned: Planned, home: str, root: str, perform: Perform) -> dict[str, Any]:
    """Make the cell and keep it; its numbers. Raises Lacks, and UserError with what to do."""

    def made(stage: Stage) -> Done:
        for part in upstream(stage):
            finished = _performed(part, planned, perform)
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
    numbers = _numbers(planned, best, final, named, root)
    if on_dev:
        tried = [{"length": length, "dev_accuracy": accuracy} for length, accuracy in on_dev.items()]
        numbers |= {"dev_accuracy": on_dev[best.length], "tried": tried}
    storage.write_table(file_of(home, planned.cell, ".parquet"), named)
    storage.write_json(file_of(home, planned.cell, ".json"), numbers)
    return numbers


def _performed(part: Stage, planned: Planned, perform: Perform) -> Done:
    try:
        return perform(part)
    except Unpaid as error:
        raise UserError(
            f"{planned.cell}: {error}; raise it (budget.max_queries, budget.max_usd or budget.account), or leave "
            "larger --budgets out, and run it again: the cells that are there stay"
        ) from error
    except Outage as error:
        raise Outage(f"{planned.cell}: {error}; the cells that are there stay") from error
    except TooFew as error:
        raise Lacks(f"{part.name}: {str(error).removeprefix(f'{part.name}: ')}") from error


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
