"""Geometry of the embedded corpus: centring, near-duplicates, neighbour graph, clusters.

Vectors are float32 rows. Similarity is ``max(0, cos)``, and 1 of a row with itself. Searches are exact up to
``exact_rows`` rows and go through faiss's inverted lists above.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge_ray.errors import UserError

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]

EXACT_ROWS = 50_000
NEAR_DUPLICATE = 0.98  # cosine from which one row stands for another
BLOCK = 1024  # rows compared with one another at once when near-duplicates are merged
PRODUCTS = 1 << 22  # computed at once where all pairs are compared
PROBES = 32  # inverted lists that a search looks into
NO_SPREAD = 1e-6  # a vector closer to the mean than this (of the longest vector) differs from it by rounding alone


@dataclass(frozen=True)
class Graph:
    """Symmetric similarity graph over n rows, in compressed rows.

    The neighbours of row i, itself included, are ``rows[starts[i]:starts[i + 1]]`` in ascending order. A part of a
    graph has fewer rows than neighbours: what its rows touch, numbered as in ``Problem.difficulty``.
    ``starts`` is (n + 1,) int64; ``rows`` (edges,) int64; ``similarities`` (edges,) float32 in (0, 1].
    """

    starts: Rows
    rows: Rows
    similarities: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def around(self, row: int) -> tuple[Rows, NDArray[np.float32]]:
        edges = slice(self.starts[row], self.starts[row + 1])
        return self.rows[edges], self.similarities[edges]


def normalise(vectors: Vectors) -> Vectors:
    """Subtract the corpus mean and scale each row of (n, d) to length 1.

    A row at the mean becomes zeros: similar to itself only. Where all rows are equal, all become zeros, and a
    selection by coverage falls back to the weights alone. Raises UserError for NaN or infinity.
    """
    bad = not_finite(vectors)
    if len(bad):
        raise refusal(int(bad[0]), len(bad))
    vectors = np.ascontiguousarray(vectors, np.float32)
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    return scaled(vectors, mean, np.linalg.norm(vectors, axis=1).max(initial=0.0))


def differing(vectors: Vectors) -> int:
    """How many rows of (n, d) differ from the corpus's mean."""
    return int(normalise(vectors).any(axis=1).sum())


def not_finite(vectors: Vectors) -> Rows:
    """Positions of the rows that hold NaN or infinity."""
    return np.flatnonzero(~np.isfinite(vectors).all(axis=1))


def refusal(first: int, count: int) -> UserError:
    """What to raise where ``count`` rows are not finite, the first of them row ``first``."""
    return UserError(f"the embedding of row {first} holds NaN or infinity ({count} such rows); embed it again")


def scaled(vectors: Vectors, mean: Vectors, longest: float) -> Vectors:
    """``normalise`` of some rows of a corpus whose ``mean`` (d,) and longest row's length are known."""
    centred = vectors - mean
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    at_mean = lengths <= NO_SPREAD * longest
    unit: Vectors = np.where(at_mean, np.float32(0), centred / np.where(at_mean, 1, lengths))
    return unit


def merge_near_duplicates(vectors: Vectors, threshold: float = NEAR_DUPLICATE, exact_rows: int = EXACT_ROWS) -> Rows:
    """Representative (n,) int64 of each row of (n, d) unit vectors: a row at cosine >= threshold, or the row itself.

    Rows are visited in order; one that is near no earlier representative becomes one. So every row is within the
    threshold of its representative, and representatives are not within it of one another.
    """
    kept, group = merge_blocks([vectors], _index(vectors, exact_rows), threshold)
    return kept[group]


def merge_blocks(blocks: Iterable[Vectors], index: Any, threshold: float = NEAR_DUPLICATE) -> tuple[Rows, Rows]:
    """``merge_near_duplicates`` of rows that come in blocks; the empty faiss ``index`` is filled with those kept.

    Returns the positions (m,) of the rows kept, and for each row (n,) which of them stands for it, 0..m-1.
    """
    kept, groups, seen = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for vectors in blocks:
        for start in range(0, len(vectors), BLOCK):
            block = vectors[start : start + BLOCK]
            similarities, positions = index.search(block, 1)
            group = positions[:, 0].copy()
            far = np.flatnonzero(similarities[:, 0] < threshold)
            leaders = _leaders(block[far], threshold)
            new = leaders == np.arange(len(far))
            group[far] = index.ntotal + (np.cumsum(new) - 1)[leaders]
            index.add(block[far[new]])
            kept.append(seen + far[new])
            groups.append(group)
            seen += len(block)
    return np.concatenate(kept), np.concatenate(groups)


