"""The walk that buys rationales: down the ranking, under a hard budget, each answer paid for once.

Which rows are bought does not depend on timing. A row starts only when the worst case of every row in flight and its
own fits the budget; near the budget's end, where it does not, rows go one at a time. So the outcome is always that of
asking one question after another, and the budget holds whatever happens: queries are reserved in the account's
ledger before they leave, and one that may have been billed stays counted.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bridge_ray.answers.extract import extract, split_rationale
from bridge_ray.answers.verify import matches
from bridge_ray.claims import BEAT, LAPSE, WATCH, Claims
from bridge_ray.config import Price
from bridge_ray.errors import Outage, UserError
from bridge_ray.objects import Store
from bridge_ray.teacher import answers, sent
from bridge_ray.teacher.answers import Ask, Reply
from bridge_ray.teacher.asks import Question
from bridge_ray.teacher.batch import BatchClient
from bridge_ray.teacher.budget import Budget
from bridge_ray.teacher.client import Client, Failure
from bridge_ray.teacher.ledger import Account, exact
from bridge_ray.teacher.sent import Sent

GIVE_UP = 10  # failures in a row after which the provider is taken to be down

Row = dict[str, Any]  # of records.RATIONALE


@dataclass(frozen=True)
class Settings:
    """How to ask.

    ``asks`` writes what may be asked of a question: first this, then, if the answer is wrong, the next. ``price`` is
    what they cost, ``max_usd`` in US dollars; ``beat`` and ``lapse`` (seconds) are of claims. Where of the first
    ``in_vain`` questions not one has a rationale that holds, no others are asked: something is wrong with how they are.
    ``on_state`` is called with a line on where an earlier batch stands that is waited for, ``on_other`` with the run
    that is at this walk already, and is waited for.
    """

    asks: Callable[[Question], list[Ask]]
    price: Price
    concurrency: int = 8
    max_usd: float | None = None
    in_vain: int | None = None
    beat: float = BEAT
    lapse: float = LAPSE
    on_state: Callable[[str], None] = lambda line: None
    on_other: Callable[[str | None], None] = lambda run: None


@dataclass(frozen=True)
class Counters:
    """Where a walk stands.

    ``queries`` counts against the budget: every ask that is used or may have been billed, this run's and earlier
    ones'. ``bought`` were paid for in this run, for ``spent_usd``; ``hits`` were there already. ``usd_total`` is what
    all answers in use cost, whenever that was; ``open_usd`` the worst that the account's open queries can cost.
    """

    queries: int
    bought: int
    hits: int
    spent_usd: float
    usd_total: float
    open_usd: float


@dataclass(frozen=True)
class Purchases(Counters):
    """A finished walk. ``rows`` have the schema records.RATIONALE and the ranking's order.

    ``unpaid``: the account had no room for a query that the budget had room for. ``unreached`` counts the rows that
    the provider did not answer, and may answer another time.
    """

    rows: list[Row]
    unpaid: bool
    unreached: int


@dataclass(frozen=True)
class Judged:
    """An outcome and what it is worth; ``verified`` is None where there is no gold answer to compare with."""

    outcome: Reply | Failure
    rationale: str | None = None
    answer: str | None = None
    verified: bool | None = False


async def buy(
    ranking: Sequence[Question],
    client: Client | BatchClient,
    store: Store,
    account: Account,
    limit: int,
    settings: Settings,
    on_progress: Callable[[Counters], None],
) -> Purchases:
    """Ask the questions in order until ``limit`` queries or ``settings.max_usd`` are used up, or the account is.

    A walk that was interrupted goes on under the same account and buyer, and one that was finished buys nothing again.
    Raises UserError when the provider refuses the key or the model, or its answers are of no use
    (``settings.in_vain``), and Outage when it seems to be down; answers bought by then are kept, and so are those that
    were on their way.
    """
    async with Claims(store, settings.beat, settings.lapse, account.run) as claims:
        # Another process with this account and buyer would count our open queries as its own.
        await claims.wait(f"walk-{account.name}-{account.buyer}", settings.on_other)
        budget = Budget(await account.open(), limit, settings.max_usd, settings.price)
        if isinstance(client, BatchClient):
            await _recover(client, store, account, budget)
        walk = _Walk(client, store, claims, account, budget, settings, on_progress)
        rows = await walk.run(ranking)
    return Purchases(**asdict(walk.counters()), rows=rows, unpaid=walk.unpaid, unreached=walk.unreached)


async def _recover(client: BatchClient, store: Store, account: Account, budget: Budget) -> None:
    """Take up what an earlier attempt has left with the provider: answers are kept, and refused queries released, as
    are those that were never sent."""
    told = set()
    async for key, outcome in client.recover():
        told.add(key)
        if isinstance(outcome, Reply):
            await answers.keep(store, key, outcome)
        elif not outcome.billed and budget.asked(key):
            await budget.release(key, outcome.error)
    own = [one.keys for one in (await sent.batches(store)).values() if one.owner == client.account]
    sent_or_lost = told.union({query.key for query in account.own() if query.lost}, *own)
    never = [query.key for query in account.own() if query.key not in sent_or_lost]
    await asyncio.gather(*[budget.release(key, "not sent") for key in never])


class _Earlier:
    """Others' batches that may have what is asked now: they were stopped, or killed, and the batch goes on."""

    def __init__(self, client: Client | BatchClient, store: Store, on_state: Callable[[str], None]) -> None:
        self._client, self._store, self._on_state = client, store, on_state
        self._sent: dict[str, Sent] = {}
        self._read = 0.0  # when the lists began to be read
        self._reading = asyncio.Lock()
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by nonce

    async def take_up(self, key: str) -> None:
        """Wait for the batches that the key was in, and keep their answers. Raises UserError where they cannot be had.

        Call it once the key is ours to buy: nobody can put it into another batch from then on.
        """
        now = time.monotonic()
        async with self._reading:
            if self._read <= now:
                self._read = time.monotonic()
                self._sent |= await sent.batches(self._store, self._sent)
        own = self._client.account if isinstance(self._client, BatchClient) else None  # what came of it is known
        others = [nonce for nonce, one in self._sent.items() if key in one.keys and one.owner != own]
        for nonce in others:
            if nonce not in self._tasks:
                self._tasks[nonce] = asyncio.create_task(self._keep(nonce))
        await asyncio.gather(*[self._tasks[nonce] for nonce in others])

    async def _keep(self, nonce: str) -> None:
        collector = self._client
        if not isinstance(collector, BatchClient):
            collector = BatchClient(collector, self._store, "", on_state=self._on_state)
        for key, reply in (await collector.replies(nonce)).items():
            await answers.keep(self._store, key, reply)

    def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()


