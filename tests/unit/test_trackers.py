"""Where a training's numbers go: what is not installed is said before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridge_ray.errors import UserError
from bridge_ray.training import trackers
from bridge_ray.training.trackers import Refused, Tracked, Tracker


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.PACKAGES, "mlflow", "no_such_package")
    trackers.check(["tensorboard"])
    with pytest.raises(UserError, match="training.trackers: mlflow is not there; pip install no_such_package"):
        trackers.check(["tensorboard", "mlflow"])


def test_a_tracker_that_does_not_start_says_why_in_its_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def start(*_: object) -> None:
        raise PermissionError("no key:\n  log in first")

    monkeypatch.setitem(trackers.WRITERS, "wandb", start)
    with pytest.raises(Refused, match="^wandb does not start: no key: log in first$"):
        Tracker(Tracked(("wandb",), "run", "train_ta", "abc", {}), str(tmp_path), [])


class Written:
    """A tracker that remembers what it is told."""

    told: list[Any]

    def __init__(self, tracked: Tracked, out: str, before: Any):
        Written.told = [tracked.name, *before]

    def log(self, update: int, values: Any) -> None:
        Written.told.append((update, dict(values)))

    def flush(self) -> None:
        Written.told.append("flushed")

    def close(self, failed: bool) -> None:
        Written.told.append("failed" if failed else "finished")


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> Tracked:
    monkeypatch.setitem(trackers.WRITERS, "tensorboard", Written)
    return Tracked(("tensorboard",), "run", "train_ta", "abc", {})


LINE = {"update": 3, "phase": 1, "loss": 2.0, "lr": 1e-4, "tokens": 500.0, "seconds": 2.0}


def test_every_update_is_told_with_its_rate(tracked: Tracked, tmp_path: Path) -> None:
    with Tracker(tracked, str(tmp_path), [LINE | {"update": 2}]) as tracker:
        tracker.log(LINE)
        tracker.flush()
    values = {"train/phase": 1, "train/loss": 2.0, "train/lr": 1e-4, "train/tokens_per_second": 250.0}
    assert Written.told == ["run/train_ta", (2, values), (3, values), "flushed", "finished"]


def test_a_training_that_ends_badly_is_told_as_failed(tracked: Tracked, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Tracker(tracked, str(tmp_path), []):
        raise ZeroDivisionError
    assert Written.told[-1] == "failed"
    with Tracker(tracked, str(tmp_path), []) as tracker:
        tracker.failed()
    assert Written.told[-1] == "failed"
