"""The page of a run, made anew from what its stages have left: no work is done again, and the teacher is not asked."""

from __future__ import annotations

import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bridge_ray import config, storage
from bridge_ray.config import Config
from bridge_ray.errors import UserError
from bridge_ray.report.status import recorded
from bridge_ray.report.summary import headline
from bridge_ray.report.write import write_metrics, write_report
from bridge_ray.stage import Done


@dataclass(frozen=True)
class Left:
    """What is there of a run: its config, its state, its stages' fingerprints, and those of them that are done."""

    home: str
    state: str
    config: Config
    fingerprints: Mapping[str, str]
    finished: Mapping[str, Done]


def left(root: str, name: str) -> Left:
    """Raises UserError for a run that is not there, or whose record is of another version of the program."""
    home, manifest = recorded(root, name)
    settings = config.validate(manifest["config"], f"{home}/manifest.json")
    found = {
        stage: _done(root, stage, fingerprint, manifest) for stage, fingerprint in manifest["fingerprints"].items()
    }
    finished = {stage: done for stage, done in found.items() if done is not None}
    return Left(home, manifest["state"], settings, manifest["fingerprints"], finished)


def _done(root: str, stage: str, fingerprint: str, run: Mapping[str, Any]) -> Done | None:
    """A stage that has finished. One that the run has no record of was another's work."""
    location = storage.join(storage.locate(root), "stages", stage, fingerprint)
    manifest = storage.read_json(storage.join(location, "manifest.json"))
    if manifest is None:
        return None
    skipped = run["stages"].get(stage, {"skipped": True})["skipped"]
    return Done(stage, fingerprint, location, manifest["metrics"], manifest["seconds"], skipped)


def remake(run: Left) -> tuple[str, dict[str, Any]]:
    """Write the run's metrics.json and report.html; returns the page's location, and the metrics."""
    metrics = write_metrics(run.config, run.finished, run.home)
    write_report(run.config, run.finished, metrics, run.home, run.fingerprints)
    return storage.join(run.home, "report.html"), metrics


def show(root: str, name: str, open_: bool, as_json: bool, out: Console) -> None:
    """Make a run's page, and print its headline and where it is, or its metrics; of several runs, where theirs is."""
    page = page_of_many(root, name)
    if page is None:
        run = left(root, name)
        page, metrics = remake(run)
        if as_json:
            out.print_json(data=metrics)
        else:
            out.print(headline(metrics), highlight=False)
            if run.state != "finished":
                out.print(f"run {name} is {run.state}: this is what there is; bridge-ray status {name}", soft_wrap=True)
    elif as_json:
        raise UserError(f"--json: {name} is no single run; its numbers lie beside {page}")
    if not as_json:
        out.print(f"report: {page}", soft_wrap=True)
    if open_:
        _open(page)


def page_of_many(root: str, name: str) -> str | None:
    """The page of a frontier or a sweep of this name, None where the name is not one's."""
    for folder, kind in (("runs", "frontier"), ("sweeps", "sweep")):
        home = storage.join(storage.root(root), folder, name)
        if config.RUN_NAME.fullmatch(name) and storage.exists(storage.join(home, f"{kind}.json")):
            return storage.join(home, f"{kind}.html")
    return None


def _open(page: str) -> None:
    if "://" in page:
        raise UserError(f"--open: {page} is in an object store; copy it to this machine and open it there")
    if not webbrowser.open(Path(page).as_uri()):
        raise UserError(f"--open: there is no browser here; open {page} where there is one")
