"""When a training must end, and what its user is told."""

from __future__ import annotations

import math

import pytest
import torch

from bridge_ray.config import Training
from bridge_ray.training.faults import memory_verdict, out_of_memory, verdict


def history(*losses: float, phase: int = 0) -> list[dict[str, float]]:
    return [{"update": number + 1, "phase": phase, "loss": loss} for number, loss in enumerate(losses)]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_it(loss: float) -> None:
    assert verdict(history(2.0, loss)) == (
        f"the loss of update 2 is {loss}: lower train.lr, or set training.precision=fp32"
    )


def test_a_loss_that_has_more_than_doubled_and_grown_by_a_nat_ends_it() -> None:
    assert verdict(history(*[1.0] * 20, *[3.1] * 20)) == (
        "the loss diverges: 1.00 at its best, 3.10 by update 40: lower train.lr, or set training.precision=fp32"
    )
    assert verdict(history(*[1.0] * 20, *[2.9] * 20)) is None


def test_one_bad_update_does_not_end_it() -> None:
    assert verdict(history(*[1.0] * 39, 30.0)) is None


def test_a_new_phase_may_begin_higher() -> None:
    before, after = history(*[0.1] * 40), history(*[5.0] * 20, phase=1)
    assert verdict(before + [line | {"update": line["update"] + 40} for line in after]) is None


def test_out_of_memory_is_told_from_other_errors() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not out_of_memory(RuntimeError("shapes do not match"))
    assert memory_verdict(3, Training()).startswith("out of memory at update 3: lower training.micro_batch (now 8)")
