"""MLflow and Weights & Biases, the real packages without a server, are told by a worker that is killed on its way.

Neither is one of our requirements: these tests skip where they are not installed (pip install mlflow wandb).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bridge_ray import storage
from bridge_ray.inference import local_ray
from tests.chaos.test_training import tokens_in
from tests.ray import test_training as trainings
from tests.ray.test_training import UPDATES

WANTED = list(range(1, UPDATES + 1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Iterator[Path]:
    """The folder of a finished training of two phases, in which a worker was killed twice."""
    pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    import ray

    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        environment.setenv("WANDB_MODE", "offline")
        environment.setenv("WANDB_DIR", str(folder))
        ray.shutdown()  # workers get the environment of the Ray that they are started by
        local_ray.start()
        folders = dict.fromkeys(("answer", "rationale"), tokens_in(folder, tiny_model)["rationale"])
        made = trainings.job(folder / "out", tiny_model, folders, workers=2, zero_stage=2, checkpoint_every=3)
        tracked = replace(made.tracked, trackers=("tensorboard", "mlflow", "wandb"), config={"lr": 3e-3})
        killed: list[int] = []
        threading.Thread(target=trainings.kill_at, args=(folder / "out", (6, 18), killed), daemon=True).start()
        lines = trainings.train(replace(made, tracked=tracked))
        assert len(killed) == 2 and [line["update"] for line in lines] == WANTED
        yield folder
        ray.shutdown()


def test_mlflow_has_one_finished_run_with_every_update(trained: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{trained}/mlflow.db")
    experiment = client.get_experiment_by_name("bridge_ray")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run/stage", "FINISHED")
    assert run.data.tags["fingerprint"] == "x" and run.data.params == {"lr": "0.003"}
    losses = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "train/loss")}
    assert sorted(losses) == WANTED
    kept = trainings.losses(storage.read_json(str(trained / "out" / "losses.json")))
    assert [losses[update] for update in WANTED] == pytest.approx(kept, rel=1e-3)


def test_wandb_goes_on_with_the_run_of_the_same_name(trained: Path) -> None:
    """Offline, every start leaves a file of its own; sent to a server they are one run."""
    starts = sorted((trained / "wandb").glob("offline-run-*"))
    assert len(starts) == 3 and all(start.name.endswith("-stage-x") for start in starts)
    seen = [steps_of(next(start.glob("*.wandb"))) for start in starts]
    assert sorted({step for steps in seen for step in steps}) == WANTED
    assert seen[-1][-1] == UPDATES


def steps_of(file: Path) -> list[int]:
    """The updates in a file of W&B's; a worker that was killed had not written all of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    records = [Record.FromString(data) for data in logged(file.read_bytes())]
    return [record.history.step.num for record in records if record.HasField("history")]


def logged(data: bytes, header: int = 7, block: int = 32768) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: checksum (4 bytes), length (2), kind (1: whole, 4: last part), data;
    none of its headers crosses the end of a block. The file's own header counts as one."""
    place, parts = header, b""
    while place + header <= len(data):
        if (room := block - place % block) < header:
            place += room
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + header : place + header + length]
        place += header + length
        if kind in (1, 4) and place <= len(data):
            yield parts
            parts = b""
