"""A node under a training is announced to be taken away, and is: what it had learnt until then is kept."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import driven
from tests.ray.test_training import PHASES, is_worker, job, lesson_rows, told_in, train, updates_of

UPDATES = 500
GRACE_S = 20  # between the announcement and the end of the node


def test_a_node_that_is_about_to_go_leaves_a_checkpoint(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    ray.shutdown()  # whatever tests before this one have left
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
    starts = [updates_of(file)[0] for file in told_in(tmp_path / "out")]
    assert len(starts) == 2, starts
    assert 1 == starts[0] < starts[1], "it began anew"


def tokens_in(folder: Path, model: str) -> dict[str, str]:
    import pyarrow as pa

    from bridge_ray import storage
    from bridge_ray.training import lessons, tokens

    table = pa.Table.from_pylist(lesson_rows("rationale"), schema=lessons.LESSON)
    storage.write_table(str(folder / "lessons.parquet"), table)
    tokens.tokenise(str(folder / "lessons.parquet"), model, 128, str(folder / "tokens"))
    return {"rationale": str(folder / "tokens" / "rationale")}


def take_away(cluster: Any, out: Path, seen: list[int]) -> None:
    """Announce the end of the node that the first worker is on, and end it when that time has come."""
    import ray
    from ray.core.generated import autoscaler_pb2

    while not any(updates_of(file) for file in told_in(out)):
        time.sleep(0.2)
    [first, *_] = [one for one in psutil.Process().children(recursive=True) if is_worker(one)]
    raylet = first.ppid()
    [node] = [one for one in cluster.list_all_nodes() if one.all_processes["raylet"][0].process.pid == raylet]
    gone = int((time.time() + GRACE_S) * 1000)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    assert ray._raylet.GcsClient(address=cluster.address).drain_node(node.node_id, reason, "a test", gone)[0]
    time.sleep(GRACE_S)
    seen.append(raylet)
    cluster.remove_node(node, allow_graceful=False)
