"""What is recorded of a run: its manifest, and how far it has come."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from bridge_ray import config, storage
from bridge_ray.errors import UserError


def recorded(root: str, name: str) -> tuple[str, dict[str, Any]]:
    """Where a run's own files are, and its manifest; raises UserError for a run that is not there."""
    if not config.RUN_NAME.fullmatch(name):
        raise UserError(f"run name {name!r} is not one; see the folders in {root}/runs")
    home = storage.join(storage.root(root), "runs", name)
    manifest = storage.read_json(storage.join(home, "manifest.json"))
    if manifest is None and storage.exists(storage.join(home, "cells")):
        raise UserError(f"{home}: holds a frontier, not a run; its page: {home}/frontier.html")
    if manifest is None:
        raise UserError(f"{home}: no such run; start it with: bridge-ray run RECIPE --name {name}")
    return home, manifest


def show(root: str, name: str, console: Console) -> None:
    """Print the run's state and its stages; raises UserError for a run that is not there."""
    place = storage.root(root)
    home = storage.join(place, "runs", name)
    frontier = storage.read_json(storage.join(home, "frontier.json"))
    if frontier is not None:
        there, missing = len(frontier["cells"]), len(frontier["missing"])
        console.print(f"frontier {name}: {there} of {there + missing} cells done")
        console.print(f"files: {home}", soft_wrap=True)
        return
    home, manifest = recorded(root, name)
    table = Table("stage", "state", "seconds", title=f"run {name}: {manifest['state']}", title_justify="left")
    for stage, fingerprint in manifest["fingerprints"].items():
        done = storage.read_json(storage.join(place, "stages", stage, fingerprint, "manifest.json"))
        table.add_row(stage, "done" if done else "open", f"{done['seconds']:.1f}" if done else "")
    console.print(table)
    console.print(f"files: {home}", soft_wrap=True)
