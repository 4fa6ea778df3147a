"""The walk that buys rationales: down the ranking, under a hard budget, each answer paid for once.

Which rows are bought does not depend on timing. A row starts only when the worst case of every row in flight and its
own fits the budget; near the budget's end, where it does not, rows go one at a time. So the outcome is always that of
asking one question after another, and the budget holds whatever happens: queries are reserved on disk before they
leave, and one that may have been billed stays counted.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bridge_ray.answers.extract import extract, split_rationale
from bridge_ray.answers.verify import matches
from bridge_ray.config import Price
from bridge_ray.errors import UserError
from bridge_ray.teacher.client import Client, Failure
from bridge_ray.teacher.prices import worst_cost
from bridge_ray.teacher.store import Account, Ask, Messages, Reply, Store, answer_key, exact

GIVE_UP = 10  # failures in a row after which the provider is taken to be down

Question = Mapping[str, Any]  # a row of records.EXAMPLE
Row = dict[str, Any]  # of records.RATIONALE


@dataclass(frozen=True)
class Settings:
    """How to ask.

    ``provider`` names who answers, in keys: the base_url, or a stand-in's identity. ``guided`` writes the second
    ask of a question that was answered wrongly, given the gold answer; None: no second ask. ``max_usd`` is in
    US dollars.
    """

    provider: str
    price: Price
    first: Callable[[Question], Messages]
    guided: Callable[[Question, str], Messages] | None = None
    concurrency: int = 8
    max_usd: float | None = None


@dataclass(frozen=True)
class Counters:
    """Where a walk stands.

    ``queries`` counts against the budget: every ask that is used or may have been billed, this run's and earlier
    ones'. ``bought`` were paid for in this run, for ``spent_usd``; ``hits`` were there already. ``usd_total`` is what
    all answers in use cost, whenever that was.
    """

    queries: int
    bought: int
    hits: int
    spent_usd: float
    usd_total: float


@dataclass(frozen=True)
class Purchases(Counters):
    """A finished walk. ``rows`` have the schema records.RATIONALE and the ranking's order."""

    rows: list[Row]


@dataclass(frozen=True)
class Judged:
    """An outcome and what it is worth; ``verified`` is None where there is no gold answer to compare with."""

    outcome: Reply | Failure
    rationale: str | None = None
    answer: str | None = None
    verified: bool | None = False


async def buy(
    ranking: Sequence[Question],
    client: Client,
    store: Store,
    account: str,
    limit: int,
    settings: Settings,
    on_progress: Callable[[Counters], None],
) -> Purchases:
    """Ask the questions in order until ``limit`` queries or ``settings.max_usd`` are used up.

    A walk that was interrupted goes on under the same ``account``, and one that was finished buys nothing again.
    Raises UserError when the provider refuses the key or the model, or seems to be down; answers bought by then are
    kept, and so are those that were on their way.
    """
    budget = Account(store, account, limit, settings.max_usd, settings.price)
    await budget.remember()
    walk = _Walk(client, store, budget, settings, on_progress)
    rows = await walk.run(ranking)
    return Purchases(**asdict(walk.counters()), rows=rows)


