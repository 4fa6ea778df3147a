"""Rank in two rounds: within each partition, then among the winners of all of them.

The second round of a strategy on the graph sees all neighbours of the winners, those in other partitions too, so it is
lazy greedy on the whole graph restricted to the winners. Other strategies' winners are merged by falling gain, or,
where they have none, by their place in their partition's ranking.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bridge_ray import storage
from bridge_ray.config import Select
from bridge_ray.selection.large import deal, files, frame, links
from bridge_ray.selection.large.frame import Rows, Vectors
from bridge_ray.selection.large.links import Edges, by_partition
from bridge_ray.selection.large.measure import Lists
from bridge_ray.selection.neighbours import NEAR_DUPLICATE, Graph
from bridge_ray.selection.problem import Problem
from bridge_ray.selection.strategies import BLIND, ON_GRAPH, STRATEGIES

Floats = NDArray[np.float64]

COMPARED = 1 << 24  # pairs at once
SLACK = 2.0  # a partition may win this many times its share


@dataclass(frozen=True)
class Race:
    """``count`` rows are to be ranked; ``winners`` times as many enter the second round; ``sizes`` (p,) int64."""

    settings: Select
    sizes: Rows
    count: int
    winners: float
    seed: int
    parts: str

    @property
    def starts(self) -> Rows:
        """The place of each partition's first row."""
        return np.cumsum(self.sizes) - self.sizes

    def partitions(self, places: Rows) -> Rows:
        """The partition of each of these places."""
        return np.searchsorted(np.cumsum(self.sizes), places, side="right")

    @property
    def on_graph(self) -> bool:
        return self.settings.strategy in ON_GRAPH

    @property
    def everyone(self) -> bool:
        """Whether all rows enter the second round, so that a further attempt could find no more."""
        return self.winners * self.count >= self.sizes.sum()

    def entrants(self, partition: int) -> int:
        """How many of a partition's rows can be winners."""
        most = int(self.sizes[partition])
        share = self.winners * self.count / int(self.sizes.sum())
        slack = 1.0 if self.settings.strategy == "kmeans" else SLACK  # whose clusters are as many as it ranks
        return most if self.everyone else min(most, math.ceil(slack * share * most))


@dataclass(frozen=True)
class Places:
    """Every representative of near-duplicates, by place: partition after partition, by id within each."""

    id: Rows
    difficulty: Floats
    copies: Rows


def places(parts: str) -> Places:
    found = [files.read(file) for file in files.folder(storage.join(parts, "places"))]
    return Places(
        *(np.concatenate([batch[name].to_numpy() for batch in found]) for name in ("id", "difficulty", "copies"))
    )


def first_round(group: Sequence[int], number: int, race: Race, others: Sequence[Sequence[Edges]]) -> None:
    """Rank each partition of the group, and write its entrants: place, gain and merging key, and their edges.

    ``others`` are, partition by partition, the batches of edges that lead to it (strategies on the graph only).
    Memory: a partition, its edges, and 24 bytes per representative of the corpus.
    """
    every, name = places(race.parts), f"{number:06d}.arrow"
    pairs = zip(group, others, strict=True)
    found = [_ranked(partition, race, every, edges) for partition, edges in pairs if race.sizes[partition]]
    if not found:
        return
    winners, graphs = zip(*found, strict=True)
    files.write(storage.join(race.parts, "winners", name), winners, winners[0].schema)
    if race.on_graph:
        edges = [_lists(graph) for graph in graphs]
        files.write(storage.join(race.parts, "around", name), edges, edges[0].schema)


def _ranked(partition: int, race: Race, every: Places, others: Sequence[Edges]) -> tuple[pa.RecordBatch, Graph | None]:
    """The entrants of one partition, best first, and on a graph what is around them."""
    own = np.arange(race.sizes[partition]) + race.starts[partition]
    problem, around = _problem(deal.vectors(partition, race.parts), race, every, own), None
    if race.on_graph:
        around = links.around(partition, race.sizes, others, race.parts)
        problem = _on_part(problem, around, every, own)
    chosen, gains = STRATEGIES[race.settings.strategy](problem, race.entrants(partition))
    return files.batch(place=own[chosen], gain=gains, key=_keys(gains)), None if around is None else part(
        around, chosen
    )


