"""What the terminal shows of a frontier."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from bridge_ray.forecast.cells import LEAST, NEEDED, more
from bridge_ray.report import frontier_page
from bridge_ray.report.summary import count, interval, money, percent


def show(found: Mapping[str, Any], home: str, storage: str, out: Console) -> None:
    """The lines, the recommendation, where the page is, and the next command."""
    out.print(_table(found))
    if found["missing"]:
        out.print(f"cells missing: {len(found['missing'])}; the page says why", soft_wrap=True)
    for said in filter(None, (frontier_page.headline(found), found["recommendation"]["reason"])):
        out.print(said, markup=False, highlight=False, soft_wrap=True)
    out.print(f"page: {home}/frontier.html", soft_wrap=True)
    out.print(f"next: {_following(found, storage)}", markup=False, highlight=False, soft_wrap=True)


def _following(found: Mapping[str, Any], storage: str) -> str:
    """A forecast, or where a curve has too few budgets, the frontier with as many as it needs."""
    place = [] if storage == "storage" else ["--storage", storage]
    measured = [{cell["budget"] for cell in found["cells"] if cell["system"] == system} for system in NEEDED]
    if min(map(len, measured)) >= LEAST:
        return shlex.join(["bridge-ray", "forecast", found["name"], *place])
    grid = found["grid"]
    budgets = more(grid["budgets"], max(0, LEAST - len(grid["budgets"])))
    systems = [*grid["systems"], *(system for system in NEEDED if system not in grid["systems"])]
    again = frontier_page.command({**found, "grid": {**grid, "budgets": budgets, "systems": systems}})
    return f"{again} {shlex.join(['--name', found['name'], *place])}"


def _table(found: Mapping[str, Any]) -> Table:
    """Narrow enough for 80 columns; training rows are shown where they are not all the same."""
    sized = len({line["rows"] for line in found["intervals"]}) > 1
    title = f"{found['split'].capitalize()} accuracy of {found['name']}"
    drawn = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    drawn.add_column("system", no_wrap=True)
    for heading in ("budget", *(["rows"] if sized else []), "accuracy", "95 % interval", "queries", "dollars", "hours"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for line in found["intervals"]:
        drawn.add_row(
            line["system"],
            f"{line['budget'] * 100:g} %" if line["budget"] else "–",
            *([count(line["rows"])] if sized else []),
            percent(line["accuracy"]),
            interval(line["interval"]),
            count(line["queries"]),
            money(line["usd"]),
            f"{line['local_hours']:.2f}",
            style="bold" if line["system"] == "bridge" else None,
        )
    return drawn
