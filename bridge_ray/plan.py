"""What a run would cost, before anything is bought: queries, tokens, dollars, and local hours by stage.

The teacher is not asked and nothing is written. What is read is the corpus, the storage and the store of paid
answers, which may lie in an object store.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge_ray import config, hours, storage
from bridge_ray.objects import open_store
from bridge_ray.pipeline import Run
from bridge_ray.report.summary import count, share
from bridge_ray.selection.rank import examples_in_budget
from bridge_ray.stage import done
from bridge_ray.teacher import answers, ledger, provider
from bridge_ray.teacher.answers import Ask, Reply
from bridge_ray.teacher.asks import asks, price_of
from bridge_ray.teacher.buy import judge
from bridge_ray.teacher.estimate import BYTES_PER_TOKEN, Amount, Bounds, Estimate, Rates, of_average, of_ranking
from bridge_ray.teacher.ledger import Cap
from bridge_ray.teacher.prices import AS_OF, BATCH_DISCOUNT

SAMPLE = 1000  # stored answers that are read for the mean length of a reply, at most

Question = Mapping[str, Any]  # a row of records.EXAMPLE


@dataclass(frozen=True)
class Egress:
    """What would leave for a provider that is not our stand-in.

    ``questions`` is the most whose text is sent, with context and options; ``gold``: with the gold answer too where
    the provider's first answer is wrong.
    """

    host: str
    questions: int
    gold: bool


@dataclass(frozen=True)
class Plan:
    """``teacher`` has an estimate by stage. ``answered`` counts the training questions that the store answers."""

    run: str
    model: str
    provider: str
    price: config.Price
    price_from: str
    questions: int  # of the training split
    answer_types: Mapping[str, int]  # of all splits' questions
    with_context: int
    answered: int
    queries: int  # of the budget
    binds: str  # the field whose bound is reached first, if all goes as expected
    ranked: bool  # whether the questions to buy are known
    reply_tokens: float
    reply_tokens_from: str
    teacher: Mapping[str, Estimate]
    stages: Sequence[hours.StageHours]
    egress: Egress | None
    storage: str
    store: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"price": self.price.model_dump(mode="json")}


@dataclass(frozen=True)
class _Stored:
    """What the store holds: the ``keys`` of all answers, some ``replies`` by key, the completion tokens of a sample of
    the teacher's answers, and the room in the shared account."""

    keys: frozenset[str]
    replies: Mapping[str, Reply]
    lengths: Sequence[int]
    account: Cap


def make(run: Run) -> Plan:
    """Work the plan out.

    Raises UserError for a model without a price, and when the store cannot be read.
    """
    settings = run.config
    teacher, name = settings.teacher, provider.identity(settings.teacher, settings.corpus)
    rows = run.corpus.to_pylist()
    splits = ("train", settings.evaluate.split)
    train, test = ([row for row in rows if row["split"] == split] for split in splits)
    corpus = [asks(row, name, teacher) for row in train]
    ranking = _ranking(run)
    tests = [asks(row, name, teacher)[:1] for row in test] if _will_evaluate(run) else []
    wanted = [*([] if ranking is None else [corpus[row] for row in ranking]), *tests]
    stored = _stored(run, {ask.key for some in wanted for ask in some})
    rates, reply_tokens_from = _rates(teacher, stored.lengths)
    limit = examples_in_budget(len(train), settings.budget)
    bounds = Bounds(limit, settings.budget.max_usd, stored.account)
    if ranking is None:
        teaching = of_average(corpus, bounds, rates)
    else:
        reachable = [_reachable(train[row], corpus[row], stored.replies) for row in ranking]
        teaching = _bought_before(run) or of_ranking(reachable, stored.replies, bounds, rates)
    estimates = {"teach": teaching}
    if tests:
        unbounded = Bounds(len(tests), None, stored.account)
        estimates["evaluate"] = of_ranking(tests, stored.replies, unbounded, rates)
    return Plan(
        run=settings.name,
        model=teacher.model,
        provider=name,
        price=rates.price,
        price_from=_price_from(teacher),
        questions=len(train),
        answer_types=dict(Counter(row["answer_type"] for row in rows)),
        with_context=sum(bool(row["context"]) for row in rows),
        answered=sum(some[0].key in stored.keys for some in corpus),
        queries=limit,
        binds=_binds(settings.budget, len(train), teaching),
        ranked=ranking is not None,
        reply_tokens=round(rates.reply_tokens, 1),
        reply_tokens_from=reply_tokens_from,
        teacher=estimates,
        stages=hours.estimate(run),
        egress=None if teacher.standin is not None else _egress(name, teacher.guided, estimates),
        storage=run.root,
        store=storage.locate(settings.teacher_store),
    )