def _lists(graph: Graph) -> pa.RecordBatch:
    """A graph as one list of targets and one of similarities per row."""
    columns = {"target": graph.rows, "similarity": graph.similarities}
    lists = {name: pa.LargeListArray.from_arrays(graph.starts, pa.array(values)) for name, values in columns.items()}
    return files.batch(**lists)


def _problem(vectors: Vectors, race: Race, every: Places, rows: Rows) -> Problem:
    return Problem(
        vectors=vectors,
        difficulty=every.difficulty[rows],
        copies=every.copies[rows],
        difficulty_weight=race.settings.difficulty_weight,
        neighbours=race.settings.neighbours,
        seed=race.seed,
    )


def _on_part(problem: Problem, touched: Graph, every: Places, own: Rows) -> Problem:
    """The problem with a graph whose rows lead to places, renumbered: the partition's own first, then the others."""
    outside = np.setdiff1d(touched.rows, own)
    inside = (touched.rows >= own[0]) & (touched.rows <= own[-1])
    renumbered = np.where(inside, touched.rows - own[0], len(own) + np.searchsorted(outside, touched.rows))
    rows = np.concatenate([own, outside])
    graph = replace(touched, rows=renumbered)
    return replace(problem, difficulty=every.difficulty[rows], copies=every.copies[rows], graph=graph)


def part(graph: Graph, rows: Rows) -> Graph:
    """The graph around these of its rows, in their order."""
    lengths = np.diff(graph.starts)[rows]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    edges = np.arange(starts[-1]) + np.repeat(graph.starts[rows] - starts[:-1], lengths)
    return Graph(starts, graph.rows[edges], graph.similarities[edges])


def _keys(gains: Floats) -> Floats:
    """What winners of different partitions are merged by, highest first: their gains, else their place in the ranking.

    A first row that has no gain where the later ones do comes before them.
    """
    if np.isnan(gains).all():
        return -(np.arange(len(gains)) + 0.5) / max(1, len(gains))
    return np.where(np.isnan(gains), np.inf, gains)


@dataclass(frozen=True)
class Ranking:
    """Ids (count,) in the order to buy them, their gains, and the places (m,) of the first m: the rest, which are
    near-duplicates of those, have none."""

    ids: Rows
    gains: Floats
    places: Rows


def second_round(race: Race) -> bool:
    """Rank the winners and write the ranking; False if near-duplicates left too few of them, so that more must enter.

    Of near-duplicates among the winners the best stays, those of other partitions included, and the others wait with
    the merged ones until nothing else is left, hardest first. Memory: 32 bytes per representative, and the winners'
    vectors and edges.
    """
    every = places(race.parts)
    winners, gains = _winners(race, every)
    known = frame.load(storage.join(race.parts, "frame.npz"))
    kept = ~_repeated(_vectors(winners, race), race.partitions(winners), known.centroids)
    if kept.sum() < race.count and not race.everyone:
        return False
    chosen, gains = winners[kept][: race.count], gains[kept][: race.count]
    if race.on_graph:
        chosen, gains = _again(winners[kept], race, every)
    _write(_filled(chosen, gains, race, every), race)
    return True


def _winners(race: Race, every: Places) -> tuple[Rows, Floats]:
    """Places and gains of those that enter the second round, best first."""
    most = math.ceil(race.winners * race.count)
    if race.settings.strategy in BLIND:
        by_id = np.argsort(every.id)
        problem = _problem(np.empty((len(by_id), 0), np.float32), race, every, by_id)
        chosen, gains = STRATEGIES[race.settings.strategy](problem, min(most, len(by_id)))
        return by_id[chosen], gains
    found = [files.reader(file).read_all() for file in files.folder(storage.join(race.parts, "winners"))]
    table = pa.concat_tables(found)
    place, gains, key = (table[name].to_numpy() for name in ("place", "gain", "key"))
    best = np.lexsort((every.id[place], -key))[:most]
    return place[best], gains[best]


