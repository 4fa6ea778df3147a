"""What a person sees while a stage runs: a line with rate and time left on a terminal, nothing elsewhere.

Work in this process calls ``Task.add``; work in Ray workers adds to a ``Totals`` actor that a thread here reads.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.progress import Task as Bar
from rich.text import Text

from bridge_ray.inference import local_ray

if TYPE_CHECKING:
    import ray

READ_SECONDS = 0.5  # between two readings of a counter
RATE_READINGS = 60  # that a rate is taken over: half a minute
LINE_SECONDS = 60  # between two lines where there is no terminal


class RateColumn(ProgressColumn):
    """Units per second of the last half minute."""

    def render(self, task: Bar) -> Text:
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:.1f} {task.fields['unit']}/s")


@dataclass(frozen=True)
class Task:
    """One running bar."""

    bars: Bars
    bar: Any

    def add(self, done: float = 1, note: str | None = None) -> None:
        """Advance by ``done`` units; ``note`` replaces the text at the end of the line."""
        self.bars.update(self.bar, advance=done)
        if note is not None:
            self.bars.update(self.bar, note=note)

    def say(self, note: str) -> None:
        self.bars.update(self.bar, note=note)

    def set(self, done: float, note: str) -> None:
        self.bars.update(self.bar, completed=done, note=note)


@dataclass(frozen=True)
class Progress:
    """Draws bars on a console, which should be standard error."""

    console: Console

    @contextmanager
    def task(self, name: str, total: float | None, unit: str) -> Iterator[Task]:
        """A bar of ``total`` units for the length of the block; quiet when the console is no terminal."""
        columns = (
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            RateColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
        )
        with Bars(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            yield Task(bars, bars.add_task(name, total=total, unit=unit, note=""))

    @contextmanager
    def counted(
        self,
        name: str,
        total: int,
        unit: str,
        start: float = 0,
        max_faults: float = math.inf,
        max_begun: float = math.inf,
    ) -> Iterator[ray.actor.ActorHandle]:
        """A bar that follows a ``Totals`` actor's total of ``unit``; yields the actor's handle for workers.

        ``start`` units were done by an earlier attempt, ``max_faults`` and ``max_begun`` are what ends it. Where the
        console is no terminal, a line a minute instead.
        """
        import ray

        counter = ray.remote(num_cpus=0, scheduling_strategy=local_ray.here())(Totals).remote(
            name, total, max_faults, max_begun
        )
        stop = threading.Event()
        with self.task(name, total, unit) as task:
            follower = _Follower(name, total, unit, start, task, self.console)
            thread = threading.Thread(target=follower.follow, args=(counter, stop), daemon=True)
            thread.start()
            try:
                yield counter
            finally:
                stop.set()
                thread.join()


class Totals:
    """Named totals that workers add to, and what must end their work: more than ``max_faults`` failed rows, or more
    than ``max_begun`` workers that have begun one after another while none has finished a block; an actor."""

    def __init__(self, name: str, total: int, max_faults: float, max_begun: float) -> None:
        self._name, self._total, self._max_faults, self._max_begun = name, total, max_faults, max_begun
        self._totals: defaultdict[str, float] = defaultdict(float)
        self._reasons: Counter[str] = Counter()
        self._begun = 0

    def add(self, amounts: Mapping[str, float]) -> None:
        for name, amount in amounts.items():
            self._totals[name] += amount

    def begun(self) -> str | None:
        """A worker begins, maybe in place of one that has died; what ``verdict`` says from then on."""
        self._begun += 1
        return self.verdict()

    def finished(self, reasons: Mapping[str, int]) -> str | None:
        """A block of rows is finished, some of which failed, for these reasons; what ``verdict`` says from then on.

        A block that is taken up again, as its worker has died, is not finished before: its rows count once.
        """
        self._begun = 0
        self._reasons.update(reasons)
        return self.verdict()

    def put(self, **amounts: float) -> None:
        """Set totals to what they are now."""
        self._totals.update(amounts)

    def totals(self) -> dict[str, float]:
        return dict(self._totals)

    def verdict(self) -> str | None:
        """Why the work must stop. None as long as it may go on."""
        if self._begun > self._max_begun:
            return (
                f"{self._name}: {self._begun} times an engine was begun, and none has finished a block of rows since; "
                "Ray's logs have what ended them (often memory: lower engine.max_num_seqs or engine.max_model_len); "
                "what is done is kept, run it again to go on"
            )
        return too_many_faults(self._name, self._reasons, self._total, self._max_faults)


class MustEnd(Exception):
    """The work ends, as its ``Totals`` say."""


def heed(verdict: str | None) -> None:
    """Raise MustEnd for a verdict of ``Totals``."""
    if verdict is not None:
        raise MustEnd(verdict)


def too_many_faults(name: str, reasons: Mapping[str, float], total: int, most: float) -> str | None:
    """One line that counts the reasons, if there are more than ``most`` failed rows."""
    failed = sum(reasons.values())
    if failed <= most:
        return None
    counted = "; ".join(f"{count:,.0f} x {reason}" for reason, count in Counter(reasons).most_common(5))
    return (
        f"{name}: {failed:,.0f} of {total:,} rows failed, and {name}.max_error_fraction allows {most:,.0f}: {counted}"
    )


class Pace:
    """Rates over the last half minute of readings, counted from the first unit on: an engine that loads for a minute
    says nothing about the time that is left."""

    def __init__(self, unit: str):
        self._unit = unit
        self._seen: deque[tuple[float, Mapping[str, float]]] = deque(maxlen=RATE_READINGS)

    def read(self, now: float, totals: Mapping[str, float]) -> None:
        """``now`` in seconds. What a training that goes on has from before is no part of its pace, nor is what one that
        falls back to a checkpoint does again."""
        before = self._seen[-1][1].get(self._unit, 0) if self._seen else 0
        if not before or totals.get(self._unit, 0) < before:
            self._seen.clear()
        self._seen.append((now, totals))

    def rate(self, name: str) -> float:
        """The total's units per second; 0 as long as there is one reading."""
        (began, first), (now, last) = self._seen[0], self._seen[-1]
        return (last.get(name, 0) - first.get(name, 0)) / (now - began) if now > began else 0.0


