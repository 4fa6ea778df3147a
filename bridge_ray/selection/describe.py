"""What a selection came to, in numbers and on a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bridge_ray.selection.neighbours import nearest, normalise

MAP_ROWS = 20_000  # rows that the axes of the map are fitted on

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Facts:
    """What is known of every training row beside its embedding, in order of id.

    ``difficulty`` (n,) in 0..1, ``entropy`` (n,) in 0..1 (NaN: not scored), ``domain`` (n,) numbers its ``domains``.
    """

    difficulty: Floats
    entropy: Floats
    domain: Rows
    domains: Sequence[str]


def describe(table: pa.Table, vectors: NDArray[np.float32], facts: Facts) -> dict[str, Any]:
    """Coverage, difficulty and domains of the chosen rows against the corpus, ready for JSON.

    ``table`` has schema ``records.SELECTION``, cut to the budget; ``vectors`` (n, d) are raw embeddings. Distances are
    1 - cos (0..2) from a row of the corpus to the nearest chosen row.
    """
    chosen = table["id"].to_numpy()
    distance = _distance(normalise(vectors), chosen)
    return summary(chosen, facts, float(distance.mean()), float(distance.max()))


def summary(chosen: Rows, facts: Facts, mean: float, most: float) -> dict[str, Any]:
    """``describe`` where the distances are known. A mean over no row (every row chosen, or none scored) is None."""
    return {
        "chosen": len(chosen),
        "rows": len(facts.difficulty),
        "distance": {"mean": mean, "max": most},
        "difficulty": _against(facts.difficulty, chosen),
        "entropy": _against(facts.entropy, chosen),
        "domains": _shares(facts, chosen),
    }


def _against(values: Floats, chosen: Rows) -> dict[str, float | None]:
    """Means of the chosen rows and of the rest."""
    rest = np.ones(len(values), bool)
    rest[chosen] = False
    return {"chosen": _mean(values[chosen]), "rest": _mean(values[rest])}


def _mean(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _distance(unit: NDArray[np.float32], chosen: Rows) -> Floats:
    _, cosine = nearest(unit, unit[chosen])
    distance = np.clip(1 - cosine.astype(np.float64), 0, 2)
    distance[chosen] = 0  # also of a zero vector, whose cosine with itself is 0
    return distance


def _shares(facts: Facts, chosen: Rows) -> dict[str, dict[str, float]]:
    """Domain -> its share of the chosen rows and of the corpus."""
    there = np.bincount(facts.domain, minlength=len(facts.domains))
    taken = np.bincount(facts.domain[chosen], minlength=len(facts.domains))
    return {
        str(facts.domains[number]): {
            "chosen": float(taken[number] / len(chosen)),
            "corpus": float(there[number] / there.sum()),
        }
        for number in sorted(np.flatnonzero(there), key=lambda number: facts.domains[number])
    }


def map_2d(vectors: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Two principal components (n, 2) float32 of (n, d) vectors, fitted on at most 20,000 rows drawn by ``seed``.

    Each axis points to where its largest loading is positive, so that a map drawn twice is not mirrored.
    """
    return flattened(vectors, *map_axes(vectors, seed))


def map_axes(vectors: NDArray[np.float32], seed: int) -> tuple[NDArray[np.float32], Floats]:
    """Origin (d,) and axes (2, d), or (1, d) where d is 1, of the map of vectors like these."""
    rows = np.random.default_rng(seed).permutation(len(vectors))[:MAP_ROWS]
    mean = vectors[rows].mean(axis=0)
    sample = (vectors[rows] - mean).astype(np.float64)
    axes = np.linalg.svd(sample.T @ sample, hermitian=True)[2][:2]  # (2, d): d x d is far smaller than the sample
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    return mean, axes


def flattened(vectors: NDArray[np.float32], origin: NDArray[np.float32], axes: Floats) -> NDArray[np.float32]:
    """Places (n, 2) float32 of the vectors (n, d) on the map."""
    flat = (vectors - origin) @ axes.T
    return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1]))).astype(np.float32)