class _Walk:
    def __init__(
        self,
        client: Client,
        store: Store,
        account: Account,
        settings: Settings,
        on_progress: Callable[[Counters], None],
    ) -> None:
        self._client, self._store, self._account = client, store, account
        self._settings, self._on_progress = settings, on_progress
        self._tasks: list[asyncio.Task[Row | None]] = []
        self._running: set[asyncio.Task[Row | None]] = set()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # two rows may ask the same
        self._bought: set[str] = set()
        self._hits: set[str] = set()
        self._spent = self._total = 0  # see store.exact
        self._closed = False  # no ask that has no room held for it may leave any more
        self._failures = 0  # in a row

    async def run(self, ranking: Sequence[Question]) -> list[Row]:
        try:
            for question in ranking:
                await self._start(question)
            await self._settled(self._running, asyncio.FIRST_EXCEPTION)
            return [row for row in (task.result() for task in self._tasks) if row is not None]
        finally:
            self._closed = True
            # What is on its way when something fails is paid for: let it come and be stored.
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start(self, question: Question) -> None:
        """Start a row once its worst case fits; where it never will, let the row have what is left, alone."""
        asks = self._asks(question)
        while self._running and (len(self._running) >= self._settings.concurrency or not self._room(asks)):
            await self._settled(self._running, asyncio.FIRST_COMPLETED)
        held = self._new(asks) if self._room(asks) else []
        self._account.hold(held)
        task = asyncio.create_task(self._row(question, asks, held.copy()))
        self._tasks.append(task)
        self._running.add(task)
        if not held:
            await self._settled({task}, asyncio.FIRST_COMPLETED)

    async def _settled(self, tasks: set[asyncio.Task[Row | None]], when: str) -> None:
        """Wait for rows, and raise what one of them raised."""
        if not tasks:
            return
        finished, _ = await asyncio.wait(tasks, return_when=when)
        self._running -= finished
        for task in finished:
            task.result()

    def _asks(self, question: Question) -> list[Ask]:
        """The first ask, and the guided one if it may come to that."""
        writers = [self._settings.first(question)]
        if self._settings.guided is not None and question["answer"] is not None:
            writers.append(self._settings.guided(question, question["answer"]))
        return [self._ask_of(messages) for messages in writers]

    def _ask_of(self, messages: Messages) -> Ask:
        key = answer_key(self._settings.provider, self._client.model, messages, self._client.parameters)
        return Ask(key, messages, worst_cost(self._settings.price, messages, self._client.max_tokens))

    def _new(self, asks: Sequence[Ask]) -> list[Ask]:
        return [ask for ask in asks if ask.key not in self._account.answers]

    def _room(self, asks: Sequence[Ask]) -> bool:
        return not self._closed and self._account.fits(self._new(asks))

    async def _row(self, question: Question, asks: Sequence[Ask], held: list[Ask]) -> Row | None:
        """Ask until an answer is right; None when the budget has no room for the question."""
        judged: list[Judged] = []
        try:
            for ask in asks:
                outcome = await self._outcome(ask, held)
                if outcome is None:
                    break
                judged.append(judge(question, outcome))
                if judged[-1].verified or isinstance(outcome, Failure):
                    break
        finally:
            self._drop(held)
        if not judged:
            return None
        self._on_progress(self.counters())
        attempts = sum(self._account.attempts(ask.key) for ask in asks[: len(judged)])
        return record(question, judged, attempts, self._account.cost)

    async def _outcome(self, ask: Ask, held: list[Ask]) -> Reply | Failure | None:
        """The account's own answer, or a stored one, or a bought one; None when there is no room for it."""
        async with self._locks[ask.key]:
            if ask.key in self._account.answers:
                return self._use(ask.key, self._hits)
            stored = await self._store.answer(ask.key)
            if stored is None or not self._account.attempts(ask.key):
                if not self._take(ask, held):
                    return None
                await self._account.reserve(ask)
            if stored is None:
                return await self._pay(ask, held)
            self._account.settle(ask.key, stored)
            return self._use(ask.key, self._hits)

    def _take(self, ask: Ask, held: list[Ask]) -> bool:
        """Whether the ask may leave. Where one may not, no new row may: what is bought is the ranking's beginning."""
        if ask in held:
            held.remove(ask)
            self._account.drop(ask)
            return True
        self._closed = self._closed or not self._account.fits([ask])
        return not self._closed

    def _drop(self, held: list[Ask]) -> None:
        while held:
            self._account.drop(held.pop())

    def _use(self, key: str, origin: set[str]) -> Reply:
        """The account's answer, counted once as what it is: bought or a hit."""
        reply = self._account.answers[key]
        if key not in self._bought and key not in self._hits:
            origin.add(key)
            usd = exact(self._account.cost(reply))
            self._total += usd
            self._spent += usd if origin is self._bought else 0
        return reply

    async def _pay(self, ask: Ask, held: list[Ask]) -> Reply | Failure:
        async def again() -> bool:
            if not self._account.fits([ask]):
                self._drop(held)  # a second try comes before a second ask
            room = not self._closed and self._account.fits([ask])
            if room:
                await self._account.reserve(ask)
            return room

        outcome = await self._client.ask(ask.messages, again)
        if isinstance(outcome, Failure):
            await self._failed(ask, outcome)
            return outcome
        await self._store.keep(ask.key, outcome)
        self._account.settle(ask.key, outcome)
        self._failures = 0
        return self._use(ask.key, self._bought)

    async def _failed(self, ask: Ask, failure: Failure) -> None:
        if not failure.billed:
            await self._account.release(ask)
        self._failures += 1
        if failure.fatal or self._failures >= GIVE_UP:
            raise UserError(
                f"teacher.model {self._client.model}: {failure.error}; paid answers are kept: run again to go on"
            )

    def counters(self) -> Counters:
        account, spent, total = self._account, self._spent / 1e12, self._total / 1e12
        return Counters(account.queries, len(self._bought), len(self._hits), spent, total)


def judge(question: Question, outcome: Reply | Failure) -> Judged:
    """Read the answer of a usable reply and compare it with the gold one."""
    if isinstance(outcome, Failure) or outcome.error is not None:
        return Judged(outcome)
    gold, answer_type = question["answer"], question["answer_type"]
    answer = extract(outcome.text, answer_type, question["options"] or ())
    verified = None if gold is None else matches(answer, gold, answer_type)
    return Judged(outcome, split_rationale(outcome.text), answer, verified)


def record(question: Question, judged: Sequence[Judged], attempts: int, cost: Callable[[Reply], float]) -> Row:
    """The row of a question: its right answer, else its first usable one; tokens and US dollars of all its asks."""
    best = max(judged, key=lambda one: (bool(one.verified), one.outcome.error is None))
    replies = [one.outcome for one in judged if isinstance(one.outcome, Reply)]
    usable = best.outcome.error is None
    return {
        "id": question["id"],
        "rationale": best.rationale,
        "answer": best.answer,
        "source": "teacher" if usable else None,
        "verified": best.verified,
        "attempts": attempts,
        "tokens": sum(reply.completion_tokens for reply in replies),
        "model": best.outcome.model if isinstance(best.outcome, Reply) else None,
        "model_hash": None,
        "cost_usd": sum(map(cost, replies)),
        "error": best.outcome.error,
    }
