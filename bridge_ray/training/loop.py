"""The training loop: DeepSpeed in a Ray Train worker. The only file that imports DeepSpeed.

Every rank memory-maps the same token rows, computes the same batch from (seed, phase, step) and takes its share.
The gradient is the mean over the completion tokens of the whole global batch, so it does not depend on the number
of workers, the micro-batch or the padding.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch

from bridge_ray import storage
from bridge_ray.config import Lora, Schedule, Training
from bridge_ray.inference import models
from bridge_ray.training import export, tokens
from bridge_ray.training.curriculum import Plan, batch_at, learning_rate, phase_at

Losses = list[dict[str, float]]  # per update: update, phase, loss (nats per completion token), lr, tokens, seconds


@dataclass(frozen=True)
class Job:
    """All a worker needs to know; picklable."""

    init: str  # model reference
    lora: Lora | None
    plan: Plan
    token_folders: dict[str, str]  # target -> location of its Arrow files
    schedule: Schedule
    training: Training
    out: str  # location of the exported model
    seed: int


def train(job: Job, counter: Any) -> None:
    """One worker's whole part: build, resume, update, checkpoint, export."""
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(job.seed)
    if job.training.gpus_per_worker == 0:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    feed = Feed(_load_rows(job), job.plan, rank, world, job.training.micro_batch)
    model = export.load(models.resolve(job.init), job.lora)
    engine = _engine(CompletionLoss(model), job, feed)
    done, losses = _resume(engine)
    if rank == 0:
        counter.put.remote(updates=done)  # not added: a worker that takes over from a dead one starts further back
    for step in range(done, job.plan.updates):
        losses.append(_update(engine, feed, job, step))
        if rank == 0:
            counter.put.remote(updates=step + 1)
            counter.add.remote({"tokens": losses[-1]["tokens"]})
        if (step + 1) % job.training.checkpoint_every == 0 and step + 1 < job.plan.updates:
            _checkpoint(engine, losses)
    weights = _gather(engine, job.training.zero_stage)
    if rank == 0:
        export.write(model, weights, job.lora, models.resolve(job.init), losses, job.out)
    ray.train.report({"loss": losses[-1]["loss"], "updates": job.plan.updates})


def _load_rows(job: Job) -> dict[str, tokens.TokenRows]:
    return {target: tokens.load(Path(storage.localise(folder))) for target, folder in job.token_folders.items()}


@dataclass(frozen=True)
class Feed:
    """This rank's share of every global batch."""

    rows: dict[str, tokens.TokenRows]
    plan: Plan
    rank: int
    world: int
    micro_batch: int

    @property
    def micro_rows(self) -> int:
        """Rows of a micro-batch: the largest divisor of this rank's share that is no more than asked for."""
        share = self.plan.batch // self.world
        return max(size for size in range(1, min(self.micro_batch, share) + 1) if share % size == 0)

    @property
    def accumulation(self) -> int:
        return self.plan.batch // self.world // self.micro_rows

    def update(self, step: int) -> tuple[list[Micro], int]:
        """This rank's micro-batches of an update, and the completion tokens of the whole global batch."""
        easiest = {target: rows.easiest_first for target, rows in self.rows.items()}
        batch = batch_at(self.plan, step, easiest)
        completions = sum(int(self.rows[target].completions[index]) for target, index in batch)
        batch.sort(key=lambda row: int(self.rows[row[0]].lengths[row[1]]))  # like lengths together: less padding
        share = batch[self.rank :: self.world]
        chunks = [share[start : start + self.micro_rows] for start in range(0, len(share), self.micro_rows)]
        return [_collate([self.rows[target].row(index) for target, index in chunk]) for chunk in chunks], completions


@dataclass(frozen=True)
class Micro:
    """Right-padded token ids (rows, length) int64, and which of them are completion tokens (rows, length) bool."""

    ids: torch.Tensor
    completion: torch.Tensor
    tokens: int


def _collate(rows: list[tuple[np.ndarray, int]]) -> Micro:
    length = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    completion = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, (row, prompt) in enumerate(rows):
        ids[number, : len(row)] = torch.from_numpy(row.astype(np.int64))
        completion[number, prompt : len(row)] = True
    return Micro(ids, completion, sum(len(ids) for ids, _ in rows))


