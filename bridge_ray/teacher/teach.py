"""Stage *teach*: walk down the ranking and buy rationales until the budget ends. The only stage that spends."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from bridge_ray import records, storage
from bridge_ray.answers import prompts
from bridge_ray.config import Budget, Corpus, Teacher
from bridge_ray.progress import Task
from bridge_ray.selection.describe import describe
from bridge_ray.selection.rank import examples_in_budget
from bridge_ray.selection.select import read_vectors
from bridge_ray.stage import Stage, Work
from bridge_ray.teacher import provider
from bridge_ray.teacher.buy import Counters, Purchases, Settings, buy
from bridge_ray.teacher.client import connect
from bridge_ray.teacher.prices import price
from bridge_ray.teacher.store import open_store


def stage(
    teacher: Teacher, budget: Budget, source: Corpus, store: str, rows: int, corpus: Stage, select: Stage, embed: Stage
) -> Stage:
    """``rows`` is the size of the training split, ``store`` where paid answers are kept for all runs."""
    limit = examples_in_budget(rows, budget)
    name = provider.identity(teacher, source)
    identity = {
        "provider": name,
        "teacher": teacher.model_dump(mode="json", include={"model", "max_tokens", "temperature", "guided", "price"}),
        "queries": limit,
        "max_usd": budget.max_usd,
        "prompts": [prompts.TEACH, prompts.FORMS],
    }
    work = partial(run, teacher=teacher, name=name, source=source, store=store, limit=limit, max_usd=budget.max_usd)
    return Stage("teach", 1, identity, {"corpus": corpus, "select": select, "embed": embed}, work)


def run(
    work: Work, teacher: Teacher, name: str, source: Corpus, store: str, limit: int, max_usd: float | None
) -> dict[str, Any]:
    corpus = storage.read_table(storage.join(work.inputs["corpus"], "train"))
    selection = storage.read_table(storage.join(work.inputs["select"], "selection.parquet"))
    ranking = corpus.take(selection["id"]).to_pylist()  # ids are positions in the training split
    with work.progress.task("teach", limit, "queries") as task:
        purchases = purchase(ranking, teacher, name, source, store, work.fingerprint, limit, max_usd, task)
    rows = pa.Table.from_pylist(purchases.rows, schema=records.RATIONALE)
    storage.write_table(storage.join(work.out, "rationales.parquet"), rows)
    hard = storage.read_table(storage.join(work.inputs["select"], "rows.parquet"))["difficulty"].to_numpy()
    domains = corpus["domain"].to_pylist()
    return {
        **tally(purchases, limit),
        "rows": rows.num_rows,
        "verified": sum(map(bool, rows["verified"].to_pylist())),
        "errored": len(rows["error"].drop_null()),
        "guided": sum(attempts > 1 for attempts in rows["attempts"].to_pylist()),
        "selection": describe(selection.slice(0, rows.num_rows), read_vectors(work.inputs["embed"]), hard, domains),
    }


def purchase(
    ranking: list[Mapping[str, Any]],
    teacher: Teacher,
    name: str,
    source: Corpus,
    store: str,
    account: str,
    limit: int,
    max_usd: float | None,
    task: Task,
) -> Purchases:
    """Ask the teacher the questions in order, under the account's limits."""
    settings = Settings(
        provider=name,
        price=price(teacher.model, teacher.price),
        first=prompts.teacher,
        guided=prompts.teacher_guided if teacher.guided else None,
        concurrency=teacher.concurrency,
        max_usd=max_usd,
    )

    def show(counters: Counters) -> None:
        note = f"${counters.usd_total:.4f} in all, ${counters.spent_usd:.4f} now, {counters.hits} hits"
        task.set(counters.queries, note)

    async def ask() -> Purchases:
        async with connect(teacher, base_url) as client:
            return await buy(ranking, client, open_store(store), account, limit, settings, show)

    with provider.connected(teacher, source) as base_url:
        return asyncio.run(ask())


def tally(purchases: Purchases, limit: int) -> dict[str, Any]:
    """What the walk took, for the manifest: ``usd`` is what all answers in use cost, whenever they were bought."""
    return {
        "budget_queries": limit,
        "queries": purchases.queries,
        "bought": purchases.bought,
        "hits": purchases.hits,
        "spent_usd": round(purchases.spent_usd, 6),
        "usd": round(purchases.usd_total, 6),
    }
