"""A training loses its workers, or a node that is announced to be taken away: what was learnt until then is kept."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import driven
from tests.ray.test_training import PHASES, UPDATES, events_of, job, lesson_rows, losses, token_folders, train

__all__ = ["token_folders"]  # a fixture

LONG = 1200  # updates: the node goes long before they are done


def test_a_node_that_is_about_to_go_leaves_a_checkpoint(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    monkeypatch.setattr("tests.ray.test_training.PHASES", [PHASES[1].model_copy(update={"updates": LONG})])
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
    assert [line["update"] for line in lines] == list(range(1, LONG + 1))
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


def test_killed_workers_cost_the_updates_since_their_checkpoint(
    tmp_path: Path, tiny_model: str, token_folders: dict[str, str]
) -> None:
    """Twice; the losses are those of a training that nothing happened to, and no start but the first begins anew."""
    killed: list[int] = []
    fields: dict[str, Any] = {"workers": 2, "zero_stage": 2, "precision": "fp32", "checkpoint_every": 3}
    undisturbed = train(job(tmp_path / "undisturbed", tiny_model, token_folders, **fields))
    out = tmp_path / "out"
    threading.Thread(target=kill_twice, args=(out, killed), daemon=True).start()
    resumed = train(job(out, tiny_model, token_folders, **fields))
    assert len(killed) == 2, "the workers were not killed: the test has shown nothing"
    assert losses(resumed) == pytest.approx(losses(undisturbed), rel=1e-3)
    assert [line["update"] for line in resumed] == list(range(1, UPDATES + 1))
    begun = [updates_of(file)[0] for file in told_in(out)]
    assert 1 == begun[0] < begun[1] < begun[2] and {start % 3 for start in begun} == {1}, begun


def kill_twice(out: Path, killed: list[int]) -> None:
    """SIGKILL a training worker of ours as soon as the second checkpoint is made (after update 6), and again after the
    sixth. Ray may not know of the newest one by then."""
    for needed in (6, 18):
        while max((update for file in told_in(out) for update in updates_of(file)), default=0) < needed:
            time.sleep(0.02)
        while not (workers := [one for one in psutil.Process().children(recursive=True) if is_worker(one)]):
            time.sleep(0.02)
        killed.append(workers[0].pid)
        workers[0].kill()


def told_in(out: Path) -> list[Path]:
    """TensorBoard's files, one for every start; they grow whenever a checkpoint has been made."""
    return sorted((out / "tensorboard").glob("*"))


def updates_of(file: Path) -> list[int]:
    return list(events_of(file).get("train/loss", {}))


def is_worker(process: psutil.Process) -> bool:
    try:
        return "ray::RayTrainWorker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
