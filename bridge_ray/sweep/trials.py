"""What is kept of a trial: one JSON file each, ``STORAGE/sweeps/NAME/trials/0001.json``, written by the driver alone.

They are all that a sweep which was killed needs to go on, and all that a later one needs to start warm. Ray Tune's own
record of an experiment is a pickle of its objects: it runs whatever code it holds, breaks with the next version of any
of them, and has to be on a disk. So a restart replays these files instead.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bridge_ray import storage
from bridge_ray.sweep.space import Point

State = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Repeat:
    """One run of a trial, on dev. What it costs is what it would cost in an empty store, whoever has paid.

    ``usd`` are US dollars at the listed price; ``local_hours`` the time of all stages but *teach*.
    """

    seed: int
    accuracy: float
    interval: tuple[float, float]
    queries: int
    usd: float
    local_hours: float


@dataclass(frozen=True)
class Trial:
    """A trial. ``running`` is one that has not ended: interrupted, it goes on under its number.

    ``rungs``: (share of the student's updates, dev accuracy) as ASHA has heard them; it has ``stopped`` it where the
    state says so. ``reason`` is why it has failed. ``seconds`` it took, waiting for others included.
    """

    number: int
    point: Point
    state: State = "running"
    repeats: tuple[Repeat, ...] = ()
    rungs: tuple[tuple[float, float], ...] = ()
    reason: str | None = None
    seconds: float = 0.0

    @property
    def accuracy(self) -> float:
        """The mean over its seeds."""
        return self._mean("accuracy")

    @property
    def usd(self) -> float:
        return self._mean("usd")

    @property
    def queries(self) -> float:
        return self._mean("queries")

    @property
    def local_hours(self) -> float:
        return self._mean("local_hours")

    @property
    def run(self) -> str:
        """How the ledger and its stages name it, within its sweep."""
        return f"{self.number:04d}"

    def _mean(self, name: str) -> float:
        assert self.state == "finished", f"trial {self.number} is {self.state}"
        return sum(getattr(repeat, name) for repeat in self.repeats) / len(self.repeats)


@dataclass(frozen=True)
class Book:
    """The trials of a sweep by number, as they stand in its folder."""

    home: str
    trials: dict[int, Trial] = field(default_factory=dict)

    def write(self, trial: Trial) -> None:
        storage.write_json(storage.join(self.home, "trials", f"{trial.run}.json"), asdict(trial))
        self.trials[trial.number] = trial

    def ended(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.state != "running"]

    def failed(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.state == "failed"]

    def finished(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.state == "finished"]


def open_book(home: str) -> Book:
    """The book at a sweep's folder; empty where there is none."""
    read = [_trial(storage.read_json(file)) for file in sorted(storage.files(storage.join(home, "trials"), ".json"))]
    return Book(home, {trial.number: trial for trial in read})


def _trial(raw: dict[str, Any]) -> Trial:
    repeats = tuple(Repeat(**{**repeat, "interval": tuple(repeat["interval"])}) for repeat in raw["repeats"])
    return Trial(**{**raw, "repeats": repeats, "rungs": tuple((share, hits) for share, hits in raw["rungs"])})
