"""Near-duplicates between the test and the train split: they would make a student look better than it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasketch import MinHash, MinHashLSH

PERMUTATIONS = 128
SLACK = 0.1  # candidates are sought this much below the threshold: the hash only estimates


def near_duplicates(
    table: pa.Table, threshold: float, looked: Callable[[], None] = lambda: None
) -> list[tuple[int, int, float]]:
    """(test id, train id, Jaccard similarity) of every pair found at or above the threshold, in id order.

    Similarity is over the set of word 3-grams of question and context. Only test rows are indexed, so memory
    does not grow with the train split. Candidates come from locality-sensitive hashing, which may miss a pair
    near the threshold; each candidate is confirmed exactly. ``looked`` is called after each train row.
    """
    test = {row["id"]: _shingles(row) for row in _rows(table, "test")}
    index = MinHashLSH(threshold=max(threshold - SLACK, SLACK), num_perm=PERMUTATIONS)
    for key, shingles in test.items():
        index.insert(key, _minhash(shingles))
    pairs = []
    for row in _rows(table, "train"):
        shingles = _shingles(row)
        candidates = ((key, jaccard(test[key], shingles)) for key in index.query(_minhash(shingles)))
        pairs += [(key, row["id"], similarity) for key, similarity in candidates if similarity >= threshold]
        looked()
    return sorted(pairs)


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Size of the intersection over size of the union, 0 to 1."""
    return len(first & second) / len(first | second)


def _rows(table: pa.Table, split: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        table.filter(pc.field("split") == split).select(["id", "question", "context"]).to_pylist()
    )
    return rows


def _shingles(row: dict[str, Any]) -> frozenset[str]:
    """Word 3-grams; a text of fewer words is one shingle."""
    words = f"{row['question']} {row['context']}".casefold().split()
    return frozenset(" ".join(words[start : start + 3]) for start in range(max(1, len(words) - 2)))


def _minhash(shingles: frozenset[str]) -> MinHash:
    sketch = MinHash(num_perm=PERMUTATIONS)
    sketch.update_batch([shingle.encode() for shingle in shingles])
    return sketch
