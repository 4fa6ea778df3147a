"""Stage *select*: rank the corpus once, by difficulty and coverage; the budget then cuts the ranking."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from bridge_ray import storage
from bridge_ray.config import Budget, Score, Select
from bridge_ray.selection.describe import describe, map_2d
from bridge_ray.selection.entropy import difficulty, error_difficulty
from bridge_ray.selection.rank import examples_in_budget, rank, rank_length
from bridge_ray.stage import Stage, Work

if TYPE_CHECKING:
    from numpy.typing import NDArray


def stage(
    settings: Select, scored: Score, budget: Budget, rows: int, seed: int, corpus: Stage, score: Stage, embed: Stage
) -> Stage:
    """``rows`` is the size of the training split; the ranking's length depends on it and on large budgets only."""
    count = rank_length(rows, budget)
    identity = {
        "select": settings.model_dump(mode="json"),
        "difficulty": scored.difficulty,
        "count": count,
        "seed": seed,
    }
    work = partial(
        run, settings=settings, scored=scored, count=count, bought=examples_in_budget(rows, budget), seed=seed
    )
    return Stage("select", 1, identity, {"corpus": corpus, "score": score, "embed": embed}, work)


def run(work: Work, settings: Select, scored: Score, count: int, bought: int, seed: int) -> dict[str, Any]:
    corpus = storage.read_table(storage.join(work.inputs["corpus"], "train"))
    scores = storage.read_table(storage.join(work.inputs["score"], "rows.parquet"))
    hard = hardness(corpus, scores, scored)
    vectors = read_vectors(work.inputs["embed"])
    table = rank(vectors, hard, settings, count, seed)
    storage.write_table(storage.join(work.out, "selection.parquet"), table)
    storage.write_table(storage.join(work.out, "rows.parquet"), _rows(corpus, scores, hard, vectors, seed))
    return describe(table.slice(0, bought), vectors, hard, corpus["domain"].to_pylist())


def hardness(corpus: pa.Table, scores: pa.Table, scored: Score) -> NDArray[np.float64]:
    """Difficulty percentile of every training row: (n,) in 0..1."""
    nll, types = _floats(scores["nll"]), np.array(corpus["answer_type"].to_pylist())
    if scored.difficulty == "error":
        return error_difficulty(_floats(scores["share_correct"]), nll, types)
    return difficulty(_floats(scores["entropy"]), nll, types, scored.samples)


def read_vectors(embed: str) -> NDArray[np.float32]:
    """The embeddings of all training rows in order of id: (n, d)."""
    column = storage.read_table(storage.join(embed, "rows.parquet"))["vector"].combine_chunks()
    return np.asarray(column.flatten().to_numpy(), dtype=np.float32).reshape(len(column), -1)


def _rows(corpus: pa.Table, scores: pa.Table, hard: Any, vectors: Any, seed: int) -> pa.Table:
    """What the report and the curriculum want to know of every training row."""
    places = map_2d(vectors, seed)
    return pa.table(
        {
            "id": corpus["id"],
            "difficulty": hard,
            "entropy": scores["entropy"],
            "x": places[:, 0].astype(np.float64),
            "y": places[:, 1].astype(np.float64),
        }
    )


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Nulls become NaN."""
    return np.array([np.nan if value is None else value for value in column.to_pylist()], dtype=np.float64)
