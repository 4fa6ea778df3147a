"""What every step needs to know of the whole corpus: its mean, its partitions' centroids, the axes of its map.

All of it is fitted on a sample that is drawn by example id, so it does not depend on how the files are cut.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge_ray import storage
from bridge_ray.errors import UserError
from bridge_ray.selection.describe import map_axes
from bridge_ray.selection.large import files
from bridge_ray.selection.neighbours import clusters, not_finite, refusal, scaled
from bridge_ray.selection.rank import cluster_count

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]

CHUNK_ROWS = 65_536  # of a file that one task reads, row groups permitting
READ_ROWS = 8192  # read from Parquet at once
BLOCK_BYTES = 1 << 27  # of vectors that a task works on at once
SAMPLED = 128  # rows per partition that the centroids are fitted on
UNEVEN = 2.5  # a cluster of this many times the average is split again


@dataclass(frozen=True)
class Chunk:
    """Row groups of one Parquet file of embeddings."""

    file: str
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Stats:
    """What a chunk adds to what is known of the corpus: ``total`` (d,) float64 sums its vectors."""

    rows: int
    total: NDArray[np.float64]
    longest: float
    bad: int  # rows with NaN or infinity
    first_bad: int  # the lowest id among them


@dataclass(frozen=True)
class Frame:
    """``mean`` (d,), ``longest`` row's length, ``centroids`` (p, d) of the partitions, ``coarse`` (c, d) of the
    clusters that people read, and the map's ``origin`` (d,) and ``axes`` (2, d)."""

    mean: Vectors
    longest: Any  # float64 (a 0-d array once it is read back)
    centroids: Vectors
    coarse: Vectors
    origin: Vectors
    axes: NDArray[np.float64]

    def unit(self, vectors: Vectors) -> Vectors:
        """Raw embeddings (n, d) centred and scaled to length 1; zeros at the mean."""
        return scaled(vectors, self.mean, float(self.longest))

    def save(self, location: str) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **asdict(self))
        storage.write_bytes(location, buffer.getvalue())


def load(location: str) -> Frame:
    data = storage.read_bytes(location)
    assert data is not None, f"{location}: written before it is read"
    return Frame(**np.load(io.BytesIO(data), allow_pickle=False))


def chunks(location: str) -> list[Chunk]:
    """The embeddings' row groups in order of file name, bundled to about 65,536 rows; a row group is not cut."""
    import pyarrow.parquet as pq

    found: list[Chunk] = []
    for file in storage.files(location):
        fs, path = storage.filesystem(file)
        footer = pq.read_metadata(path, filesystem=fs)
        sizes = np.array([footer.row_group(group).num_rows for group in range(footer.num_row_groups)], np.int64)
        bundle = (np.cumsum(sizes) - sizes) // CHUNK_ROWS
        found += [Chunk(file, tuple(np.flatnonzero(bundle == number).tolist())) for number in np.unique(bundle)]
    return found


def blocks(chunk: Chunk) -> Iterator[tuple[Rows, Vectors]]:
    """Ids (n,) and raw vectors (n, d) of the chunk, as many at once as make 128 MiB.

    Raises UserError where vectors differ in length.
    """
    held: list[tuple[Rows, Vectors]] = []
    for ids, vectors in _read(chunk):
        held.append((ids, vectors))
        if sum(block.nbytes for _, block in held) >= BLOCK_BYTES:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _read(chunk: Chunk) -> Iterator[tuple[Rows, Vectors]]:
    import pyarrow.parquet as pq

    fs, path = storage.filesystem(chunk.file)
    with fs.open_input_file(path) as source:
        # Buffered, because a row group may be as large as the corpus.
        parquet = pq.ParquetFile(source, buffer_size=1 << 20)
        for batch in parquet.iter_batches(READ_ROWS, list(chunk.groups), ["id", "vector"]):
            lengths = batch["vector"].value_lengths().to_numpy(zero_copy_only=False)
            if len(np.unique(lengths)) > 1 or batch["vector"].null_count:
                raise UserError(f"{chunk.file}: the embeddings are not of one length; embed again")
            flat = batch["vector"].flatten().to_numpy(zero_copy_only=False)
            yield batch["id"].to_numpy(), np.asarray(flat, np.float32).reshape(len(lengths), -1)


