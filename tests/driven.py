"""Drivers of amplifications on several raylets of this machine, to be disturbed while they run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from bridge_ray import storage

REPOSITORY = Path(__file__).parents[1]
ACTOR = "ray::MapWorker(MapBatches(CourseActor))"


@contextmanager
def raylets(count: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that runs nothing and raylets of four logical CPUs, all of them children of this process."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("RAY_worker_niceness", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(count):
        made.add_node(num_cpus=4)
    try:
        yield made
    finally:
        made.shutdown()


def start(cluster: Any, corpus: str, out: Path, seconds: float) -> subprocess.Popen[str]:
    """A driver that amplifies the corpus with two engines which take ``seconds`` for a reply."""
    command = [sys.executable, "-m", "tests.explain_sums", corpus, str(out), str(seconds), "2"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, **pipes)


def ended(driver: subprocess.Popen[str], seconds: float = 400) -> str:
    """What the driver has said when it ended well."""
    said, _ = driver.communicate(timeout=seconds)
    assert driver.returncode == 0, said[-4000:]
    return said


def committed(out: Path) -> int:
    """Blocks that are safe."""
    files = storage.files(str(out / "parts" / "checkpoint")) if (out / "parts").exists() else []
    return len([file for file in files if not file.endswith(".pending.parquet")])


def more(out: Path, driver: subprocess.Popen[str]) -> None:
    """Wait until a few more blocks are safe."""
    before = committed(out)
    wait(lambda: committed(out) >= before + 5, driver)


def wait(reached: Callable[[], bool], driver: subprocess.Popen[str], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert driver.poll() is None, f"it ended too early: {driver.communicate()[0][-3000:]}"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def actors() -> list[psutil.Process]:
    """The processes that hold the engines."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if ACTOR in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
