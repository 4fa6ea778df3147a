"""The steps of a selection in partitions; each is a round of Ray tasks that read and write files.

Memory of a task, with d dimensions: 3 blocks of 128 MiB while reading; nine partitions and 4 million products
while searching. The second round holds the winners (15 % of the rows at a ranking of 10 %): their vectors, their edges
(about 12 x 2 x neighbours bytes each), and 32 bytes per row of the corpus. The driver holds counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from bridge_ray import records, storage
from bridge_ray.config import Score, Select
from bridge_ray.errors import UserError
from bridge_ray.inference import workers
from bridge_ray.selection import facts
from bridge_ray.selection.describe import Facts, summary
from bridge_ray.selection.large import deal, files, frame, links, measure, rounds
from bridge_ray.selection.large.frame import Chunk, Rows
from bridge_ray.selection.large.rounds import Race
from bridge_ray.selection.rank import cautions
from bridge_ray.selection.strategies import BLIND, ON_GRAPH

T = TypeVar("T")

PARTITION_ROWS = 2500  # on average: small enough that comparing all pairs is cheap, large enough to hold neighbours
TASKS = 256  # at most, per step; a task takes eight partitions, and more where there are more
WINNERS = (1.5, 6.0, math.inf)  # times as many rows as are ranked: the first that leaves enough is taken
GROUP_ROWS = 65_536  # of a row group that is written
SAVED = ("frame.npz", "ranking.arrow", "ranked.arrow")  # what distances to any part of the ranking are measured by


@dataclass(frozen=True)
class Inputs:
    """Where the outputs of the stages before are."""

    corpus: str
    embed: str
    score: str = ""

    @property
    def vectors(self) -> str:
        return storage.join(self.embed, "rows.parquet")


def partitions(rows: int) -> int:
    return math.ceil(rows / PARTITION_ROWS)


@dataclass(frozen=True)
class Steps:
    """Runs rounds of tasks; ``say`` is told what is being done."""

    say: Callable[[str], None]

    def each(self, name: str, function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> list[T]:
        self.say(name)
        return workers.each(function, calls)

    def one(self, name: str, function: Callable[..., T], *arguments: Any) -> T:
        self.say(name)
        return workers.call(with_all_cores, function, *arguments)


def with_all_cores(function: Callable[..., T], *arguments: Any) -> T:
    """Call the function with faiss on all of this machine's cores: Ray would allow a task one."""
    import faiss
    from loky import cpu_count

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(cpu_count())
    try:
        return function(*arguments)
    finally:
        faiss.omp_set_num_threads(before)  # Ray uses the process again, for one of many tasks that run at once


def run(
    inputs: Inputs,
    out: str,
    settings: Select,
    scored: Score,
    rows: int,
    count: int,
    bought: int,
    seed: int,
    say: Callable[[str], None],
    cells: int,
) -> tuple[dict[str, Any], list[str]]:
    """Rank ``count`` of the ``rows`` training rows in about ``cells`` partitions and write the stage's output.

    Returns the metrics of the first ``bought``, and what a person should know. Raises UserError for embeddings that
    are not finite, not of one length or not as many as the rows. The result depends on the seed and the number of
    partitions, not on how many tasks run at once.
    """
    if not 0 < count <= rows:
        raise UserError(f"select: cannot rank {count} of {rows} train rows; lower budget or raise corpus.train")
    parts, steps = storage.join(out, "parts"), Steps(say)
    storage.delete(parts)
    chunks = steps.one("reading", frame.chunks, inputs.vectors)
    known = steps.one("difficulty", _facts, inputs, rows, scored, parts)
    cells = _fit(steps, chunks, rows, cells, seed, parts)
    spread = sum(steps.each("dealing", deal.deal, [(chunk, i, parts) for i, chunk in enumerate(chunks)]))
    groups = _groups(cells)
    gathered = steps.each("near-duplicates", deal.gather, [(group, i, parts) for i, group in enumerate(groups)])
    sizes = np.array([size for found, _ in gathered for size in found], np.int64)
    assert sizes.sum() + sum(merged for _, merged in gathered) == rows, "a row was lost on its way to its partition"
    _rank(steps, groups, sizes, settings, count, seed, parts)
    metrics, more = _finish(steps, chunks, inputs, rows, spread, min(bought, count), parts, out)
    storage.delete(parts)
    return metrics, [*known, *more]


def _facts(inputs: Inputs, rows: int, scored: Score, parts: str) -> list[str]:
    found = facts.gathered(inputs.corpus, inputs.score, rows, scored)
    files.write_columns(
        storage.join(parts, "facts.arrow"), difficulty=found.difficulty, entropy=found.entropy, domain=found.domain
    )
    storage.write_json(storage.join(parts, "domains.json"), list(found.domains))
    return facts.cautions(found, scored)


def _fit(steps: Steps, chunks: Sequence[Chunk], rows: int, cells: int, seed: int, parts: str) -> int:
    share = min(1.0, frame.SAMPLED * cells / rows)
    samples = storage.join(parts, "samples")
    calls = [(chunk, storage.join(samples, f"{i:06d}.arrow"), share, seed) for i, chunk in enumerate(chunks)]
    stats = steps.each("scanning", frame.scan, calls)
    return steps.one("partitions", frame.fit, stats, samples, rows, cells, seed, storage.join(parts, "frame.npz"))


