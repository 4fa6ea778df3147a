"""The training loop: DeepSpeed in a Ray Train worker. The only file that imports DeepSpeed.

Every rank memory-maps the same token rows, computes the same batch from (seed, phase, step) and takes its share.
The gradient is the mean over the completion tokens of the whole global batch, so it does not depend on the number
of workers, the micro-batches or the padding.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray.train.torch
import torch
from loky import cpu_count

from bridge_ray import copies, storage
from bridge_ray.config import Lora, Schedule, Training
from bridge_ray.inference import models
from bridge_ray.stage import Watch
from bridge_ray.training import attention, export, faults, interim, speed, tokens
from bridge_ray.training.curriculum import Plan, learning_rate, phase_at
from bridge_ray.training.feed import Feed
from bridge_ray.training.loss import CompletionLoss
from bridge_ray.training.trackers import Tracked, Tracker

PREEMPTION_SECONDS = 5.0  # between two questions whether a node is about to be taken away

# Per update: update, phase, loss (nats per completion token), lr, tokens, those of completions, skipped, seconds, mfu.
Losses = list[dict[str, float]]


@dataclass(frozen=True)
class Job:
    """All a worker needs to know; picklable."""

    init: str  # model reference
    lora: Lora | None
    plan: Plan
    token_folders: dict[str, str]  # pool -> location of its Arrow files
    schedule: Schedule
    training: Training
    out: str  # location of the exported model
    seed: int
    tracked: Tracked
    watch: Watch | None = None
    questions: str = ""  # location of the dev split, for the watch

    @property
    def halt(self) -> str:
        """Where it is left that the watch has ended the training."""
        return storage.join(self.out, "halted.json")

    @property
    def fault(self) -> str:
        """Where a worker leaves why the training cannot go on: no restart would change that."""
        return storage.join(self.out, "fault.json")


def train(job: Job, counter: Any) -> None:
    """One worker's whole part. What no restart would change is left in ``job.fault``, and ends the restarted ones."""
    if _over(job):
        return
    try:
        _train(job, counter)
    except Exception as error:
        if (why := faults.explained(error, job.training)) is not None:
            storage.write_json(job.fault, why)
        raise


def _over(job: Job) -> bool:
    """Whether the training has ended without a model, as rank 0 sees it: on a network file system another node may not
    see yet what a worker has left, and would wait for the others for ever."""
    over = torch.zeros(1, device=ray.train.torch.get_device())
    if ray.train.get_context().get_world_rank() == 0 and (storage.exists(job.fault) or storage.exists(job.halt)):
        over.fill_(1)
    torch.distributed.broadcast(over, 0)
    return bool(over.item())


