"""SIGKILL of the driver in the middle of a stage, and the same command again: nothing is lost, bought or done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge_ray import storage
from tests.conftest import CLI, KEYED, billed, bridge_ray, read, tiny


def kill_when(arguments: list[str], reached: Callable[[], bool], timeout: float = 300) -> bool:
    """Start the command, SIGKILL it as soon as ``reached``; False if it ended before."""
    process = subprocess.Popen([CLI, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=KEYED)
    deadline = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < deadline:
        if reached():
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.02)
    process.kill()
    process.wait()
    return False


def committed(root: Path, stage: str) -> dict[int, dict[str, object]]:
    """The rows that the checkpoint of an unfinished generation stage says are done."""
    rows: dict[int, dict[str, object]] = {}
    for file in root.glob(f"stages/{stage}/*/parts/checkpoint/*.parquet"):
        if file.name.endswith(".pending.parquet"):
            continue
        ids = set(storage.read_table(str(file))["id"].to_pylist())
        for part in root.glob(f"stages/{stage}/*/parts/rows/*.parquet"):
            try:
                table = storage.read_table(str(part)).to_pylist()
            except OSError:  # half-written when the driver died
                continue
            rows |= {row["id"]: row for row in table if row["id"] in ids}
    return rows


@pytest.mark.parametrize("stage", ["score"])
def test_a_generation_stage_goes_on_with_the_rows_it_has(
    tmp_path: Path, tiny_model: str, teacher_url: str, stage: str
) -> None:
    slow = ["corpus.train=192", "score.max_tokens=96", "score.samples=4", "engine.max_num_seqs=16"]
    arguments = [*tiny(tmp_path, tiny_model, teacher_url, *slow), "--until", stage]
    pattern = f"stages/{stage}/*/parts/checkpoint/*.parquet"
    assert kill_when(arguments, lambda: len(list(tmp_path.glob(pattern))) >= 3), "it ended before it could be killed"
    before = committed(tmp_path, stage)
    assert 0 < len(before) < 192
    done = bridge_ray(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "corpus               done before" in done.stderr
    [out] = tmp_path.glob(f"stages/{stage}/*/rows.parquet")
    after = {row["id"]: row for row in storage.read_table(str(out)).to_pylist()}
    assert sorted(after) == list(range(192))
    assert all(after[row]["samples"] == before[row]["samples"] for row in before), "a finished row was done again"


def test_a_killed_purchase_never_pays_twice_or_over(tmp_path: Path, tiny_model: str, teacher_url: str) -> None:
    fields = ["corpus.train=200", "budget.fraction=1.0", "score.samples=1", "score.max_tokens=1"]
    arguments = [*tiny(tmp_path, tiny_model, teacher_url, *fields), "--until", "teach"]
    start = billed(teacher_url)
    answers = tmp_path / "teacher" / "answers"
    assert kill_when(arguments, lambda: answers.exists() and len(list(answers.iterdir())) >= 5)
    kept = len(list(answers.glob("*.json")))
    at_kill = billed(teacher_url) - start
    done = bridge_ray(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    teacher = read(tmp_path / "runs" / "tiny" / "metrics.json")["teacher"]
    bill = billed(teacher_url) - start
    assert bill <= teacher["queries"] <= teacher["budget_queries"] == 200
    assert teacher["bought"] == bill - at_kill
    assert teacher["hits"] >= kept - 1  # one answer may have been half-way into the store
    assert len(list(answers.glob("*.json"))) <= bill


@pytest.mark.parametrize("stage", ["train_ta", "amplify", "train_student", "evaluate"])
def test_a_run_killed_in_a_stage_finishes_when_run_again(
    tmp_path: Path, tiny_model: str, teacher_url: str, stage: str
) -> None:
    """Killed at a moment in which the stage has begun to write; the stages before it are skipped afterwards."""
    arguments = tiny(tmp_path, tiny_model, teacher_url, "evaluate.systems=[bridge]")
    assert kill_when(arguments, lambda: any(tmp_path.glob(f"stages/{stage}/*/*")))
    before = billed(teacher_url)
    done = bridge_ray(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = read(tmp_path / "runs" / "tiny" / "metrics.json")
    stages = list(metrics["stages"])
    assert all(metrics["stages"][name]["skipped"] for name in stages[: stages.index(stage)])
    assert not metrics["stages"][stage]["skipped"]
    assert sum(count for name, count in metrics["rows"].items() if name != "corpus") == 48
    assert billed(teacher_url) == before
