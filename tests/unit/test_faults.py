"""When a training must end, and what its user is told."""

from __future__ import annotations

import math

import pytest
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from bridge_ray.config import Training
from bridge_ray.training.faults import Unpackable, explained, killed, verdict
from bridge_ray.training.trackers import Refused


def history(*losses: float, phase: int = 0) -> list[dict[str, float]]:
    return [{"update": number + 1, "phase": phase, "loss": loss} for number, loss in enumerate(losses)]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_it(loss: float) -> None:
    assert verdict(history(2.0, loss)) == (
        f"the loss of update 2 is {loss}: lower the lr of its train field, or set training.precision=fp32"
    )


def test_a_loss_that_has_more_than_doubled_and_grown_by_a_nat_ends_it() -> None:
    assert verdict(history(*[1.0] * 20, *[3.1] * 20)) == (
        "the loss diverges: 1.00 at its best, 3.10 by update 40: "
        "lower the lr of its train field, or set training.precision=fp32"
    )
    assert verdict(history(*[1.0] * 20, *[2.9] * 20)) is None


def test_gradients_that_are_no_numbers_again_and_again_end_it() -> None:
    def skipping(*skipped: int) -> list[dict[str, float]]:
        return [line | {"skipped": skips} for line, skips in zip(history(*[1.0] * len(skipped)), skipped, strict=True)]

    assert verdict(skipping(0, 1, 1, 1, 1)) is None
    assert verdict(skipping(0, 1, 1, 1, 1, 1)) == (
        "the gradients of 5 updates up to 6 are no numbers, so nothing is learnt: "
        "lower the lr of its train field, or set training.precision=fp32"
    )


def test_one_bad_update_does_not_end_it() -> None:
    assert verdict(history(*[1.0] * 39, 30.0)) is None


def test_a_new_phase_may_begin_higher() -> None:
    before, after = history(*[0.1] * 40), history(*[5.0] * 20, phase=1)
    assert verdict(before + [line | {"update": line["update"] + 40} for line in after]) is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_what_takes_less_memory_is_named(error: Exception) -> None:
    said = explained(error, Training())
    assert said is not None and said.startswith("out of memory: lower training.micro_batch (now 8) or set ")


def test_other_errors_may_be_tried_again() -> None:
    assert explained(RuntimeError("shapes do not match"), Training()) is None


def given_up(death: Exception) -> Exception:
    """What Ray Train raises where a worker's process has gone."""
    return WorkerGroupError("", {0: RuntimeError("gloo"), 1: WorkerHealthCheckFailedError("a check failed", death)})


def test_a_node_without_memory_is_named_with_what_takes_less() -> None:
    death = OutOfMemoryError("4 worker(s) were killed due to the node running low on memory. IP 10.0.0.3\nmore\n")
    said = killed(given_up(death), Training())
    assert said is not None and said.startswith(
        "4 worker(s) were killed due to the node running low on memory. IP 10.0.0.3: lower training.micro_batch (now 8"
    )


def test_with_gpus_it_is_the_loading_that_takes_a_node_s_memory() -> None:
    said = killed(given_up(OutOfMemoryError("low on memory")), Training(gpus_per_worker=1))
    assert said is not None and said.startswith("low on memory: every worker of a node loads the whole model")


def test_a_worker_that_is_killed_without_a_word_may_have_been_for_its_memory() -> None:
    said = killed(given_up(ActorDiedError()), Training(max_failures=2))
    assert said is not None and said.startswith(
        "a worker was killed, and training.max_failures (2) restarts are used up. Where it was for want of memory"
    )


def test_an_error_that_a_worker_has_raised_is_no_death() -> None:
    assert killed(WorkerGroupError("", {0: RuntimeError("shapes do not match")}), Training()) is None


def test_a_model_that_cannot_be_packed_is_told_from_one_that_is_broken() -> None:
    assert explained(Unpackable("rows cannot be packed for conv layers"), Training()) == (
        "rows cannot be packed for conv layers: set training.packing=false"
    )


def test_a_tracker_that_does_not_start_is_not_tried_again() -> None:
    assert explained(Refused("mlflow does not start: no server"), Training()) == (
        "mlflow does not start: no server: set it up, or take it out of training.trackers; run again and it goes on"
    )
