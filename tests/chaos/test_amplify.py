"""SIGKILL of an actor, a raylet and the driver in one amplification on several nodes, and of a real engine: every row
is there once, and on a deterministic engine every text is what an undisturbed run gives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bridge_ray import storage
from tests.conftest import CLI, KEYED
from tests.stub_engine import write_corpus

REPOSITORY = Path(__file__).parents[2]
ROWS = 3000
ACTOR = "ray::MapWorker(MapBatches(CourseActor))"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that runs nothing and three raylets of four logical CPUs, all of them children of this process."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("RAY_worker_niceness", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        made.add_node(num_cpus=4)
    yield made
    made.shutdown()


def start(cluster: Any, corpus: str, out: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.chaos.explain_sums", corpus, str(out), str(seconds), "2"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, **pipes)


def ended(driver: subprocess.Popen[str], seconds: float = 400) -> str:
    said, _ = driver.communicate(timeout=seconds)
    assert driver.returncode == 0, said[-4000:]
    return said


def committed(out: Path) -> int:
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
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if ACTOR in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_what_is_killed_is_made_up_for(cluster: Any, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ROWS)
    ended(start(cluster, corpus, tmp_path / "calm", 0.0))

    out = tmp_path / "rough"
    driver = start(cluster, corpus, out, 0.4)
    more(out, driver)
    victim = actors()[0]
    victim.kill()
    more(out, driver)
    wait(lambda: any(process.pid != victim.pid for process in actors()), driver)
    raylet = actors()[0].ppid()
    os.kill(raylet, signal.SIGKILL)
    more(out, driver)
    driver.kill()
    driver.communicate()
    left = committed(out)
    said = ended(start(cluster, corpus, out, 0.0))
    assert left >= 15, "nothing was there to go on with"
    assert f"'corpus': {ROWS}" in said

    calm, rough = (storage.read_table(str(tmp_path / name / "rows.parquet")) for name in ("calm", "rough"))
    assert rough["id"].to_pylist() == list(range(ROWS))
    assert rough.equals(calm)


def test_a_killed_engine_is_loaded_again(tmp_path: Path, tiny_model: str) -> None:
    """vLLM's own process, under an actor that lives: the actor must not wait for it for ever."""
    table = pa.table({"question": [f"What is {n} plus 1?" for n in range(160)], "answer": ["1"] * 160})
    pq.write_table(table, tmp_path / "corpus.parquet")
    fields = [f"ta.model={tiny_model}", f"corpus.path={tmp_path / 'corpus.parquet'}", "amplify.max_tokens=64"]
    fields += ["engine.max_num_seqs=8", "engine.max_model_len=256", "engine.kv_cache_gb=1", "engine.enforce_eager=true"]
    command = [str(CLI), "amplify", *fields, "--storage", str(tmp_path)]
    with (tmp_path / "said").open("w") as said:
        driver = subprocess.Popen(command, stdout=said, stderr=said, env=KEYED, text=True)
    checkpoints = "stages/amplify/*/parts/checkpoint/*.parquet"
    wait(lambda: len(list(tmp_path.glob(checkpoints))) >= 2, driver)
    [engine] = [one for one in psutil.Process(driver.pid).children(recursive=True) if "EngineCore" in one.name()]
    engine.kill()
    driver.wait(400)
    assert driver.returncode == 0, (tmp_path / "said").read_text()[-3000:]
    [out] = tmp_path.glob("stages/amplify/*/rows.parquet")
    rows = storage.read_table(str(out))
    assert rows["id"].to_pylist() == list(range(160)) and rows["error"].null_count == 160
