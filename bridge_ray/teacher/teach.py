"""Stage *teach*: walk down the ranking and buy rationales until the budget ends. The only stage that spends."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bridge_ray import records, storage
from bridge_ray.answers import prompts
from bridge_ray.config import Budget, Corpus, SharedAccount, Teacher
from bridge_ray.errors import Outage, UserError
from bridge_ray.objects import Store, open_store
from bridge_ray.progress import Task
from bridge_ray.selection.large.run import Inputs
from bridge_ray.selection.rank import examples_in_budget
from bridge_ray.selection.select import describe_bought
from bridge_ray.stage import Stage, Work
from bridge_ray.teacher import provider
from bridge_ray.teacher.asks import asks, price_of
from bridge_ray.teacher.buy import Counters, Purchases, Settings, buy
from bridge_ray.teacher.ledger import Account, Cap

IN_VAIN = 30  # questions of which not one is answered as the corpus has it: no teacher worth its price does that
SELDOM = 0.01  # of the questions, that a provider may fail to answer


class Unpaid(UserError):
    """The account that pays for several runs has no room for what a run needs."""


@dataclass(frozen=True)
class Payer:
    """One account that pays for all trials of a sweep or cells of a frontier; ``address``: of one stand-in for them.

    Unlike a config's shared account it decides nothing that a stage makes: where it has no room, the stage ends as
    Unpaid instead of early, so a trial is the run that its config describes, whoever pays.
    """

    account: str
    cap: Cap
    address: str | None = None


@dataclass(frozen=True)
class Terms:
    """On what terms the teacher is asked: who answers, where paid answers are kept, and which account pays.

    ``account`` None: each stage that asks has an account of its own, which its budget bounds.
    """

    teacher: Teacher
    source: Corpus
    store: str
    account: SharedAccount | None = None
    payer: Payer | None = None

    @property
    def provider(self) -> str:
        """The provider's name in the keys of paid answers."""
        return provider.identity(self.teacher, self.source)


def stage(terms: Terms, budget: Budget, rows: int, corpus: Stage, select: Stage, embed: Stage) -> Stage:
    """``rows`` is the size of the training split."""
    limit = examples_in_budget(rows, budget)
    # The mode is a matter of price, and so of how far a budget in dollars goes.
    fields = {"model", "mode", "max_tokens", "temperature", "guided", "price"}
    identity: dict[str, Any] = {
        "provider": terms.provider,
        "teacher": terms.teacher.model_dump(mode="json", include=fields),
        "queries": limit,
        "max_usd": budget.max_usd,
        "prompts": [prompts.TEACH, prompts.FORMS],
    }
    if terms.account is not None:  # its cap may end the walk early
        identity["account"] = terms.account.model_dump(mode="json")
    work = partial(run, terms=terms, limit=limit, max_usd=budget.max_usd)
    return Stage("teach", 2, identity, {"corpus": corpus, "select": select, "embed": embed}, work)


def run(work: Work, terms: Terms, limit: int, max_usd: float | None) -> dict[str, Any]:
    corpus = storage.read_table(storage.join(work.inputs["corpus"], "train"))
    selection = storage.read_table(storage.join(work.inputs["select"], "selection.parquet"))
    ids = selection["id"].combine_chunks()
    # Not taken from the whole: that would join all texts of a column, and fails where they come to more than 2 GiB.
    chosen = {row["id"]: row for row in corpus.filter(pc.is_in(corpus["id"], ids)).to_pylist()}
    ranking = [chosen[number] for number in ids.to_pylist()]
    with work.progress.task("teach", limit, "queries") as task:
        purchases = purchase(ranking, terms, work, limit, max_usd, task, IN_VAIN)
    rows = pa.Table.from_pylist(purchases.rows, schema=records.RATIONALE)
    storage.write_table(storage.join(work.out, "rationales.parquet"), rows)
    inputs = Inputs(work.inputs["corpus"], work.inputs["embed"])
    return {
        **tally(purchases, limit),
        "rows": rows.num_rows,
        "verified": sum(map(bool, rows["verified"].to_pylist())),
        "errored": len(rows["error"].drop_null()),
        "guided": sum(attempts > 1 for attempts in rows["attempts"].to_pylist()),
        "selection": describe_bought(inputs, work.inputs["select"], rows.num_rows),
    }


