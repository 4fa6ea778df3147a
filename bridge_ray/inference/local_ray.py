"""Connect to the cluster that RAY_ADDRESS or ``ray job submit`` names, or start a local one."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from bridge_ray.errors import UserError
from bridge_ray.stopping import handlers_kept

# Ray Data on a machine with 2 logical CPUs starves: an engine actor and its neighbours wait on each other for ever.
LOGICAL_CPUS = 8

# For every worker, wherever it runs: quiet libraries that report to nobody. Never a key: job metadata is readable.
WORKER_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output is for what somebody reads, or a program
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}

DRIVER_ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else `uv run` rebuilds environments in workers
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # else a relative path means another file to training workers than to all others
}

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # the variable has this name; Ray's job server sets it


def start() -> None:
    """Connect once per process. A local Ray has no dashboard and no metrics server.

    Its workers inherit this process's environment, which starts them faster than a runtime environment does.
    Raises UserError where the cluster that RAY_ADDRESS names does not answer.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.update(DRIVER_ENVIRONMENT)
    with handlers_kept():
        if on_cluster():
            _connect()
            return
        os.environ.update(WORKER_ENVIRONMENT)
        # "local", or a cluster that somebody has started on this machine would be taken.
        ray.init("local", num_cpus=logical_cpus(), include_dashboard=False, logging_level=logging.WARNING)


def logical_cpus() -> int:
    """How many CPUs a local Ray is told to have: this machine's, and enough for a stage's actors to fit at once."""
    from loky import cpu_count

    return max(LOGICAL_CPUS, cpu_count())


def on_cluster() -> bool:
    """Whether there is a cluster to connect to, rather than a local Ray to start."""
    return bool(os.environ.get("RAY_ADDRESS"))


def here() -> Any:
    """The scheduling strategy that keeps an actor or a task on this process's node: where the driver's files are, and
    where it does not fail because some other node is gone."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def submission() -> dict[str, str]:
    """The metadata of the Ray job whose driver this process is, ``job_submission_id`` among it; else empty."""
    return _job_config().get("metadata") or {}


def _connect() -> None:
    import ray

    address = os.environ["RAY_ADDRESS"]
    if address.startswith(("http://", "https://")):
        raise UserError(f"RAY_ADDRESS {address} takes jobs: use bridge-ray submit, or unset it to run on this machine")
    # A variable that the job's own environment has too would be refused, and is the user's to set.
    taken = (_job_config().get("runtime_env") or {}).get("env_vars") or {}
    ours = {name: value for name, value in WORKER_ENVIRONMENT.items() if name not in taken}
    try:
        ray.init(logging_level=logging.WARNING, runtime_env={"env_vars": ours})
    except ConnectionError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"RAY_ADDRESS {address}: no cluster to connect to: {reason}") from error


def _job_config() -> dict[str, Any]:
    config: dict[str, Any] = json.loads(os.environ.get(JOB_CONFIG) or "{}")
    return config
