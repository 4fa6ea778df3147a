"""Connect to the cluster that RAY_ADDRESS or ``ray job submit`` names, or start a local one."""

from __future__ import annotations

import logging
import os

# Ray Data on a machine with 2 logical CPUs starves: an engine actor and its neighbours wait on each other for ever.
LOGICAL_CPUS = 8

# For every worker, wherever it runs: quiet libraries that report to nobody. Never a key: job metadata is readable.
WORKER_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}

DRIVER_ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else `uv run` rebuilds environments in workers
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
}


def start() -> None:
    """Connect once per process. A local Ray has no dashboard and no metrics server.

    Its workers inherit this process's environment, which starts them faster than a runtime environment does.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.update(DRIVER_ENVIRONMENT)
    if "RAY_ADDRESS" in os.environ:
        ray.init(logging_level=logging.WARNING, runtime_env={"env_vars": WORKER_ENVIRONMENT})
        return
    os.environ.update(WORKER_ENVIRONMENT)
    cpus = max(LOGICAL_CPUS, os.cpu_count() or 1)
    ray.init(num_cpus=cpus, include_dashboard=False, logging_level=logging.WARNING)
