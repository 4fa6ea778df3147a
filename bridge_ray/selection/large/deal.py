"""Rows to their partitions: every row goes to its nearest centroid, and near-duplicates are merged there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge_ray import storage
from bridge_ray.selection.describe import flattened
from bridge_ray.selection.large import files, frame
from bridge_ray.selection.large.frame import Chunk, Rows, Vectors
from bridge_ray.selection.neighbours import merge_blocks


def deal(chunk: Chunk, number: int, parts: str) -> int:
    """Write the chunk's rows in files with one batch per partition, and their places on the map.

    Returns the number of rows that differ from the corpus's mean.
    """
    known = frame.load(storage.join(parts, "frame.npz"))
    spread = 0
    for piece, (ids, vectors) in enumerate(frame.blocks(chunk)):
        name = f"{number:06d}-{piece:03d}.arrow"
        x, y = flattened(vectors, known.origin, known.axes).T
        files.write_columns(storage.join(parts, "map", name), id=ids, x=x.astype(np.float64), y=y.astype(np.float64))
        unit = known.unit(vectors)
        spread += int(unit.any(axis=1).sum())
        _write(storage.join(parts, "dealt", name), ids, unit, nearest_partition(unit, ids, known.centroids))
    return spread


def nearest_partition(unit: Vectors, ids: Rows, centroids: Vectors) -> Rows:
    """The partition (n,) of each row; rows at the mean, which are near to nothing, are spread evenly by id."""
    import faiss

    _, found = faiss.knn(unit, centroids, 1, metric=faiss.METRIC_INNER_PRODUCT)
    return np.where(unit.any(axis=1), found[:, 0], ids % len(centroids))


def _write(location: str, ids: Rows, unit: Vectors, partition: Rows) -> None:
    order = np.lexsort((ids, partition))
    rows = files.batch(id=ids[order], vector=unit[order])
    bounds = np.searchsorted(partition[order], np.arange(partition.max() + 2))
    batches = (rows.slice(low, high - low) for low, high in pairwise(bounds))
    files.write(location, batches, rows.schema)


def gather(group: Sequence[int], number: int, parts: str) -> tuple[list[int], int]:
    """Merge the near-duplicates of each partition of the group, and write what is left.

    Memory: the partition's representatives and one dealt batch; a partition of copies, however many, is small.
    Returns how many representatives each partition has, and how many rows they stand for beside themselves.
    """
    readers = [files.reader(file) for file in files.folder(storage.join(parts, "dealt"))]
    difficulty = files.read(storage.join(parts, "facts.arrow"))["difficulty"].to_numpy()
    dimensions = frame.load(storage.join(parts, "frame.npz")).centroids.shape[1]
    gathered = [_gather(partition, dimensions, readers, difficulty, parts) for partition in group]
    first, hard, copies, merged = (np.concatenate(column) for column in zip(*gathered, strict=True))
    files.write_columns(storage.join(parts, "places", f"{number:06d}.arrow"), id=first, difficulty=hard, copies=copies)
    files.write_columns(storage.join(parts, "merged", f"{number:06d}.arrow"), id=merged)
    return [len(ids) for ids, *_ in gathered], len(merged)


def _gather(
    partition: int, dimensions: int, readers: Sequence[Any], difficulty: NDArray[np.float64], parts: str
) -> tuple[Rows, NDArray[np.float64], Rows, Rows]:
    """Of one partition: its representatives' ids, mean difficulties and copies, and the ids merged into them."""
    import faiss

    index = faiss.IndexFlatIP(dimensions)
    seen: list[Rows] = []
    kept, group = merge_blocks(_batches(partition, readers, seen), index)
    ids = np.concatenate([np.empty(0, np.int64), *seen])
    copies = np.bincount(group, minlength=len(kept))
    hard = np.bincount(group, weights=difficulty[ids], minlength=len(kept)) / copies
    vectors = index.reconstruct_n(0, index.ntotal) if index.ntotal else np.empty((0, index.d), np.float32)
    files.write_columns(storage.join(parts, "vectors", f"{partition:06d}.arrow"), vector=vectors)
    return ids[kept], hard, copies, np.delete(ids, kept)


def _batches(partition: int, readers: Sequence[Any], seen: list[Rows]) -> Iterator[Vectors]:
    """The partition's vectors, file by file; their ids are added to ``seen``."""
    for reader in readers:
        if partition < reader.num_record_batches:
            batch = reader.get_batch(partition)
            seen.append(batch["id"].to_numpy())
            yield files.matrix(batch["vector"])


def vectors(partition: int, parts: str) -> Vectors:
    """The representatives (m, d) of a partition."""
    return files.matrix(files.read(storage.join(parts, "vectors", f"{partition:06d}.arrow"))["vector"])
