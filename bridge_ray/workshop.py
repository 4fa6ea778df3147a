"""Stages that several runs need at once: each is made once, and as many at a time as the cluster has room for.

A stage is a task of its own process (Ray Data's settings are a process's), so one that dies or is stopped takes nothing
with it that others wait for.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from bridge_ray import capacity, relay, stage
from bridge_ray.config import Config, Teacher
from bridge_ray.errors import Outage, UserError
from bridge_ray.inference import local_ray
from bridge_ray.placement import ENGINES, TRAINERS
from bridge_ray.progress import Progress
from bridge_ray.stage import Done, Stage, Watch
from bridge_ray.teacher.client import api_key
from bridge_ray.training.run import Halted

CLOSING_SECONDS = 120  # that what must not be cut off has when all ends
BILLION = 10**9


@dataclass(frozen=True)
class Share:
    """What each stage of a kind takes while it is made: a ``part`` of a pool, above 0 and at most 1. At most ``most``
    of them are made at a time.

    Wherever it comes to lie, it may keep a larger part (``keeps``) from those that are ``whole``: that need several
    GPUs of one node, of which it takes one.
    """

    pool: str
    part: float
    most: int
    keeps: float = 0.0
    whole: bool = False


@dataclass(frozen=True)
class Room:
    """What stages take, and the driver's working directory, which relative paths begin at: a worker of a cluster has
    another.

    Trainings and engines take parts of one cluster: unless more are asked for than have room, none of them waits for
    what another one holds, so what it took is what it takes. Of two stages that ask the ``teacher`` at once each would
    keep to the rate limit, and both together would not; and what one of them has only reserved would be missing in the
    cap for the other. What is made on the driver's node alone may take all of its cores and memory.
    """

    training: Share
    engine: Share
    teacher: Share
    folder: str
    driver: Share = Share("driver", 1.0, 1)

    @property
    def single(self) -> bool:
        """Whether there is room for one training or one stage with engines at a time."""
        return self.training.most == self.engine.most == 1 and self.training.pool == self.engine.pool


def room(config: Config, trainings: int | None = None, batches: bool = False) -> Room:
    """What runs like the config's take of the cluster, of which ``trainings`` are made at once, None: as many as have
    room. ``batches``: so many ask a teacher that is asked in batches, each of which takes hours, whatever is asked
    beside it. Connects to Ray."""
    found = capacity.of_cluster(config)
    most = trainings or capacity.times(found.training)
    teachers = most if batches and config.teacher.mode == "batch" else 1
    return Room(
        Share("cluster", min(found.training, 1 / most), most, found.scattered),
        Share("engines" if found.apart else "cluster", found.engine, capacity.times(found.engine), whole=True),
        Share("teacher", 1 / teachers, teachers),
        str(Path.cwd()),
    )


def check_key(teacher: Teacher) -> None:
    """Raise UserError where a stage that asks the teacher would have no key, as this process alone has it: a cluster's
    workers have the environment in which Ray was started."""
    if not local_ray.on_cluster():
        return
    probe = ray.remote(num_cpus=0, scheduling_strategy=local_ray.here())(_has_key)
    if not ray.get(probe.remote(str(Path.cwd()), teacher)):
        source = "teacher.key_file" if teacher.key_file else "OPENAI_API_KEY"
        raise UserError(
            f"{source}: is known here, but not to the cluster's workers on this node, which ask the teacher; set "
            "teacher.key_file to an absolute path, or have it where Ray is started"
        )


def _has_key(folder: str, teacher: Teacher) -> bool:
    os.chdir(folder)
    try:
        return bool(api_key(teacher))
    except UserError:
        return False


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


class Slots:
    """Lets stages begin as there is room. Of those that wait for a pool the lowest turn comes first, so that what was
    begun first ends first; none overtakes it but where its own kind has its ``most``."""

    def __init__(self) -> None:
        self._used: Counter[str] = Counter()  # pool -> parts of it, in billionths, which add up exactly
        self._kept: Counter[str] = Counter()  # pool -> parts that may be kept from whole ones, in billionths
        self._running: Counter[Share] = Counter()
        self._waiting: list[tuple[int, int, Share, asyncio.Future[None]]] = []
        self._number = count()

    @asynccontextmanager
    async def taken(self, share: Share, turn: int) -> AsyncIterator[None]:
        given = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, next(self._number), share, given))
        self._give()
        await given
        try:
            yield
        finally:
            self._count(share, -1)
            self._give()

    def _give(self) -> None:
        left, blocked = [], set()
        for waiting in sorted(self._waiting):
            share, given = waiting[-2:]
            if self._running[share] >= share.most or share.pool in blocked:
                left.append(waiting)
            elif (self._kept if share.whole else self._used)[share.pool] + _billionths(share.part) > BILLION:
                blocked.add(share.pool)
                left.append(waiting)
            else:
                self._count(share, 1)
                given.set_result(None)
        self._waiting = left

    def _count(self, share: Share, times: int) -> None:
        self._used[share.pool] += times * _billionths(share.part)
        self._kept[share.pool] += times * _billionths(max(share.part, share.keeps))
        self._running[share] += times


def _billionths(part: float) -> int:
    return int(part * BILLION)


class Workshop:
    """In an async actor, or a part of one; all in it happens on one event loop.

    A teacher that was away until a stage gave up is not asked by those that follow.
    """

    def __init__(self, room: Room):
        os.chdir(room.folder)
        self._room = room
        self._made: dict[str, asyncio.Task[Done]] = {}  # by fingerprint; one that failed keeps its reason
        self._asking: dict[str, Any] = {}  # stages that ask the teacher now
        self._away: Outage | None = None  # why the teacher could not be asked, nor is again
        self._closed = False
        self._slots = Slots()

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
        """All ends, and nothing more is begun: wait for what was asked of the teacher.

        Unless ``interrupted``, wait for all that still runs too: trainings that are ending from within.
        """
        self._closed = True
        for ref in self._asking.values():
            ray.cancel(ref)  # as Ctrl-C would: answers on their way are stored
        last = [task for key, task in self._made.items() if key in self._asking or not (interrupted or task.done())]
        if last:
            await asyncio.wait(last, timeout=CLOSING_SECONDS)

    async def _make(self, order: Order) -> Done:
        async with self._slots.taken(self._share(order), order.turn):
            if self._closed:
                raise InterruptedError(f"{order.name} is not begun: it has all ended")
            if not order.asks:
                return await _done(_task().remote(self._room.folder, order.stages, order))
            if self._away is not None:
                raise self._away
            ref = self._asking[order.fingerprint] = _task().remote(self._room.folder, order.stages, order)
            try:
                return await _done(ref)
            except Outage as error:
                self._away = error
                raise
            finally:
                del self._asking[order.fingerprint]

    def _share(self, order: Order) -> Share:
        if order.asks:
            return self._room.teacher
        kinds = ((TRAINERS, self._room.training), (ENGINES, self._room.engine))
        return next((share for kind, share in kinds if order.name in kind), self._room.driver)


async def _done(ref: Any) -> Done:
    """What the task returns. Raises what it raised."""
    try:
        made: Done = await ref
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from error
    return made


def _task() -> Any:
    """Performs a stage in a process of its own, beside the workshop: where the driver is, its key and its files are."""
    # Elsewhere than on a local Ray, workers do not inherit the driver's environment.
    environment = {"env_vars": local_ray.DRIVER_ENVIRONMENT} if local_ray.on_cluster() else None
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=local_ray.here(), runtime_env=environment)(
        _perform
    )


def _perform(folder: str, stages: Mapping[str, Stage], order: Order) -> Done:
    os.chdir(folder)
    config = order.config
    screen = Console(stderr=True) if order.lines is None else order.lines.console()
    made, progress = stages[order.fingerprint], Progress(screen)
    return stage.perform(made, order.root, config.name, config.engine, config.training, progress, order.watch)
