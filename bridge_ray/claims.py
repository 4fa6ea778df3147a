"""Claims: who is at work on something right now, so that two do not buy one answer, or make one stage, at once.

``claims/<key>/<number>.json`` names the process at work; the one with the highest number counts, and one that names
nobody has been given up. A claim holds as long as its owner's pulse (``pulses/<owner>``) is there and moves, as seen
by the watcher's own clock: no two clocks are compared, and what a killed process claimed is free after ``LAPSE``
seconds, on its own machine at once.

Claims save money and work, they do not guard them: should both buy all the same, each has reserved the money in its
account; should both make a stage, its output is the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from anyio.from_thread import start_blocking_portal

from bridge_ray.errors import UserError
from bridge_ray.objects import Store, open_store

BEAT = 5.0  # seconds between two pulses
LAPSE = 20.0  # seconds without one, after which an owner is taken to be dead
STALLED = 60.0  # the same for work of hours, which may hold up its own pulse for a while
WATCH = 0.5  # seconds between two looks at what somebody else is at work on
WATCH_MOST = 10.0  # the same where it takes longer


class Claims:
    """The claims of one process, made for ``run``. An async context manager: its pulse beats inside."""

    def __init__(self, store: Store, beat: float, lapse: float, run: str = "") -> None:
        self._store, self._beat, self._lapse = store, beat, lapse
        self._owner = uuid.uuid4().hex
        self._claim = {"owner": self._owner, "run": run, "pid": os.getpid(), "machine": _machine()}
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
        """Whether the key is ours now; if not, somebody alive is at work on it: ask again later."""
        if self._first is None:  # before anything is awaited: many take their claims at once
            self._first = asyncio.create_task(self._pulse(0))
            self._heart = asyncio.create_task(self._beats())
        await asyncio.shield(self._first)
        number = 1
        while not await self._store.create(_path(key, number), json.dumps(self._claim).encode()):
            number, claim = await self._last(key)
            if claim.get("owner") not in (None, self._owner) and await self._alive(claim):
                return False
            number += 1
        self._held[key] = number
        return True

    def first(self, key: str) -> bool:
        """Whether a key that we have taken was never claimed before."""
        return self._held[key] == 1

    async def wait(self, key: str, waiting: Callable[[str | None], None]) -> None:
        """Take the key, once nobody else has it. ``waiting`` is told the run of the one who does, once."""
        pause = WATCH
        while not await self.take(key):
            if pause == WATCH:
                waiting((await self._last(key))[1].get("run"))
            await asyncio.sleep(pause)
            pause = min(WATCH_MOST, 1.5 * pause)

    async def _last(self, key: str) -> tuple[int, dict[str, Any]]:
        """The number of the claim that counts, and the claim."""
        path = (await self._store.paths(f"claims/{key}"))[-1]  # none is ever deleted
        return int(path.rpartition("/")[2].removesuffix(".json")), json.loads(await self._store.get(path) or b"{}")

    async def give_up(self, key: str) -> None:
        """Let others have a key: we could not do what we took it for."""
        number = self._held.pop(key)
        await self._store.create(_path(key, number + 1), json.dumps({"owner": None}).encode())

    async def _alive(self, claim: dict[str, Any]) -> bool:
        owner = claim["owner"]
        if claim.get("machine") == _machine() is not None and not _running(claim["pid"]):
            return False
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


def _machine() -> str | None:
    """Names what a process id is of: this boot of the machine, and the container. None where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _running(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def alone(folder: str, key: str, run: str, waiting: Callable[[str | None], None]) -> Iterator[None]:
    """Be the only process at work on the key for the length of the block, for ``run``. Claims lie in the folder.

    While another one is, ``waiting`` is told the name of its run, once. The pulse beats in a thread. Raises UserError
    where the folder cannot be written to.
    """
    store = open_store(folder, field="storage")
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Claims(store, BEAT, STALLED, run)) as claims,
    ):
        portal.call(claims.wait, key, waiting)
        yield
