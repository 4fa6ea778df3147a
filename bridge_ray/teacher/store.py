"""Paid answers, kept for ever, and the account of a run, whose count of queries outlives a SIGKILL.

``answers/<key>.json`` is what a provider answered and was paid for; all runs share it, and none asks it again.
``accounts/<account>/<key>-<attempt>.json`` reserves a query and is written before the request leaves: an account's
queries are the objects under its name. Both are created if absent and never overwritten.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from bridge_ray import storage
from bridge_ray.config import Price
from bridge_ray.errors import UserError
from bridge_ray.teacher.prices import cost

if TYPE_CHECKING:
    from obstore.store import ObjectStore

READS = 64  # at a time
Messages = Sequence[Mapping[str, str]]
T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """A completion that was paid for. ``error`` says why it cannot be used; null when it can."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    model: str
    created: int  # seconds since 1970, the provider's clock
    error: str | None = None


@dataclass(frozen=True)
class Ask:
    """One question to the provider: its answer's key, and the most that it can cost in US dollars."""

    key: str
    messages: Messages
    worst_usd: float


def answer_key(provider: str, model: str, messages: Messages, parameters: Mapping[str, Any]) -> str:
    """64 hex digits that name a question to one provider. The provider counts: two may use one model name."""
    parts = {"provider": provider, "model": model, "messages": messages, "parameters": parameters}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Store:
    """Answers and reservations in a local folder or an object store."""

    objects: ObjectStore

    async def answer(self, key: str) -> Reply | None:
        data = await self._get(f"answers/{key}.json")
        return None if data is None else Reply(**data)

    async def keep(self, key: str, reply: Reply) -> None:
        """Store an answer; one that is there already stays."""
        await self._create(f"answers/{key}.json", asdict(reply))

    async def answers(self, keys: Iterable[str]) -> dict[str, Reply]:
        """Those of the keys that have an answer."""
        found = await _gather(self.answer, keys)
        return {key: reply for key, reply in found.items() if reply is not None}

    async def reserve(self, account: str, key: str, attempt: int, worst_usd: float) -> None:
        """Count one query of at most ``worst_usd`` US dollars, before it is sent.

        Raises UserError when another process has just reserved the same one: it is spending this account's budget.
        """
        path = _reservation(account, key, attempt)
        content = {"worst_usd": worst_usd, "nonce": uuid.uuid4().hex}
        # A retry inside the object store's client is refused by its own first write: the nonce tells.
        if not await self._create(path, content) and await self._get(path) != content:
            raise UserError(f"teacher account {account}: another process is buying for this run; wait until it ends")

    async def release(self, account: str, key: str, attempt: int) -> None:
        """Take a reservation back: the provider has said that it will not bill the query."""
        import obstore

        await obstore.delete_async(self.objects, _reservation(account, key, attempt))

    async def reservations(self, account: str) -> dict[str, list[float]]:
        """Key -> the worst cost in US dollars of each of its attempts, in their order."""
        found = await _gather(self._get, await self._paths(f"accounts/{account}"))
        attempts: dict[str, list[float]] = {}
        for path in sorted(found, key=_attempt):
            reservation = found[path]
            assert reservation is not None, path
            attempts.setdefault(_attempt(path)[0], []).append(reservation["worst_usd"])
        return attempts

    async def _paths(self, prefix: str) -> list[str]:
        import obstore

        return [entry["path"] async for batch in obstore.list(self.objects, prefix=prefix) for entry in batch]

    async def _get(self, path: str) -> dict[str, Any] | None:
        import obstore

        try:
            found = await obstore.get_async(self.objects, path)
        except FileNotFoundError:
            return None
        content: dict[str, Any] = json.loads(bytes(await found.bytes_async()))
        return content

    async def _create(self, path: str, content: Mapping[str, Any]) -> bool:
        """Whether the object was absent, and so is ours."""
        import obstore

        data = json.dumps(content, ensure_ascii=False).encode()
        try:
            await obstore.put_async(self.objects, path, data, mode="create")
        except obstore.exceptions.AlreadyExistsError:
            return False
        return True