def _joined(held: Sequence[tuple[Rows, Vectors]]) -> tuple[Rows, Vectors]:
    ids, vectors = zip(*held, strict=True)
    if len({block.shape[1] for block in vectors}) > 1:
        raise UserError("the embeddings are not of one length; embed again")
    return np.concatenate(ids), np.concatenate(vectors)


def scan(chunk: Chunk, sample: str, share: float, seed: int) -> Stats:
    """The chunk's statistics; about ``share`` of its rows, drawn by id, are written to ``sample``."""
    rows, bad, first_bad, longest = 0, 0, np.iinfo(np.int64).max, 0.0
    total, drawn = np.zeros(1), []
    for ids, vectors in blocks(chunk):
        wrong = not_finite(vectors)
        rows, bad = rows + len(ids), bad + len(wrong)
        first_bad = min([first_bad, *ids[wrong].tolist()])
        total = total + vectors.sum(axis=0, dtype=np.float64)
        longest = max(longest, float(np.linalg.norm(vectors, axis=1).max(initial=0.0)))
        taken = _drawn(ids, share, seed)
        drawn.append((ids[taken], vectors[taken]))
    if drawn:
        ids, vectors = _joined(drawn)
        files.write_columns(sample, id=ids, vector=vectors)
    return Stats(rows, total, longest, bad, int(first_bad))


def _drawn(ids: Rows, share: float, seed: int) -> NDArray[np.bool_]:
    """Whether each id is in the sample: by a hash of id and seed (splitmix64, Steele et al. 2014)."""
    state = ids.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (state ^ (state >> np.uint64(31))) / 2.0**64 < share


def fit(stats: Sequence[Stats], samples: str, rows: int, partitions: int, seed: int, out: str) -> int:
    """Check the corpus and write its frame to ``out``; returns the number of partitions.

    It is what was asked for, or more where large clusters are split. Raises UserError for embeddings that are not
    finite or not ``rows`` of one length each.
    """
    _check(stats, rows)
    found = [files.read(file) for file in files.folder(samples)]
    ids = np.concatenate([batch["id"].to_numpy() for batch in found])
    sample = np.concatenate([files.matrix(batch["vector"]) for batch in found])[np.argsort(ids)]
    mean = (np.sum([part.total for part in stats], axis=0) / rows).astype(np.float32)
    longest = max(part.longest for part in stats)
    unit = scaled(sample, mean, longest)
    spread = unit[unit.any(axis=1)]
    if not len(spread):  # all rows are equal
        spread = np.zeros((1, len(mean)), np.float32)
    centroids = _centroids(spread, partitions, UNEVEN * len(spread) / partitions, seed)
    missing = max(0, partitions - len(centroids))  # fewer distinct rows than partitions: some stay empty
    centroids = np.concatenate([centroids, np.zeros((missing, len(mean)), np.float32)])
    coarse, _ = clusters(spread, min(cluster_count(rows), len(spread)), seed)
    origin, axes = map_axes(sample, seed)
    Frame(mean, np.float64(longest), centroids, coarse, origin, axes).save(out)
    return len(centroids)


def _check(stats: Sequence[Stats], rows: int) -> None:
    bad = sum(part.bad for part in stats)
    if bad:
        raise refusal(min(part.first_bad for part in stats), bad)
    if len({len(part.total) for part in stats}) > 1:
        raise UserError("the embeddings are not of one length; embed again")
    there = sum(part.rows for part in stats)
    if there != rows:
        raise UserError(f"there are {there:,} embeddings of {rows:,} train rows; embed again")


def _centroids(unit: Vectors, count: int, most: float, seed: int) -> Vectors:
    """Spherical k-means of the rows into ``count`` clusters, those of more than ``most`` rows split again.

    A cluster of equal rows cannot be split; its near-duplicates are merged when it is dealt.
    """
    found, labels = clusters(unit, min(count, len(unit)), seed)
    parts = []
    for number in range(len(found)):
        rows = unit[labels == number]
        if most < len(rows) < len(unit):
            parts.append(_centroids(rows, math.ceil(2 * len(rows) / most), most, seed))
        else:
            parts.append(found[number : number + 1])
    return np.concatenate(parts)
