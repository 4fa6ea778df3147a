"""Make a frontier's missing cells: one after another in this process, or side by side where the cluster has room."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge_ray.errors import Outage, UserError
from bridge_ray.frontier import cells
from bridge_ray.frontier.cells import Lacks, Planned
from bridge_ray.frontier.systems import ASKED_FOR
from bridge_ray.inference import local_ray
from bridge_ray.pipeline import Run
from bridge_ray.placement import ENGINES, TRAINERS
from bridge_ray.progress import Progress
from bridge_ray.stage import Done, Stage, done, perform

if TYPE_CHECKING:
    from bridge_ray.workshop import Room

Outcome = tuple[Planned, dict[str, Any] | Exception]  # a cell and its numbers, or why it has none

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clock:
    """How long what is left will take, from what stages like it took; ``room`` where they are side by side."""

    root: str
    room: Room | None
    _took: defaultdict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))

    def saw(self, part: Done) -> Done:
        self._took[part.name][part.fingerprint] = part.seconds
        return part

    def left(self, planned: Sequence[Planned]) -> timedelta | None:
        """None where nothing is known of a training yet, or of a stage with engines."""
        parts = {part.fingerprint: part.name for one in planned for part in cells.pending(one, self.root)}
        total = 0.0
        for name, times in Counter(parts.values()).items():
            if (mean := self._mean(name)) is None:
                return None
            total += math.ceil(times / self._at_once(name)) * mean
        return timedelta(seconds=round(total))

    def _mean(self, name: str) -> float | None:
        """Seconds: of those of this name, else of its kind."""
        kind = next((kind for kind in (TRAINERS, ENGINES) if name in kind), ())
        for names in ([name], kind):
            if seconds := [one for like in names for one in list(self._took[like].values())]:
                return float(np.mean(seconds))
        return None if kind else 0.0

    def _at_once(self, name: str) -> int:
        if self.room is None:
            return 1
        return self.room.training.most if name in TRAINERS else self.room.engine.most if name in ENGINES else 1


def one_by_one(
    missing: Sequence[Planned], base: Run, progress: Progress, check: Callable[[], None], clock: Clock
) -> Generator[Outcome]:
    """A cell that fails ends none of the others, unless the teacher is away. The first error is raised at last."""
    failed: list[Exception] = []
    for one in missing:
        config = one.config

        def make(part: Stage, config: Any = config) -> Done:
            check()
            return clock.saw(perform(part, base.root, config.name, config.engine, config.training, progress))

        yield one, _outcome(one, partial(_made, one, base, make), failed)
        if failed and isinstance(failed[-1], Outage):
            raise failed[-1]
    if failed:
        raise failed[0]


def _made(one: Planned, base: Run, make: cells.Perform) -> dict[str, Any] | Lacks:
    try:
        return cells.make(one, base.home, base.root, make)
    except Lacks as reason:
        return reason


def _outcome(
    one: Planned, made: Callable[[], dict[str, Any] | Lacks], failed: list[Exception]
) -> dict[str, Any] | Exception:
    """What comes of a cell; an error joins those that ``failed``, and is logged where it is nobody's mistake."""
    try:
        return made()
    except Exception as error:
        if not isinstance(error, UserError):
            log.exception("%s", one.cell)
        failed.append(error)
        return error


def side_by_side(
    missing: Sequence[Planned], base: Run, progress: Progress, check: Callable[[], None], clock: Clock, room: Room
) -> Generator[Outcome]:
    """All at once, each waiting for what others make for it, in the order in which they end; the teacher's own last, as
    ``grid.cells`` has them.

    A cell that fails ends none of the others, but for what they would ask a teacher that is away. The first error is
    raised once all that can be made is.
    """
    most = f"{room.training.most} trainings, or {room.engine.most} stages with engines"
    progress.console.print(f"{len(missing)} cells side by side: at a time at most {most}", highlight=False)
    failed: list[Exception] = []
    with _performing(missing, base, progress, check, clock, room) as performing, _pool(len(missing)) as pool:
        for last in (False, True):
            turns = [turn for turn, one in enumerate(missing) if (one.cell.system in ASKED_FOR) is last]
            ending = {pool.submit(_made, missing[turn], base, performing(turn)): missing[turn] for turn in turns}
            for future in as_completed(ending):
                yield ending[future], _outcome(ending[future], future.result, failed)
    if failed:
        raise failed[0]


@contextmanager
def _performing(
    missing: Sequence[Planned],
    base: Run,
    progress: Progress,
    check: Callable[[], None],
    clock: Clock,
    room: Room,
) -> Iterator[Callable[[int], cells.Perform]]:
    """What performs the stages of ``missing[turn]``, in a workshop that is closed behind the block."""
    import ray

    from bridge_ray.relay import Source, relayed
    from bridge_ray.workshop import Order, Workshop

    workshop = ray.remote(num_cpus=0, scheduling_strategy=local_ray.here(), max_concurrency=10_000)(Workshop).remote(
        room
    )
    parts = {part.fingerprint: part for one in missing for part in cells.pending(one, base.root)}
    stages, over = ray.put(parts), threading.Event()  # once: the corpora are in them

    def performing(turn: int) -> cells.Perform:
        one = missing[turn]

        def perform(part: Stage) -> Done:
            check()
            if over.is_set():
                raise InterruptedError(f"{part.name} is not begun: the frontier has ended")
            if before := done(part, base.root):
                return clock.saw(before)
            said, asks = Source(lines, str(one.cell)), one.asks(part)
            order = Order(part.name, part.fingerprint, stages, base.root, one.config, turn, asks, lines=said)
            try:
                return clock.saw(ray.get(workshop.done.remote(order)))
            except ray.exceptions.RayTaskError as error:
                raise (error.cause or error) from error

        return perform

    with relayed(progress.console) as lines:
        interrupted = True
        try:
            yield performing
            interrupted = False
        finally:
            over.set()
            try:
                ray.get(workshop.close.remote(interrupted))
            finally:  # asked to stop once more, too: the threads wait for it
                ray.kill(workshop)


@contextmanager
def _pool(count: int) -> Iterator[ThreadPoolExecutor]:
    """A thread for each cell, which waits for most of its time. Behind the block those that are left end with the
    workshop."""
    pool = ThreadPoolExecutor(count, "cell")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