def _train(job: Job, counter: Any) -> None:
    """Build, resume, update, checkpoint, export."""
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(job.seed)
    # Ray would allow one; with GPUs, an optimizer that is offloaded steps on them.
    torch.set_num_threads(max(1, cpu_count() // context.get_local_world_size()))
    feed = Feed(_load_rows(job), job.plan, rank, world, job.training)
    model = load_model(job)
    engine = start_engine(CompletionLoss(model), job.schedule, job.training, feed.one_at_most)
    losses = _resume(engine)
    if rank == 0:  # put, not added: a worker that takes over from a dead one starts further back
        counter.put.remote(updates=len(losses))
    tracked = job.tracked if rank == 0 else replace(job.tracked, trackers=())
    with Tracker(tracked, job.out, losses) as tracker:
        if not _updates(engine, feed, job, losses, tracker, counter if rank == 0 else None):
            tracker.failed()
            return
    weights = _gather(engine)
    if rank == 0:
        export.write(model, weights, job.lora, models.resolve(job.init), losses, job.out)
    ray.train.report({"loss": losses[-1]["loss"], "updates": job.plan.updates})


def _load_rows(job: Job) -> dict[str, tokens.TokenRows]:
    return {pool: tokens.load(Path(copies.localise(folder))) for pool, folder in job.token_folders.items()}


def load_model(job: Job) -> Any:
    """The model, ready to be trained, in the training's precision: DeepSpeed makes its fp32 master weights of that, and
    every worker of a node loads the whole of it. Raises Unpackable where its rows cannot be packed."""
    if job.training.packing:
        attention.register()
    kind = attention.PACKED if job.training.packing else None
    dtype = torch.bfloat16 if job.training.precision == "bf16" else torch.float32
    model = export.load(models.resolve(job.init), job.lora, kind, dtype)
    if job.training.packing:
        attention.check_packable(model.get_base_model() if job.lora else model)
    if job.training.gradient_checkpointing:
        _recompute(model)
    return model


def _recompute(model: Any) -> None:
    """Keep no activations inside the layers. The model is in eval mode, without dropout, where transformers would keep
    them: only the layers themselves are told that they are trained."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = True


def start_engine(model: torch.nn.Module, schedule: Schedule, training: Training, one_micro: bool) -> Any:
    """DeepSpeed's engine around the model; ``one_micro``: no update accumulates gradients."""
    assert training.precision != "auto", "the precision is decided once, for all workers"
    if training.gpus_per_worker == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read at import
    import deepspeed

    # An all-reduce that only inference calls; building it takes a C++ compiler and most of a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=schedule.lr, betas=(0.9, 0.95), weight_decay=schedule.weight_decay, fused=True
    )
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1 if one_micro else 2,  # the loop says where an update ends: see _update
        "gradient_clipping": schedule.clip,
        "bf16": {"enabled": training.precision == "bf16"},
        "zero_optimization": {"stage": training.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # theirs is compiled where it runs
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        model_parameters=trainable,
        config=_merged(settings, training.deepspeed),
        dist_init_required=False,
    )
    # To allocate its state, ZeRO 0 in bf16 has stepped the optimizer without gradients: Adam would take its first real
    # update for the second, and make it a quarter too small (deepspeed 0.19.8).
    for state in optimizer.state.values():
        state["step"].zero_()
    return engine


def _merged(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Their settings over ours, at every depth."""
    both = {key: _merged(ours[key], theirs[key]) for key in ours.keys() & theirs if isinstance(theirs[key], dict)}
    return ours | theirs | both


def _updates(engine: Any, feed: Feed, job: Job, losses: Losses, tracker: Tracker, counter: Any) -> bool:
    """All updates that are left; False where the losses forbid to go on, and why is in ``job.fault``, or where the
    watch has ended the training, as ``job.halt`` says."""
    work, fastest = speed.operations(engine.module.model), speed.peak(engine.device, job.training.precision)
    preemption, ended = Preemption(), time.monotonic()
    for step in range(len(losses), job.plan.updates):
        line, look = _update(engine, feed, job, step, preemption.due)
        # From update to update: what lies between them, checkpoints too, is part of what an update takes.
        line["seconds"], ended = round(time.monotonic() - ended, 4), time.monotonic()
        if fastest is not None:
            line["mfu"] = work.of(line["tokens"], line["completions"]) / line["seconds"] / feed.world / fastest
        losses.append(line)
        tracker.log(line)
        if counter is not None:
            counter.put.remote(updates=step + 1)
            counter.add.remote({"tokens": line["tokens"]})
        if (verdict := faults.verdict(losses)) is not None:  # of all ranks alike
            if feed.rank == 0:
                storage.write_json(job.fault, verdict)
            return False
        if job.watch is not None and (share := interim.due(job.watch, step + 1, job.plan.updates)) is not None:
            if not _watched(engine, job, job.watch, feed.rank, share):
                return False
            ended = time.monotonic()  # an update takes as long as it would unwatched
        wanted = preemption.announced(look) or (step + 1) % job.training.checkpoint_every == 0
        if wanted and step + 1 < job.plan.updates:
            _checkpoint(engine, losses)
            tracker.flush()
    return True


def _watched(engine: Any, job: Job, watch: Watch, rank: int, share: float) -> bool:
    """Whether the training goes on, as the watch says once it has heard what the model at hand answers.

    All ranks take part: ZeRO-3 collects its shards, and they end together. Rank 0 asks a copy of the model.
    """
    weights, go_on = _gather(engine), torch.ones(1, device=engine.device)
    if rank == 0 and not watch.heard(share, interim.accuracy(watch, job, weights, engine.device)):
        go_on.zero_()
        storage.write_json(job.halt, {"share": share})
    torch.distributed.broadcast(go_on, 0)
    return bool(go_on.item())


class Preemption:
    """Whether a node of ours is about to be taken away: asked every few seconds, and told once."""

    def __init__(self) -> None:
        self._asked, self._told = time.monotonic(), False

    @property
    def due(self) -> bool:
        return time.monotonic() - self._asked >= PREEMPTION_SECONDS

    def announced(self, ask: bool) -> bool:
        """To be asked by all ranks at once: Ray Train waits for each of them."""
        if not ask:
            return False
        self._asked, known = time.monotonic(), self._told
        self._told = ray.train.get_preemption_info() is not None
        return self._told and not known


def _update(engine: Any, feed: Feed, job: Job, step: int, due: bool) -> tuple[dict[str, float], bool]:
    """One optimiser step over a global batch: its line of the loss history, and whether rank 0 finds it ``due`` to look
    for a preemption, on which all ranks have to agree."""
    lr = learning_rate(job.plan, step, job.schedule.lr, job.schedule.warmup)
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    micros, completions = feed.update(step)
    completions = max(1, completions)  # prompts that fill seq_len leave none
    skipped = engine.skipped_steps
    summed = torch.zeros(3, dtype=torch.float64, device=engine.device)
    for number, micro in enumerate(micros):
        engine.set_gradient_accumulation_boundary(number == len(micros) - 1)
        tensors = (part.to(engine.device, non_blocking=True) for part in (micro.ids, micro.completion, micro.positions))
        loss = engine(*tensors, micro.segments)
        # DeepSpeed averages over the ranks; the factor turns that into the mean over the batch's completion tokens.
        engine.backward(loss * (feed.world / completions), scale_wrt_gas=False)
        engine.step()
        summed[0] += loss.detach()
        summed[1] += micro.tokens
    summed[2] = float(due and feed.rank == 0)
    torch.distributed.all_reduce(summed)
    loss, seen, look = summed.tolist()
    return {
        "update": step + 1,
        "phase": phase_at(job.plan, step).number,
        "loss": loss / completions,
        "lr": lr,
        "tokens": seen,
        "completions": completions,
        "skipped": engine.skipped_steps - skipped,  # in bf16, of gradients that are no numbers, by all ranks alike
    }, look > 0


def _checkpoint(engine: Any, losses: Losses) -> None:
    """Every rank saves its shard; Ray Train merges them and keeps the newest. A barrier across the ranks."""
    with tempfile.TemporaryDirectory() as folder:
        engine.save_checkpoint(folder, tag="state", client_state={"losses": losses}, exclude_frozen_parameters=True)
        ray.train.report({"loss": losses[-1]["loss"]}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _resume(engine: Any) -> Losses:
    """The losses of the updates that are done, from the newest checkpoint of this stage if there is one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as folder:
        _, state = engine.load_checkpoint(folder, tag="state", load_module_strict=False)
    losses: Losses = state["losses"]
    return losses


def _gather(engine: Any) -> dict[str, torch.Tensor]:
    """All weights by the wrapped model's names; ZeRO-3 collects its shards, which every rank takes part in."""
    state = (
        engine._zero3_consolidated_16bit_state_dict()
        if engine.zero_optimization_stage() == 3
        else engine.module.state_dict()
    )
    return {name.removeprefix("model."): weight for name, weight in _items(state)}


def _items(state: dict[str, torch.Tensor] | None) -> Iterator[tuple[str, torch.Tensor]]:
    yield from (state or {}).items()  # ranks other than 0 get none from ZeRO-3
