"""What a run may use of the teacher, and the account that pays for it.

The *budget* counts every answer that the run uses, at its price, whoever paid for it: so which rows a budget buys
does not depend on what others have bought before. The *account* counts what is really paid: an answer that is there
already costs it nothing. With an account of its own, a run cannot owe more than its budget; several runs can share an
account, and then its cap bounds them together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from bridge_ray.config import Price
from bridge_ray.teacher.answers import Ask, Reply
from bridge_ray.teacher.ledger import Account, exact
from bridge_ray.teacher.prices import cost


class Budget:
    """At most ``limit`` queries and ``max_usd`` US dollars for all that a run uses.

    A query counts at its worst cost from when it is taken until its answer is known. Queries of an earlier attempt at
    the run whose fate was not learned count at their worst from the start.
    """

    def __init__(self, account: Account, limit: int, max_usd: float | None, price: Price) -> None:
        self.answers: dict[str, Reply] = {}  # those that have been used
        self.attempts: defaultdict[str, int] = defaultdict(int)  # key -> its queries
        self._account, self._limit, self._max_usd, self._price = account, limit, max_usd, price
        self._open: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)  # key -> id and worst of each query
        self._held: list[Ask] = []  # not taken yet, but kept free for questions on their way
        self._charged = self.queries = 0  # money in trillionths of a US dollar, see ledger.exact
        for query in account.own():
            self._open[query.key].append((query.id, query.worst))
            self._charge(query.key, query.worst)

    def asked(self, key: str) -> bool:
        """Whether a query for this key is open."""
        return bool(self._open[key])

    def fits(self, asks: Sequence[Ask]) -> bool:
        """Whether the run may use the asks on top of all that is on its way, should each cost its worst."""
        if self.queries + len(self._held) + len(asks) > self._limit:
            return False
        worst = sum(exact(ask.worst_usd) for ask in [*self._held, *asks])
        return self._max_usd is None or self._charged + worst <= exact(self._max_usd)

    def payable(self, asks: Sequence[Ask]) -> bool:
        """Whether the account has room for the asks on top of all that is on its way."""
        return self._account.fits([exact(ask.worst_usd) for ask in [*self._held, *asks]])

    def hold(self, asks: Sequence[Ask]) -> None:
        """Keep room for the asks until each is dropped."""
        self._held += asks

    def drop(self, ask: Ask) -> None:
        self._held.remove(ask)

    async def reserve(self, ask: Ask) -> bool:
        """Set the worst cost of a query aside, durably, before it is sent; False when the account has no room."""
        worst = exact(ask.worst_usd)
        self._charge(ask.key, worst)
        name = await self._account.reserve(ask.key, ask.worst_usd)
        if name is None:
            self._charge(ask.key, -worst, -1)
            return False
        self._open[ask.key].append((name, worst))
        return True

    async def settle(self, key: str, reply: Reply) -> None:
        """The last query of the key was answered: charge its cost in place of its worst."""
        name, worst = self._open[key].pop()
        usd = self.cost(reply)
        self._charge(key, exact(usd) - worst, 0)
        self.answers[key] = reply
        await self._account.settle(name, usd, reply.prompt_tokens, reply.completion_tokens)

    def hit(self, key: str, reply: Reply) -> None:
        """Use an answer that was there: it counts as a query at its price, and is not paid again."""
        self._charge(key, exact(self.cost(reply)))
        self.answers[key] = reply

    async def release(self, key: str, why: str) -> None:
        """Take back the last query of a key: the provider will not bill it."""
        name, worst = self._open[key].pop()
        self._charge(key, -worst, -1)
        await self._account.release(name, why)

    async def lose(self, key: str, why: str) -> None:
        """Keep the last query of a key at its worst: whether it was billed will not be learned."""
        await self._account.lose(self._open[key][-1][0], why)

    def cost(self, reply: Reply) -> float:
        """US dollars."""
        return cost(self._price, reply.prompt_tokens, reply.completion_tokens)

    def _charge(self, key: str, money: int, queries: int = 1) -> None:
        self._charged += money
        self.queries += queries
        self.attempts[key] += queries
