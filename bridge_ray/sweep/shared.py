"""The keeper: an actor beside the driver that has every stage of a sweep made once, whichever trials need it.

It walks each trial through its runs' stages, which its workshop makes. A training that ASHA ends is ended from within:
its loop returns, and Ray Train frees its placement group itself. A trial of Ray Tune that held the group and was killed
would leave it behind, and the sweep would wait for ever (ray #54305).
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import ray

from bridge_ray import pipeline, stage
from bridge_ray.config import Config
from bridge_ray.errors import Outage, UserError
from bridge_ray.stage import Done, Stage, Watch
from bridge_ray.sweep.spec import Asha
from bridge_ray.sweep.trials import Repeat
from bridge_ray.teacher.teach import Payer, Unpaid
from bridge_ray.training.run import Halted
from bridge_ray.workshop import Order, Room, Workshop

log = logging.getLogger(__name__)

TEACH, WATCHED = "teach", "train_student"

Rung = tuple[float, float]  # share of the student's updates, dev accuracy


class Unanswered(Exception):
    """The teacher has given up: a provider that is down (``outage``), or refuses."""

    def __init__(self, reason: str, outage: bool) -> None:
        super().__init__(reason)
        self.outage = outage


@dataclass(frozen=True)
class Terms:
    """On what terms the trials are made: who pays, and whether ASHA watches."""

    payer: Payer
    asha: Asha | None


@dataclass(frozen=True)
class Ended:
    """How a trial has ended. ``capped``: the sweep's cap has no room for what it needs; ``unanswered``: the teacher has
    given up, as it is down (``outage``) or refuses. Neither is the trial's own fault, and all that follow would meet it
    too."""

    state: Literal["finished", "stopped", "failed", "capped", "unanswered"]
    repeats: tuple[Repeat, ...] = ()
    reason: str | None = None
    outage: bool = False


@dataclass
class Walk:
    """Where a trial stands."""

    rungs: list[Rung] = field(default_factory=list)
    passed: int = 0  # rungs after which Ray Tune lets it go on
    watched: bool = True  # whether it is at its first run, the only one that ASHA judges
    stopped: bool = False
    ended: Ended | None = None


class Keeper:
    """An async actor; all in it happens on one event loop. ``draft`` makes a config's run, see ``pipeline.draft``."""

    def __init__(self, terms: Terms, room: Room, draft: Callable[..., pipeline.Run]):
        self._terms, self._draft, self._workshop = terms, draft, Workshop(room)
        self._walks: dict[int, Walk] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._wanted: defaultdict[str, set[int]] = defaultdict(set)  # fingerprint -> trials that wait for it
        self._changed = asyncio.Condition()

    async def start(self, number: int, runs: Sequence[Config], rungs: Sequence[Rung]) -> None:
        """Walk a trial through its runs, one after another. ``rungs`` were heard before it was interrupted."""
        walk = self._walks[number] = Walk(list(rungs))
        self._tasks[number] = asyncio.create_task(self._walk(number, walk, runs))

    async def news(self, number: int, seen: int) -> Rung | None:
        """Wait for the trial's next rung behind those that were ``seen``; None once it has ended."""
        walk = self._walks[number]
        async with self._changed:
            await self._changed.wait_for(lambda: len(walk.rungs) > seen or walk.ended is not None)
        return walk.rungs[seen] if len(walk.rungs) > seen else None

    async def passed(self, number: int, rungs: int) -> None:
        """Ray Tune has heard of so many of the trial's rungs, and lets it go on."""
        self._walks[number].passed = max(self._walks[number].passed, rungs)
        await self._notify()

    async def stop(self, number: int) -> tuple[Ended | None, list[Rung]]:
        """The trial is over for Ray Tune: how it had ended by then (None: it had not), and its rungs."""
        walk = self._walks[number]
        walk.stopped = True
        await self._notify()
        return walk.ended, walk.rungs

    async def heard(self, fingerprint: str, share: float, accuracy: float) -> bool:
        """A training asks whether it goes on: it does while one of the trials that need it does.

        Answers once Ray Tune has decided for each of them.
        """
        walks = [self._walks[number] for number in self._wanted[fingerprint] if self._walks[number].watched]
        for walk in walks:
            if share not in [known for known, _ in walk.rungs]:  # else its worker has died and does it again
                walk.rungs.append((share, accuracy))
        await self._notify()
        async with self._changed:
            await self._changed.wait_for(lambda: all(walk.stopped or walk.passed == len(walk.rungs) for walk in walks))
        return any(not self._walks[number].stopped for number in self._wanted[fingerprint])

    async def close(self, interrupted: bool) -> None:
        """The sweep ends, and begins nothing more; see ``Workshop.close``."""
        for walk in self._walks.values():
            walk.stopped = True
        await self._notify()
        await self._workshop.close(interrupted)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _walk(self, number: int, walk: Walk, runs: Sequence[Config]) -> None:
        try:
            repeats = []
            for config in runs:
                repeats.append(await self._run(number, walk, config))
                walk.watched = False
            walk.ended = Ended("finished", tuple(repeats))
        except Halted:
            walk.ended = Ended("stopped")
        except Unpaid as error:
            walk.ended = Ended("capped", reason=str(error))
        except Unanswered as error:
            walk.ended = Ended("unanswered", reason=str(error), outage=error.outage)
        except Exception as error:
            log.exception("trial %d", number)
            walk.ended = Ended("failed", reason=_line(error))
        await self._notify()

    async def _run(self, number: int, walk: Walk, config: Config) -> Repeat:
        """All stages of one run."""
        prepared = await asyncio.to_thread(self._draft, config, payer=self._terms.payer)
        stages = ray.put({part.fingerprint: part for part in prepared.stages.values()})  # once: the corpus is in them
        finished: dict[str, Done] = {}
        for name, part in prepared.stages.items():
            before = await asyncio.to_thread(stage.done, part, prepared.root)
            finished[name] = before or await self._shared(number, walk, self._order(number, part, prepared, stages))
        return measured(config, finished)

    def _order(self, number: int, part: Stage, run: pipeline.Run, stages: Any) -> Order:
        asks, watch = part.name == TEACH, self._watch(part, run.config)
        return Order(part.name, part.fingerprint, stages, run.root, run.config, number, asks, watch)

    async def _shared(self, number: int, walk: Walk, order: Order) -> Done:
        """The stage, done, while the trial is not stopped."""
        self._wanted[order.fingerprint].add(number)
        try:
            while not walk.stopped:
                with suppress(Halted):  # it was ended for others, while this trial came to need it
                    return await self._workshop.done(order)
            raise Halted(f"trial {number} was stopped before {order.name}")
        except Unpaid:
            raise
        except UserError as error:
            if order.name != TEACH:
                raise
            raise Unanswered(str(error), isinstance(error, Outage)) from error
        finally:
            self._wanted[order.fingerprint].discard(number)

    def _watch(self, part: Stage, config: Config) -> Watch | None:
        asha = self._terms.asha
        if asha is None or part.name != WATCHED:
            return None
        keeper = ray.get_runtime_context().current_actor
        heard = partial(_ask, keeper, part.fingerprint)
        return Watch(asha.shares, asha.questions, config.evaluate.max_tokens, heard)


def _ask(keeper: Any, fingerprint: str, share: float, accuracy: float) -> bool:
    """In a training's worker."""
    go_on: bool = ray.get(keeper.heard.remote(fingerprint, share, accuracy))
    return go_on


def measured(config: Config, finished: Mapping[str, Done]) -> Repeat:
    """A finished run in figures, as in an empty store: a stage counts with what it took, whoever made it and when."""
    bridge = finished["evaluate"].metrics["systems"]["bridge"]
    bought = finished[TEACH].metrics
    seconds = sum(part.seconds for name, part in finished.items() if name != TEACH)
    low, high = bridge["interval"]
    return Repeat(config.seed, bridge["accuracy"], (low, high), bought["queries"], bought["usd"], seconds / 3600)


def _line(error: BaseException) -> str:
    """The error's last line, which says what it was about."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1] if lines else ""
    kind = type(error).__name__
    return (said if kind == "UserError" else f"{kind}: {said}")[:500]
