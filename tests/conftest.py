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


S3_SERVER = """
import os, sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
# One request at a time: moto checks that an object is absent and then writes it, which is no create-if-absent.
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=False)
print(server.server_port, flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
server.serve_forever()
"""


@pytest.fixture(scope="session")
def s3_server() -> Iterator[dict[str, str]]:
    """An S3 server in a process of its own with a bucket ``bucket``; yields the environment that leads to it."""
    import boto3

    command = [sys.executable, "-c", S3_SERVER]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as server:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "s3-test-secret"}
        boto3.client("s3", region_name="us-east-1", endpoint_url=endpoint, **keys).create_bucket(Bucket="bucket")
        try:
            yield {
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "s3-test-secret",
                "AWS_REGION": "us-east-1",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_ALLOW_HTTP": "true",
            }
        finally:
            server.terminate()


@pytest.fixture
def s3(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A place of the test's own in the S3 server."""
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{abs(hash(request.node.nodeid))}"


def tiny(storage: Path | str, model: str, teacher: str, *overrides: str) -> list[str]:
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