def _ranking(run: Run) -> list[int] | None:
    """Places in the training split of the questions to buy, best first; None before *select* is done."""
    selected = done(run.stages["select"], run.root)
    if selected is None:
        return None
    ids: list[int] = storage.read_table(storage.join(selected.location, "selection.parquet"))["id"].to_pylist()
    return ids


def _will_evaluate(run: Run) -> bool:
    """Whether the test questions are going to be asked, which is outside the budget."""
    return "teacher" in run.config.evaluate.systems and done(run.stages["evaluate"], run.root) is None


def _bought_before(run: Run) -> Estimate | None:
    """What a *teach* that is done has used: nothing more is bought."""
    taught = done(run.stages["teach"], run.root)
    if taught is None:
        return None
    return Estimate(Amount(taught.metrics["queries"], None, None, taught.metrics["usd"]), Amount(), Amount())


def _reachable(question: Question, its: Sequence[Ask], replies: Mapping[str, Reply]) -> Sequence[Ask]:
    """The asks that a question can come to: none behind one that a stored answer has got right."""
    for number, ask in enumerate(its, 1):
        if ask.key in replies and judge(question, replies[ask.key]).verified:
            return its[:number]
    return its


def _stored(run: Run, wanted: Iterable[str]) -> _Stored:
    """Read the store, without making one where there is none."""
    shared = run.config.budget.account
    room = Cap() if shared is None else Cap(shared.max_queries, shared.max_usd)
    location = storage.locate(run.config.teacher_store)
    if not storage.exists(location):
        return _Stored(frozenset(), {}, (), room)

    async def read() -> _Stored:
        store = open_store(location)
        keys = await answers.keys(store)
        sample = (await answers.answers(store, keys[:SAMPLE])).values()  # keys are hashes: any thousand is as good
        lengths = [reply.completion_tokens for reply in sample if _is(run.config.teacher.model, reply.model)]
        replies = await answers.answers(store, set(wanted).intersection(keys))
        left = room if shared is None else ledger.left(room, await ledger.balance(store, shared.name))
        return _Stored(frozenset(keys), replies, lengths, left)

    return asyncio.run(read())


def _is(model: str, named: str) -> bool:
    """Whether an answer's model is the one asked for: providers name a dated version of it."""
    return re.fullmatch(re.escape(model) + r"(-\d[\d-]*)?", named) is not None


def _rates(teacher: config.Teacher, lengths: Sequence[int]) -> tuple[Rates, str]:
    """What a query is taken to cost, and where the expected length of a reply comes from."""
    if lengths:
        mean = min(sum(lengths) / len(lengths), teacher.max_tokens)
        source = f"the mean of {len(lengths)} answers of {teacher.model} in the store"
    else:
        mean = teacher.max_tokens / 2
        source = f"half of teacher.max_tokens as the store has no answer of {teacher.model}"
    return Rates(price_of(teacher), mean, teacher.max_tokens), source


def _price_from(teacher: config.Teacher) -> str:
    if teacher.price is not None:
        return "teacher.price"
    discount = f", less {BATCH_DISCOUNT:.0%} for a batch" if teacher.mode == "batch" else ""
    return f"list price of {AS_OF}{discount}"


def _binds(budget: config.Budget, questions: int, teaching: Estimate) -> str:
    """The config's field whose bound is reached first."""
    if teaching.ends != "queries":
        return {"usd": "budget.max_usd", "account": "budget.account"}[teaching.ends]
    without = examples_in_budget(questions, budget.model_copy(update={"max_queries": None}))
    if budget.max_queries is not None and budget.max_queries < without:
        return "budget.max_queries"
    return "corpus" if budget.fraction is None else "budget.fraction"


def _egress(name: str, guided: bool, estimates: Mapping[str, Estimate]) -> Egress:
    questions = sum(estimate.worst.queries for estimate in estimates.values())
    return Egress(urlsplit(name).hostname or name, questions, guided)