def _groups(cells: int) -> list[list[int]]:
    each = max(links.TOGETHER, math.ceil(cells / TASKS))
    return [list(range(start, min(start + each, cells))) for start in range(0, cells, each)]


def _rank(
    steps: Steps, groups: Sequence[list[int]], sizes: Rows, settings: Select, count: int, seed: int, parts: str
) -> None:
    others: list[list[links.Edges]] = [[] for _ in sizes]
    if settings.strategy in ON_GRAPH:
        calls = [(group, sizes, settings.neighbours, parts) for group in groups]
        leads = [there for found in steps.each("neighbours", links.link, calls) for there in found]
        others = links.incoming(leads)
    for winners in WINNERS:
        race = Race(settings, sizes, count, winners, seed, parts)
        firsts = [(group, i, race, [others[number] for number in group]) for i, group in enumerate(groups)]
        if settings.strategy not in BLIND:
            steps.each("first round", rounds.first_round, firsts)
        if steps.one("second round", rounds.second_round, race):
            return
    raise AssertionError("where all rows are winners, none can be missing")


def _finish(
    steps: Steps, chunks: Sequence[Chunk], inputs: Inputs, rows: int, spread: int, bought: int, parts: str, out: str
) -> tuple[dict[str, Any], list[str]]:
    steps.each("coverage", measure.coverage, [(chunk, i, parts) for i, chunk in enumerate(chunks)])
    mean, most = _distances(steps, chunks, rows, parts, bought)
    return steps.one("writing", _write, parts, out, bought, spread, mean, most)


def _distances(steps: Steps, chunks: Sequence[Chunk], rows: int, location: str, bought: int) -> tuple[float, float]:
    found = steps.each("distances", measure.distances, [(chunk, location, bought) for chunk in chunks])
    return sum(total for total, _ in found) / rows, max(most for _, most in found)


def describe(inputs: Inputs, select: str, bought: int) -> dict[str, Any]:
    """What ``describe.describe`` says, of the first ``bought`` rows of a ranking that ``run`` left at ``select``."""
    steps = Steps(lambda name: None)
    chunks = steps.one("reading", frame.chunks, inputs.vectors)
    rows = steps.one("reading", storage.count_rows, storage.files(inputs.vectors))
    mean, most = _distances(steps, chunks, rows, select, bought)
    return steps.one("describing", _describe, inputs.corpus, select, bought, mean, most)


def _describe(corpus: str, select: str, bought: int, mean: float, most: float) -> dict[str, Any]:
    chosen = storage.read_table(storage.join(select, "selection.parquet"), ["id"])["id"].to_numpy()[:bought]
    return summary(chosen, facts.remembered(corpus, select), mean, most)


def _write(
    parts: str, out: str, bought: int, spread: int, mean: float, most: float
) -> tuple[dict[str, Any], list[str]]:
    """Write the ranking and what is known of every row; the metrics and the cautions."""
    known = files.read(storage.join(parts, "facts.arrow"))
    domains = storage.read_json(storage.join(parts, "domains.json"))
    found = Facts(known["difficulty"].to_numpy(), known["entropy"].to_numpy(), known["domain"].to_numpy(), domains)
    ranking = _ranking(parts)
    storage.write_table(storage.join(out, "selection.parquet"), ranking)
    _write_rows(storage.join(out, "rows.parquet"), found, parts)
    fs, kept = storage.filesystem(out)
    for name in SAVED:
        fs.copy_file(f"{storage.filesystem(parts)[1]}/{name}", f"{kept}/{name}")
    metrics = summary(ranking["id"].to_numpy()[:bought], found, mean, most)
    return metrics, cautions(spread, found.difficulty)


def _ranking(parts: str) -> pa.Table:
    ranking = files.read(storage.join(parts, "ranking.arrow"))
    covers, cluster = np.zeros(len(ranking), np.int64), np.zeros(len(ranking), np.int64)
    for part in map(files.read, files.folder(storage.join(parts, "covers"))):
        covers[part["rank"].to_numpy()] += part["rows"].to_numpy()
    for part in map(files.read, files.folder(storage.join(parts, "clusters"))):
        cluster[part["rank"].to_numpy()] = part["cluster"].to_numpy()
    columns = {"id": ranking["id"], "rank": np.arange(len(ranking)), "gain": ranking["gain"]}
    return pa.table({**columns, "cluster": cluster, "covers": covers}, schema=records.SELECTION)


def _write_rows(location: str, found: Facts, parts: str) -> None:
    """rows.parquet, in order of id, a row group at a time."""
    import pyarrow.parquet as pq

    x, y = np.empty(len(found.difficulty)), np.empty(len(found.difficulty))
    for part in map(files.read, files.folder(storage.join(parts, "map"))):
        ids = part["id"].to_numpy()
        x[ids], y[ids] = part["x"].to_numpy(), part["y"].to_numpy()
    fs, path = storage.filesystem(location)
    groups = _row_groups(found, x, y)
    first = next(groups)
    with pq.ParquetWriter(path, first.schema, filesystem=fs) as writer:
        writer.write_table(first)
        for group in groups:
            writer.write_table(group)


def _row_groups(found: Facts, x: Any, y: Any) -> Iterator[pa.Table]:
    for start in range(0, len(x), GROUP_ROWS):
        rows = slice(start, min(start + GROUP_ROWS, len(x)))
        yield facts.table(np.arange(rows.start, rows.stop), found, x[rows], y[rows])
