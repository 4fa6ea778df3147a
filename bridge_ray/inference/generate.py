"""A course run over every row of a Parquet dataset: Ray Data in, vLLM actors, Parquet out, resumable by row.

Ray Data's checkpointing is keyed by example id from read to write and is at-least-once, so output is de-duplicated
by id when it is compacted. Its grain is the input block; blocks are small, and each actor works on enough of them
at once to keep the engine full.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bridge_ray import storage
from bridge_ray.config import Engine as EngineConfig
from bridge_ray.inference import local_ray, models
from bridge_ray.inference.engine import Course, Engine, RowFault
from bridge_ray.inference.watchdog import Watchdog
from bridge_ray.stage import Work

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

BLOCK_ROWS = 16
ONLY = "only"  # the name of the model where there is one


@dataclass(frozen=True)
class Served:
    """The model that answers: a reference (see models.resolve) and an optional LoRA adapter's location."""

    model: str
    adapter: str | None = None
    seed: int = 0


class CourseActor:
    """An engine in a Ray actor; every row of every block at hand runs its course concurrently.

    Rows that name different models wait for one another: the engine of the next model is loaded when the last row of
    the one before has ended.
    """

    def __init__(
        self, served: Mapping[str, Served], settings: EngineConfig, course: Course, schema: pa.Schema, counter: Any
    ):
        self._served = served
        self._settings = settings
        self._course = course
        self._schema = schema
        self._counter = counter
        self._blocks = itertools.count()
        self._watchdog = Watchdog()
        self._loaded: tuple[str, Engine] | None = None
        self._running = 0
        self._turn = asyncio.Condition()

    async def __call__(self, block: pa.Table) -> AsyncIterator[pa.Table]:
        import pyarrow as pa

        # An earlier block goes first: it is committed, and safe, while later ones fill the engine up.
        priority = next(self._blocks)
        rows = await asyncio.gather(*[self._row(row, priority) for row in block.to_pylist()])
        yield pa.Table.from_pylist(rows, schema=self._schema)

    async def _row(self, row: dict[str, Any], priority: int) -> dict[str, Any]:
        async with self._engine(row.get("system") or ONLY) as engine:
            try:
                record = await self._course(row, partial(engine.ask, priority=priority))
            except RowFault as fault:
                record = self._course.failed(row, str(fault))
        self._counter.add.remote(rows=1, tokens=record.get("tokens") or 0, errors=int(record["error"] is not None))
        return {"id": row["id"], **record}

    @asynccontextmanager
    async def _engine(self, name: str) -> AsyncIterator[Engine]:
        """The engine of a model, for the length of the block."""
        async with self._turn:
            await self._turn.wait_for(lambda: self._running == 0 or (self._loaded or ("",))[0] == name)
            engine = self._load(name)
            self._running += 1
        try:
            yield engine
        finally:
            async with self._turn:
                self._running -= 1
                self._turn.notify_all()

    def _load(self, name: str) -> Engine:
        if self._loaded is not None:
            if self._loaded[0] == name:
                return self._loaded[1]
            self._loaded[1].shutdown()
        served = self._served[name]
        adapter = storage.localise(served.adapter) if served.adapter else None
        engine = Engine(models.resolve(served.model), adapter, self._settings, served.seed)
        self._watchdog.guard()
        self._loaded = (name, engine)
        return engine


def generate(
    work: Work, name: str, source: str, served: Served | Mapping[str, Served], course: Course, schema: pa.Schema
) -> pa.Table:
    """Run the course over the Parquet rows at ``source``; one record per row, in order of id, left in the output.

    With several models, a row's column ``system`` names its own; rows of one model should stand together.
    """
    in_flight = math.ceil(2 * work.engine.max_num_seqs / BLOCK_ROWS)
    named = {ONLY: served} if isinstance(served, Served) else served
    return resumable_map(work, name, source, CourseActor, (named, work.engine, course, schema), in_flight)


def resumable_map(
    work: Work,
    name: str,
    source: str,
    actor: type,
    arguments: tuple[Any, ...],
    in_flight: int,
) -> pa.Table:
    """Map an actor over the Parquet rows at ``source``; the table of its records in order of id.

    The actor gets ``arguments`` and a progress counter, and turns a block of rows into as many records, of which
    ``in_flight`` blocks are at work at once. The table is left in the stage's output as ``rows.parquet``.
    Interrupted and called again, it continues with the rows that are not there yet. Raises RuntimeError when rows
    went missing.
    """
    import ray

    finished = storage.join(work.out, "rows.parquet")
    if storage.exists(finished):
        return storage.read_table(finished)
    local_ray.start()
    parts, total = storage.join(work.out, "parts"), storage.count_rows(source)
    with work.progress.counted(name, total, "rows", start=_rows_done(parts)) as counter, _resumable(parts):
        # override_num_blocks would be ignored: a small file is one block, and all of it would be committed at once.
        blocks = ray.data.read_parquet(source).repartition(target_num_rows_per_block=BLOCK_ROWS)
        mapped = _mapped(blocks, work.engine, actor, (*arguments, counter), in_flight)
        mapped.write_parquet(storage.join(parts, "rows"))
    table = _compact(storage.join(parts, "rows"), total)
    storage.write_table(finished, table)
    storage.delete(parts)
    return table


def _mapped(blocks: Dataset, engine: EngineConfig, actor: type, arguments: tuple[Any, ...], in_flight: int) -> Dataset:
    from ray.data import ActorPoolStrategy

    return blocks.map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=BLOCK_ROWS,  # a block; Ray Data wants it said where there are GPUs
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=1,
        num_gpus=engine.gpus * engine.tensor_parallel,
        label_selector=engine.labels or None,
        compute=ActorPoolStrategy(
            size=engine.replicas,
            max_tasks_in_flight_per_actor=2 * in_flight,
            max_concurrent_calls_per_actor=in_flight,
        ),
    )


@contextmanager
def _resumable(parts: str) -> Iterator[None]:
    """Ray Data's checkpointing on for the block only: the setting applies to every later read-to-write."""
    from ray.data import DataContext
    from ray.data.checkpoint import CheckpointConfig

    context = DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        "id", storage.join(parts, "checkpoint"), delete_checkpoint_on_success=False
    )
    try:
        yield
    finally:
        context.checkpoint_config = None


def _rows_done(parts: str) -> int:
    """Rows that an earlier attempt has committed. Ray removes the uncommitted ones itself when it resumes."""
    import pyarrow.parquet as pq
    from pyarrow.fs import FileSelector

    fs, path = storage.filesystem(storage.join(parts, "checkpoint"))
    files = fs.get_file_info(FileSelector(path, allow_not_found=True))
    committed = [file.path for file in files if not file.path.endswith(".pending.parquet")]
    return sum(pq.read_metadata(file, filesystem=fs).num_rows for file in committed)


def _compact(rows: str, total: int) -> pa.Table:
    """The records in order of id, one per id: a row whose commit was interrupted may be there twice."""
    import numpy as np

    table = storage.read_table(rows)
    _, first = np.unique(table["id"].to_numpy(), return_index=True)
    if len(first) != total:
        raise RuntimeError(f"{rows}: {len(first)} of {total} rows came back; run again to continue")
    return table.take(first)
