"""Start the training loop on Ray Train workers and follow it; fault tolerance and checkpoint keeping are set here."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from bridge_ray import storage
from bridge_ray.errors import UserError
from bridge_ray.inference import local_ray, numerics
from bridge_ray.progress import Progress
from bridge_ray.stopping import handlers_kept
from bridge_ray.training import allocator

if TYPE_CHECKING:
    from bridge_ray.training.loop import Job


class Halted(Exception):
    """A training was ended by the one who watched it; it has left no model."""


def fit(job: Job, name: str, progress: Progress) -> str:
    """Train to the end, from the newest checkpoint under the stage's output if one of the same layout is there.

    Returns the precision, bf16 or fp32; this machine decides what ``auto`` is for all workers.
    Ray Train restarts after a worker's death by itself; its checkpoints lie under the stage's output.
    Raises UserError where the loop has found that it cannot go on, and else what it raised once
    ``training.max_failures`` restarts are used up; Halted where ``job.watch`` has ended it.
    """
    from ray.train import TrainingFailedError

    local_ray.start()
    precision = numerics.precision(job.training.precision, job.training.gpus_per_worker)
    job = replace(job, training=job.training.model_copy(update={"precision": precision}))
    states = storage.join(job.out, "state")
    # DeepSpeed's checkpoints fit the number of workers, the ZeRO stage and the precision that they were made with.
    kind = (f"zero{job.training.zero_stage}", f"by-{job.training.workers}", precision)
    state = storage.join(states, "-".join(kind))
    for verdict in (job.fault, job.halt):  # of an earlier attempt: what it was about may have been changed
        storage.remove(verdict)
    with progress.counted(name, job.plan.updates, "updates") as counter, handlers_kept():
        try:
            _trainer(job, state, counter).fit()
        except TrainingFailedError:
            _raise_fault(name, job)
            raise
    _raise_fault(name, job)
    halted = storage.read_json(job.halt)
    storage.delete(states)
    if halted is not None:
        raise Halted(f"{name}: ended after {halted['share']:.0%} of its updates")
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
            name="checkpoints",
            storage_path=state,
            failure_config=FailureConfig(max_failures=job.training.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=job.training.checkpoints_kept),
            worker_runtime_env={} if gpus else {"env_vars": allocator.environment()},
        ),
    )