def _leaders(vectors: Vectors, threshold: float) -> Rows:
    """The same merging within one block, by comparing all pairs."""
    own = np.arange(len(vectors))
    leader = own.copy()
    for row, near in enumerate(vectors @ vectors.T >= threshold):
        if leader[row] == row:
            leader[near & (leader == own) & (own > row)] = row
    return leader


def graph(vectors: Vectors, k: int, exact_rows: int = EXACT_ROWS) -> Graph:
    """Each row of (n, d) unit vectors with its k most similar other rows (all of them if n <= k), made symmetric.

    Pairs of similarity 0 have no edge.
    """
    index = _index(vectors, exact_rows)
    index.add(vectors)
    similarities, found = index.search(vectors, min(k + 1, len(vectors)))  # a row usually finds itself first
    source, target, similarity = np.repeat(np.arange(len(vectors)), found.shape[1]), found.ravel(), similarities.ravel()
    edge = (target >= 0) & (target != source) & (similarity > 0)  # faiss pads a short answer with -1
    return _symmetric(source[edge], target[edge], np.minimum(similarity[edge], 1), len(vectors))


def _symmetric(source: Rows, target: Rows, similarity: NDArray[np.float32], n: int) -> Graph:
    own = np.arange(n)
    cells = np.concatenate([own, source, target]) * n + np.concatenate([own, target, source])
    values = np.concatenate([np.ones(n, np.float32), similarity, similarity])
    cells, first = np.unique(cells, return_index=True)
    starts = np.searchsorted(cells, np.arange(n + 1) * n)
    return Graph(starts, cells % n, values[first])


def nearest(vectors: Vectors, among: Vectors, exact_rows: int = EXACT_ROWS) -> tuple[Rows, NDArray[np.float32]]:
    """Position (n,) of the most similar row of ``among`` (m, d) for each row of (n, d), and the cosine (n,)."""
    index = _index(among, exact_rows)
    index.add(among)
    similarities, positions = index.search(vectors, 1)
    return positions[:, 0], similarities[:, 0]


def most_similar(vectors: Vectors, among: Vectors, k: int) -> tuple[Rows, NDArray[np.float32]]:
    """Positions and products (n, k), in no order, of the k <= m rows of (m, d) most similar to each row of (n, d).

    For some thousand candidates twice as fast as faiss, whose heaps take longer than the products.
    """
    found, product = np.empty((len(vectors), k), np.int64), np.empty((len(vectors), k), np.float32)
    at_once = max(1, PRODUCTS // max(1, len(among)))
    for start in range(0, len(vectors), at_once):
        products = vectors[start : start + at_once] @ among.T
        best = np.argpartition(products, len(among) - k, axis=1)[:, len(among) - k :]
        found[start : start + at_once] = best
        product[start : start + at_once] = np.take_along_axis(products, best, 1)
    return found, product


def clusters(vectors: Vectors, k: int, seed: int, weights: NDArray[np.float32] | None = None) -> tuple[Vectors, Rows]:
    """Spherical k-means of (n, d) unit vectors, k <= n: centroids (k, d) and the label (n,) of each row."""
    import faiss

    kmeans = faiss.Kmeans(vectors.shape[1], k, niter=20, seed=seed, spherical=True, min_points_per_centroid=1)
    kmeans.train(vectors, weights=weights)
    centroids = kmeans.centroids
    assert centroids is not None  # faiss sets it in train
    return centroids, nearest(vectors, centroids)[0]


def _index(vectors: Vectors, exact_rows: int) -> Any:
    """An empty faiss inner-product index, ready for rows like these."""
    import faiss

    flat = faiss.IndexFlatIP(vectors.shape[1])
    if len(vectors) <= exact_rows:
        return flat
    lists = int(4 * math.sqrt(len(vectors)))  # the size faiss's guide to indexes advises
    index = faiss.IndexIVFFlat(flat, vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = min(lists, PROBES)
    index.train(vectors)
    return index
