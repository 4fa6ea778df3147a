"""What the terminal shows of a frontier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from bridge_ray.report.summary import count, interval, money, percent


def show(found: Mapping[str, Any], home: str, storage: str, out: Console) -> None:
    """The lines, the recommendation, where the page is, and the next command."""
    out.print(_table(found))
    if found["missing"]:
        out.print(f"{len(found['missing'])} cells are missing; the page says why", soft_wrap=True)
    out.print(found["recommendation"]["reason"], markup=False, highlight=False, soft_wrap=True)
    out.print(f"page: {home}/frontier.html", soft_wrap=True)
    place = "" if storage == "storage" else f" --storage {storage}"
    out.print(f"next: bridge-ray forecast {found['name']}{place}", markup=False, highlight=False, soft_wrap=True)


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
