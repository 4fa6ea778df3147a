"""Stages: done once, shared by fingerprint, never identified by where or on what they ran."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bridge_ray import storage
from bridge_ray.config import Engine, Training
from bridge_ray.progress import Progress
from bridge_ray.stage import Stage, Work, discard, done, location, perform

QUIET = Progress(Console(quiet=True))


def counting(calls: list[str], fail: bool = False) -> Callable[[Work], dict[str, Any]]:
    def run(work: Work) -> dict[str, Any]:
        calls.append(work.out)
        storage.write_json(storage.join(work.out, "value.json"), len(calls))
        if fail:
            raise RuntimeError("interrupted")
        return {"calls": len(calls)}

    return run


def do(stage: Stage, root: Path, engine: Engine | None = None) -> Any:
    return perform(stage, str(root), "run", engine or Engine(), Training(), QUIET)


def test_a_finished_stage_is_not_run_again_whatever_the_resources(tmp_path: Path) -> None:
    calls: list[str] = []
    stage = Stage("one", 1, {"k": 8}, {}, counting(calls))
    first, second = do(stage, tmp_path), do(stage, tmp_path, Engine(max_num_seqs=7))
    assert (first.skipped, second.skipped) == (False, True)
    assert first.metrics == second.metrics == {"calls": 1}
    assert len(calls) == 1


def test_a_stage_that_failed_is_run_again(tmp_path: Path) -> None:
    calls: list[str] = []
    stage = Stage("one", 1, {}, {}, counting(calls, fail=True))
    with pytest.raises(RuntimeError, match="interrupted"):
        do(stage, tmp_path)
    assert done(stage, str(tmp_path)) is None
    assert do(replace(stage, run=counting(calls)), tmp_path).metrics == {"calls": 2}


def test_the_seconds_of_a_stage_are_those_of_all_its_attempts(tmp_path: Path) -> None:
    def slow(work: Work) -> dict[str, Any]:
        time.sleep(0.3)
        raise KeyboardInterrupt

    stage = Stage("one", 1, {}, {}, slow)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            do(stage, tmp_path)
    assert 0.6 <= do(replace(stage, run=counting([])), tmp_path).seconds < 60
    assert do(stage, tmp_path).seconds >= 0.6, "and so the manifest says"
    assert do(replace(stage, version=2, run=counting([])), tmp_path).seconds < 0.6


KILLED = """
import os, sys, time
from rich.console import Console
from bridge_ray import stage
from bridge_ray.config import Engine, Training
from bridge_ray.progress import Progress

stage.BEAT = 0.1

def killed(work):
    time.sleep(1)
    os._exit(9)

one = stage.Stage("one", 1, {}, {}, killed)
stage.perform(one, sys.argv[1], "run", Engine(), Training(), Progress(Console(quiet=True)))
"""


def test_the_seconds_of_an_attempt_that_was_killed_are_counted_too(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False).returncode == 9
    assert 0.5 <= do(Stage("one", 1, {}, {}, counting([])), tmp_path).seconds < 60


def test_the_fingerprint_covers_identity_version_name_and_inputs() -> None:
    base = Stage("one", 1, {"k": 8}, {}, counting([]))
    upstream = Stage("zero", 1, {"seed": 0}, {}, counting([]))
    variants = [
        base,
        replace(base, name="two"),
        replace(base, version=2),
        replace(base, identity={"k": 4}),
        replace(base, inputs={"zero": upstream}),
        replace(base, inputs={"zero": replace(upstream, identity={"seed": 1})}),
    ]
    assert len({variant.fingerprint for variant in variants}) == len(variants)
    assert replace(base, run=counting([])).fingerprint == base.fingerprint


def test_two_runs_with_a_stage_in_common_share_its_output(tmp_path: Path) -> None:
    calls: list[str] = []
    shared = Stage("shared", 1, {}, {}, counting(calls))
    for budget in (3, 5):
        do(shared, tmp_path)
        do(Stage("own", 1, {"budget": budget}, {"shared": shared}, counting(calls)), tmp_path)
    assert calls.count(location(shared, str(tmp_path))) == 1
    assert len(calls) == 3


TOGETHER = """
import json, os, sys, time
from rich.console import Console
from bridge_ray import claims, stage, storage
from bridge_ray.config import Engine, Training
from bridge_ray.progress import Progress

claims.BEAT, claims.STALLED = 0.1, float(sys.argv[3])
claims._machine = lambda: sys.argv[4] or None

def slow(work):
    print("at work", flush=True)
    sys.stdin.readline()
    return {"by": os.getpid()}

progress = Progress(Console(file=sys.stdout, width=200))
one = stage.Stage("one", 1, {}, {}, slow)
made = stage.perform(one, sys.argv[1], sys.argv[2], Engine(), Training(), progress)
print(json.dumps([made.skipped, made.metrics["by"]]), flush=True)
"""


def together(root: Path, run: str, stalled: float = 60.0, machine: str = "") -> subprocess.Popen[str]:
    """A process that performs a stage; its work ends when it is told so."""
    command = [sys.executable, "-c", TOGETHER, str(root), run, str(stalled), machine]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def finish(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    process.stdin.close()
    return read(process)


def test_of_runs_that_need_a_stage_at_once_one_makes_it_and_the_others_wait_for_it(tmp_path: Path) -> None:
    first = together(tmp_path, "first")
    assert read(first) == "at work"
    others = [together(tmp_path, "second"), together(tmp_path, "third")]
    for other in others:
        assert read(other) == "one: run first is at work on it; waiting for what it makes"
    assert finish(first) == f"[false, {first.pid}]"
    assert [read(other) for other in others] == [f"[true, {first.pid}]"] * 2


def test_a_stage_is_not_discarded_while_a_run_is_at_work_on_it(tmp_path: Path) -> None:
    first, one = together(tmp_path, "first"), Stage("one", 1, {}, {}, counting([]))
    assert read(first) == "at work"
    discarding = threading.Thread(target=discard, args=(one, str(tmp_path), "fresh", QUIET))
    discarding.start()
    discarding.join(2.0)
    assert discarding.is_alive()
    assert finish(first) == f"[false, {first.pid}]"
    discarding.join(60.0)
    assert not discarding.is_alive() and done(one, str(tmp_path)) is None


@pytest.mark.parametrize(("machine", "stalled"), [("here", 60.0), ("", 2.0)], ids=["on this machine", "elsewhere"])
def test_a_run_that_was_killed_at_a_stage_holds_nobody_up(tmp_path: Path, machine: str, stalled: float) -> None:
    first = together(tmp_path, "first", stalled, machine)
    assert read(first) == "at work"
    second = together(tmp_path, "second", stalled, machine)
    assert read(second).startswith("one: run first is at work")
    started = time.monotonic()
    first.kill()
    first.wait()
    assert read(second) == "at work" and finish(second) == f"[false, {second.pid}]"
    assert time.monotonic() - started < 40


def test_a_run_that_fails_at_a_stage_leaves_it_to_the_next(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="interrupted"):
        do(Stage("one", 1, {}, {}, counting([], fail=True)), tmp_path)
    started = time.monotonic()
    assert not do(Stage("one", 1, {}, {}, counting([])), tmp_path).skipped
    assert time.monotonic() - started < 10
