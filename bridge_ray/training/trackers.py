"""Where a training's numbers go while it runs: TensorBoard files by default, MLflow and Weights & Biases on request.

Addresses and keys of those are theirs to read, from their own environment variables; none passes through here.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bridge_ray import storage
from bridge_ray.errors import UserError

log = logging.getLogger(__name__)

PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
PROJECT = "bridge_ray"
History = Sequence[tuple[int, Mapping[str, float]]]  # update, counted from 1, and its values by name
FLUSH_SECONDS = 5  # somebody is looking


@dataclass(frozen=True)
class Tracked:
    """A training as trackers know it."""

    trackers: tuple[str, ...]
    run: str
    stage: str
    fingerprint: str
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.run}/{self.stage}"


class Writer(Protocol):
    """One tracker's way to keep the numbers of an update; ``before`` are those that an interrupted training had."""

    def __init__(self, tracked: Tracked, out: str, before: History): ...

    def log(self, update: int, values: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self, failed: bool) -> None: ...


class Refused(Exception):
    """A tracker that does not start, in its own words."""


def check(trackers: Sequence[str]) -> None:
    """Raise UserError for a tracker whose package is not installed."""
    for name in trackers:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"training.trackers: {name} is not there; pip install {PACKAGES[name]}, or leave it out")


class Tracker:
    """Hands every update's line of the loss history to the writers; ``before`` are the lines that were there.

    A writer that fails on the way is left out with a warning: a server that is away is no reason to lose a training.
    Only one that does not start at the very beginning, where nothing is lost, ends it: raises Refused.
    """

    def __init__(self, tracked: Tracked, out: str, before: Sequence[Mapping[str, float]]):
        self._failed = False
        history = [_values(line) for line in before]
        self._writers: dict[str, Writer] = {}
        for name in tracked.trackers:
            try:
                self._writers[name] = _start(name, tracked, out, history)
            except Refused as refusal:
                if not history:
                    raise
                log.warning("%s; the training goes on without it", refusal)

    def log(self, line: Mapping[str, float]) -> None:
        self._each(lambda writer: writer.log(*_values(line)))

    def flush(self) -> None:
        """What was logged is there for others to see."""
        self._each(lambda writer: writer.flush())

    def _each(self, act: Callable[[Writer], None]) -> None:
        for name, writer in list(self._writers.items()):
            try:
                act(writer)
            except Exception as error:  # of whatever class the package has
                log.warning("%s: %s; the training goes on without it", name, " ".join(str(error).split()))
                del self._writers[name]

    def __enter__(self) -> Tracker:
        return self

    def failed(self) -> None:
        """The training ends without its result."""
        self._failed = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._each(lambda writer: writer.close(self._failed or kind is not None))


def _values(line: Mapping[str, float]) -> tuple[int, dict[str, float]]:
    values = {f"train/{name}": value for name, value in line.items() if name not in ("update", "seconds", "tokens")}
    return int(line["update"]), values | {"train/tokens_per_second": line["tokens"] / max(line["seconds"], 1e-9)}


def _start(name: str, tracked: Tracked, out: str, before: History) -> Writer:
    try:
        return WRITERS[name](tracked, out, before)
    except Exception as error:  # of whatever class the package has for a missing key, address or file
        raise Refused(f"{name} does not start: {' '.join(str(error).split())}") from error


class TensorBoard:
    """Event files in ``tensorboard/`` beside the model; in an object store as of the last checkpoint."""

    def __init__(self, tracked: Tracked, out: str, before: History):
        from tensorboardX import SummaryWriter

        self._target = storage.join(out, "tensorboard")
        self._folder = tempfile.TemporaryDirectory() if "://" in out else None
        folder = self._folder.name if self._folder else self._target
        self._events = SummaryWriter(folder, purge_step=len(before) + 1, flush_secs=FLUSH_SECONDS)

    def log(self, update: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._events.add_scalar(name, value, update)

    def flush(self) -> None:
        self._events.flush()
        if self._folder:
            storage.upload(Path(self._folder.name), self._target)

    def close(self, failed: bool) -> None:
        self.flush()
        self._events.close()
        if self._folder:
            self._folder.cleanup()


class MLflow:
    """A run of the experiment ``bridge_ray``; a training that goes on after an interruption goes on in the same."""

    def __init__(self, tracked: Tracked, out: str, before: History):
        import mlflow

        self._mlflow, place = mlflow, storage.join(out, "mlflow.json")
        mlflow.set_experiment(PROJECT)
        known = storage.read_json(place)
        if known is not None:
            mlflow.start_run(run_id=known["run_id"])
            return
        run = mlflow.start_run(run_name=tracked.name, tags={"fingerprint": tracked.fingerprint})
        mlflow.log_params(dict(tracked.config))
        storage.write_json(place, {"run_id": run.info.run_id})

    def log(self, update: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=update)

    def flush(self) -> None:
        pass  # it writes as it goes

    def close(self, failed: bool) -> None:
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


class WandB:
    """A run of the project ``bridge_ray``, named by the stage's fingerprint, so that it goes on where it was.

    What a killed worker had said last may not have been written (wandb 0.31 keeps it in memory for seconds): what the
    run lacks of the history is said again. Offline nothing is known of it, and all of it is.
    """

    def __init__(self, tracked: Tracked, out: str, before: History):
        import wandb

        self._run = wandb.init(
            project=PROJECT,
            name=tracked.name,
            id=f"{tracked.stage}-{tracked.fingerprint}",
            resume="allow",
            config=dict(tracked.config),
        )
        for update, values in before:
            if update >= self._run.step:
                self.log(update, values)

    def log(self, update: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=update)

    def flush(self) -> None:
        pass  # it writes as it goes

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


WRITERS: dict[str, type[Writer]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
