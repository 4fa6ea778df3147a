"""Lessons and a curriculum to a trained model: tokenise, plan, run the loop. What TA and student have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from bridge_ray import storage
from bridge_ray.config import Lora, Phase, Schedule, Training
from bridge_ray.stage import Work
from bridge_ray.training import tokens
from bridge_ray.training.curriculum import left_out, make_plan, pools
from bridge_ray.training.run import fit
from bridge_ray.training.trackers import Tracked


def identity(training: Training) -> dict[str, Any]:
    """The part of the training config that decides the result; workers, ZeRO stage and micro-batches do not."""
    return training.model_dump(mode="json", include={"precision", "global_batch", "seq_len", "deepspeed"})


def teach_model(
    work: Work,
    init: str,
    lora: Lora | None,
    lessons: Mapping[str, pa.Table],
    phases: Sequence[Phase],
    schedule: Schedule,
    seed: int,
    mixed: bool = False,
) -> dict[str, Any]:
    """Train ``init`` on the lessons (pool -> rows) through the phases, whose updates are resolved, or ``mixed``.

    Leaves ``model/`` (and ``adapter/``) under the stage's output. Raises UserError for a phase without lessons, and
    ``run.Halted`` where the stage's watch has ended the training.
    """
    from bridge_ray.training.loop import Job

    source, out = storage.join(work.out, "lessons.parquet"), storage.join(work.out, "tokens")
    drawn = sorted({pool for phase in phases for pool in pools(phase)} & lessons.keys())
    counts = {pool: lessons[pool].num_rows for pool in drawn}
    plan = make_plan(phases, counts, work.training.global_batch, seed, mixed)
    for number, rows in left_out(plan).items():
        total = plan.phases[number].draws.total
        work.progress.console.print(
            f"{work.stage}: phase {number + 1} is shorter than an epoch: it teaches {total - rows:,} of its {total:,} "
            "lessons, spread over all difficulties; more epochs would teach the others",
            highlight=False,
        )
    storage.write_table(source, pa.concat_tables(lessons[pool] for pool in drawn))
    written = tokens.tokenise(source, init, work.training.seq_len, out)
    if written.cut:
        work.progress.console.print(
            f"{work.stage}: {written.cut:,} of {sum(written.rows.values()):,} lessons are longer than training.seq_len "
            f"{work.training.seq_len} and lose their ends, {written.prompt_only:,} of them all that is to be learnt; "
            "raise it",
            highlight=False,
        )
    folders = {pool: storage.join(out, pool) for pool in written.rows}
    config = {"init": init, "seed": seed, **schedule.model_dump(mode="json"), **identity(work.training)}
    tracked = Tracked(work.training.trackers, work.run, work.stage, work.fingerprint, config)
    questions = storage.join(work.inputs["corpus"], "dev")
    job = Job(init, lora, plan, folders, schedule, work.training, work.out, seed, tracked, work.watch, questions)
    precision = fit(job, work.stage, work.progress)
    storage.delete(out)
    losses = storage.read_json(storage.join(work.out, "losses.json"))
    made = {"precision": precision} | ({} if lora is None else {"adapter": _digest(work.out)})
    return asdict(written) | made | metrics(losses)


def _digest(out: str) -> str:
    """16 hex digits of what the adapter's file holds."""
    weights = storage.read_bytes(storage.join(out, "adapter", "adapter_model.safetensors"))
    assert weights is not None, "there is no adapter"
    return hashlib.sha256(weights).hexdigest()[:16]


def metrics(losses: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What a loss history, one line per update, comes to."""
    seconds = sum(line["seconds"] for line in losses)
    mfu = [line["mfu"] for line in losses if "mfu" in line]
    return {
        "updates": len(losses),
        "tokens": int(sum(line["tokens"] for line in losses)),
        "tokens_per_second": round(sum(line["tokens"] for line in losses) / seconds),
        "first_loss": round(losses[0]["loss"], 4),
        "last_loss": round(losses[-1]["loss"], 4),
    } | ({"mfu": round(sum(mfu) / len(mfu), 4)} if mfu else {})
