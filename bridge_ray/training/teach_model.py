"""Lessons and a curriculum to a trained model: tokenise, plan, run the loop. What TA and student have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from bridge_ray import storage
from bridge_ray.config import Lora, Phase, Schedule, Training
from bridge_ray.inference import models
from bridge_ray.stage import Work
from bridge_ray.training import tokens
from bridge_ray.training.curriculum import make_plan
from bridge_ray.training.run import fit


def identity(training: Training) -> dict[str, Any]:
    """The part of the training config that decides the result; workers, ZeRO stage and micro-batches do not."""
    return training.model_dump(mode="json", include={"precision", "global_batch", "seq_len", "deepspeed"})


def teach_model(
    work: Work,
    name: str,
    init: str,
    lora: Lora | None,
    lessons: Mapping[str, pa.Table],
    phases: Sequence[Phase],
    epoch_rows: int,
    schedule: Schedule,
    seed: int,
) -> dict[str, Any]:
    """Train ``init`` on the lessons (target -> rows) through the phases; an epoch is ``epoch_rows`` long.

    Leaves ``model/`` (and ``adapter/``) under the stage's output.
    """
    from bridge_ray.training.loop import Job

    source, out = storage.join(work.out, "lessons.parquet"), storage.join(work.out, "tokens")
    targets = sorted({phase.target for phase in phases})
    storage.write_table(source, pa.concat_tables(lessons[target] for target in targets))
    rows, cut = tokens.tokenise(source, models.resolve(init), work.training.seq_len, out)
    folders = {target: storage.join(out, target) for target in rows}
    plan = make_plan(phases, rows, epoch_rows, work.training.global_batch, seed)
    fit(Job(init, lora, plan, folders, schedule, work.training, work.out, seed), name, work.progress)
    storage.delete(out)
    losses = storage.read_json(storage.join(work.out, "losses.json"))
    return {
        "rows": rows,
        "cut": cut,
        "updates": plan.updates,
        "tokens": int(sum(line["tokens"] for line in losses)),
        "tokens_per_second": round(sum(line["tokens"] for line in losses) / sum(line["seconds"] for line in losses)),
        "first_loss": round(losses[0]["loss"], 4),
        "last_loss": round(losses[-1]["loss"], 4),
    }