class CompletionLoss(torch.nn.Module):
    """A causal language model with the summed cross-entropy of its completion tokens as output.

    The output layer is applied to completion positions only: with a small model and a large vocabulary it is
    a good part of the work. Causal attention never looks at the padding on the right, so no mask is needed.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, completion: torch.Tensor) -> torch.Tensor:
        """(rows, length) int64 and bool -> scalar float32, nats."""
        causal = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        hidden = causal.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        target = completion[:, 1:]
        logits = causal.get_output_embeddings()(hidden[:, :-1][target])
        return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][target], reduction="sum")


def _engine(model: torch.nn.Module, job: Job, feed: Feed) -> Any:
    if job.training.gpus_per_worker == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read at import
    import deepspeed

    # An all-reduce that only inference calls; building it takes a C++ compiler and most of a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=job.schedule.lr, betas=(0.9, 0.95), weight_decay=job.schedule.weight_decay, fused=True
    )
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        model_parameters=trainable,
        config=_deepspeed_config(job, feed),
        dist_init_required=False,
    )
    return engine


def _deepspeed_config(job: Job, feed: Feed) -> dict[str, Any]:
    ours = {
        "train_micro_batch_size_per_gpu": feed.micro_rows,
        "gradient_accumulation_steps": feed.accumulation,
        "gradient_clipping": job.schedule.clip,
        "bf16": {"enabled": job.training.precision == "bf16"},
        "zero_optimization": {"stage": job.training.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    return ours | job.training.deepspeed


def _update(engine: Any, feed: Feed, job: Job, step: int) -> dict[str, float]:
    """One optimiser step over a global batch; returns its line of the loss history."""
    started = time.monotonic()
    lr = learning_rate(step, job.plan.updates, job.schedule.lr, job.schedule.warmup)
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    micros, completions = feed.update(step)
    # DeepSpeed averages over micro-batches and ranks; the factor turns that into the mean over the batch's tokens.
    scale = feed.world * feed.accumulation / completions
    summed = torch.zeros(2, dtype=torch.float64, device=engine.device)
    for micro in micros:
        loss = engine(micro.ids.to(engine.device), micro.completion.to(engine.device))
        engine.backward(loss * scale)
        engine.step()
        summed += torch.stack([loss.detach().double(), torch.tensor(float(micro.tokens), device=engine.device)])
    torch.distributed.all_reduce(summed)
    loss, seen = (summed / torch.tensor([completions, 1], device=engine.device)).tolist()
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss of update {step + 1} is {loss}: lower train.lr or set precision to fp32")
    return {
        "update": step + 1,
        "phase": phase_at(job.plan, step).number,
        "loss": loss,
        "lr": lr,
        "tokens": seen,
        "seconds": round(time.monotonic() - started, 3),
    }


def _checkpoint(engine: Any, losses: Losses) -> None:
    """Every rank saves its shard; Ray Train merges them and keeps the newest. A barrier across the ranks."""
    with tempfile.TemporaryDirectory() as folder:
        engine.save_checkpoint(folder, tag="state", client_state={"losses": losses}, exclude_frozen_parameters=True)
        ray.train.report({"loss": losses[-1]["loss"]}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _resume(engine: Any) -> tuple[int, Losses]:
    """Updates done and their losses, from the newest checkpoint of this stage if there is one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0, []
    with checkpoint.as_directory() as folder:
        _, state = engine.load_checkpoint(folder, tag="state", load_module_strict=False)
    return len(state["losses"]), state["losses"]


def _gather(engine: Any, zero_stage: int) -> dict[str, torch.Tensor]:
    """All weights by the wrapped model's names; ZeRO-3 collects its shards, which every rank takes part in."""
    state = engine._zero3_consolidated_16bit_state_dict() if zero_stage == 3 else engine.module.state_dict()
    return {name.removeprefix("model."): weight for name, weight in _items(state)}


def _items(state: dict[str, torch.Tensor] | None) -> Iterator[tuple[str, torch.Tensor]]:
    yield from (state or {}).items()  # ranks other than 0 get none from ZeRO-3
