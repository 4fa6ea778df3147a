"""What a frontier would make, buy and take, before it does. The teacher is not asked and nothing is written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

from rich.console import Console

from bridge_ray import hours, pipeline, plan
from bridge_ray.frontier import grid
from bridge_ray.frontier.cells import BOUGHT, Planned, upstream
from bridge_ray.frontier.run import Frontier
from bridge_ray.pipeline import Run
from bridge_ray.teacher.estimate import Amount, Estimate
from bridge_ray.teacher.ledger import Cap


@dataclass(frozen=True)
class Share:
    """Stages of one name that are to be made: how many, and their hours together, None where nothing is known."""

    stage: str
    times: int
    hours: float | None


@dataclass(frozen=True)
class FrontierPlan:
    """``bought``: of rationales, and of test questions where the teacher is a system, for all cells together; the cap
    is not looked at. ``missing`` of the ``cells`` are to be made."""

    name: str
    model: str
    cells: int
    missing: int
    bought: Estimate
    cap: Cap | None
    stages: Sequence[Share]


def make(frontier: Frontier) -> FrontierPlan:
    """Work the plan out. Raises UserError for a model without a price, and when the store cannot be read."""
    settings = frontier.base.config
    missing, payer = frontier.missing, grid.payer(settings)
    return FrontierPlan(
        settings.name,
        settings.teacher.model,
        len(frontier.planned),
        len(missing),
        reduce(_together, _purchases(frontier, missing), Estimate(Amount(), Amount(), Amount())),
        None if payer is None else payer.cap,
        _stages(frontier, missing),
    )


def _purchases(frontier: Frontier, missing: Sequence[Planned]) -> Iterator[Estimate]:
    """One for each ranking that is bought from: its largest budget, which the smaller ones are a part of. And one for
    the questions that each seed asks the teacher itself."""
    largest: dict[tuple[int, int, str], Planned] = {}
    for one in missing:
        if any(part.name == BOUGHT for part in upstream(one.trials[0].final)):
            key = (one.cell.seed, one.cell.rows, one.config.select.model_dump_json())
            largest[key] = max(one, largest.get(key, one), key=lambda some: some.cell.budget)
        elif "teacher" in one.config.evaluate.systems:
            estimates = plan.make(_run(frontier, one)).teacher
            if "evaluate" in estimates:  # else its questions were asked, and the cell alone is missing
                yield estimates["evaluate"]
    for one in largest.values():
        yield plan.make(_run(frontier, one)).teacher["teach"]


def _run(frontier: Frontier, one: Planned) -> Run:
    """The cell's run with all that its config has, as if it were performed on its own."""
    corpus = frontier.corpora[one.cell.seed, one.cell.rows]
    return Run(one.config, corpus, pipeline.stages(one.config, corpus), frontier.base.root)


def _together(one: Estimate, other: Estimate) -> Estimate:
    paid = None if one.paid is None or other.paid is None else _sum(one.paid, other.paid)
    return Estimate(paid, _sum(one.expected, other.expected), _sum(one.worst, other.worst))


def _sum(one: Amount, other: Amount) -> Amount:
    known = None not in (one.prompt_tokens, other.prompt_tokens, one.completion_tokens, other.completion_tokens)
    return Amount(
        one.queries + other.queries,
        (one.prompt_tokens or 0) + (other.prompt_tokens or 0) if known else None,
        (one.completion_tokens or 0) + (other.completion_tokens or 0) if known else None,
        one.usd + other.usd,
    )


def _stages(frontier: Frontier, missing: Sequence[Planned]) -> list[Share]:
    """What the missing cells still need of local work, each stage once, whichever cells share it."""
    past = hours.past_stages(frontier.base.root)
    needed: dict[str, hours.StageHours] = {}
    for one in missing:
        for stage in (stage for trial in one.trials for stage in (trial.dev, trial.final) if stage is not None):
            parts = {part.name: part for part in upstream(stage)}
            corpus = frontier.corpora[one.cell.seed, one.cell.rows]
            found = hours.estimate(Run(one.config, corpus, parts, frontier.base.root), past)
            needed |= {part.fingerprint: told for part, told in zip(parts.values(), found, strict=True)}
    by_name: defaultdict[str, list[float | None]] = defaultdict(list)
    for told in needed.values():
        if not told.done and told.stage != BOUGHT:
            by_name[told.stage].append(told.hours)
    order = [name for name in pipeline.NAMES if name in by_name]
    return [Share(name, len(by_name[name]), _total(by_name[name])) for name in order]


def _total(some: Sequence[float | None]) -> float | None:
    known = [one for one in some if one is not None]
    return sum(known) if len(known) == len(some) else None


def show(made: FrontierPlan, out: Console) -> None:
    """Print the plan for people."""
    out.print(f"plan of {made.name}: {made.missing} of {made.cells} cells are to be made", highlight=False)
    out.print(plan.money({made.model: made.bought}))
    out.print(plan.local((f"{share.times} x {share.stage}", share.hours, "") for share in made.stages))
    for line in (
        "dollars: each seed buys its largest budget, which the others are a part of; expected: a first answer that is "
        "right, as long as those in the store or half of teacher.max_tokens; at worst: what the ledger sets aside",
        _bounded(made.cap),
        f"local hours: {plan.in_hours(_total([share.hours for share in made.stages]))} in all, one after another; in "
        "proportion to earlier runs in this storage, on the hardware that they had",
    ):
        out.print(line, highlight=False, soft_wrap=True)


def _bounded(cap: Cap | None) -> str:
    if cap is None:
        return "cap: none; set budget.max_usd or budget.max_queries, without which a paid teacher is not asked"
    parts = [
        f"${cap.usd:g}" if cap.usd is not None else "",
        f"{cap.queries:,} queries" if cap.queries is not None else "",
    ]
    return f"cap: {' and '.join(filter(None, parts))} for all of it, what was paid before included"
