"""Start the training loop on Ray Train workers and follow it; fault tolerance and checkpoint keeping are set here."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from bridge_ray import storage
from bridge_ray.inference import local_ray
from bridge_ray.progress import Progress
from bridge_ray.stopping import handlers_kept

if TYPE_CHECKING:
    from bridge_ray.training.loop import Job


def fit(job: Job, name: str, progress: Progress) -> None:
    """Train to the end, from the newest checkpoint under the stage's output if there is one.

    Ray Train restarts after a worker's death by itself; its checkpoints lie under the stage's output.
    Raises what the loop raised once ``training.max_failures`` restarts are used up.
    """
    local_ray.start()
    state = storage.join(job.out, "state")
    with progress.counted(name, job.plan.updates, "updates") as counter, handlers_kept():
        _trainer(job, state, counter).fit()
    storage.delete(state)


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
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
