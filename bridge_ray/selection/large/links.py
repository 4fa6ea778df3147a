"""The neighbour graph across partitions: each row looks into the partitions nearest to it, not only its own.

This is an inverted-file search (Sivic and Zisserman 2003) whose lists are the partitions, done list by list so that
it is a matrix product. A neighbour in none of the partitions looked into is missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge_ray import storage
from bridge_ray.selection.large import deal, files, frame
from bridge_ray.selection.large.frame import Rows, Vectors
from bridge_ray.selection.neighbours import PRODUCTS, Graph, most_similar

Similarities = NDArray[np.float32]

PROBES = 8  # partitions that a row looks into, its own among them
TOGETHER = 8  # partitions whose rows look into another at once: it is opened and laid out for the product only once


def by_partition(unit: Vectors, centroids: Vectors, among: Rows) -> Iterator[tuple[int, Rows]]:
    """Each partition of ``among`` with the rows of (n, d) that look into it: the eight nearest to a row."""
    looked = min(PROBES, len(among))
    found, _ = most_similar(unit, centroids[among], looked)
    order = np.argsort(found, axis=None, kind="stable")
    bounds = np.searchsorted(found.ravel()[order], np.arange(len(among) + 1))
    for number, low, high in zip(among, bounds, bounds[1:], strict=False):
        if low < high:
            yield int(number), np.sort(order[low:high] // looked)


def link(group: Sequence[int], sizes: Rows, neighbours: int, parts: str) -> list[list[int]]:
    """Write each partition's edges to its rows' nearest others, a batch per partition that they lead to.

    ``sizes`` (p,) are the partitions' rows; the group's follow one another. Returns, for each partition of the group,
    where its batches lead. Memory: nine partitions, and ``neighbours`` edges per row of eight.
    """
    known, leads = frame.load(storage.join(parts, "frame.npz")), []
    for first in range(0, len(group), TOGETHER):
        some = group[first : first + TOGETHER]
        found, cosine = _nearest(some, sizes, neighbours, known.centroids, parts)
        ends = np.cumsum(sizes[some])
        for partition, start, end in zip(some, ends - sizes[some], ends, strict=True):
            leads.append(_write(partition, found[start:end], cosine[start:end], sizes, parts))
    return leads


def _nearest(
    group: Sequence[int], sizes: Rows, neighbours: int, centroids: Vectors, parts: str
) -> tuple[Rows, Similarities]:
    """Places and cosines (n, neighbours + 1) of what is nearest to the group's rows, themselves among it; or -1."""
    own, starts = np.concatenate([deal.vectors(partition, parts) for partition in group]), np.cumsum(sizes) - sizes
    somewhere = np.flatnonzero(own.any(axis=1))
    found = np.full((len(own), neighbours + 1), -1, np.int64)
    cosine = np.full(found.shape, -np.inf, np.float32)
    looks = list(by_partition(own[somewhere], centroids, np.flatnonzero(sizes)))
    # Most neighbours are at home: what they leave to find elsewhere is little.
    for other, rows in sorted(looks, key=lambda look: look[0] not in group):
        _search(own, somewhere[rows], deal.vectors(other, parts), int(starts[other]), found, cosine)
    return found, cosine


