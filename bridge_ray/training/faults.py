"""What ends a training that cannot go on, in one line that says what to change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from ray.exceptions import OutOfMemoryError, RayActorError

from bridge_ray.config import Training
from bridge_ray.training.trackers import Refused

WINDOW = 20  # updates whose losses are averaged
SKIPS = 5  # updates in a row without finite gradients that are too many


def verdict(losses: Sequence[Mapping[str, float]]) -> str | None:
    """Why the losses so far (one line per update) must not go on; None where they may.

    The loss is not a number, or diverges: a window of updates has a mean of more than twice the phase's best window's
    plus one nat. Or the gradients are no numbers, update after update: DeepSpeed passes over them in bf16.
    """
    last = losses[-1]
    if not math.isfinite(last["loss"]):
        return f"the loss of update {last['update']:g} is {last['loss']}: {_CALMER}"
    if len(losses) >= SKIPS and all(line.get("skipped") for line in losses[-SKIPS:]):
        return (
            f"the gradients of {SKIPS} updates up to {last['update']:g} are no numbers, so nothing is learnt: {_CALMER}"
        )
    if len(losses) % WINDOW:
        return None
    phase = [line["loss"] for line in losses if line["phase"] == last["phase"]]
    means = [sum(phase[at - WINDOW : at]) / WINDOW for at in range(len(phase), WINDOW - 1, -WINDOW)]
    if not means or means[0] <= 2 * min(means) + 1:
        return None
    return f"the loss diverges: {min(means):.2f} at its best, {means[0]:.2f} by update {last['update']:g}: {_CALMER}"


_CALMER = "lower the lr of its train field, or set training.precision=fp32"


class Unpackable(ValueError):
    """A model whose rows would mix if they stood side by side."""


def explained(error: BaseException, training: Training) -> str | None:
    """What to change about an error that no restart would; None for any other."""
    if isinstance(error, Unpackable):
        return f"{error}: set training.packing=false"
    if isinstance(error, Refused):
        return f"{error}: set it up, or take it out of training.trackers; run again and it goes on"
    texts = ("out of memory", "can't allocate memory")
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in texts):
        return f"out of memory: {_smaller(training)}"
    return None


def killed(error: BaseException, training: Training) -> str | None:
    """What to change about a training that Ray has given up because its processes were killed; None for any other.

    Of a node that runs out of memory Ray leaves a line, if it comes before the kernel, which leaves none.
    """
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    deaths = [getattr(failure, "health_check_failure", failure) for failure in failures]
    for death in deaths:
        if isinstance(death, OutOfMemoryError):
            return f"{str(death).splitlines()[0]}: {_lighter(training)}"
    if any(isinstance(death, RayActorError) for death in deaths):
        return (
            f"a worker was killed, and training.max_failures ({training.max_failures}) restarts are used up. Where it "
            f"was for want of memory, as the node's kernel log says: {_lighter(training)}. Where nodes were lost: run "
            "again, or raise training.max_failures"
        )
    return None


def _lighter(training: Training) -> str:
    """What takes less of a node's memory, as opposed to a GPU's."""
    if training.gpus_per_worker == 0:
        return _smaller(training)
    return (
        "every worker of a node loads the whole model before the GPU has it: take fewer workers a node, or nodes with "
        "more memory, and let training.deepspeed offload less; run again: it continues from the last checkpoint"
    )


def _smaller(training: Training) -> str:
    return (
        f"lower training.micro_batch (now {training.micro_batch}) or set training.gradient_checkpointing=true, and run "
        f"again: it continues from the last checkpoint; or begin anew with a lower training.seq_len "
        f"({training.seq_len}) or a higher training.zero_stage ({training.zero_stage})"
    )