def show(plan: Plan, console: Console) -> None:
    """Print the plan for people."""
    console.print(f"[bold]plan of {plan.run}[/]: {plan.model} at {plan.provider}", highlight=False)
    console.print(money(plan.teacher))
    console.print(local((stage.stage, stage.hours, stage.basis) for stage in plan.stages))
    notes = Table.grid(padding=(0, 2))
    for label, text in _notes(plan):
        notes.add_row(Text(label, "bold"), Text(text))
    console.print(notes)


def money(estimates: Mapping[str, Estimate]) -> Table:
    """What the teacher would be asked and paid, by what for."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("from the teacher", no_wrap=True)
    for title in ("queries", "prompt tokens", "completion tokens", "dollars"):
        table.add_column(title, justify="right")
    for stage, estimate in estimates.items():
        table.add_row(f"{stage}, already paid", *_cells(estimate.paid))
        table.add_row(f"{stage}, expected", *_cells(estimate.expected))
        table.add_row(f"{stage}, at worst", *_cells(estimate.worst, upwards=True))
    return table


def _cells(amount: Amount | None, upwards: bool = False) -> list[str]:
    """``upwards``: dollars are not rounded down."""
    if amount is None:
        return ["?"] * 4
    usd = math.ceil(amount.usd * 1e4 - 1e-6) / 1e4 if upwards else amount.usd
    return [count(amount.queries), count(amount.prompt_tokens), count(amount.completion_tokens), f"${usd:,.4f}"]


def local(stages: Iterable[tuple[str, float | None, str]]) -> Table:
    """The hours of each stage, and where they come from."""
    table = Table("stage", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("local hours", justify="right")
    rows = list(stages)
    if any(basis for *_, basis in rows):
        table.add_column("from", style="dim")
    for stage, took, basis in rows:
        table.add_row(stage, in_hours(took), *([basis] if basis else []))
    return table


def in_hours(value: float | None) -> str:
    """For people; a question mark where nothing is known."""
    if value is None:
        return "?"
    return "< 0.01" if 0 < value < 0.01 else f"{value:.2f}"


def _notes(plan: Plan) -> list[tuple[str, str]]:
    """What the tables' numbers mean."""
    part, questions = share(plan.queries, plan.questions), count(plan.questions)
    known = [stage.hours for stage in plan.stages if stage.hours is not None]
    missing = f", and {len(plan.stages) - len(known)} stages unknown" if len(known) < len(plan.stages) else ""
    kinds = ", ".join(f"{count(number)} {kind}" for kind, number in plan.answer_types.items())
    notes = [
        ("corpus", f"all questions by kind of answer: {kinds}; {count(plan.with_context)} with context"),
        ("budget", f"{count(plan.queries)} queries ({part} of {questions} questions); {plan.binds} binds first"),
        ("price", f"${plan.price.input:g} in, ${plan.price.output:g} out per million tokens ({plan.price_from})"),
        (
            "expected",
            f"an estimate: a prompt token is {BYTES_PER_TOKEN} bytes; a completion takes {plan.reply_tokens:g} tokens, "
            f"{plan.reply_tokens_from}; first answers are right",
        ),
        ("at worst", "what the ledger would set aside, guided second asks counted; never more than a cap in dollars"),
    ]
    if not plan.ranked:
        answered = f"the store answers {count(plan.answered)} of the {questions} training questions"
        notes.append(
            ("already paid", f"not known before select is done ({answered}); the rest is of the average question")
        )
    if "evaluate" in plan.teacher:
        notes.append(("evaluate", "the teacher is asked every question that is evaluated, outside the budget"))
    scaled = "in proportion to the last earlier run with the same models, on the hardware that it had"
    notes.append(("local hours", f"{in_hours(sum(known)) if known else 'unknown'} in all{missing}; {scaled}"))
    return [*notes, *_leaves(plan.egress), ("read", f"{plan.storage} and {plan.store}; the teacher was not asked")]


def _leaves(egress: Egress | None) -> list[tuple[str, str]]:
    if egress is None:
        return [("leaves", "nothing: a stand-in answers, and the dollars are not paid")]
    if egress.questions == 0:
        return [("leaves", "nothing: all answers are paid already")]
    gold = ", and the gold answer where the first one is wrong (teacher.guided)" if egress.gold else ""
    return [
        ("leaves", f"for {egress.host}: the text of up to {count(egress.questions)} questions{gold}"),
        ("check", f"whether the terms of {egress.host} allow training a model on its answers (distillation)"),
    ]
