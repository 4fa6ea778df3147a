"""Start the training loop on Ray Train workers and follow it; fault tolerance and checkpoint keeping are set here."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from bridge_ray import storage
from bridge_ray.config import Training
from bridge_ray.errors import Outage, UserError
from bridge_ray.inference import local_ray, numerics
from bridge_ray.progress import Progress
from bridge_ray.stopping import handlers_kept
from bridge_ray.training import allocator

if TYPE_CHECKING:
    from bridge_ray.training.loop import Job

RUN = "checkpoints"  # the folder that Ray Train names after its run


class Halted(Exception):
    """A training was ended by the one who watched it; it has left no model."""


class GaveUp(Outage):
    """The workers were killed more often than they are restarted; the same command goes on."""


def fit(job: Job, name: str, progress: Progress) -> str:
    """Train to the end, from the newest checkpoint under the stage's output if one of the same layout is there.

    Returns the precision, bf16 or fp32; the machine that begins decides what ``auto`` is, for all workers and attempts.
    Ray Train restarts after a worker's death by itself; its checkpoints lie under the stage's output.
    Raises UserError where the loop has found that it cannot go on, GaveUp where its workers were killed more often than
    ``training.max_failures``, and else what it raised; Halted where ``job.watch`` has ended it.
    """
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.train import TrainingFailedError

    from bridge_ray.training import faults

    local_ray.start()
    states = storage.join(job.out, "state")
    precision = _precision(job)
    if _complete(job):  # and its driver was killed before it could say so
        _drop(states, name, progress)
        return precision
    job = replace(job, training=job.training.model_copy(update={"precision": precision}))
    state = storage.join(states, _layout(job.training))
    if others := _other_layouts(states, state):
        progress.console.print(
            f"{name}: begins anew: its checkpoints are of {', '.join(others)}, and it is to be {_layout(job.training)} "
            "now; with training.zero_stage, workers and precision as they were it goes on"
        )
    for verdict in (job.fault, job.halt):  # of an earlier attempt: what it was about may have been changed
        storage.remove(verdict)
    with progress.counted(name, job.plan.updates, "updates") as counter, handlers_kept():
        try:
            _trainer(job, state, counter).fit()
        except (TrainingFailedError, RayActorError, OutOfMemoryError) as error:
            _raise_fault(name, job)
            if (why := faults.killed(error, job.training)) is not None:
                raise GaveUp(f"{name}: {why}") from error
            raise
    _raise_fault(name, job)
    halted = storage.read_json(job.halt)
    if halted is None and not _complete(job):  # a file system that is late, or a bug: what can be gone on from stays
        raise RuntimeError(f"{name}: the workers have ended, and {job.out} has no finished model of theirs")
    _drop(states, name, progress)
    if halted is not None:
        raise Halted(f"{name}: ended after {halted['share']:.0%} of its updates")
    return precision


def _drop(states: str, name: str, progress: Progress) -> None:
    """Remove the checkpoints of a training that has ended."""
    try:
        storage.delete(states)
    except OSError as error:
        progress.console.print(f"{name}: its checkpoints stay in {states}: {error}", markup=False, highlight=False)


def _complete(job: Job) -> bool:
    """Whether the model is there: its history, which is written last, is of all updates."""
    losses = storage.read_json(storage.join(job.out, "losses.json"))
    return losses is not None and len(losses) == job.plan.updates


def _layout(training: Training) -> str:
    """What DeepSpeed's checkpoints are made for, and fit no other."""
    return f"zero{training.zero_stage}-by-{training.workers}-{training.precision}"


def _other_layouts(states: str, state: str) -> list[str]:
    """The layouts that there are checkpoints of, where there are none of this one."""
    there = [name for name in storage.folders(states) if _has_checkpoints(storage.join(states, name))]
    return [] if _has_checkpoints(state) else there


def _has_checkpoints(state: str) -> bool:
    return any(name.startswith("checkpoint_") for name in storage.folders(storage.join(state, RUN)))


def _precision(job: Job) -> Literal["bf16", "fp32"]:
    """What ``auto`` was to the attempt that began: a machine that is fast at another one can go on, too."""
    if job.training.precision != "auto":
        return job.training.precision
    decided = storage.join(job.out, "precision.json")
    precision: Literal["bf16", "fp32"] | None = storage.read_json(decided)
    if precision is None:
        precision = numerics.precision("auto", job.training.gpus_per_worker)
        storage.write_json(decided, precision)
    return precision


def _raise_fault(name: str, job: Job) -> None:
    verdict = storage.read_json(job.fault)
    if verdict is not None:
        raise UserError(f"{name}: {verdict}")


def _trainer(job: Job, state: str, counter: Any) -> Any:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from bridge_ray.training.loop import train

    gpus = job.training.gpus_per_worker
    return TorchTrainer(
        partial(train, job, counter),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.training.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": 1} | ({"GPU": gpus} if gpus else {}),
            label_selector=job.training.labels or None,
        ),
        run_config=RunConfig(
            name=RUN,
            storage_path=state,
            failure_config=FailureConfig(max_failures=job.training.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=job.training.checkpoints_kept),
            worker_runtime_env={} if gpus else {"env_vars": allocator.environment()},
        ),
    )
