"""Stages: done once, shared by fingerprint, never identified by where or on what they ran."""

from __future__ import annotations

import subprocess
import sys
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
from bridge_ray.stage import Stage, Work, done, location, perform

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
