"""``bridge-ray forecast``: from a run's frontier.json to forecast.json, a page, and a few lines on the terminal."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from bridge_ray import config, storage
from bridge_ray.errors import UserError
from bridge_ray.forecast import words
from bridge_ray.forecast.cells import Cell, read, sample_of
from bridge_ray.forecast.make import DRAWS, make
from bridge_ray.frontier import grid, questions
from bridge_ray.frontier.cells import answers_of
from bridge_ray.progress import Progress
from bridge_ray.report.forecast import render
from bridge_ray.report.summary import percent, points


def run(root: str, name: str, budget: float | None, as_json: bool) -> None:
    """Write forecast.json and forecast.html beside the frontier and print what they say.

    Raises UserError for a run without a frontier, or with too few budgets in it.
    """
    if not config.RUN_NAME.fullmatch(name):
        raise UserError(f"run name {name!r} is not one; see the folders in {root}/runs")
    home = storage.join(storage.root(root), "runs", name)
    where = storage.join(home, "frontier.json")
    frontier = storage.read_json(where)
    if frontier is None:
        raise UserError(f"{where}: no frontier to forecast from; first: bridge-ray frontier RECIPE --name {name}")
    missing = [cell for cell in frontier["missing"] if cell["reason"] == grid.NOT_YET]
    measured = read(frontier["cells"], where, missing)
    sample = sample_of(measured, lambda cell: answers_of(home, _place(cell)), questions.read(home))
    with Progress(Console(stderr=True)).task("forecast", DRAWS, "draws") as task:
        found = make(
            name, measured, sample, budget, frontier["split"], frontier["intervals"], len(missing), tick=task.add
        )
    storage.write_json(storage.join(home, "forecast.json"), found)
    storage.write_bytes(storage.join(home, "forecast.html"), render(found).encode())
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        show(found, home, words.following(found, frontier["grid"], root), Console())


def _place(cell: Cell) -> grid.Cell:
    return grid.Cell(cell.system, cell.budget, cell.rows, cell.seed)


def show(found: dict[str, Any], home: str, following: tuple[str, str], out: Console) -> None:
    """The sentences, the check behind them, the page's path, and of ``following`` why and what to do next."""
    for sentence in [*found["sentences"], *found["notes"], words.DIAGNOSTIC]:
        out.print(sentence, highlight=False, markup=False)
    out.print(table(found))
    out.print(f"page: {home}/forecast.html", highlight=False, markup=False, soft_wrap=True)
    why, command = following
    out.print(why, highlight=False, markup=False)
    out.print(f"next: {command}", highlight=False, markup=False, soft_wrap=True)


def table(found: dict[str, Any]) -> Table:
    """How wrong each system's fit was on sizes that it did not see, beside the last value carried forward."""
    drawn = Table("system", "trusted", title="Mean error on unseen sizes, in points", title_justify="left")
    for column in ("largest: fit", "carried", "one by one: fit", "carried", "asymptote"):
        drawn.add_column(column, justify="right")
    for system, one in found["systems"].items():
        errors = [one["checks"][check][by] for check in ("ahead", "one_by_one") for by in ("fitted", "carried")]
        cells = ["–" if error is None else points(error) for error in errors]
        asymptote = percent(one["best"]["value"]) if one["trusted"] else "–"
        drawn.add_row(system, "yes" if one["trusted"] else "no", *cells, asymptote)
    return drawn
