"""Claim: a selection from a large corpus is as good as from a small one, in time that grows with its rows.

quality_vs_exact: F of the rows chosen in partitions (8 forced) over F of exact lazy greedy, 20,000 rows, budget 5 %.
time_vs_kmeans: the stage's time, reading and neighbour graph included, over faiss's k-means with 4,096 centroids and
10 iterations on the same vectors, 1,000,000 x 384, already in its memory, with the same cores.
slope: of the stage's time against the rows, both as logarithms, by least squares from 10,000 to 1,000,000.
peak_gb: memory of this process, Ray and all its workers at 1,000,000 x 384, pages in common counted once.

Vectors are made: 2,000 topics of unequal size, 24 directions that all topics share, and noise in every direction;
``quality`` has unstructured vectors too, the worst there can be. ``corpora`` compares the strategies on two corpora
that are scored and embedded here, at a budget of 5 %: distance is from a row to the nearest chosen one, covered rows
are those with a chosen one among their 15 nearest, difficulties are percentiles.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console

from bridge_ray import config, storage
from bridge_ray.inference import local_ray, models, workers
from bridge_ray.pipeline import draft, perform_all
from bridge_ray.progress import Progress
from bridge_ray.selection import facts, select
from bridge_ray.selection.describe import Facts, describe
from bridge_ray.selection.large import run as large
from bridge_ray.selection.lazy_greedy import lazy_greedy, objective
from bridge_ray.selection.neighbours import graph, merge_near_duplicates, normalise
from bridge_ray.selection.rank import rank
from bridge_ray.selection.strategies import STRATEGIES

Vectors = NDArray[np.float32]

BUDGET, RANKED = 0.05, 0.10
FILE_ROWS = 131_072
ROWS = 600  # of each corpus that is scored
TOPICS, SHARED = 2000, 24
SETTINGS, SCORED = config.Select(), config.Score()


def topics(rows: int, dimensions: int, seed: int) -> Iterator[Vectors]:
    """Vectors in blocks; the same for the same arguments."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(TOPICS, dimensions)).astype(np.float32)
    shared = random.normal(size=(SHARED, dimensions)).astype(np.float32) / SHARED**0.5
    sizes = random.pareto(1.5, TOPICS) + 0.1
    for start in range(0, rows, FILE_ROWS):
        size = min(FILE_ROWS, rows - start)
        topic = random.choice(TOPICS, size, p=sizes / sizes.sum())
        spread = random.standard_normal((size, SHARED), np.float32) @ shared
        yield 0.7 * centres[topic] + spread + 0.3 * random.standard_normal((size, dimensions), np.float32) + 1


def unstructured(rows: int, dimensions: int, seed: int) -> Iterator[Vectors]:
    yield np.random.default_rng(seed).standard_normal((rows, dimensions), np.float32)


def write(folder: Path, blocks: Iterator[Vectors], seed: int) -> tuple[large.Inputs, int]:
    """What the stages before *select* would have left, with random entropies; returns the number of rows too."""
    rows, (embed, train, score) = 0, (folder / "embed/rows.parquet", folder / "corpus/train", folder / "score")
    for part in (embed, train, score):
        part.mkdir(parents=True)
    for number, vectors in enumerate(blocks):
        ids = np.arange(rows, rows + len(vectors))
        offsets = np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1]
        column = pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel()))
        pq.write_table(
            pa.table({"id": ids, "vector": column}), embed / f"part-{number:05d}.parquet", row_group_size=16_384
        )
        rows += len(vectors)
    random, ids = np.random.default_rng(seed), np.arange(rows)
    same = pa.array(["number"]).dictionary_encode().take(pa.array(np.zeros(rows, np.int64)))
    pq.write_table(pa.table({"id": ids, "answer_type": same, "domain": same}), train / "rows.parquet")
    columns = {name: random.random(rows) for name in ("entropy", "nll", "share_correct")}
    pq.write_table(pa.table({"id": ids, **columns}), score / "rows.parquet")
    return large.Inputs(str(folder / "corpus"), str(folder / "embed"), str(score)), rows


