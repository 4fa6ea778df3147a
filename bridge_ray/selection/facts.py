"""What the stages before *select* found out about every training row, in order of id."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bridge_ray import storage
from bridge_ray.config import Score
from bridge_ray.errors import UserError
from bridge_ray.selection.describe import Facts
from bridge_ray.selection.entropy import difficulty, error_difficulty

Floats = NDArray[np.float64]


def gathered(corpus: str, scores: str, rows: int, scored: Score) -> Facts:
    """The facts of ``rows`` training rows, from the outputs of stage *corpus* and stage *score*.

    Reads a few columns; memory: some 50 bytes per row. Raises UserError where a row's record is missing.
    """
    examples = in_order(storage.join(corpus, "train"), ["answer_type", "domain"], rows)
    found = in_order(storage.join(scores, "rows.parquet"), ["entropy", "nll", "share_correct"], rows)
    entropy, nll = _floats(found["entropy"]), _floats(found["nll"])
    types, _ = _numbered(examples["answer_type"])
    if scored.difficulty == "error":
        hard = error_difficulty(_floats(found["share_correct"]), nll, types)
    else:
        hard = difficulty(entropy, nll, types, scored.samples)
    return Facts(hard, entropy, *_numbered(examples["domain"]))


def remembered(corpus: str, select: str) -> Facts:
    """The facts again, from the outputs of stage *corpus* and stage *select*."""
    kept = storage.read_table(storage.join(select, "rows.parquet"), ["difficulty", "entropy"])
    examples = in_order(storage.join(corpus, "train"), ["domain"], kept.num_rows)
    return Facts(_floats(kept["difficulty"]), _floats(kept["entropy"]), *_numbered(examples["domain"]))


def in_order(location: str, columns: Sequence[str], rows: int) -> pa.Table:
    """The columns of a Parquet file or folder whose ids are 0 to rows - 1, in order of id.

    Raises UserError where they are not.
    """
    table = storage.read_table(location, ["id", *columns])
    ids = table["id"].to_numpy()
    expected = np.arange(rows)
    if np.array_equal(ids, expected):
        return table.select(columns)
    order = np.argsort(ids, kind="stable")
    if not np.array_equal(ids[order], expected):
        raise UserError(f"{location}: its {len(ids):,} ids are not those of the {rows:,} train rows; delete it")
    return table.select(columns).take(order)


def cautions(facts: Facts, scored: Score) -> list[str]:
    """What a person should know about difficulties that rest on little."""
    known = facts.entropy[~np.isnan(facts.entropy)]
    if scored.difficulty == "error":
        return []
    if not len(known):
        return ["no row could be scored: all difficulties are unknown"]
    if scored.samples == 1:
        return ["score.samples is 1: one answer cannot disagree with itself, so difficulty is its likelihood alone"]
    if not known.any():
        return ["all entropies are 0: the TA never disagrees with itself, so difficulty is its answers' likelihood"]
    return []


def table(ids: NDArray[np.int64], facts: Facts, x: Floats, y: Floats) -> pa.Table:
    """What the report and the curriculum want to know of these rows; ``x`` and ``y`` are theirs on the map."""
    columns = {
        "id": ids,
        "difficulty": facts.difficulty[ids],
        "entropy": pa.array(facts.entropy[ids], from_pandas=True),  # null: not scored
        "x": x,
        "y": y,
    }
    return pa.table(columns)


def _numbered(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
    """A number for each distinct text, and the texts."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _floats(column: pa.ChunkedArray) -> Floats:
    """Nulls become NaN."""
    return np.asarray(column.to_numpy(), np.float64)
