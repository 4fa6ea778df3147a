"""The ledger: what each account has reserved and settled. An account never owes more than its cap.

``accounts/<account>/<number>.jsonl`` is a segment: entries, one JSON object a line, and a last line that says how
many there are. A segment is created if absent and never overwritten, so the numbers put all writers in one order: who
finds its number taken reads that segment, checks its own reservations against what is left, and takes the next
number. All entries that wait while a segment is being written go into the next one together (group commit).
``snapshots/<account>/<number>.json`` is the balance after a segment, so that reading need not start at the first.

A query is *reserved* at its worst cost before it is sent, then *settled* at what it did cost or *released* if the
provider will not bill it. Until then it is open, and one whose fate will not be learned (*lost*) stays open: at full
price, until a person releases it. Always: settled + open <= cap.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from bridge_ray.errors import UserError
from bridge_ray.objects import Store, gather

SNAPSHOT_EVERY = 256  # segments
DIGITS = 10  # of a segment's number, so that names sort as numbers do

Entry = dict[str, Any]  # a line of a segment, see the functions that write one


@dataclass(frozen=True)
class Cap:
    """What an account may owe: queries, and US dollars. None: not bounded."""

    queries: int | None = None
    usd: float | None = None


@dataclass(frozen=True)
class Query:
    """An open query: reserved, and neither settled nor released. ``worst`` is in trillionths of a US dollar."""

    id: str
    key: str
    buyer: str
    worst: int
    lost: bool = False


@dataclass
class Balance:
    """What the entries up to a segment add up to. Money is in trillionths of a US dollar, so that sums are exact."""

    number: int = 0  # of the last segment
    queries: int = 0  # reserved and not released
    settled: int = 0
    open: dict[str, Query] = field(default_factory=dict)

    @property
    def reserved(self) -> int:
        """The worst that the open queries can cost."""
        return sum(query.worst for query in self.open.values())

    def apply(self, entry: Entry) -> None:
        """Add an entry. The first word on a query counts: one that is no longer open is not changed again."""
        if entry["op"] == "reserve":
            query = Query(entry["id"], entry["key"], entry["buyer"], exact(entry["usd"]))
            self.open[query.id] = query
            self.queries += 1
        elif entry["id"] in self.open:
            query = self.open.pop(entry["id"])
            if entry["op"] == "settle":
                self.settled += exact(entry["usd"])
            elif entry["op"] == "release":
                self.queries -= 1
            else:
                assert entry["op"] == "lost", entry
                self.open[query.id] = Query(query.id, query.key, query.buyer, query.worst, lost=True)


@dataclass(frozen=True)
class Segment:
    """A whole segment: its entries, and the line that ends it."""

    number: int
    entries: list[Entry]
    end: Mapping[str, Any]


@dataclass(frozen=True)
class _Waiting:
    entry: Entry
    written: asyncio.Future[bool]


class Account:
    """An account to reserve from, for one ``buyer`` (what the queries are for) in a ``run``.

    Any number of processes may use an account at once; each gives the ``cap`` that it keeps to.
    """

    def __init__(self, store: Store, name: str, cap: Cap, buyer: str, run: str, model: str) -> None:
        self.name, self.cap, self.buyer, self.run = name, cap, buyer, run
        self.balance = Balance()
        self._store, self._about = store, {"buyer": buyer, "run": run, "model": model}
        self._writer = uuid.uuid4().hex[:12]
        self._count = 0
        self._waiting: list[_Waiting] = []
        self._pending_queries = self._pending = 0  # reservations that wait to be written
        self._reserved = 0  # the open queries' worst, kept up to date: a sum over many is slow
        self._flusher: asyncio.Task[None] | None = None

    async def open(self) -> Self:
        """Read the account's balance. Raises UserError when a segment is damaged or missing."""
        self.balance = await balance(self._store, self.name)
        self._reserved = self.balance.reserved
        return self

    @property
    def owed(self) -> int:
        """Settled and open, in trillionths of a US dollar, with what is being written."""
        return self.balance.settled + self._reserved + self._pending

    @property
    def open_usd(self) -> float:
        """US dollars that the open queries can cost at worst."""
        return (self._reserved + self._pending) / 1e12

    @property
    def held_by_others(self) -> float:
        """US dollars that other buyers' queries on their way can cost at worst; without those that are lost."""
        others = (query for query in self.balance.open.values() if query.buyer != self.buyer and not query.lost)
        return sum(query.worst for query in others) / 1e12

    def own(self) -> list[Query]:
        """The buyer's open queries, in the order in which they were reserved."""
        return [query for query in self.balance.open.values() if query.buyer == self.buyer]

    def fits(self, worsts: Sequence[int]) -> bool:
        """Whether queries of these worst costs can be reserved on top of what the account owes."""
        queries = self.balance.queries + self._pending_queries + len(worsts)
        return _within(self.cap, queries, self.owed + sum(worsts))

    async def reserve(self, key: str, worst_usd: float) -> str | None:
        """Durably set the worst cost of a query aside, before it is sent: the query's id, None if there is no room."""
        worst = exact(worst_usd)
        if not self.fits([worst]):
            return None
        self._count += 1
        name = f"{self._writer}-{self._count}"
        entry = {"op": "reserve", "id": name, "key": key, "usd": worst_usd, **self._about}
        self._pending += worst
        self._pending_queries += 1
        return name if await self._write(entry | {"time": _now()}) else None

    async def settle(self, name: str, usd: float, prompt_tokens: int, completion_tokens: int) -> None:
        """Put what a query did cost (US dollars) in place of its worst."""
        tokens = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        await self._write({"op": "settle", "id": name, "usd": usd, **tokens, "time": _now()})

    async def release(self, name: str, why: str) -> None:
        """Take a query back: it will not be billed."""
        await self._write({"op": "release", "id": name, "why": why, "time": _now()})

    async def lose(self, name: str, why: str) -> None:
        """Note that a query may or may not have been billed: it stays reserved."""
        await self._write({"op": "lost", "id": name, "why": why, "time": _now()})

    async def _write(self, entry: Entry) -> bool:
        """Wait until the entry is in a segment; False for a reservation for which others have left no room."""
        waiting = _Waiting(entry, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        return await waiting.written

    async def _flush(self) -> None:
        """Write what waits, group by group; what goes wrong with a group is told to those who wait for it."""
        while self._waiting:
            group, self._waiting = self._waiting, []
            try:
                written = await self._commit(group)
            except Exception as error:
                self._unpend(group)
                for one in _still(group):
                    one.written.set_exception(error)
                continue
            await self._snapshot()
            for one in _still(group):
                one.written.set_result(one.entry["id"] in written or one.entry["op"] != "reserve")

    def _unpend(self, group: Iterable[_Waiting]) -> None:
        for one in group:
            if one.entry["op"] == "reserve":
                self._pending -= exact(one.entry["usd"])
                self._pending_queries -= 1

    async def _commit(self, group: Sequence[_Waiting]) -> set[str]:
        """Write a group's entries as the next segment; the ids of the reservations that had room."""
        nonce = uuid.uuid4().hex
        while True:
            number, entries = self.balance.number + 1, self._affordable([one.entry for one in group])
            if not entries or await self._store.create(_segment(self.name, number), _encode(entries, self._end(nonce))):
                break
            taken = await _read_segment(self._store, self.name, number)
            if taken.end["nonce"] == nonce:  # our own first try was written, and its acknowledgement lost
                break
            self._apply(taken.entries, number)
        self._unpend(group)  # at once with what takes its place in the balance: nobody may see both, or neither
        if entries:
            self._apply(entries, number)
        return {entry["id"] for entry in entries if entry["op"] == "reserve"}

    async def _snapshot(self) -> None:
        """Keep the balance now and then. It only saves time: a store that fails here will fail the next entry too."""
        if self.balance.number and self.balance.number % SNAPSHOT_EVERY == 0:
            with contextlib.suppress(UserError):
                data = json.dumps(asdict(self.balance)).encode()
                await self._store.create(_snapshot(self.name, self.balance.number), data)

    def _affordable(self, entries: Iterable[Entry]) -> list[Entry]:
        """The entries without those reservations that no longer fit: another writer may have been here."""
        queries, owed, kept = self.balance.queries, self.balance.settled + self._reserved, []
        for entry in entries:
            if entry["op"] == "reserve":
                worst = exact(entry["usd"])
                if not _within(self.cap, queries + 1, owed + worst):
                    continue
                queries, owed = queries + 1, owed + worst
            kept.append(entry)
        return kept

    def _apply(self, entries: Iterable[Entry], number: int) -> None:
        for entry in entries:
            before = self.balance.open.get(entry["id"])
            self.balance.apply(entry)
            after = self.balance.open.get(entry["id"])
            self._reserved += (after.worst if after else 0) - (before.worst if before else 0)
        self.balance.number = number

    def _end(self, nonce: str) -> Mapping[str, Any]:
        return {"nonce": nonce, "writer": self._writer, "cap_queries": self.cap.queries, "cap_usd": self.cap.usd}


def _still(group: Iterable[_Waiting]) -> list[_Waiting]:
    """Those who have not stopped waiting."""
    return [one for one in group if not one.written.done()]


def _within(cap: Cap, queries: int, owed: int) -> bool:
    return (cap.queries is None or queries <= cap.queries) and (cap.usd is None or owed <= exact(cap.usd))


def exact(usd: float) -> int:
    """US dollars in trillionths, far below any price."""
    return round(usd * 1e12)


async def accounts(store: Store) -> list[str]:
    """The names of the accounts in a store."""
    return sorted({path.split("/")[1] for path in await store.paths("accounts")})


def left(cap: Cap, owed: Balance) -> Cap:
    """What an account can still pay."""
    queries = None if cap.queries is None else max(0, cap.queries - owed.queries)
    usd = None if cap.usd is None else max(0.0, cap.usd - (owed.settled + owed.reserved) / 1e12)
    return Cap(queries, usd)


async def balance(store: Store, account: str) -> Balance:
    """What an account owes, from its last snapshot and the segments behind it.

    Raises UserError when one of those segments is damaged or missing.
    """
    start = await _last_snapshot(store, account)
    async for segment in segments(store, account, start.number):
        for entry in segment.entries:
            start.apply(entry)
        start.number = segment.number
    return start


async def segments(store: Store, account: str, behind: int = 0) -> Any:
    """An account's segments in order, those with a number greater than ``behind``; an async iterator of Segment.

    Raises UserError when one is damaged or missing.
    """
    paths = await store.paths(f"accounts/{account}", after=_segment(account, behind) if behind else None)
    for expected, path in enumerate(paths, behind + 1):
        if path != _segment(account, expected):
            raise UserError(
                f"teacher.store {store.location}: segment {_segment(account, expected)} is missing, so what the "
                "account owes is not known; put it back (from a backup), or take another budget.account"
            )
    for some in _chunks(range(behind + 1, behind + len(paths) + 1), 1024):

        async def one(name: str) -> Segment:
            return await _read_segment(store, account, int(name))

        for segment in (await gather(one, map(str, some))).values():
            yield segment


def _chunks(numbers: range, size: int) -> Iterator[range]:
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


async def _read_segment(store: Store, account: str, number: int) -> Segment:
    path = _segment(account, number)
    data = await store.get(path)
    assert data is not None, path
    entries, whole = _decode(data)
    if not whole:
        worst = sum(entry["usd"] for entry in entries if entry["op"] == "reserve")
        raise UserError(
            f"teacher.store {store.location}: {path} is damaged: {len(entries)} entries of it can be read "
            f"(${worst:.4f} reserved). Answers and all segments before it are whole. Put it back from a backup; if "
            "there is none and it is the last one, remove it: nothing settled is lost, but queries reserved in it may "
            "be asked again. With others behind it, take another budget.account: what this one owes cannot be known"
        )
    return Segment(number, entries[:-1], entries[-1])


def _encode(entries: Sequence[Entry], end: Mapping[str, Any]) -> bytes:
    lines = [*entries, {"op": "end", "entries": len(entries), **end, "time": _now()}]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _decode(data: bytes) -> tuple[list[Entry], bool]:
    """The lines that can be read, and whether the segment is whole."""
    lines: list[Entry] = []
    for text in data.split(b"\n"):
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or "op" not in line:
            break
        lines.append(line)
    whole = bool(lines) and lines[-1]["op"] == "end" and lines[-1]["entries"] == len(lines) - 1
    return lines, whole


async def _last_snapshot(store: Store, account: str) -> Balance:
    """The newest snapshot that can be read; a balance of nothing where there is none. Snapshots only save time."""
    for path in reversed(await store.paths(f"snapshots/{account}")):
        data = await store.get(path)
        try:
            found = json.loads(data or b"")
            queries = {name: Query(**query) for name, query in found.pop("open").items()}
            return Balance(**found, open=queries)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return Balance()


def _segment(account: str, number: int) -> str:
    return f"accounts/{account}/{number:0{DIGITS}}.jsonl"


def _snapshot(account: str, number: int) -> str:
    return f"snapshots/{account}/{number:0{DIGITS}}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
