"""What a person sees while a stage runs: a line with rate and time left on a terminal, nothing elsewhere.

Work in this process calls ``Task.add``; work in Ray workers adds to a ``Counter`` actor that a thread here reads.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.progress import Task as Bar
from rich.text import Text

if TYPE_CHECKING:
    import ray


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
    def counted(self, name: str, total: float, unit: str, start: float = 0) -> Iterator[ray.actor.ActorHandle]:
        """A bar that follows a ``Counter`` actor's total of ``unit``; yields the actor's handle for workers.

        ``start`` units were done by an earlier attempt. Other totals of the counter are shown behind the bar.
        """
        import ray

        counter = ray.remote(num_cpus=0)(Counter).remote()
        stop = threading.Event()
        with self.task(name, total, unit) as task:
            thread = threading.Thread(target=_follow, args=(counter, task, unit, start, stop), daemon=True)
            thread.start()
            try:
                yield counter
            finally:
                stop.set()
                thread.join()


class Counter:
    """Named totals that workers add to; an actor."""

    def __init__(self) -> None:
        self._totals: defaultdict[str, float] = defaultdict(float)

    def add(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self._totals[name] += amount

    def put(self, **amounts: float) -> None:
        """Set totals to what they are now."""
        self._totals.update(amounts)

    def totals(self) -> dict[str, float]:
        return dict(self._totals)


def _follow(counter: Any, task: Task, unit: str, start: float, stop: threading.Event) -> None:
    import ray

    while not stop.wait(0.5):
        try:
            totals: dict[str, float] = ray.get(counter.totals.remote(), timeout=10)
        except (ray.exceptions.RayError, TimeoutError):  # the bar is a courtesy: it must not end a run
            continue
        note = "  ".join(f"{name} {amount:,.0f}" for name, amount in totals.items() if name != unit)
        task.set(start + totals.get(unit, 0), note)
