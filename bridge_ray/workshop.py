"""Stages that several runs need at once: each is made once, and as many at a time as the cluster has room for.

A stage is a task of its own process (Ray Data's settings are a process's), so one that dies or is stopped takes nothing
with it that others wait for.
"""

from __future__ import annotations

import asyncio
import heapq
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from bridge_ray import capacity, relay, stage
from bridge_ray.config import Config
from bridge_ray.errors import UserError
from bridge_ray.inference import local_ray
from bridge_ray.placement import ENGINES, TRAINERS
from bridge_ray.progress import Progress
from bridge_ray.stage import Done, Stage, Watch
from bridge_ray.training.run import Halted

CLOSING_SECONDS = 120  # that what must not be cut off has when all ends


@dataclass(frozen=True)
class Room:
    """How many stages run at once, and the driver's working directory, which relative paths begin at: a worker of a
    cluster has another.

    ``teachers``: of two that ask at once each would keep to the rate limit, and both together would not; and what one
    of them has only reserved would be missing in the cap for the other. A batch takes hours, whatever is asked beside
    it.
    """

    trainings: int
    engines: int
    teachers: int
    folder: str


def room(config: Config, trainings: int | None = None) -> Room:
    """What the cluster has room for, of runs like the config's; but for ``trainings`` if so many
    are asked for. Connects to Ray."""
    found = capacity.of_cluster(config)
    at_once = trainings or found.trainings
    return Room(at_once, found.engines, at_once if config.teacher.mode == "batch" else 1, str(Path.cwd()))


@dataclass(frozen=True)
class Order:
    """A stage to be made, for the run of a config.

    ``stages`` refers to stages by their fingerprint that were put once: corpora are in them. Of orders that wait, those
    with the lowest ``turn`` come first. ``asks``: it asks the teacher. ``lines``: where its progress goes, see
    ``relay``; else to its worker's log.
    """

    name: str
    fingerprint: str
    stages: Any
    root: str
    config: Config
    turn: int
    asks: bool
    watch: Watch | None = None
    lines: relay.Source | None = None


@dataclass
class Slots:
    """So many at a time; of those who wait, the lowest turn comes first, so that what was begun first ends first."""

    free: int
    _waiting: list[tuple[int, int, asyncio.Future[None]]] = field(default_factory=list)
    _number: count[int] = field(default_factory=count)

    @asynccontextmanager
    async def taken(self, turn: int) -> AsyncIterator[None]:
        if self.free:
            self.free -= 1
        else:
            given = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (turn, next(self._number), given))
            await given
        try:
            yield
        finally:
            if self._waiting:
                heapq.heappop(self._waiting)[-1].set_result(None)
            else:
                self.free += 1


class Workshop:
    """In an async actor, or a part of one; all in it happens on one event loop.

    A teacher that has given up, refuses or cannot be paid is not asked by any stage that follows.
    """

    def __init__(self, room: Room):
        os.chdir(room.folder)
        self._room = room
        self._made: dict[str, asyncio.Task[Done]] = {}  # by fingerprint; one that failed keeps its reason
        self._asking: dict[str, Any] = {}  # stages that ask the teacher now
        self._refused: UserError | None = None  # why the teacher could not be asked, nor is again
        self._teachers = Slots(room.teachers)
        self._slots = dict.fromkeys(ENGINES, Slots(room.engines)) | dict.fromkeys(TRAINERS, Slots(room.trainings))

    async def done(self, order: Order) -> Done:
        """The stage, done: by this call or by one that is under way. Raises what it raised.

        After Halted, which ended it for all who had asked by then, it can be asked for again.
        """
        if order.fingerprint not in self._made:
            self._made[order.fingerprint] = asyncio.create_task(self._make(order))
        making = self._made[order.fingerprint]
        try:
            return await asyncio.shield(making)
        except Halted:
            if self._made.get(order.fingerprint) is making:
                del self._made[order.fingerprint]
            raise

    async def close(self, interrupted: bool) -> None:
        """All ends, and nothing more is ordered: wait for what was asked of the teacher.

        Unless ``interrupted``, wait for all that still runs too: trainings that are ending from within.
        """
        for ref in self._asking.values():
            ray.cancel(ref)  # as Ctrl-C would: answers on their way are stored
        last = [task for key, task in self._made.items() if key in self._asking or not (interrupted or task.done())]
        if last:
            await asyncio.wait(last, timeout=CLOSING_SECONDS)

    async def _make(self, order: Order) -> Done:
        async with self._slot(order):
            if not order.asks:
                return await _done(_task().remote(self._room.folder, order.stages, order))
            if self._refused is not None:
                raise self._refused
            ref = self._asking[order.fingerprint] = _task().remote(self._room.folder, order.stages, order)
            try:
                return await _done(ref)
            except UserError as error:
                self._refused = error
                raise
            finally:
                del self._asking[order.fingerprint]

    def _slot(self, order: Order) -> AbstractAsyncContextManager[None]:
        slots = self._teachers if order.asks else self._slots.get(order.name)
        return nullcontext() if slots is None else slots.taken(order.turn)


async def _done(ref: Any) -> Done:
    """What the task returns. Raises what it raised."""
    try:
        made: Done = await ref
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from error
    return made


def _task() -> Any:
    """Performs a stage in a process of its own, beside the workshop: where the driver is, its key and its files are."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Elsewhere than on a local Ray, workers do not inherit the driver's environment.
    environment = {"env_vars": local_ray.DRIVER_ENVIRONMENT} if local_ray.on_cluster() else None
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here, runtime_env=environment)(_perform)


def _perform(folder: str, stages: Mapping[str, Stage], order: Order) -> Done:
    os.chdir(folder)
    config = order.config
    screen = Console(stderr=True) if order.lines is None else order.lines.console()
    made, progress = stages[order.fingerprint], Progress(screen)
    return stage.perform(made, order.root, config.name, config.engine, config.training, progress, order.watch)
