"""What several test files share: a tiny random model, the tiny recipe, and the command line as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge_ray.teacher import standin

TINY = Path(__file__).parent / "tiny.yaml"
KEYED = os.environ | {"OPENAI_API_KEY": "sk-test-secret"}
CLI = Path(sys.executable).parent / "bridge-ray"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama of 2 layers and 64 dimensions with the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from bridge_ray.inference import models

    tokenizer = AutoTokenizer.from_pretrained(models.resolve("embedded:smollm2-135m"))
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("tiny-model")
    LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def teacher_url() -> Iterator[str]:
    """A stand-in teacher that outlives the runs that ask it, so that its own bill can be compared with theirs."""
    with standin.running("expert") as base_url:
        yield base_url


def tiny(storage: Path, model: str, teacher: str, *overrides: str) -> list[str]:
    """The arguments of ``bridge-ray run`` for the tiny recipe."""
    fields = [f"ta.model={model}", f"teacher.base_url={teacher}", *overrides]
    return ["run", str(TINY), "--storage", str(storage), *[part for field in fields for part in ("--set", field)]]


def bridge_ray(*arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """``bridge-ray`` in a process of its own."""
    return subprocess.run([CLI, *arguments], capture_output=True, text=True, timeout=timeout, env=KEYED, check=False)


def billed(teacher: str) -> int:
    """Requests that the stand-in would have charged for, by its own count."""
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(teacher.removesuffix("/v1") + "/stats") as reply:
        return int(json.load(reply)["billed"])


def read(path: Path) -> Any:
    return json.loads(path.read_text())
