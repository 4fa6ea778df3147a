"""The training loop on real Ray Train workers and DeepSpeed: same result on any number of workers, exact resume."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from rich.console import Console

from bridge_ray import storage
from bridge_ray.config import Lora, Phase, Schedule, Training
from bridge_ray.inference import local_ray
from bridge_ray.progress import Progress
from bridge_ray.training import lessons, tokens
from bridge_ray.training.curriculum import make_plan
from bridge_ray.training.loop import Job
from bridge_ray.training.run import fit

ROWS = 32
PHASES = (Phase(target="answer", epochs=1), Phase(target="rationale", epochs=2, replay=0.25))


@pytest.fixture(scope="module")
def token_folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> dict[str, str]:
    local_ray.start()
    root = tmp_path_factory.mktemp("lessons")
    targets = ("answer", "rationale")
    rows = [row for target in targets for row in lesson_rows(target)]
    storage.write_table(str(root / "lessons.parquet"), pa.Table.from_pylist(rows, schema=lessons.LESSON))
    counts = tokens.tokenise(str(root / "lessons.parquet"), tiny_model, 128, str(root / "tokens"))
    assert counts == (dict.fromkeys(targets, ROWS), 0)
    return {target: str(root / "tokens" / target) for target in targets}


def lesson_rows(target: str) -> list[dict[str, Any]]:
    draw = random.Random(0)
    rows = []
    for number in range(ROWS):
        a, b = draw.randint(1, 9), draw.randint(1, 9)
        rationale = f"{a} and {b} make {a + b}." if target == "rationale" else None
        rows.append(
            {"id": number, "question": f"{a} + {b}?", "context": "", "options": [], "target": target}
            | {"rationale": rationale, "label": str(a + b), "difficulty": draw.random()}
        )
    return rows


def train(
    out: Path, model: str, folders: dict[str, str], lora: Lora | None = None, **training: Any
) -> list[dict[str, float]]:
    plan = make_plan(PHASES, dict.fromkeys(folders, ROWS), ROWS, 8, seed=0)
    settings = Training(**{"global_batch": 8, "micro_batch": 2, "checkpoint_every": 4, **training})
    job = Job(model, lora, plan, folders, Schedule(lr=1e-2), settings, str(out), 0)
    fit(job, "test", Progress(Console(quiet=True)))
    return storage.read_json(str(out / "losses.json"))


def losses(history: list[dict[str, float]]) -> list[float]:
    return [line["loss"] for line in history]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: str, token_folders: dict[str, str]) -> list[Any]:
    return train(tmp_path_factory.mktemp("one"), tiny_model, token_folders, workers=2, zero_stage=2)


def test_it_learns_through_its_phases(undisturbed: list[Any]) -> None:
    assert [line["phase"] for line in undisturbed] == [0] * 4 + [1] * 8
    assert losses(undisturbed)[-1] < losses(undisturbed)[0] - 1


def test_one_worker_without_zero_gives_what_two_with_it_give(
    tmp_path: Path, tiny_model: str, token_folders: dict[str, str]
) -> None:
    """In fp32: in bf16, gradients are rounded in different places, and Adam's first steps make much of it."""
    together = train(tmp_path / "2", tiny_model, token_folders, workers=2, zero_stage=2, precision="fp32")
    alone = train(tmp_path / "1", tiny_model, token_folders, workers=1, zero_stage=0, precision="fp32", micro_batch=8)
    assert losses(alone) == pytest.approx(losses(together), rel=1e-3)


def test_a_killed_worker_costs_at_most_the_updates_since_its_checkpoint(
    tmp_path: Path, tiny_model: str, token_folders: dict[str, str], undisturbed: list[Any]
) -> None:
    killed: list[int] = []
    threading.Thread(target=kill_after_checkpoint, args=(tmp_path, killed), daemon=True).start()
    resumed = train(tmp_path, tiny_model, token_folders, workers=2, zero_stage=2)
    assert killed, "the worker was not killed: the test has shown nothing"
    assert losses(resumed) == pytest.approx(losses(undisturbed), rel=1e-3)
    assert [line["update"] for line in resumed] == list(range(1, 13))


def kill_after_checkpoint(out: Path, killed: list[int]) -> None:
    """SIGKILL one training worker of ours as soon as a checkpoint is there."""
    while not list(out.glob("state/checkpoints/checkpoint_*")):
        time.sleep(0.02)
    workers = [p for p in psutil.process_iter(["name", "cmdline"]) if "ray::RayTrainWorker" in "".join(p.cmdline())]
    killed.append(workers[0].pid)
    os.kill(workers[0].pid, signal.SIGKILL)


def test_a_lora_adapter_trained_in_zero_3_is_whole(
    tmp_path: Path, tiny_model: str, token_folders: dict[str, str]
) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    train(tmp_path, tiny_model, token_folders, Lora(rank=4, alpha=8), workers=2, zero_stage=3)
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == 2 * 7 * 2  # A and B of seven linear layers in two blocks
    assert all(weight.numel() for weight in adapter.values())
    assert any(weight.abs().sum() > 0 for name, weight in adapter.items() if "lora_B" in name)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    by_peft = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload()
    for name, weight in merged.state_dict().items():
        assert weight.float().numpy() == pytest.approx(by_peft.state_dict()[name].float().numpy(), abs=0.02), name