def choose(inputs: large.Inputs, out: Path, rows: int, cells: int, steps: dict[str, float] | None = None) -> None:
    """As stage *select* does it; ``cells`` 0: as a whole. The seconds of each step are added to ``steps``."""
    count, bought = int(np.ceil(rows * RANKED)), int(rows * BUDGET)
    arguments = (inputs, str(out), SETTINGS, SCORED, rows, count, bought, 0)
    if not cells:
        workers.call(large.with_all_cores, select.whole, *arguments)
        return
    began = [("", time.perf_counter())]

    def say(step: str) -> None:
        began.append((step, time.perf_counter()))

    large.run(*arguments, say, cells)
    say("")
    for (step, start), (_, end) in pairwise(began):
        if step and steps is not None:
            steps[step] = round(steps.get(step, 0) + end - start, 1)


def quality(blocks: Iterator[Vectors], cells: int, seed: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        inputs, rows = write(Path(folder), blocks, seed)
        choose(inputs, Path(folder) / "out", rows, cells)
        chosen = storage.read_table(f"{folder}/out/selection.parquet")["id"].to_numpy()[: int(rows * BUDGET)]
        difficulty = storage.read_table(f"{folder}/out/rows.parquet")["difficulty"].to_numpy()
        unit = normalise(select.read_vectors(inputs.embed, rows))
    assert len(np.unique(merge_near_duplicates(unit))) == rows, "the exact greedy below knows no near-duplicates"
    weights = 0.5 + 0.5 * difficulty
    exact = graph(unit, SETTINGS.neighbours, exact_rows=rows)
    best = lazy_greedy(exact, weights, len(chosen))[0]
    share = objective(exact, weights, chosen) / objective(exact, weights, best)
    print(json.dumps({"quality": round(share, 4), "rows": rows, "partitions": cells}), file=sys.stderr)
    return share


@contextmanager
def peak() -> Iterator[list[float]]:
    """The list gets the most memory that this process and all below it held at once, in GB."""
    found, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(1):
            found[0] = max(found[0], _memory() / 1e9)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def _memory() -> int:
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has ended
            continue
    return total


def timed(rows: int, dimensions: int, seed: int, centroids: int = 0) -> dict[str, Any]:
    """Seconds and memory of a selection, and the seconds of k-means with that many centroids."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs, _ = write(folder, topics(rows, dimensions, seed), seed)
        steps: dict[str, float] = {}
        with peak() as most:
            start = time.perf_counter()
            choose(inputs, folder / "out", rows, large.partitions(rows) if rows > select.WHOLE_ROWS else 0, steps)
            seconds = time.perf_counter() - start
    found = {"rows": rows, "dimensions": dimensions, "seconds": seconds, "peak_gb": most[0], "steps": steps}
    if centroids:
        found["kmeans_seconds"] = kmeans(np.concatenate(list(topics(rows, dimensions, seed))), centroids)
    print(json.dumps(rounded(found)), file=sys.stderr)  # the whole takes hours
    return found


def kmeans(vectors: Vectors, centroids: int) -> float:
    import faiss

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    clustering = faiss.Kmeans(vectors.shape[1], centroids, niter=10, nredo=1, seed=0)
    start = time.perf_counter()
    clustering.train(vectors)
    return time.perf_counter() - start


def slope(found: list[dict[str, Any]]) -> float:
    rows, seconds = (np.log([run[name] for run in found]) for name in ("rows", "seconds"))
    return float(np.polyfit(rows, seconds, 1)[0])


def corpora(model: str, data: str, rows: int) -> dict[str, Any]:
    """Every strategy on a generated corpus and on GSM8K, scored by the embedded TA and embedded by ``model``."""
    made = {"generated": {"source": "generated"}, "gsm8k": {"source": "gsm8k", "path": data}}
    sources = {name: corpus for name, corpus in made.items() if Path(corpus.get("path", ".")).exists()}
    found = {name: compared(scored(corpus, model, rows)) for name, corpus in sources.items()}
    return {"embedded_by": models.identity(config.TA().model if model == "ta" else model), **found}


def scored(corpus: dict[str, Any], model: str, rows: int) -> tuple[Vectors, Facts]:
    with tempfile.TemporaryDirectory() as folder:
        made = config.validate(
            {
                "name": "benchmark",
                "storage": folder,
                "corpus": {**corpus, "train": rows, "test": 1},
                "score": {"samples": 8, "max_tokens": 64},
                "embed": {"model": model},
                "teacher": {"model": "none", "price": {"input": 1, "output": 1}, "standin": {"answers": "expert"}},
                "engine": {"max_num_seqs": 128, "enforce_eager": True},
            },
            "benchmark",
        )
        run = draft(made, until="embed")
        stages = [run.stages[name] for name in ("corpus", "score", "embed")]
        done = perform_all(run, stages, Progress(Console(stderr=True)), False, lambda: None)
        places = {name: part.location for name, part in done.items()}
        known = facts.gathered(places["corpus"], places["score"], rows, made.score)
        return select.read_vectors(places["embed"], rows), known


def compared(corpus: tuple[Vectors, Facts]) -> dict[str, Any]:
    vectors, known = corpus
    count, near = int(len(vectors) * BUDGET), graph(normalise(vectors), SETTINGS.neighbours)
    found = {}
    for strategy in STRATEGIES:
        settings = config.Select.model_validate({"strategy": strategy})
        table = rank(vectors, known.difficulty, settings, count, seed=0)
        told = describe(table, vectors, known)
        covered = np.unique(np.concatenate([near.around(row)[0] for row in table["id"].to_numpy()]))
        found[strategy] = {
            "distance_mean": round(told["distance"]["mean"], 4),
            "distance_max": round(told["distance"]["max"], 4),
            "difficulty_chosen": round(told["difficulty"]["chosen"], 4),
            "difficulty_covered": round(float(known.difficulty[covered].mean()), 4),
            "covered": round(len(covered) / len(vectors), 4),
        }
    return {"rows": len(vectors), "chosen": count, "strategies": found}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    quick = options.quick
    repeats, small, sizes = (1, 4000, [4000, 8000]) if quick else (3, 20_000, [10_000, 30_000, 100_000, 300_000])
    large_rows, centroids = (60_000, 256) if quick else (1_000_000, 4096)
    local_ray.start()
    timed(2000, 64, seed=9)  # workers start, and import what they need
    runs = [timed(large_rows, 384, seed, centroids) for seed in range(repeats)]
    growth = [timed(rows, 384, seed=0) for rows in sizes]
    qualities = {
        f"{name}_{cells}": [quality(make(small, 384, seed), cells, seed) for seed in range(repeats)]
        for name, make in (("topics", topics), ("unstructured", unstructured))
        for cells in (8, 32)
    }
    if not quick:  # partitions as they come, each of which sees a fifth of the corpus
        rows = 100_000
        qualities["topics_at_100000"] = [quality(topics(rows, 384, seed=0), large.partitions(rows), seed=0)]
    middle = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
    ratios = {
        "quality_vs_exact": statistics.median(qualities["topics_8"]),
        "time_vs_kmeans": statistics.median(run["seconds"] / run["kmeans_seconds"] for run in runs),
        "slope": slope([*growth, middle]),
        "peak_gb": max(run["peak_gb"] for run in runs),
    }
    found: dict[str, Any] = {"quality": qualities, "runs": runs, "growth": growth}
    if not quick:
        found["most"] = timed(10_000_000, 64, seed=0)
        found["corpora"] = corpora(options.model, options.gsm8k, ROWS)
    return {"ratios": ratios, "values": found}


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="a minute")
    parser.add_argument("--model", default="ta", help="of the embeddings in corpora: ta, or a sentence-embedding model")
    parser.add_argument("--only", choices=("corpora",), help="this part alone, and no ratios")
    parser.add_argument("--gsm8k", default="../shared/data/gsm8k", help="folder of GSM8K; left out where absent")
    options = parser.parse_args()
    alone = options.only == "corpora"
    found = {"ratios": {}, "values": corpora(options.model, options.gsm8k, ROWS)} if alone else measure(options)
    result = {
        **rounded(found),
        "machine": {
            "cpus": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {name: version(name) for name in ("bridge-ray", "faiss-cpu", "ray", "numpy", "pyarrow")}
        | {"python": sys.version.split()[0]},
        "quick": options.quick,
    }
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result["ratios"].items():
            print(f"{name:<20} {value}")


if __name__ == "__main__":
    main()
