"""What the ledger says, for a person: totals by account, model, run and day, and the proof that no cap was exceeded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from bridge_ray.errors import UserError
from bridge_ray.objects import Store
from bridge_ray.teacher.ledger import Account, Balance, Cap, Entry, Segment, accounts, exact, segments


@dataclass
class Total:
    """Queries that were reserved and not released, and what they came to in US dollars.

    ``open`` queries are reserved and not answered (on their way, or lost with their process), ``lost`` those of them
    whose connection broke; ``open_usd`` is the most that they can cost.
    """

    queries: int = 0
    settled: int = 0
    released: int = 0
    open: int = 0
    lost: int = 0
    settled_usd: float = 0.0
    open_usd: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class Statement:
    """Totals of one account, by name of the model, the run and the day (UTC)."""

    account: str
    segments: int = 0
    cap_queries: int | None = None
    cap_usd: float | None = None
    total: Total = field(default_factory=Total)
    by_model: dict[str, Total] = field(default_factory=dict)
    by_run: dict[str, Total] = field(default_factory=dict)
    by_day: dict[str, Total] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)  # what --verify has found wrong


async def statements(store: Store) -> list[Statement]:
    """Every account's statement, from all of its segments. Raises UserError when one is damaged or missing."""
    return [await statement(store, name) for name in await accounts(store)]


async def statement(store: Store, account: str) -> Statement:
    """Replay an account from its first segment, and check after each that nothing was reserved over its cap."""
    found, balance, reserved = Statement(account), Balance(), dict[str, Entry]()
    async for segment in segments(store, account):
        for entry in segment.entries:
            counts = entry["op"] == "reserve" or entry["id"] in balance.open  # a second word on a query does not
            balance.apply(entry)
            reservation = reserved.setdefault(entry["id"], entry)
            if counts:
                for total in _totals(found, reservation):
                    _add(total, entry)
        found.segments = segment.number
        found.broken += _over(balance, segment)
        if _reserves(segment):  # who only gives queries back keeps to no cap
            found.cap_queries, found.cap_usd = segment.end["cap_queries"], segment.end["cap_usd"]
    for query in balance.open.values():
        for total in _totals(found, reserved[query.id]):
            total.open += 1
            total.open_usd += query.worst / 1e12
            total.lost += query.lost
    return found


def _totals(found: Statement, reservation: Entry) -> Iterator[Total]:
    yield found.total
    yield found.by_model.setdefault(reservation["model"], Total())
    yield found.by_run.setdefault(reservation["run"], Total())
    yield found.by_day.setdefault(reservation["time"][:10], Total())


def _add(total: Total, entry: Entry) -> None:
    match entry["op"]:
        case "reserve":
            total.queries += 1
        case "release":
            total.queries -= 1
            total.released += 1
        case "settle":
            total.settled += 1
            total.settled_usd += entry["usd"]
            total.prompt_tokens += entry["prompt_tokens"]
            total.completion_tokens += entry["completion_tokens"]


def _reserves(segment: Segment) -> bool:
    return any(entry["op"] == "reserve" for entry in segment.entries)


def _over(balance: Balance, segment: Segment) -> Iterable[str]:
    """What is wrong with an account after a segment that reserves, given the cap that its writer kept to."""
    if not _reserves(segment):
        return
    queries, usd = segment.end["cap_queries"], segment.end["cap_usd"]
    owed = balance.settled + balance.reserved
    if queries is not None and balance.queries > queries:
        yield f"segment {segment.number}: {balance.queries} queries, over the cap of {queries}"
    if usd is not None and owed > exact(usd):
        yield f"segment {segment.number}: ${owed / 1e12:.6f} settled and open, over the cap of ${usd}"


async def release(store: Store, account: str, keys: Iterable[str], why: str) -> list[str]:
    """Release open queries of an account: all, or those whose id or answer's key begins with one of ``keys``.

    Returns their ids. Raises UserError for an account or a key that is not there.
    """
    if account not in await accounts(store):
        raise UserError(
            f"teacher.store {store.location}: no account {account}; "
            f"`bridge-ray ledger --store {store.location}` lists them"
        )
    ledger = await Account(store, account, Cap(), buyer="", run="", model="").open()
    wanted, open_queries = list(keys), list(ledger.balance.open.values())
    for part in wanted:
        if not any(query.id.startswith(part) or query.key.startswith(part) for query in open_queries):
            raise UserError(
                f"account {account}: no open query {part}; "
                f"`bridge-ray ledger --store {store.location}` counts them by account"
            )
    chosen = [
        query.id
        for query in open_queries
        if not wanted or any(query.id.startswith(part) or query.key.startswith(part) for part in wanted)
    ]
    for name in chosen:
        await ledger.release(name, why)
    return chosen


def plain(found: Statement) -> dict[str, Any]:
    """A statement as JSON, dollars to the millionth."""
    return _rounded(asdict(found))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return round(value, 6) + 0.0 if isinstance(value, float) else value


def lines(found: Iterable[Statement]) -> Table:
    """A line per account, and under it its models, runs and days."""
    table = Table("account", "queries", "settled", "open", "lost", "cap", title="teacher ledger")
    for one in found:
        caps = [f"{one.cap_queries} queries" if one.cap_queries else "", f"${one.cap_usd}" if one.cap_usd else ""]
        table.add_row(f"[bold]{one.account}", *_cells(one.total), ", ".join(filter(None, caps)) or "none")
        for kind, totals in (("model", one.by_model), ("run", one.by_run), ("day", one.by_day)):
            for name, total in totals.items():
                table.add_row(f"  {kind} {name}", *_cells(total), "")
    return table


def _cells(total: Total) -> list[str]:
    return [str(total.queries), f"${total.settled_usd:.4f}", f"{total.open} (${total.open_usd:.4f})", str(total.lost)]
