"""What a walk down the ranking would buy, without asking anybody: what is expected, and the most that it can come to.

It follows the walk of ``buy``: a question takes a query, or two where the first answer is wrong and the second is
guided; an answer that is in the store takes a query of the budget too, at its price, and is not paid again.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal

from bridge_ray.config import Price
from bridge_ray.teacher.answers import Ask, Reply
from bridge_ray.teacher.ledger import Cap, exact
from bridge_ray.teacher.prices import cost, input_bound

BYTES_PER_TOKEN = 4  # of English prose; for what is expected, never for a bound

Ends = Literal["queries", "usd", "account"]


@dataclass(frozen=True)
class Amount:
    """Queries and what they take. ``usd`` is in US dollars; tokens are None where they were not recorded."""

    queries: int = 0
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    usd: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """What a walk would take from the teacher.

    ``paid`` are answers in the store that it would use; None where it is not known yet which. ``expected`` and
    ``worst`` would be bought. ``ends`` is what the walk runs out of first, if all goes as expected.
    """

    paid: Amount | None
    expected: Amount
    worst: Amount
    ends: Ends = "queries"


@dataclass(frozen=True)
class Bounds:
    """What ends a walk: at most ``queries`` and ``usd`` (US dollars) for all that it uses, paid before or not, and the
    room that is left in a shared account for what it buys."""

    queries: int
    usd: float | None
    account: Cap


@dataclass(frozen=True)
class Rates:
    """What a query is taken to cost. A reply of ``reply_tokens`` is expected; none is longer than ``max_tokens``."""

    price: Price
    reply_tokens: float
    max_tokens: int

    def expected(self, asks: Collection[Ask]) -> Amount:
        size = sum(len(message["content"].encode()) for ask in asks for message in ask.messages)
        prompt, reply = size / BYTES_PER_TOKEN, self.reply_tokens * len(asks)
        return Amount(len(asks), round(prompt), round(reply), cost(self.price, prompt, reply))

    def worst(self, asks: Collection[Ask]) -> Amount:
        prompt = sum(input_bound(ask.messages) for ask in asks)
        return Amount(len(asks), prompt, self.max_tokens * len(asks), math.fsum(ask.worst_usd for ask in asks))

    def paid(self, replies: Collection[Reply]) -> Amount:
        prompt = sum(reply.prompt_tokens for reply in replies)
        completion = sum(reply.completion_tokens for reply in replies)
        return Amount(len(replies), prompt, completion, cost(self.price, prompt, completion))


def of_ranking(
    ranking: Sequence[Sequence[Ask]], replies: Mapping[str, Reply], bounds: Bounds, rates: Rates
) -> Estimate:
    """For questions that are known: the asks that each can come to, in the ranking's order.

    ``replies`` are the answers in the store, by key.
    """
    walk = _Walk(bounds, rates)
    walk.run(ranking, replies)
    distinct = list({asks[0].key: asks for asks in ranking}.values())  # equal questions are asked once
    certain = _certain(ranking, replies, bounds.queries)
    open_asks = {ask.key: ask for asks in distinct[: bounds.queries] for ask in asks if ask.key not in replies}
    worst = _dearest(open_asks.values(), bounds.queries - len(certain), bounds, rates)
    paid, expected = rates.paid(walk.used.values()), rates.expected(walk.bought.values())
    return Estimate(paid, expected, worst, walk.ends)


def of_average(corpus: Sequence[Sequence[Ask]], bounds: Bounds, rates: Rates) -> Estimate:
    """For questions that are not chosen yet: each like the corpus's average, at worst those that cost most."""
    first = [asks[0] for asks in corpus]
    size = sum(len(message["content"].encode()) for ask in first for message in ask.messages)
    prompt = size / BYTES_PER_TOKEN / len(first)
    each = cost(rates.price, prompt, rates.reply_tokens)
    most = math.fsum(ask.worst_usd for ask in first) / len(first)
    rooms: dict[Ends, float] = {
        "queries": bounds.queries,
        "usd": _affordable(bounds.usd, most, each),
        "account": min(_affordable(bounds.account.usd, most, each), _or_infinite(bounds.account.queries)),
    }
    ends = min(rooms, key=rooms.__getitem__)
    count = int(rooms[ends])
    expected = Amount(count, round(prompt * count), round(rates.reply_tokens * count), each * count)
    every = [ask for asks in corpus for ask in asks]
    return Estimate(None, expected, _dearest(every, bounds.queries, bounds, rates), ends)


class _Walk:
    """A walk in which an answer that is not in the store is as long as expected, and right at once."""

    def __init__(self, bounds: Bounds, rates: Rates) -> None:
        self.used: dict[str, Reply] = {}  # from the store
        self.bought: dict[str, Ask] = {}
        self.ends: Ends = "queries"
        self._bounds, self._rates = bounds, rates
        self._charged = self._paid = 0  # see ledger.exact

    def run(self, ranking: Sequence[Sequence[Ask]], replies: Mapping[str, Reply]) -> None:
        for asks in ranking:
            for ask in asks:
                reply = replies.get(ask.key)
                if ask.key not in self.used and ask.key not in self.bought:
                    if (full := self._full(ask, reply)) is not None:
                        self.ends = full
                        return
                    self._take(ask, reply)
                if reply is None:
                    break

    def _full(self, ask: Ask, reply: Reply | None) -> Ends | None:
        """What has no room left for the ask at its worst."""
        worst, account = exact(ask.worst_usd), self._bounds.account
        if len(self.used) + len(self.bought) >= self._bounds.queries:
            return "queries"
        if self._bounds.usd is not None and self._charged + worst > exact(self._bounds.usd):
            return "usd"
        if reply is not None:
            return None
        too_many = len(self.bought) >= _or_infinite(account.queries)
        too_dear = account.usd is not None and self._paid + worst > exact(account.usd)
        return "account" if too_many or too_dear else None

    def _take(self, ask: Ask, reply: Reply | None) -> None:
        if reply is not None:
            self.used[ask.key] = reply
            self._charged += exact(self._rates.paid([reply]).usd)
        else:
            self.bought[ask.key] = ask
            usd = exact(self._rates.expected([ask]).usd)
            self._charged += usd
            self._paid += usd


def _certain(ranking: Sequence[Sequence[Ask]], replies: Mapping[str, Reply], limit: int) -> set[str]:
    """Keys of the stored answers that a walk of ``limit`` queries uses, however the other questions are answered."""
    certain: set[str] = set()
    left = limit
    for asks in ranking:
        certain |= {ask.key for ask in takewhile(lambda ask: ask.key in replies, asks[:left])}
        left -= len(asks)
        if left <= 0:
            break
    return certain


def _dearest(asks: Collection[Ask], count: int, bounds: Bounds, rates: Rates) -> Amount:
    """The most that ``count`` of the asks can take, within the bounds: what the ledger would set aside for them."""
    count = int(min(count, _or_infinite(bounds.account.queries)))
    amount = rates.worst(heapq.nlargest(count, asks, key=lambda ask: ask.worst_usd))
    return replace(amount, usd=min(amount.usd, _or_infinite(bounds.usd), _or_infinite(bounds.account.usd)))


def _affordable(room: float | None, most: float, each: float) -> float:
    """How many queries of ``each`` US dollars leave while their worst case fits into the room."""
    if room is None or (each == 0 and most <= room):
        return math.inf
    return 0 if room < most else 1 + math.floor((room - most) / each + 1e-9)


def _or_infinite(bound: float | None) -> float:
    return math.inf if bound is None else bound
