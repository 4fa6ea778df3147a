"""How far the corpus is from what was chosen, and who covers whom; chunk by chunk of the embeddings."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bridge_ray import storage
from bridge_ray.selection.large import files, frame
from bridge_ray.selection.large.frame import Chunk, Rows, Vectors
from bridge_ray.selection.large.links import by_partition

Floats = NDArray[np.float64]


class Lists:
    """Unit vectors (m, d) by their partitions (m,), to be searched partition by partition."""

    def __init__(self, vectors: Vectors, partitions: Rows, centroids: Vectors):
        self._centroids = centroids
        self._order = np.argsort(partitions, kind="stable")
        self._bounds = np.searchsorted(partitions[self._order], np.arange(len(centroids) + 1))
        self._vectors = vectors[self._order]

    @cached_property
    def numbers(self) -> Rows:
        """The lists that are not empty."""
        return np.flatnonzero(np.diff(self._bounds))

    def members(self, number: int) -> Rows:
        """Positions of a list's vectors, ascending."""
        return self._order[self._bounds[number] : self._bounds[number + 1]]

    def nearest(self, unit: Vectors) -> tuple[Rows, NDArray[np.float32]]:
        """Position of the most similar vector for each row of (n, d), and the cosine.

        Only the eight lists nearest to a row are looked into, so the cosine is the true one or a little less.
        """
        import faiss

        found, cosine = np.zeros(len(unit), np.int64), np.full(len(unit), -np.inf, np.float32)
        for number, rows in by_partition(unit, self._centroids, self.numbers):
            low, high = self._bounds[number], self._bounds[number + 1]
            more, place = faiss.knn(unit[rows], self._vectors[low:high], 1, metric=faiss.METRIC_INNER_PRODUCT)
            better = more[:, 0] > cosine[rows]
            cosine[rows[better]] = more[better, 0]
            found[rows[better]] = self._order[low + place[better, 0]]
        return found, cosine


class Ranked:
    """The ranking and its vectors, as ``rounds.second_round`` left them."""

    def __init__(self, location: str):
        self.frame = frame.load(storage.join(location, "frame.npz"))
        self.ids: Rows = files.read(storage.join(location, "ranking.arrow"))["id"].to_numpy()
        ranked = files.read(storage.join(location, "ranked.arrow"))
        self._vectors, self._partitions = files.matrix(ranked["vector"]), ranked["partition"].to_numpy()
        self._by_id = np.argsort(self.ids)

    def lists(self, count: int | None = None) -> Lists:
        """Of the first ``count``, by default of all."""
        return Lists(self._vectors[:count], self._partitions[:count], self.frame.centroids)

    def ranks(self, ids: Rows) -> Rows:
        """The rank of each id, or -1."""
        place = np.minimum(np.searchsorted(self.ids[self._by_id], ids), len(self.ids) - 1)
        rank = self._by_id[place]
        return np.where(self.ids[rank] == ids, rank, -1)


def distances(chunk: Chunk, location: str, bought: int) -> tuple[float, float]:
    """Sum and maximum of 1 - cos from each of the chunk's rows to the nearest of the ``bought`` first of the ranking.

    Each is the true one or a little more, see ``Lists.nearest``. Memory: a block of rows and the bought vectors.
    """
    ranked = Ranked(location)
    lists = ranked.lists(bought)
    total, most = 0.0, 0.0
    for ids, vectors in frame.blocks(chunk):
        _, cosine = lists.nearest(ranked.frame.unit(vectors))
        distance = np.clip(1 - cosine.astype(np.float64), 0, 2)
        rank = ranked.ranks(ids)
        distance[(rank >= 0) & (rank < bought)] = 0
        total, most = total + float(distance.sum()), max(most, float(distance.max()))
    return total, most


def coverage(chunk: Chunk, number: int, location: str) -> None:
    """Write how many of the chunk's rows each row of the ranking covers, and the clusters of those ranked in it.

    A ranked row covers itself; a near-duplicate at the end of the ranking covers nothing else.
    """
    ranked = Ranked(location)
    lists = ranked.lists()
    covers = np.zeros(len(ranked.ids), np.int64)
    ranks, clusters = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for ids, vectors in frame.blocks(chunk):
        unit, rank = ranked.frame.unit(vectors), ranked.ranks(ids)
        by, _ = lists.nearest(unit)
        covers += np.bincount(np.where(rank >= 0, rank, by), minlength=len(covers))
        ranks.append(rank[rank >= 0])
        clusters.append((unit[rank >= 0] @ ranked.frame.coarse.T).argmax(axis=1))
    someone = np.flatnonzero(covers)
    name = f"{number:06d}.arrow"
    files.write_columns(storage.join(location, "covers", name), rank=someone, rows=covers[someone])
    columns = {"rank": np.concatenate(ranks), "cluster": np.concatenate(clusters)}
    files.write_columns(storage.join(location, "clusters", name), **columns)
