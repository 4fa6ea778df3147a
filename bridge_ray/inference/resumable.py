"""An actor mapped over every row of a Parquet dataset: Ray Data in, actors, Parquet out, resumable by row.

Ray Data's checkpointing is keyed by example id from read to write and is at-least-once, so output is de-duplicated
by id when it is compacted. Its grain is the input block: small where a corpus is small, so that little is done again
after a crash, and larger where it is large, so that a row costs little.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from bridge_ray import storage
from bridge_ray.config import Engine as EngineConfig
from bridge_ray.errors import UserError
from bridge_ray.inference import local_ray
from bridge_ray.inference.compact import Counts, Summary, compact
from bridge_ray.progress import too_many_faults
from bridge_ray.stage import Work

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from ray.data import Dataset

LEAST_ROWS, MOST_ROWS = 16, 512  # of a block
BLOCKS = 512  # that a corpus of middling size is cut into
BEGUN = 5  # times that an actor is begun, on the average, before one has finished a block: Ray would go on for ever
PENDING = ".pending.parquet"  # how the checkpoint of a block ends while the block's rows are being written


@dataclass(frozen=True)
class Pool:
    """The actors: their class, what they are made with, and how many rows each of them works on at once.

    After ``arguments`` an actor gets the ascending ids to leave out (or None) and the stage's ``progress.Totals``.
    """

    actor: type
    arguments: tuple[Any, ...]
    rows_at_once: int


@dataclass(frozen=True)
class Rest:
    """Rows that are not mapped: their ids, ascending, and where their records are."""

    ids: NDArray[np.int64]
    records: str


def resumable_map(
    work: Work,
    name: str,
    source: str,
    pool: Pool,
    *,
    rest: Rest | None = None,
    summary: Summary | None = None,
    max_error_fraction: float = 1.0,
) -> tuple[str, Counts]:
    """Map the pool's actors over the Parquet rows at ``source``: a folder with one record per row in order of id.

    Returns the folder's location and the summary's counts, with the number of records as ``rows`` and the failed ones
    as ``fault/REASON``. Interrupted and called again, it continues with the rows that are not there yet, and tries
    those again that failed. Raises UserError when more than that share of the rows has failed, and RuntimeError when
    records and rows are not as many.
    """
    out, marker = storage.join(work.out, "rows.parquet"), storage.join(work.out, "rows.json")
    parts = storage.join(work.out, "parts")
    counts = storage.read_json(marker)
    if counts is None:
        local_ray.start()
        total = storage.count_rows(storage.files(source))
        max_faults = math.floor(max_error_fraction * total + 1e-9)
        _map(work, name, source, pool, parts, total, rest, max_faults)
        counts = storage.read_json(marker)  # of another run at the same rows, which may be done by now
    if counts is None:
        sources = [storage.join(parts, "rows"), *([rest.records] if rest else [])]
        counts = compact(sources, out, summary, total)
        if verdict := too_many_faults(name, faults(counts), total, max_faults):
            raise UserError(verdict)
        storage.write_json(marker, counts)
    storage.delete(parts)
    return out, Counter(counts)


def faults(counts: Mapping[str, float]) -> dict[str, int]:
    """Reason -> failed rows, of a summary's counts."""
    return {key.removeprefix("fault/"): int(rows) for key, rows in counts.items() if key.startswith("fault/")}


def _map(
    work: Work, name: str, source: str, pool: Pool, parts: str, total: int, rest: Rest | None, max_faults: int
) -> None:
    import ray

    there, rows = 0 if rest is None else len(rest.ids), block_rows(total)
    max_begun = BEGUN * _most(work.engine)
    forget_failed(parts)
    start = there + _rows_done(parts)
    with work.progress.counted(name, total, "rows", start, max_faults, max_begun) as totals, _resumable(parts):
        # override_num_blocks would be ignored: a small file is one block, and all of it would be committed at once.
        blocks = ray.data.read_parquet(source).repartition(target_num_rows_per_block=rows)
        mapped = _mapped(blocks, work.engine, pool, rows, (None if rest is None else rest.ids, totals))
        try:
            mapped.write_parquet(storage.join(parts, "rows"))
        except Exception:
            _raise_faults(totals)
            raise