class _Walk:
    def __init__(
        self,
        client: Client | BatchClient,
        store: Store,
        claims: Claims,
        account: Account,
        budget: Budget,
        settings: Settings,
        on_progress: Callable[[Counters], None],
    ) -> None:
        self._client, self._store, self._claims = client, store, claims
        self._account, self._budget = account, budget
        self._earlier = _Earlier(client, store, settings.on_state)
        self._settings, self._on_progress = settings, on_progress
        self._tasks: list[asyncio.Task[Row | None]] = []
        self._running: set[asyncio.Task[Row | None]] = set()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # two rows may ask the same
        self._bought: set[str] = set()
        self._hits: set[str] = set()
        self._spent = self._total = 0  # see ledger.exact
        self._closed = False  # the budget has ended: no ask that has no room held for it may be used any more
        self._over = False  # nothing that others make is waited for any more
        self.unpaid = False  # the account has: answers that are there may be used, none is bought
        self._failures = 0  # in a row
        self.unreached = 0  # rows
        self._in_vain: int | None = 0  # questions without a rationale that holds; None once one has one

    async def run(self, ranking: Sequence[Question]) -> list[Row]:
        try:
            for question in ranking:
                await self._start(question)
            await self._settled(self._running, asyncio.FIRST_EXCEPTION)
            return [row for row in (task.result() for task in self._tasks) if row is not None]
        finally:
            self._closed = self._over = True
            self._earlier.stop()
            unsent: list[str] = []
            if isinstance(self._client, BatchClient):  # a batch goes on without us, and is taken up by the next run
                unsent = self._client.withdraw()
                for task in self._tasks:
                    task.cancel()
            # What is on its way when something fails is paid for: let it come and be stored.
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for key in filter(self._budget.asked, unsent):
                await self._budget.release(key, "not sent")

    async def _start(self, question: Question) -> None:
        """Start a row once its worst case fits; where it never will, let the row have what is left, alone."""
        asks = self._settings.asks(question)
        while self._running and (len(self._running) >= self._settings.concurrency or not self._room(asks)):
            await self._settled(self._running, asyncio.FIRST_COMPLETED)
        held = self._new(asks) if self._room(asks) else []
        self._budget.hold(held)
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

    def _new(self, asks: Sequence[Ask]) -> list[Ask]:
        return [ask for ask in asks if ask.key not in self._budget.answers]

    def _room(self, asks: Sequence[Ask]) -> bool:
        new = self._new(asks)
        return not (self._closed or self.unpaid) and self._budget.fits(new) and self._budget.payable(new)

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
                    self.unreached += isinstance(outcome, Failure) and outcome.retry
                    break
        finally:
            self._drop(held)
        if not judged:
            return None
        self._on_progress(self.counters())
        attempts = sum(self._budget.attempts[ask.key] for ask in asks[: len(judged)])
        row = record(question, judged, attempts, self._budget.cost)
        self._check_use(question, row)
        return row

    def _check_use(self, question: Question, row: Row) -> None:
        """Raise UserError where all that was paid for so far is of no use: cut off, or wrong by the gold answers."""
        if row["verified"] or (row["verified"] is None and row["answer"] is not None):
            self._in_vain = None
        if self._in_vain is None or isinstance(self._client, BatchClient):  # a batch is paid for when it comes
            return
        self._in_vain += 1
        if self._in_vain == self._settings.in_vain:
            gold = f"the answer is {row['answer']!r}, and {question['answer']!r} in the corpus"
            raise UserError(
                f"teacher.model {self._client.model}: of the first {self._in_vain} questions none has a rationale that "
                f"holds (id {question['key']}: {row['error'] or gold}); mend it (a longer teacher.max_tokens, another "
                "corpus.answer_type), and run again: asked otherwise, they are bought anew"
            )

    async def _outcome(self, ask: Ask, held: list[Ask]) -> Reply | Failure | None:
        """The run's own answer, or a stored one, or a bought one; None when there is no room for it."""
        async with self._locks[ask.key]:
            if ask.key in self._budget.answers:
                return self._use(ask.key, self._hits)
            if self._closed and ask not in held and not self._budget.asked(ask.key):
                return None
            stored = await answers.answer(self._store, ask.key)
            if stored is not None and self._budget.asked(ask.key):  # it came before the process that asked was killed
                await self._budget.settle(ask.key, stored)
                return self._use(ask.key, self._hits)
            stored = stored or await self._claim(ask)
            if stored is None:
                return await self._pay(ask, held)
            if not self._take(ask, held):
                return None
            self._budget.hit(ask.key, stored)
            return self._use(ask.key, self._hits)

    def _take(self, ask: Ask, held: list[Ask]) -> bool:
        """Whether the ask may be used. Where one may not, no new row may: what is used is the ranking's beginning."""
        if ask in held:
            held.remove(ask)
            self._budget.drop(ask)
            return True
        self._closed = self._closed or not self._budget.fits([ask])
        return not self._closed

    async def _claim(self, ask: Ask) -> Reply | None:
        """Wait while another process buys the answer; None when it is ours to buy."""
        while not await self._claims.take(ask.key):
            if self._over:
                raise asyncio.CancelledError
            await asyncio.sleep(WATCH)
            if (reply := await answers.answer(self._store, ask.key)) is not None:
                return reply
        # The one who had the claim before may have answered and gone since we looked, or sent it in a batch.
        reply = await answers.answer(self._store, ask.key)
        if reply is not None or self._claims.first(ask.key):
            return reply
        await self._earlier.take_up(ask.key)
        return await answers.answer(self._store, ask.key)

    def _drop(self, held: list[Ask]) -> None:
        while held:
            self._budget.drop(held.pop())

    def _use(self, key: str, origin: set[str]) -> Reply:
        """The run's answer, counted once as what it is: bought or a hit."""
        reply = self._budget.answers[key]
        if key not in self._bought and key not in self._hits:
            origin.add(key)
            usd = exact(self._budget.cost(reply))
            self._total += usd
            self._spent += usd if origin is self._bought else 0
        return reply

    async def _pay(self, ask: Ask, held: list[Ask]) -> Reply | Failure | None:
        """Buy an answer that we have claimed; None when there is no room for it."""

        async def again() -> bool:
            await self._budget.lose(ask.key, "no reply came")
            if not self._room([ask]):
                self._drop(held)  # a second try comes before a second ask
            self.unpaid = self.unpaid or (self._budget.fits([ask]) and not self._budget.payable([ask]))
            return self._room([ask]) and await self._reserve(ask)

        if not (self._take(ask, held) and await self._reserve(ask)):
            await self._claims.give_up(ask.key)
            return None
        outcome = await self._client.ask(ask, again)
        if isinstance(outcome, Failure):
            await self._failed(ask, outcome)
            return outcome
        await answers.keep(self._store, ask.key, outcome)
        await self._budget.settle(ask.key, outcome)
        self._failures = 0
        return self._use(ask.key, self._bought)

    async def _reserve(self, ask: Ask) -> bool:
        """Whether the account pays. Where it does not once, it does not for any later row."""
        self.unpaid = self.unpaid or not await self._budget.reserve(ask)
        return not self.unpaid

    async def _failed(self, ask: Ask, failure: Failure) -> None:
        await (self._budget.lose if failure.billed else self._budget.release)(ask.key, failure.error)
        await self._claims.give_up(ask.key)
        self._failures += not isinstance(self._client, BatchClient)  # a batch's failures come all at once
        if failure.fatal or self._failures >= GIVE_UP:
            kind = UserError if failure.fatal else Outage
            raise kind(
                f"teacher.model {self._client.model}: {failure.error}; paid answers are kept: run again to go on"
            )

    def counters(self) -> Counters:
        spent, total = self._spent / 1e12, self._total / 1e12
        return Counters(self._budget.queries, len(self._bought), len(self._hits), spent, total, self._account.open_usd)


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
