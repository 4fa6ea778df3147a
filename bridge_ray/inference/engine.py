"""vLLM, and nothing else's business: one engine that answers chat messages concurrently. The only file that imports it.

A ``Course`` is what happens to one row: it asks the engine as often as it likes and returns the row's record.
All rows' courses overlap in the engine's continuous batching, so there are no rounds and no barriers.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bridge_ray.answers.prompts import Message, prompt_ids
from bridge_ray.config import Engine as EngineConfig
from bridge_ray.inference import numerics


class RowFault(Exception):
    """This row cannot be processed, the others can: becomes the row's error column.

    The message up to a colon is the same for all rows with this fault, so that they can be counted.
    """


@dataclass(frozen=True)
class Sample:
    """One generated reply: its text, number of tokens, mean negative log-likelihood (nats; NaN unless asked for),
    and whether it ended by itself."""

    text: str
    tokens: int
    nll: float
    finished: bool


class Ask(Protocol):
    """Ask the engine: ``n`` replies to the messages."""

    async def __call__(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        n: int = 1,
        temperature: float = 0.0,
        likelihood: bool = False,
    ) -> list[Sample]: ...


class Course(Protocol):
    """One row's way through the engine, as an async function of the row; picklable."""

    async def __call__(self, row: Mapping[str, Any], ask: Ask) -> dict[str, Any]: ...

    def failed(self, row: Mapping[str, Any], reason: str) -> dict[str, Any]:
        """The record of a row that could not be processed."""
        ...


class Engine:
    """A vLLM engine on one model and, optionally, one LoRA adapter.

    One engine serves one model: vLLM's ``reload_weights`` leaves a tied output layer with the old weights on the CPU
    (0.29.0: every one of 8 greedy replies differed from a fresh engine's), so weights are never swapped.
    Sampling is seeded per engine, not per request: per-request seeds cost more than half the speed on a CPU.
    """

    def __init__(self, model: str, adapter: str | None, settings: EngineConfig, seed: int):
        _environment(settings)
        from transformers import AutoTokenizer
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.async_llm import AsyncLLM

        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._adapter = LoRARequest("adapter", 1, adapter) if adapter else None
        self._settings = settings
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**_arguments(model, adapter, settings, seed)))
        self._numbers = itertools.count()

    async def ask(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        n: int = 1,
        temperature: float = 0.0,
        likelihood: bool = False,
        priority: int = 0,
    ) -> list[Sample]:
        """``n`` replies to the messages; lower priorities go first.

        Raises RowFault when the prompt leaves no room for a reply or the engine refuses it, and when a reply ends where
        the room does and not where ``max_tokens`` does: so what is answered does not depend on engine.max_model_len. A
        dead engine ends the process, so that Ray restarts the actor and re-runs its rows.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        ids = prompt_ids(self._tokenizer, messages)
        room = self._settings.max_model_len - len(ids)
        if room < 1:
            raise RowFault(f"the prompt fills engine.max_model_len {self._settings.max_model_len}: {len(ids)} tokens")
        params = SamplingParams(
            n=n,
            temperature=temperature,
            max_tokens=min(max_tokens, room),
            logprobs=0 if likelihood else None,  # 0: the chosen token only
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        try:
            replies = await self._final(ids, params, priority)
        except EngineDeadError:
            os._exit(1)
        except ValueError as error:
            raise RowFault(f"the engine refused the prompt: {error}") from error
        if room < max_tokens and not all(reply.finished for reply in replies):
            length = self._settings.max_model_len
            raise RowFault(f"a reply does not end within engine.max_model_len {length}: the prompt takes {len(ids)}")
        return replies

    async def _final(self, ids: list[int], params: Any, priority: int) -> list[Sample]:
        number = str(next(self._numbers))
        outputs = self._engine.generate(
            {"prompt_token_ids": ids}, params, request_id=number, lora_request=self._adapter, priority=priority
        )
        final = None
        async for final in outputs:
            pass
        assert final is not None, "the engine ended a request without an output"
        return [_sample(output) for output in final.outputs]

    def shutdown(self) -> None:
        """End the engine's processes; no request may be running."""
        self._engine.shutdown(timeout=0)


def _sample(output: Any) -> Sample:
    tokens = len(output.token_ids)
    likelihood = output.cumulative_logprob
    nll = float("nan") if likelihood is None or tokens == 0 else -likelihood / tokens
    return Sample(output.text, tokens, nll, output.finish_reason == "stop")


def _environment(settings: EngineConfig) -> None:
    """vLLM reads these once, at import. By default it would reserve one core for itself.

    Ray has set OMP_NUM_THREADS to the actor's one logical CPU; the engine's process, which inherits it, may use all.
    In a container that may use some of a machine's CPUs, vLLM would still bind a thread to each of them.
    """
    if settings.gpus == 0:
        from loky import cpu_count

        os.environ["OMP_NUM_THREADS"] = str(cpu_count())
        if cpu_count() < len(os.sched_getaffinity(0)):
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(settings.kv_cache_gb))
        os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")


def _arguments(model: str, adapter: str | None, settings: EngineConfig, seed: int) -> dict[str, Any]:
    """Arguments of the engine; ``trust_remote_code`` stays off and only safetensors are read."""
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": "bfloat16" if numerics.fast_bf16(settings.gpus) else "float32",
        "seed": seed,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel,
        "enforce_eager": settings.enforce_eager,
        "gpu_memory_utilization": 0.9 * min(1, settings.gpus or 1),  # engines with a share of a GPU sit side by side
        "load_format": "safetensors",
        "trust_remote_code": False,
        "scheduling_policy": "priority",
        "disable_log_stats": True,
        "enable_log_requests": False,
    }
    if settings.gpus == 0:
        # Blocks of 128 tokens, the default there, are too long for the samples of a short prompt to share it, and
        # small steps let a prompt's later samples find its blocks: together 1.2 to 1.4 times the speed at K = 4.
        arguments |= {"block_size": 32, "max_num_batched_tokens": max(512, settings.max_num_seqs)}
    if settings.tensor_parallel > 1:
        arguments["distributed_executor_backend"] = "mp"  # inside the node: Ray placement groups would stay reserved
    elif settings.gpus == 0:
        # By name, vLLM turns "uni" into one more process on the CPU; the class itself it takes as it is. The engine
        # is as fast without that process, and loads in 10.5 s instead of 18.8.
        from vllm.v1.executor.uniproc_executor import UniProcExecutor

        arguments["distributed_executor_backend"] = UniProcExecutor
    if adapter:
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _rank(adapter)}
    return arguments


def _rank(adapter: str) -> int:
    return int(json.loads((Path(adapter) / "adapter_config.json").read_text())["r"])