def _vectors(chosen: Rows, race: Race) -> Vectors:
    """The vectors (m, d) of these places."""
    partition = race.partitions(chosen)
    order = np.argsort(partition, kind="stable")
    present, starts = np.unique(partition[order], return_index=True)
    found = [
        deal.vectors(int(number), race.parts)[chosen[rows] - race.starts[number]]
        for number, rows in zip(present, np.split(order, starts[1:]), strict=True)
    ]
    unit = np.concatenate(found)
    unit[order] = unit.copy()
    return unit


def _repeated(unit: Vectors, partitions: Rows, centroids: Vectors) -> NDArray[np.bool_]:
    """Whether each of these rows, best first, is a near-duplicate of a better one that stays.

    Looks for near-duplicates in the eight lists nearest to each row, where nearly every row at cosine 0.98 lies.
    """
    lists = Lists(unit, partitions, centroids)
    pairs = [np.empty((0, 2), np.int64)]
    for number, rows in by_partition(unit, centroids, lists.numbers):
        members = lists.members(number)
        for some in np.array_split(rows, math.ceil(len(rows) * len(members) / COMPARED)):
            near = np.argwhere(unit[some] @ unit[members].T >= NEAR_DUPLICATE)
            pairs.append(np.stack([members[near[:, 1]], some[near[:, 0]]], axis=1))
    repeated = np.zeros(len(unit), bool)
    found = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)
    for better, worse in found[found[:, 0] < found[:, 1]]:
        repeated[worse] |= not repeated[better]
    return repeated


def _again(winners: Rows, race: Race, every: Places) -> tuple[Rows, Floats]:
    """Lazy greedy among the winners, with all that they touch in the whole corpus."""
    found = zip(*(files.folder(storage.join(race.parts, name)) for name in ("winners", "around")), strict=True)
    parts = [_touched(entrants, around, winners) for entrants, around in found]
    there, lengths, rows, similarities = (np.concatenate(column) for column in zip(*parts, strict=True))
    by_id = np.argsort(every.id[there])
    graph = part(Graph(np.concatenate([[0], np.cumsum(lengths)]), rows, similarities), by_id)
    problem = _problem(np.empty((len(there), 0), np.float32), race, every, np.arange(len(every.id)))
    count = min(race.count, len(there))
    chosen, gains = STRATEGIES[race.settings.strategy](replace(problem, graph=graph), count)
    return there[by_id[chosen]], gains


def _touched(entrants: str, around: str, winners: Rows) -> tuple[Rows, Rows, Rows, NDArray[np.float32]]:
    """Of one group's files: the winners among its entrants, the lengths of their lists of edges, and the lists."""
    place = files.reader(entrants).read_all()["place"].to_numpy()
    inside = np.isin(place, winners)
    table = files.reader(around).read_all().filter(pa.array(inside))
    targets, cosines = (table[name].combine_chunks() for name in ("target", "similarity"))
    lengths = targets.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return place[inside], lengths, targets.flatten().to_numpy(), cosines.flatten().to_numpy()


def _filled(chosen: Rows, gains: Floats, race: Race, every: Places) -> Ranking:
    """The ranking, with near-duplicates at its end where there are too few others."""
    missing = race.count - len(chosen)
    if not missing:
        return Ranking(every.id[chosen], gains, chosen)
    merged = [files.read(file)["id"].to_numpy() for file in files.folder(storage.join(race.parts, "merged"))]
    left = np.concatenate([*merged, np.delete(every.id, chosen)])
    difficulty = files.read(storage.join(race.parts, "facts.arrow"))["difficulty"].to_numpy()[left]
    others = left[np.lexsort((left, -difficulty))][:missing]
    ids = np.concatenate([every.id[chosen], others])
    return Ranking(ids, np.concatenate([gains, np.full(len(others), np.nan)]), chosen)


def _write(ranking: Ranking, race: Race) -> None:
    """The ranking, and its rows' vectors and partitions in their order, by which the others are measured."""
    files.write_columns(storage.join(race.parts, "ranking.arrow"), id=ranking.ids, gain=ranking.gains)
    unit, partition = _vectors(ranking.places, race), race.partitions(ranking.places)
    files.write_columns(storage.join(race.parts, "ranked.arrow"), vector=unit, partition=partition)
