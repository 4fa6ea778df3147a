"""Where a training's numbers go: what is not installed is said before anything starts."""

from __future__ import annotations

from dataclasses import replace
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


class Away(Written):
    """A tracker whose server goes away behind the start."""

    def log(self, update: int, values: Any) -> None:
        raise ConnectionError("no route\nto host")


def test_a_tracker_that_goes_away_is_left_out_and_the_others_are_told(
    monkeypatch: pytest.MonkeyPatch, tracked: Tracked, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(trackers.WRITERS, "mlflow", Away)
    both = replace(tracked, trackers=("mlflow", "tensorboard"))
    with Tracker(both, str(tmp_path), []) as tracker:
        tracker.log(LINE)
        tracker.log(LINE | {"update": 4})
    assert [told[0] for told in Written.told[1:3]] == [3, 4] and Written.told[3:] == ["finished"]
    assert caplog.messages == ["mlflow: no route to host; the training goes on without it"]


def test_a_training_that_goes_on_does_so_without_a_tracker_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, tracked: Tracked, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def start(*_: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setitem(trackers.WRITERS, "mlflow", start)
    with Tracker(replace(tracked, trackers=("mlflow", "tensorboard")), str(tmp_path), [LINE]) as tracker:
        tracker.log(LINE | {"update": 4})
    assert Written.told[-2][0] == 4 and Written.told[-1] == "finished"
    assert "mlflow does not start: no route to host" in caplog.text
