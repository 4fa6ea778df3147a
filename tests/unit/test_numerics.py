"""What an engine computes in: the number format that the machine is fast at, on the CPUs that are its own."""

from __future__ import annotations

import os

import pytest

from bridge_ray.config import Engine
from bridge_ray.inference import engine, numerics

AVX2_ALONE, AVX512 = False, True


@pytest.fixture(params=[AVX2_ALONE, AVX512])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether torch says that the CPU has instructions for bf16."""
    import torch

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: request.param)
    return bool(request.param)


def test_auto_is_what_the_machine_is_fast_at(native: bool) -> None:
    assert numerics.precision("auto", gpus=0) == ("bf16" if native else "fp32")
    assert numerics.precision("auto", gpus=0.5) == "bf16"


def test_a_precision_that_is_asked_for_stays(native: bool) -> None:
    assert numerics.precision("bf16", gpus=0) == "bf16"
    assert numerics.precision("fp32", gpus=1) == "fp32"


@pytest.mark.parametrize(("fast", "kind"), [(True, "bfloat16"), (False, "float32")])
def test_an_engine_computes_in_the_fast_format(monkeypatch: pytest.MonkeyPatch, fast: bool, kind: str) -> None:
    monkeypatch.setattr(numerics, "fast_bf16", lambda gpus: fast)
    assert engine._arguments("m", None, Engine(), 0)["dtype"] == kind


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores, to use one of them")
def test_an_engine_has_no_more_threads_than_its_container_has_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM, left to itself, binds one to each core that it sees, which is all of the machine's."""
    monkeypatch.setattr(os, "environ", {"LOKY_MAX_CPU_COUNT": "1"})
    engine._environment(Engine())
    assert (os.environ["OMP_NUM_THREADS"], os.environ["VLLM_CPU_OMP_THREADS_BIND"]) == ("1", "nobind")