class _Follower:
    """Reads a counter twice a second and shows what it says."""

    def __init__(self, name: str, total: int, unit: str, start: float, task: Task, console: Console):
        self._name, self._total, self._unit, self._start = name, total, unit, start
        self._task, self._console = task, console
        self._pace = Pace(unit)
        self._said = time.monotonic()

    def follow(self, counter: Any, stop: threading.Event) -> None:
        import ray

        while not stop.wait(READ_SECONDS):
            try:
                totals: dict[str, float] = ray.get(counter.totals.remote(), timeout=10)
            except (ray.exceptions.RayError, TimeoutError):  # the bar is a courtesy: it must not end a run
                continue
            self._show(totals, time.monotonic())

    def _show(self, totals: dict[str, float], now: float) -> None:
        self._pace.read(now, totals)
        done, said = self._start + totals.get(self._unit, 0), note(totals, self._unit, self._pace.rate("tokens"))
        self._task.set(done, said)
        if self._console.is_terminal or now - self._said < LINE_SECONDS:
            return
        self._said, rate = now, self._pace.rate(self._unit)
        left = f"  {timedelta(seconds=round(max(0, self._total - done) / rate))} left" if rate else ""
        line = f"{self._name}: {done:,.0f} of {self._total:,.0f} {self._unit}  {rate:,.1f} {self._unit}/s  {said}{left}"
        self._console.print(line, highlight=False, soft_wrap=True)


def note(totals: Mapping[str, float], unit: str, tokens: float) -> str:
    """The totals beside the unit's own, as rates where they are read as rates."""
    rows = totals.get("rows", 0)
    parts = [f"{tokens:,.0f} tokens/s"] if totals.get("tokens") else []
    parts += [f"{totals['kept'] / rows:.0%} kept"] if rows and "kept" in totals else []
    parts += [f"{totals['errors']:,.0f} failed"] if totals.get("errors") else []
    others = totals.keys() - {unit, "tokens", "kept", "errors"}
    return "  ".join([*parts, *(f"{name} {totals[name]:,.0f}" for name in sorted(others))])
