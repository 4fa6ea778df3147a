"""A node under a training is announced to be taken away, and is: what it had learnt until then is kept."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import driven
from tests.ray.test_training import PHASES, is_worker, job, lesson_rows, train

UPDATES = 1200


def test_a_node_that_is_about_to_go_leaves_a_checkpoint(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    monkeypatch.setattr("tests.ray.test_training.PHASES", [PHASES[1].model_copy(update={"updates": UPDATES})])
    with driven.raylets(2, monkeypatch) as cluster:
        ray.init(address=cluster.address, logging_level="ERROR")
        try:
            made = job(tmp_path / "out", tiny_model, tokens_in(tmp_path, tiny_model), workers=2, checkpoint_every=10**6)
            seen: list[int] = []
            threading.Thread(target=take_away, args=(cluster, tmp_path / "out", seen), daemon=True).start()
            lines = train(made)
        finally:
            ray.shutdown()
    assert seen, "no node was taken away: the test has shown nothing"
    assert [line["update"] for line in lines] == list(range(1, UPDATES + 1))
    assert seen[0] > 0, "there was no checkpoint when the node went"


def tokens_in(folder: Path, model: str) -> dict[str, str]:
    import pyarrow as pa

    from bridge_ray import storage
    from bridge_ray.training import lessons, tokens

    table = pa.Table.from_pylist(lesson_rows("rationale"), schema=lessons.LESSON)
    storage.write_table(str(folder / "lessons.parquet"), table)
    tokens.tokenise(str(folder / "lessons.parquet"), model, 128, str(folder / "tokens"))
    return {"rationale": str(folder / "tokens" / "rationale")}


def take_away(cluster: Any, out: Path, seen: list[int]) -> None:
    """Announce the end of the node that the first worker is on, wait for a checkpoint, and end it."""
    import ray
    from ray.core.generated import autoscaler_pb2

    while not (workers := [one for one in psutil.Process().children(recursive=True) if is_worker(one)]):
        time.sleep(0.2)
    time.sleep(8)  # it learns
    raylet = workers[0].ppid()
    [node] = [one for one in cluster.list_all_nodes() if one.all_processes["raylet"][0].process.pid == raylet]
    gone = int(time.time() * 1000) + 15_000
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    assert ray._raylet.GcsClient(address=cluster.address).drain_node(node.node_id, reason, "a test", gone)[0]
    while time.time() * 1000 < gone and not list(out.glob("state/*/checkpoints/checkpoint_*")):
        time.sleep(0.1)
    seen.append(len(list(out.glob("state/*/checkpoints/checkpoint_*"))))
    cluster.remove_node(node, allow_graceful=False)
