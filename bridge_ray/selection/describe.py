"""What a selection came to, in numbers and on a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bridge_ray.selection.neighbours import nearest, normalise

MAP_ROWS = 20_000  # rows that the axes of the map are fitted on


def describe(
    table: pa.Table, vectors: NDArray[np.float32], difficulty: NDArray[np.float64], domains: Sequence[str]
) -> dict[str, Any]:
    """Coverage, difficulty and domains of the chosen rows against the corpus, ready for JSON.

    ``table`` has schema ``records.SELECTION``, cut to the budget; ``vectors`` (n, d) are raw embeddings,
    ``difficulty`` (n,) and ``domains`` (n,) belong to the same rows. Distances are 1 - cos (0..2) from a row of the
    corpus to the nearest chosen row. ``difficulty.rest`` is None if every row is chosen.
    """
    chosen = table["id"].to_numpy()
    rest = np.setdiff1d(np.arange(len(vectors)), chosen)
    distance = _distance(normalise(vectors), chosen)
    return {
        "chosen": len(chosen),
        "rows": len(vectors),
        "distance": {"mean": float(distance.mean()), "max": float(distance.max())},
        "difficulty": {"chosen": float(difficulty[chosen].mean()), "rest": _mean(difficulty[rest])},
        "domains": _shares(np.asarray(domains), chosen),
    }


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def _distance(unit: NDArray[np.float32], chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    _, cosine = nearest(unit, unit[chosen])
    distance = np.clip(1 - cosine.astype(np.float64), 0, 2)
    distance[chosen] = 0  # also of a zero vector, whose cosine with itself is 0
    return distance


def _shares(domains: NDArray[Any], chosen: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """Domain -> its share of the chosen rows and of the corpus."""
    return {
        str(domain): {"chosen": float((domains[chosen] == domain).mean()), "corpus": float((domains == domain).mean())}
        for domain in np.unique(domains)
    }


def map_2d(vectors: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Two principal components (n, 2) float32 of (n, d) vectors, fitted on at most 20,000 rows drawn by ``seed``.

    Each axis points to where its largest loading is positive, so that a map drawn twice is not mirrored.
    """
    rows = np.random.default_rng(seed).permutation(len(vectors))[:MAP_ROWS]
    mean = vectors[rows].mean(axis=0)
    sample = (vectors[rows] - mean).astype(np.float64)
    axes = np.linalg.svd(sample.T @ sample, hermitian=True)[2][:2]  # (2, d): d x d is far smaller than the sample
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    flat = (vectors - mean) @ axes.T
    return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1]))).astype(np.float32)
