"""Claims: who is buying an answer right now, so that two do not pay for it at once.

``claims/<key>/<number>.json`` names the process that buys; the one with the highest number counts, and one that names
nobody has been given up. A claim holds as long as its owner's pulse (``pulses/<owner>``) is there and moves, as seen
by the watcher's own clock: no two clocks are compared, and what a killed process claimed is free after ``LAPSE``
seconds.

Claims save money, they do not guard it: should both buy all the same, each has reserved the money in its account.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from types import TracebackType
from typing import Self

from bridge_ray.errors import UserError
from bridge_ray.teacher.store import Store

BEAT = 5.0  # seconds between two pulses
LAPSE = 20.0  # seconds without one, after which an owner is taken to be dead


class Claims:
    """The claims of one process. An async context manager: its pulse beats inside."""

    def __init__(self, store: Store, beat: float, lapse: float) -> None:
        self._store, self._beat, self._lapse = store, beat, lapse
        self._owner = uuid.uuid4().hex
        self._held: dict[str, int] = {}  # key -> number of our claim
        self._pulses: dict[str, tuple[bytes, float]] = {}  # owner -> its last pulse, and when it was first seen
        self._first: asyncio.Task[None] | None = None  # the first pulse, which all claims wait for
        self._heart: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in (self._first, self._heart):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, UserError):
                    await task
        if self._first is not None:
            with contextlib.suppress(UserError):  # without a pulse that moves, the claims lapse all the same
                await self._store.delete(f"pulses/{self._owner}")

    async def take(self, key: str) -> bool:
        """Whether the key is ours to buy now; if not, somebody alive is buying it: ask again later."""
        if self._first is None:  # before anything is awaited: many take their claims at once
            self._first = asyncio.create_task(self._pulse(0))
            self._heart = asyncio.create_task(self._beats())
        await asyncio.shield(self._first)
        number = 1
        while not await self._store.create(_path(key, number), json.dumps({"owner": self._owner}).encode()):
            last = (await self._store.paths(f"claims/{key}"))[-1]
            owner = json.loads(await self._store.get(last) or b"{}").get("owner")
            if owner not in (None, self._owner) and await self._alive(owner):
                return False
            number = int(last.rpartition("/")[2].removesuffix(".json")) + 1
        self._held[key] = number
        return True

    async def give_up(self, key: str) -> None:
        """Let others buy a key that we could not."""
        number = self._held.pop(key)
        await self._store.create(_path(key, number + 1), json.dumps({"owner": None}).encode())

    async def _alive(self, owner: str) -> bool:
        pulse, now = await self._store.get(f"pulses/{owner}"), time.monotonic()
        if pulse is None:  # written before the first claim, and removed behind the last
            return False
        before, since = self._pulses.get(owner, (b"never seen", now))
        if pulse != before:
            since = now
        self._pulses[owner] = (pulse, since)
        return now - since < self._lapse

    async def _beats(self) -> None:
        beat = 0
        while True:
            await asyncio.sleep(self._beat)
            beat += 1
            with contextlib.suppress(UserError):  # a store that is away for a moment: others wait for LAPSE
                await self._pulse(beat)

    async def _pulse(self, beat: int) -> None:
        await self._store.put(f"pulses/{self._owner}", str(beat).encode())


def _path(key: str, number: int) -> str:
    return f"claims/{key}/{number:06}.json"