def block_rows(total: int) -> int:
    """Rows per block: a 512th of the corpus, but at least 16 and at most 512."""
    return min(MOST_ROWS, max(LEAST_ROWS, total // BLOCKS))


def _mapped(blocks: Dataset, engine: EngineConfig, pool: Pool, rows: int, more: tuple[Any, ...]) -> Dataset:
    from ray.data import ActorPoolStrategy

    in_flight = max(2, math.ceil(pool.rows_at_once / rows))
    return blocks.map_batches(
        pool.actor,
        fn_constructor_args=(*pool.arguments, *more),
        batch_size=rows,  # a block; Ray Data wants it said where there are GPUs
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=1,
        num_gpus=engine.gpus * engine.tensor_parallel,
        label_selector=engine.labels or None,
        compute=ActorPoolStrategy(
            min_size=engine.replicas,
            max_size=_most(engine),
            max_tasks_in_flight_per_actor=2 * in_flight,
            max_concurrent_calls_per_actor=in_flight,
        ),
    )


def _most(engine: EngineConfig) -> int:
    """Actors at once."""
    return engine.max_replicas or engine.replicas


def _raise_faults(totals: Any) -> None:
    """The failure in plain words where it was its totals that ended it."""
    import ray

    verdict: str | None = ray.get(totals.verdict.remote())
    if verdict is not None:
        raise UserError(verdict) from None


@contextmanager
def _resumable(parts: str) -> Iterator[None]:
    """Ray Data's checkpointing on for the block only: the setting applies to every later read-to-write.

    And its polling of memory off: once a second for every block at hand, it would walk all that an engine has mapped.
    """
    from ray.data import DataContext
    from ray.data.checkpoint import CheckpointConfig

    context = DataContext.get_current()
    polled = context.memory_usage_poll_interval_s
    context.memory_usage_poll_interval_s = None
    context.checkpoint_config = CheckpointConfig(
        "id", storage.join(parts, "checkpoint"), delete_checkpoint_on_success=False
    )
    try:
        yield
    finally:
        context.checkpoint_config = None
        context.memory_usage_poll_interval_s = polled


def forget_failed(parts: str) -> None:
    """Take rows that failed in all earlier attempts out of the checkpoint: what they failed of may have been changed.

    A file that was being written when an attempt ended may be cut off; Ray removes it when it resumes.
    """
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    written = _whole(parts)
    if not written:
        return
    fs, _ = storage.filesystem(written[0])
    rows = ds.dataset([storage.filesystem(file)[1] for file in written], filesystem=fs, format="parquet")
    if "error" not in rows.schema.names:
        return
    error, number = pc.field("error"), pc.field("id")
    failed = rows.to_table(["id"], filter=pc.is_valid(error))["id"].combine_chunks()
    if not len(failed):
        return
    mended = rows.to_table(["id"], filter=pc.is_null(error) & pc.is_in(number, failed))["id"].combine_chunks()
    failed = failed.filter(pc.invert(pc.is_in(failed, mended)))
    for file in _committed(parts):
        ids = storage.read_table(file)
        left = ids.filter(pc.invert(pc.is_in(ids["id"], failed)))
        if left.num_rows < ids.num_rows:
            storage.replace_table(file, left)


def _whole(parts: str) -> list[str]:
    """The files of rows that an earlier attempt has ended with: those of a block's begin with its checkpoint's name."""
    begun = tuple(PurePath(file).name.removesuffix(PENDING) for file in _checkpoint(parts) if file.endswith(PENDING))
    return [file for file in storage.files(storage.join(parts, "rows")) if not PurePath(file).name.startswith(begun)]


def _checkpoint(parts: str) -> list[str]:
    return storage.files(storage.join(parts, "checkpoint"))


def _committed(parts: str) -> list[str]:
    return [file for file in _checkpoint(parts) if not file.endswith(PENDING)]


def _rows_done(parts: str) -> int:
    """Rows that an earlier attempt has committed. Ray removes the uncommitted ones itself when it resumes."""
    return storage.count_rows(_committed(parts))


def keep_others(block: Any, skip: NDArray[np.int64] | None) -> Any:
    """A block without the rows whose ids are in ``skip`` (ascending)."""
    import numpy as np

    if skip is None or not len(skip):
        return block
    ids = block["id"].to_numpy()
    places = np.minimum(np.searchsorted(skip, ids), len(skip) - 1)
    return block.filter(skip[places] != ids)
