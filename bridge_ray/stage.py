"""Stages as inert values, and the only code that knows how one is skipped, run and recorded.

A stage's output lives at ``STORAGE/stages/<name>/<fingerprint>/``. The fingerprint covers the stage's own config
slice, its inputs' fingerprints and its version number; never resources, hosts or paths. The manifest is written
last, so its presence means the stage is done: a run repeated does nothing, a run interrupted continues, and runs
that have a stage in common share it.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bridge_ray import claims, storage
from bridge_ray.config import Engine, Training
from bridge_ray.progress import Progress

BEAT = 60.0  # seconds between two notes of how long an attempt has taken


@dataclass(frozen=True)
class Watch:
    """Somebody who asks, in the middle of a training, how much the model has learnt, and may end it.

    At each of the ``shares`` (0..1) of its updates the model answers the first ``questions`` (None: all) of the dev
    split, greedily, with at most ``max_tokens`` each; ``heard`` is told the share and the accuracy, and says whether
    the training goes on. What the training makes does not depend on it.
    """

    shares: tuple[float, ...]
    questions: int | None
    max_tokens: int
    heard: Callable[[float, float], bool]


@dataclass(frozen=True)
class Work:
    """What a running stage is handed: where its inputs are, where its output goes, and what it may use.

    ``run`` names the run that performs it, for people to read: other runs share the output.
    """

    stage: str
    run: str
    inputs: Mapping[str, str]  # input name -> location of that stage's output
    out: str
    engine: Engine
    training: Training
    progress: Progress
    fingerprint: str
    watch: Watch | None = None  # of a training


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline; knows neither its neighbours' insides nor who runs it.

    ``identity`` is the JSON-able config slice (and content hashes) that decides the output. ``run`` writes the
    output under ``Work.out`` and returns the stage's metrics, JSON-able too.
    """

    name: str
    version: int
    identity: Mapping[str, Any]
    inputs: Mapping[str, Stage]
    run: Callable[[Work], dict[str, Any]] = field(repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """16 hex digits."""
        parts = {
            "name": self.name,
            "version": self.version,
            "identity": self.identity,
            "inputs": {name: stage.fingerprint for name, stage in self.inputs.items()},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Done:
    """A finished stage: where its output is, its metrics, the seconds of all attempts at it, and whether this call did
    the work."""

    name: str
    fingerprint: str
    location: str
    metrics: Mapping[str, Any]
    seconds: float
    skipped: bool


def location(stage: Stage, root: str) -> str:
    return storage.join(root, "stages", stage.name, stage.fingerprint)


def done(stage: Stage, root: str) -> Done | None:
    """The stage's record if it has finished before."""
    out = location(stage, root)
    manifest = storage.read_json(storage.join(out, "manifest.json"))
    if manifest is None:
        return None
    return Done(stage.name, stage.fingerprint, out, manifest["metrics"], manifest["seconds"], skipped=True)


def perform(
    stage: Stage,
    root: str,
    run: str,
    engine: Engine,
    training: Training,
    progress: Progress,
    watch: Watch | None = None,
) -> Done:
    """Perform the stage, for the run of that name, unless its manifest says that it is done.

    While another run is at work on it, wait: it is made once, and by this one if the other one ends without it.
    """
    if before := done(stage, root):
        return before
    out = location(stage, root)
    with _alone(stage, root, run, progress):
        if before := done(stage, root):
            return before
        inputs = {name: location(upstream, root) for name, upstream in stage.inputs.items()}
        work = Work(stage.name, run, inputs, out, engine, training, progress, stage.fingerprint, watch)
        with _timed(storage.join(out, "attempts.json")) as spent:
            metrics = stage.run(work)
            seconds = spent()
        storage.write_json(storage.join(out, "manifest.json"), _manifest(stage, metrics, seconds))
    return Done(stage.name, stage.fingerprint, out, metrics, seconds, skipped=False)


def discard(stage: Stage, root: str, run: str, progress: Progress) -> None:
    """Remove what there is of the stage, for the run of that name; waits while another run is at work on it."""
    with _alone(stage, root, run, progress):
        storage.delete(location(stage, root))


def _alone(stage: Stage, root: str, run: str, progress: Progress) -> AbstractContextManager[None]:
    def waiting(other: str | None) -> None:
        progress.console.print(f"{stage.name}: run {other} is at work on it; waiting for what it makes", markup=False)

    return claims.alone(storage.join(root, "work"), f"{stage.name}-{stage.fingerprint}", run, waiting)


@contextmanager
def _timed(path: str) -> Iterator[Callable[[], float]]:
    """Tells the seconds of this attempt and of those before it, which are kept at ``path``: of one that was killed all
    but its last minute."""
    before = (storage.read_json(path) or {"seconds": 0.0})["seconds"]
    started, over = time.monotonic(), threading.Event()

    def spent() -> float:
        return round(before + time.monotonic() - started, 1)

    def keep() -> None:
        with suppress(Exception):  # it only says how long the work took: the work goes on, or has its own reason to end
            storage.write_json(path, {"seconds": spent()})

    def beat() -> None:
        while not over.wait(BEAT):
            keep()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield spent
    except BaseException:
        keep()
        raise
    finally:
        over.set()
        thread.join()


def _manifest(stage: Stage, metrics: dict[str, Any], seconds: float) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "version": stage.version,
        "fingerprint": stage.fingerprint,
        "identity": dict(stage.identity),
        "inputs": {name: upstream.fingerprint for name, upstream in stage.inputs.items()},
        "metrics": metrics,
        "seconds": seconds,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
