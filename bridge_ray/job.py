"""A run as a process: what ``bridge-ray run`` and the scripts in ``jobs/`` do, and how the process ends."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from bridge_ray.config import Config
from bridge_ray.errors import UserError
from bridge_ray.inference import local_ray
from bridge_ray.stopping import Stop, stoppable

if TYPE_CHECKING:
    from bridge_ray.pipeline import Run
    from bridge_ray.progress import Progress

TERMINATED = 128 + signal.SIGTERM  # exit codes, as a shell gives them
INTERRUPTED = 128 + signal.SIGINT


def run(settings: Config, until: str | None = None, fresh: bool = False) -> int:
    """Prepare and execute a run, and print what came of it; returns the process's exit code (see ``guarded``)."""
    return guarded(lambda stop: _run(settings, until, fresh, stop))


def guarded(work: Callable[[Stop], None]) -> int:
    """Do the work as a process does it; returns the process's exit code.

    0: finished. 143 or 130: stopped by SIGTERM or Ctrl-C; what was paid for is stored and accounted for, and the same
    command goes on. Raises UserError with one line, which the command line turns into 2.
    """
    with stoppable() as stop:
        try:
            work(stop)
            return 0
        except (KeyboardInterrupt, SystemExit):  # Ray Train ends a run on Ctrl-C by SystemExit
            code = TERMINATED if stop.asked else INTERRUPTED
        except Exception as error:
            if not stop.asked:
                raise
            code = TERMINATED
            _screen().print(f"while stopping: {type(error).__name__}: {error}", markup=False, soft_wrap=True)
    _screen().print("stopped; what was made and paid for is kept: the same command goes on", soft_wrap=True)
    return code


def _run(settings: Config, until: str | None, fresh: bool, stop: Stop) -> None:
    from bridge_ray import pipeline
    from bridge_ray.report.summary import headline, table

    prepared = announced(settings, lambda: pipeline.prepare(settings, until, fresh))
    with watched(prepared) as progress:
        metrics = pipeline.execute(prepared, progress, until, fresh, stop.check)
    if until not in (None, "report"):
        _screen().print(f"stopped after {until}; the same command without --until goes on", soft_wrap=True)
        return
    out = Console()
    out.print(table(metrics))
    out.print(headline(metrics))
    out.print(f"report: {prepared.home}/report.html", soft_wrap=True)


def announced(settings: Config, prepare: Callable[[], Run]) -> Run:
    """A run that is about to be executed: as which job, and where its files will be, is said first."""
    job = local_ray.submission()
    if job:
        check_shared(settings)
        _screen().print(f"job {job.get('job_submission_id')}: {json.dumps(job)}", markup=False, soft_wrap=True)
    prepared = replace(prepare(), job=job)
    folder = log_folder(prepared.home)
    _screen().print(f"run {settings.name}: {prepared.home}, logs in {folder}", soft_wrap=True)
    return prepared


@contextmanager
def watched(prepared: Run) -> Iterator[Progress]:
    """What libraries print goes to the run's log; the progress alone is shown."""
    from bridge_ray import logs
    from bridge_ray.progress import Progress

    with logs.captured(log_folder(prepared.home)) as screen:
        yield Progress(screen)


def check_shared(settings: Config) -> None:
    """Raise UserError where a job's storage would be in its working directory: on one node, and not for long."""
    for name, value in (("storage", settings.storage), ("teacher.store", settings.teacher.store)):
        if value is not None and not everywhere(value):
            raise UserError(
                f"{name}: {value} would be on one node of the cluster only; give a path that all nodes share, or a URL"
            )


def everywhere(location: str) -> bool:
    """Whether a location means the same on every machine: a URL or an absolute path."""
    return "://" in location or Path(location).is_absolute()


def _screen() -> Console:
    return Console(stderr=True)


def log_folder(home: str) -> Path:
    """A run's logs lie beside its other files; of a run in an object store, in the working directory."""
    return Path(home) / "logs" if "://" not in home else Path("logs") / home.rpartition("/")[2]
