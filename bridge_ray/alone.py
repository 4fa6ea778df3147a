"""Amplification on its own: a corpus and a TA that somebody already has, and nothing else of the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from bridge_ray import amplify, copies, job, storage
from bridge_ray.config import TA, Config
from bridge_ray.corpus import stream
from bridge_ray.corpus.load import load
from bridge_ray.corpus.stage import content_hash
from bridge_ray.errors import UserError
from bridge_ray.inference import models, workers
from bridge_ray.pipeline import Run, check_unchanged, perform_all, record
from bridge_ray.report.summary import count, percent
from bridge_ray.report.write import write_metrics
from bridge_ray.stage import Done, Stage, Work
from bridge_ray.stopping import Stop

ROUTES = {
    "ta": "verified",
    "ta_hinted": "verified after a hint",
    "label_only": "no rationale held",
    "errored": "could not be processed",
}


def run(settings: Config, fresh: bool, stop: Stop) -> None:
    """Amplify the corpus, and print where the rationales are. Raises UserError with one line."""
    prepared = job.announced(settings, lambda: prepare(settings, fresh))
    with job.watched(prepared) as progress:
        finished = perform_all(prepared, list(prepared.stages.values()), progress, fresh, stop.check)
    metrics = write_metrics(settings, finished, prepared.home)
    record(prepared, finished, "finished")
    show(metrics, finished["amplify"], Console())


def prepare(config: Config, fresh: bool) -> Run:
    """Check what a user can get wrong; nothing is written before this returns. Raises UserError."""
    models.check(config.ta.model, "ta.model")
    if config.ta.adapter is not None:
        models.check_adapter(config.ta.adapter, "ta.adapter")
    prepared = Run(config, None, stages(config), storage.root(config.storage))
    if not fresh:
        check_unchanged(prepared)
    return prepared


def stages(config: Config) -> dict[str, Stage]:
    """Corpus, the merged model where an adapter is to be merged, and amplify."""
    if config.corpus.source == "parquet":
        found = stream.pieces(config.corpus)
        _check_labels(config, "answer" in stream.columns_of(found[0], config.corpus))
        corpus = stream.stage(config.corpus, found)
    else:
        corpus = _whole(config)
    merged = merge_stage(config.ta) if config.ta.adapter is not None and config.ta.serve == "merged" else None
    explained = amplify.stage_alone(config.amplify, config.ta, config.seed, corpus, merged)
    return {part.name: part for part in (corpus, merged, explained) if part is not None}


def _check_labels(config: Config, labelled: bool) -> None:
    if config.amplify.verify == "gold" and not labelled:
        raise UserError(
            f"{config.corpus.path}: no row has an answer to verify with; set corpus.columns.answer, or "
            "amplify.verify=self_consistency"
        )


def _whole(config: Config) -> Stage:
    """Stage *corpus* of a source that is read in one piece: all of its rows, or the first ``corpus.train``."""
    examples = load(config.corpus.model_copy(update={"dev": 0, "test": 0}), config.seed)[: config.corpus.train]
    _check_labels(config, any(example.answer is not None for example in examples))
    columns = {name: [getattr(example, name) for example in examples] for name in type(examples[0]).__slots__}
    columns |= {"id": list(range(len(examples))), "split": ["train"] * len(examples), "fault": [None] * len(examples)}
    table = pa.table(columns, schema=stream.READABLE)
    return Stage("corpus", 1, {"alone": content_hash(table)}, {}, partial(_write, table=table))


def _write(work: Work, table: pa.Table) -> dict[str, Any]:
    storage.write_table(storage.join(work.out, "train", "rows.parquet"), table)
    return {"train": table.num_rows}


def merge_stage(ta: TA) -> Stage:
    """Stage *merge_ta*: the adapter's weights added to the TA's own, because an engine is far faster without one."""
    assert ta.adapter is not None
    parts = {"ta": models.identity(ta.model), "adapter": models.identity(ta.adapter)}
    return Stage("merge_ta", 1, parts, {}, partial(_merge, model=ta.model, adapter=ta.adapter))


def _merge(work: Work, model: str, adapter: str) -> dict[str, Any]:
    return workers.call(_merged, model, adapter, storage.join(work.out, "model"))


def _merged(model: str, adapter: str, out: str) -> dict[str, Any]:
    from bridge_ray.training import export

    return export.merge(models.resolve(model), copies.localise(storage.locate(adapter)), out)


def show(metrics: Mapping[str, Any], done: Done, out: Console) -> None:
    """The rows by route, the keep-rate, and where the rationales are."""
    rows = metrics["rows"]
    table = Table(title=f"{count(rows['corpus'])} rows of {metrics['run']}", title_justify="left")
    for heading in ("rows", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("what became of them", no_wrap=True)
    for route, meaning in ROUTES.items():
        table.add_row(count(rows[route]), percent(rows[route] / rows["corpus"]), meaning)
    out.print(table)
    keep = metrics["keep"]
    out.print(f"kept without a hint: {percent(keep['ta'])}; blind guessing would keep {percent(keep['by_chance'])}")
    out.print(f"rationales: {storage.join(done.location, 'rows.parquet')} (Parquet; key is your id)", soft_wrap=True)