def _search(own: Vectors, rows: Rows, among: Vectors, start: int, found: Rows, cosine: Similarities) -> None:
    """Merge the rows' nearest of another partition, whose first row is ``start``, into what they have found.

    Rows that have found none yet take the nearest; the others only look at what is nearer than their farthest.
    """
    new = np.isneginf(cosine[rows, 0])
    if new.any():
        most = min(found.shape[1], len(among))
        places, products = most_similar(own[rows[new]], among, most)
        found[rows[new], :most], cosine[rows[new], :most] = places + start, products
    rows = rows[~new]
    at_once = max(1, PRODUCTS // len(among))
    for at in range(0, len(rows), at_once):
        _improve(own, rows[at : at + at_once], among, start, found, cosine)


def _improve(own: Vectors, rows: Rows, among: Vectors, start: int, found: Rows, cosine: Similarities) -> None:
    products, kept = own[rows] @ among.T, found.shape[1]
    nearer = np.flatnonzero(products > cosine[rows].min(axis=1)[:, None])
    if not len(nearer):
        return
    row, place = np.divmod(nearer, len(among))
    some, row = np.unique(row, return_inverse=True)
    owner = np.concatenate([np.repeat(np.arange(len(some)), kept), row])
    values = np.concatenate([cosine[rows[some]].ravel(), products.ravel()[nearer]])
    places = np.concatenate([found[rows[some]].ravel(), place + start])
    order = np.lexsort((-values, owner))
    rank = np.arange(len(order)) - np.searchsorted(owner[order], owner[order])
    best = order[rank < kept].reshape(len(some), kept)
    cosine[rows[some]], found[rows[some]] = values[best], places[best]


def _write(partition: int, found: Rows, cosine: Similarities, sizes: Rows, parts: str) -> list[int]:
    ends = np.cumsum(sizes)
    source = np.repeat(np.arange(len(found)), found.shape[1])
    target, similarity = found.ravel(), np.minimum(cosine.ravel(), 1)
    edge = (similarity > 0) & (target != ends[partition] - sizes[partition] + source)
    source, target, similarity = source[edge], target[edge], similarity[edge]
    into = np.searchsorted(ends, target, side="right")
    order = np.argsort(into, kind="stable")
    rows = files.batch(source=source[order].astype(np.int32), target=target[order], similarity=similarity[order])
    leads, bounds = np.unique(into[order], return_index=True)
    slices = (rows.slice(low, high - low) for low, high in pairwise([*bounds, len(order)]))
    files.write(storage.join(parts, "edges", f"{partition:06d}.arrow"), slices, rows.schema)
    return leads.tolist()


Edges = tuple[int, int]  # a partition and the number of a batch of its edges


def incoming(leads: Sequence[Sequence[int]]) -> list[list[Edges]]:
    """For each partition, the batches of edges of other partitions that lead to it; ``leads`` is what ``link`` said."""
    found: list[list[Edges]] = [[] for _ in leads]
    for partition, there in enumerate(leads):
        for number, other in enumerate(there):
            if other != partition:
                found[other].append((partition, number))
    return found


def around(partition: int, sizes: Rows, others: Sequence[Edges], parts: str) -> Graph:
    """The symmetric graph around a partition's rows: row i of it leads to places, rows of the whole corpus.

    ``others`` are the batches of edges that lead here. Every row has an edge of 1 to itself.
    """
    starts, size = np.cumsum(sizes) - sizes, int(sizes[partition])
    start, own = int(starts[partition]), np.arange(size)
    source, target, similarity = [own], [own + start], [np.ones(size, np.float32)]
    mine = _edges(partition, parts)
    for batch in map(mine.get_batch, range(mine.num_record_batches)):
        here, there = batch["source"].to_numpy(), batch["target"].to_numpy()
        inside = (there >= start) & (there < start + size)
        source += [here, there[inside] - start]
        target += [there, here[inside] + start]
        similarity += [batch["similarity"].to_numpy(), batch["similarity"].to_numpy()[inside]]
    for other, number in others:
        batch = _edges(other, parts).get_batch(number)
        source.append(batch["target"].to_numpy() - start)
        target.append(batch["source"].to_numpy() + starts[other])
        similarity.append(batch["similarity"].to_numpy())
    return _sorted(np.concatenate(source), np.concatenate(target), np.concatenate(similarity), size, int(sizes.sum()))


def _edges(partition: int, parts: str) -> Any:
    return files.reader(storage.join(parts, "edges", f"{partition:06d}.arrow"))


def _sorted(source: Rows, target: Rows, similarity: Similarities, size: int, places: int) -> Graph:
    cells, first = np.unique(source * places + target, return_index=True)
    return Graph(np.searchsorted(cells, np.arange(size + 1) * places), cells % places, similarity[first])
