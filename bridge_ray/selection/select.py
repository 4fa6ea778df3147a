"""Stage *select*: rank the corpus once, by difficulty and coverage; the budget then cuts the ranking.

The work is done in Ray workers: in one of them where the corpus is small, else in partitions (see ``large``).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge_ray import storage
from bridge_ray.config import Budget, Score, Select
from bridge_ray.errors import UserError
from bridge_ray.inference import workers
from bridge_ray.selection import facts
from bridge_ray.selection.describe import describe, map_2d
from bridge_ray.selection.large import run as large
from bridge_ray.selection.large.run import Inputs
from bridge_ray.selection.neighbours import differing
from bridge_ray.selection.rank import cautions, examples_in_budget, rank, rank_length
from bridge_ray.stage import Stage, Work

if TYPE_CHECKING:
    from numpy.typing import NDArray

WHOLE_ROWS = 50_000  # a larger corpus is selected from in partitions


def stage(
    settings: Select, scored: Score, budget: Budget, rows: int, seed: int, corpus: Stage, score: Stage, embed: Stage
) -> Stage:
    """``rows`` is the size of the training split; the ranking's length depends on it and on large budgets only."""
    count, cells = rank_length(rows, budget), 0 if rows <= WHOLE_ROWS else large.partitions(rows)
    identity: dict[str, Any] = {
        "select": settings.model_dump(mode="json"),
        "difficulty": scored.difficulty,
        "count": count,
        "seed": seed,
    }
    if cells:
        identity["partitions"] = cells
    bought = examples_in_budget(rows, budget)
    work = partial(run, settings=settings, scored=scored, rows=rows, count=count, bought=bought, seed=seed, cells=cells)
    if bought >= rows and budget.max_usd is None:
        work = partial(work, known=(f"the budget buys all {rows} train rows: there is nothing to select",))
    version = 2 if cells else 1  # 2: the ranked rows' partitions are kept too
    return Stage("select", version, identity, {"corpus": corpus, "score": score, "embed": embed}, work)


def run(
    work: Work,
    settings: Select,
    scored: Score,
    rows: int,
    count: int,
    bought: int,
    seed: int,
    cells: int,
    known: tuple[str, ...] = (),
) -> dict[str, Any]:
    """``cells`` is the number of partitions; 0: the corpus is ranked as a whole. ``known`` are cautions from before."""
    inputs = Inputs(work.inputs["corpus"], work.inputs["embed"], work.inputs["score"])
    arguments = (inputs, work.out, settings, scored, rows, count, bought, seed)
    if cells:
        with work.progress.task("select", None, "steps") as task:
            metrics, found = large.run(*arguments, task.say, cells)
    else:
        metrics, found = workers.call(large.with_all_cores, whole, *arguments)
    told = [*known, *found]
    for caution in told:
        work.progress.console.print(f"select: {caution}", soft_wrap=True)
    return {**metrics, "cautions": told}


def whole(
    inputs: Inputs, out: str, settings: Select, scored: Score, rows: int, count: int, bought: int, seed: int
) -> tuple[dict[str, Any], list[str]]:
    """Rank a corpus that fits into one process; the arguments and results of ``large.run``."""
    known = facts.gathered(inputs.corpus, inputs.score, rows, scored)
    vectors = read_vectors(inputs.embed, rows)
    table = rank(vectors, known.difficulty, settings, count, seed)
    x, y = map_2d(vectors, seed).T.astype(np.float64)
    storage.write_table(storage.join(out, "selection.parquet"), table)
    storage.write_table(storage.join(out, "rows.parquet"), facts.table(np.arange(rows), known, x, y))
    metrics = describe(table.slice(0, bought), vectors, known)
    return metrics, [*facts.cautions(known, scored), *cautions(differing(vectors), known.difficulty)]


def describe_bought(inputs: Inputs, select: str, bought: int) -> dict[str, Any]:
    """What the first ``bought`` rows of the ranking at ``select`` came to, whichever way they were ranked."""
    if storage.exists(storage.join(select, large.SAVED[0])):
        return large.describe(inputs, select, bought)
    return workers.call(large.with_all_cores, _described, inputs, select, bought)


def _described(inputs: Inputs, select: str, bought: int) -> dict[str, Any]:
    known = facts.remembered(inputs.corpus, select)
    table = storage.read_table(storage.join(select, "selection.parquet"))
    return describe(table.slice(0, bought), read_vectors(inputs.embed, len(known.difficulty)), known)


def read_vectors(embed: str, rows: int) -> NDArray[np.float32]:
    """The embeddings of all training rows in order of id: (n, d). Raises UserError where one is missing."""
    table = facts.in_order(storage.join(embed, "rows.parquet"), ["vector"], rows)
    column = table["vector"].combine_chunks()
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) > 1 or column.null_count:
        raise UserError("the embeddings are not of one length; embed again")
    return np.asarray(column.flatten().to_numpy(), dtype=np.float32).reshape(len(column), -1)
