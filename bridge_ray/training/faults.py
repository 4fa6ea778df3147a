"""What ends a training that cannot go on, in one line that says what to change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from bridge_ray.config import Training

WINDOW = 20  # updates whose losses are averaged


def verdict(losses: Sequence[Mapping[str, float]]) -> str | None:
    """Why the losses so far (one line per update) must not go on; None where they may.

    The loss is not a number, or diverges: a window of updates has a mean of more than twice the phase's best window's
    plus one nat.
    """
    last = losses[-1]
    if not math.isfinite(last["loss"]):
        return f"the loss of update {last['update']:g} is {last['loss']}: {_CALMER}"
    if len(losses) % WINDOW:
        return None
    phase = [line["loss"] for line in losses if line["phase"] == last["phase"]]
    means = [sum(phase[at - WINDOW : at]) / WINDOW for at in range(len(phase), WINDOW - 1, -WINDOW)]
    if not means or means[0] <= 2 * min(means) + 1:
        return None
    return f"the loss diverges: {min(means):.2f} at its best, {means[0]:.2f} by update {last['update']:g}: {_CALMER}"


_CALMER = "lower train.lr, or set training.precision=fp32"


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def memory_verdict(update: int, training: Training) -> str:
    return (
        f"out of memory at update {update}: lower training.micro_batch (now {training.micro_batch}) or "
        f"training.seq_len ({training.seq_len}), set "
        f"training.gradient_checkpointing=true, or raise training.zero_stage "
        f"({training.zero_stage}), and run again: it continues from the last checkpoint"
    )
