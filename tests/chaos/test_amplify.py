"""SIGKILL of an actor, a raylet and the driver in one amplification on several nodes, and of a real engine: every row
is there once, and on a deterministic engine every text is what an undisturbed run gives."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bridge_ray import storage
from tests.conftest import CLI, KEYED
from tests.driven import actors, committed, ended, more, raylets, start, wait
from tests.stub_engine import write_corpus

ROWS = 3000


def test_what_is_killed_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write_corpus(tmp_path / "corpus", ROWS)
    with raylets(3, monkeypatch) as cluster:
        ended(start(cluster, corpus, tmp_path / "calm", 0.0))
        disturb(cluster, corpus, tmp_path / "rough")
    calm, rough = (storage.read_table(str(tmp_path / name / "rows.parquet")) for name in ("calm", "rough"))
    assert rough["id"].to_pylist() == list(range(ROWS))
    assert rough.equals(calm)


def disturb(cluster: Any, corpus: str, out: Path) -> None:
    """Kill an actor, a raylet and the driver one after the other; then go on to the end."""
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