class Account:
    """The budget of one run: at most ``limit`` queries and ``max_usd`` US dollars, over all of its attempts.

    A query counts once it is reserved, whether its answer is then bought or was in the store: so what a budget buys
    does not depend on what others have bought before. Money is charged at its worst until the answer is known.
    """

    def __init__(self, store: Store, name: str, limit: int, max_usd: float | None, price: Price) -> None:
        self.queries = 0
        self.answers: dict[str, Reply] = {}  # those that the budget has been charged for
        self._store, self._name, self._price = store, name, price
        self._limit, self._max_usd = limit, max_usd
        self._attempts: dict[str, list[float]] = {}  # key -> worst cost of each query
        self._held: list[Ask] = []  # not reserved yet, but kept free for questions on their way
        self._charged = 0  # trillionths of a dollar: integers, so that the order of sums does not matter

    async def remember(self) -> None:
        """Charge what earlier attempts at the run have reserved."""
        self._attempts = await self._store.reservations(self._name)
        self.queries = sum(map(len, self._attempts.values()))
        self._charged = sum(exact(worst) for attempts in self._attempts.values() for worst in attempts)
        for key, reply in (await self._store.answers(self._attempts)).items():
            self.settle(key, reply)

    def attempts(self, key: str) -> int:
        return len(self._attempts.get(key, ()))

    def fits(self, asks: Sequence[Ask]) -> bool:
        """Whether the budget has room for the asks on top of all that is on its way, should each cost its worst."""
        if self.queries + len(self._held) + len(asks) > self._limit:
            return False
        worst = sum(exact(ask.worst_usd) for ask in [*self._held, *asks])
        return self._max_usd is None or self._charged + worst <= exact(self._max_usd)

    def hold(self, asks: Sequence[Ask]) -> None:
        """Keep room for the asks until each is dropped."""
        self._held += asks

    def drop(self, ask: Ask) -> None:
        self._held.remove(ask)

    async def reserve(self, ask: Ask) -> None:
        """Count a query, durably, before it is sent; ``fits`` or ``hold`` has said that there is room."""
        attempts = self._attempts.setdefault(ask.key, [])
        attempts.append(ask.worst_usd)
        self.queries += 1
        self._charged += exact(ask.worst_usd)
        await self._store.reserve(self._name, ask.key, len(attempts), ask.worst_usd)

    async def release(self, ask: Ask) -> None:
        """Take back the last query of an ask: the provider has said that it will not bill it."""
        await self._store.release(self._name, ask.key, self.attempts(ask.key))
        self._charged -= exact(self._attempts[ask.key].pop())
        self.queries -= 1

    def settle(self, key: str, reply: Reply) -> None:
        """Charge an answer's cost in place of the worst that its last query could have cost."""
        self._charged += exact(self.cost(reply)) - exact(self._attempts[key][-1])
        self.answers[key] = reply

    def cost(self, reply: Reply) -> float:
        """US dollars."""
        return cost(self._price, reply.prompt_tokens, reply.completion_tokens)


def exact(usd: float) -> int:
    """US dollars in trillionths, far below any price."""
    return round(usd * 1e12)


def open_store(location: str) -> Store:
    """The store at a local path or an object-store URL (s3://, gs://).

    Raises UserError when the location cannot be opened.
    """
    try:
        return Store(storage.object_store(storage.locate(location)))
    except Exception as error:  # obstore raises its own and Python's, by kind of location
        raise UserError(f"teacher.store {location}: cannot be opened: {str(error).splitlines()[0]}") from error


def _reservation(account: str, key: str, attempt: int) -> str:
    return f"accounts/{account}/{key}-{attempt}.json"


def _attempt(path: str) -> tuple[str, int]:
    """Key and attempt number of a reservation's path."""
    key, _, number = path.rpartition("/")[2].removesuffix(".json").rpartition("-")
    return key, int(number)


async def _gather(read: Callable[[str], Awaitable[T]], names: Iterable[str]) -> dict[str, T]:
    """Name -> what ``read`` gives, a few at a time."""
    slots = asyncio.Semaphore(READS)

    async def one(name: str) -> tuple[str, T]:
        async with slots:
            return name, await read(name)

    return dict(await asyncio.gather(*map(one, names)))
