"""A course run over every row of a corpus, by vLLM engines in Ray actors."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bridge_ray import copies
from bridge_ray.config import Engine as EngineConfig
from bridge_ray.inference import models
from bridge_ray.inference.compact import reason
from bridge_ray.inference.engine import Course, Engine, RowFault
from bridge_ray.inference.resumable import Pool, keep_others
from bridge_ray.inference.watchdog import Watchdog
from bridge_ray.progress import heed
from bridge_ray.stage import Work

if TYPE_CHECKING:
    import pyarrow as pa

ONLY = "only"  # the name of the model where there is one
TOLD_SECONDS = 1.0  # between two reports of an actor
KEPT = ("ta", "ta_hinted")  # routes whose rationale is kept


@dataclass(frozen=True)
class Served:
    """The model that answers: a reference (see models.resolve) and an optional LoRA adapter's location."""

    model: str
    adapter: str | None = None
    seed: int = 0


def courses(
    work: Work,
    served: Served | Mapping[str, Served],
    course: Course,
    schema: pa.Schema,
    load: Callable[[Served, EngineConfig], Any] | None = None,
) -> Pool:
    """The pool of actors that run the course over the rows of a stage; one record (``schema``) per row.

    With several models, a row's column ``system`` names its own; rows of one model should stand together.
    """
    named = {ONLY: served} if isinstance(served, Served) else served
    arguments = (work.stage, named, work.engine, course, schema, load or load_engine)
    return Pool(CourseActor, arguments, 2 * work.engine.max_num_seqs)


def load_engine(served: Served, settings: EngineConfig) -> Engine:
    """vLLM on the model; its files are fetched or converted once per machine."""
    adapter = copies.localise(served.adapter) if served.adapter else None
    return Engine(models.resolve(served.model), adapter, settings, served.seed)


class CourseActor:
    """An engine in a Ray actor; every row of every block at hand runs its course concurrently.

    Rows that name different models wait for one another: the engine of the next model is loaded when the last row of
    the one before has ended. The rows in ``skip`` (ascending ids) are left out.
    """

    def __init__(
        self,
        stage: str,
        served: Mapping[str, Served],
        settings: EngineConfig,
        course: Course,
        schema: pa.Schema,
        load: Callable[[Served, EngineConfig], Any],
        skip: Any,
        totals: Any,
    ):
        self._served = served
        self._settings = settings
        self._course = course
        self._schema = schema
        self._load = load
        self._skip = skip
        self._told, self._begun = Telling(stage, totals), False
        self._blocks = itertools.count()
        self._watchdog = Watchdog()
        self._loaded: tuple[str, Any] | None = None
        self._running = 0
        self._turn = asyncio.Condition()

    async def __call__(self, block: pa.Table) -> AsyncIterator[pa.Table]:
        import pyarrow as pa

        if not self._begun:
            self._begun = True
            await self._told.begun()
        # An earlier block goes first: it is committed, and safe, while later ones fill the engine up.
        priority = next(self._blocks)
        rows = keep_others(block, self._skip).to_pylist()
        records: list[dict[str, Any]] = []
        for name, of_model in itertools.groupby(rows, lambda row: row.get("system") or ONLY):
            async with self._engine(name) as engine:
                ask = partial(engine.ask, priority=priority)
                records += await asyncio.gather(*[self._row(row, ask) for row in of_model])
        await self._told.finished(records)
        yield pa.Table.from_pylist(records, schema=self._schema)

    async def _row(self, row: dict[str, Any], ask: Any) -> dict[str, Any]:
        try:
            record = await self._course(row, ask)
        except RowFault as fault:
            record = self._course.failed(row, str(fault))
        self._told.count(record)
        if self._told.due():
            await self._told.now()
        return {"id": row["id"], **record}

    @asynccontextmanager
    async def _engine(self, name: str) -> AsyncIterator[Any]:
        """The engine of a model, for the length of the block."""
        async with self._turn:
            await self._turn.wait_for(lambda: self._running == 0 or (self._loaded or ("",))[0] == name)
            engine = self._with(name)
            self._running += 1
        try:
            yield engine
        finally:
            async with self._turn:
                self._running -= 1
                self._turn.notify_all()

    def _with(self, name: str) -> Any:
        if self._loaded is not None:
            if self._loaded[0] == name:
                return self._loaded[1]
            self._loaded[1].shutdown()
        engine = self._load(self._served[name], self._settings)
        self._watchdog.guard()
        self._loaded = (name, engine)
        return engine


class Telling:
    """What an actor has done, told about once a second to the stage's progress and to Ray's metrics.

    Prometheus finds them as ``ray_bridge_ray_rows_total`` (by stage and route) and
    ``ray_bridge_ray_output_tokens_total`` (by stage).
    """

    def __init__(self, stage: str, totals: Any):
        from ray.util.metrics import Counter as Metric

        self._stage, self._totals = stage, totals
        self._rows = Metric("bridge_ray_rows", "Rows done, by how they ended.", tag_keys=("stage", "route"))
        self._tokens = Metric("bridge_ray_output_tokens", "Tokens generated.", tag_keys=("stage",))
        self._routes: Counter[str] = Counter()
        self._output = 0
        self._last = time.monotonic()

    async def begun(self) -> None:
        """The actor begins. Raises MustEnd."""
        heed(await self._totals.begun.remote())

    async def finished(self, records: Sequence[Mapping[str, Any]]) -> None:
        """A block has ended, with these records. Raises MustEnd."""
        await self.now()
        errors = [record["error"] for record in records if record["error"] is not None]
        heed(await self._totals.finished.remote(Counter(map(reason, errors))))

    def count(self, record: Mapping[str, Any]) -> None:
        """One row has ended."""
        error = record["error"]
        self._routes["failed" if error is not None else record.get("source") or "done"] += 1
        self._output += record.get("tokens") or 0

    def due(self) -> bool:
        return time.monotonic() - self._last >= TOLD_SECONDS

    async def now(self) -> None:
        """Tell what is new."""
        routes, tokens = self._routes, self._output
        if not routes:
            return
        self._routes, self._output, self._last = Counter(), 0, time.monotonic()
        for route, rows in routes.items():
            self._rows.inc(rows, {"stage": self._stage, "route": route})
        if tokens:
            self._tokens.inc(tokens, {"stage": self._stage})
        amounts = {"rows": sum(routes.values()), "tokens": tokens, "errors": routes["failed"]}
        if routes.keys() & {*KEPT, "label_only"}:
            amounts["kept"] = sum(routes[route] for route in KEPT)
        await self._totals.add.remote(amounts)