def purchase(
    ranking: list[Mapping[str, Any]],
    terms: Terms,
    work: Work,
    limit: int,
    max_usd: float | None,
    task: Task,
    in_vain: int | None = None,
) -> Purchases:
    """Ask the teacher the questions in order, at most ``limit`` queries and ``max_usd`` US dollars, for a stage."""
    teacher = terms.teacher
    settings = Settings(
        asks=partial(asks, provider=terms.provider, teacher=teacher),
        price=price_of(teacher),
        concurrency=teacher.concurrency if teacher.mode == "chat" else limit,  # nobody waits for a batch's answers
        max_usd=max_usd,
        in_vain=in_vain,
        on_state=task.say,
        on_other=lambda run: task.say(f"waiting: run {run} asks the same"),
    )
    store = open_store(terms.store)
    account = _account(store, terms, work, limit, max_usd)

    def show(counters: Counters) -> None:
        task.set(counters.queries, live(counters, account.cap.usd))

    async def ask() -> Purchases:
        name = f"{account.name}/{account.buyer}"
        async with provider.client_of(teacher, base_url, store, name, task.say) as client:
            return await buy(ranking, client, store, account, limit, settings, show)

    address = None if terms.payer is None else terms.payer.address
    with provider.connected(teacher, terms.source, address) as base_url:
        purchases = asyncio.run(ask())
    _check_reached(terms, purchases)
    if purchases.unpaid and account.held_by_others:
        raise Outage(
            f"account {account.name}: ${account.held_by_others:.4f} of its cap of {_said(account.cap)} is reserved for "
            "queries of others that are not answered yet, and there is no room for more; run again when they are, or "
            f"give back what was lost (bridge-ray ledger release {account.name})"
        )
    if terms.payer is not None and purchases.unpaid:
        raise Unpaid(f"account {account.name}: its cap of {_said(account.cap)} is reached")
    if terms.account is not None and purchases.unpaid and not purchases.rows:
        raise UserError(
            f"budget.account {account.name}: its cap of {_said(account.cap)} is reached, and no answer in the store is "
            "of use; raise its cap, or take another account"
        )
    return purchases


def _check_reached(terms: Terms, purchases: Purchases) -> None:
    """Raise Outage where a provider that was away for a while has left questions out: others would be bought in their
    place, or they would count as wrong. A single one in a hundred may be one that it never answers."""
    if purchases.unreached > max(1, SELDOM * len(purchases.rows)):
        raise Outage(
            f"teacher.model {terms.teacher.model}: {purchases.unreached} of {len(purchases.rows)} questions got no "
            "answer, as the provider was not there for a while; paid answers are kept: run again to go on"
        )


def _said(cap: Cap) -> str:
    parts = [f"{cap.queries} queries" if cap.queries else "", f"${cap.usd:g}" if cap.usd else ""]
    return " and ".join(filter(None, parts))


def _account(store: Store, terms: Terms, work: Work, limit: int, max_usd: float | None) -> Account:
    """The account that pays: the payer's, one shared by config, or the stage's own, whose cap is the stage's budget."""
    shared = terms.account
    name, cap = account_name(shared, work.stage, work.fingerprint), Cap(limit, max_usd)
    if terms.payer is not None:
        name, cap = terms.payer.account, terms.payer.cap
    elif shared is not None:
        cap = Cap(shared.max_queries, shared.max_usd)
    # A batch that is found again says what has become of its own queries, and nothing of those asked one by one.
    buyer = work.fingerprint if terms.teacher.mode == "chat" else f"{work.fingerprint}-batch"
    return Account(store, name, cap, buyer=buyer, run=work.run, model=terms.teacher.model)


def account_name(shared: SharedAccount | None, stage: str, fingerprint: str) -> str:
    """Which account pays for a stage that asks the teacher."""
    return f"{stage}-{fingerprint}" if shared is None else shared.name


def live(counters: Counters, cap_usd: float | None) -> str:
    """The money's part of the progress line."""
    most = "" if cap_usd is None else f" of ${cap_usd:.2f}"
    return f"spent ${counters.spent_usd:.4f}, reserved ${counters.open_usd:.4f}{most}, {counters.hits} hits"


def tally(purchases: Purchases, limit: int) -> dict[str, Any]:
    """What the walk took, for the manifest: ``usd`` is what all answers in use cost, whenever they were bought."""
    return {
        "budget_queries": limit,
        "queries": purchases.queries,
        "bought": purchases.bought,
        "hits": purchases.hits,
        "spent_usd": round(purchases.spent_usd, 6),
        "usd": round(purchases.usd_total, 6),
        "open_usd": round(purchases.open_usd, 6),
    }
