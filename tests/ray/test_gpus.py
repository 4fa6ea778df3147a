"""GPUs are free again between one stage and the next: on a Ray that is told it has one, with actors that need none."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from bridge_ray import storage
from bridge_ray.config import Engine, Training
from bridge_ray.inference.resumable import Pool, resumable_map
from bridge_ray.progress import Progress
from bridge_ray.stage import Work


class Holder:
    """Takes the place of an engine: holds a GPU, and says which."""

    def __init__(self, skip: Any, totals: Any) -> None:
        assert skip is None

    async def __call__(self, block: pa.Table) -> AsyncIterator[pa.Table]:
        import ray

        gpus = len(ray.get_runtime_context().get_accelerator_ids()["GPU"])
        yield pa.table({"id": block["id"], "gpus": [gpus] * block.num_rows})


@pytest.fixture
def one_gpu() -> Iterator[None]:
    import ray

    ray.init("local", num_cpus=8, num_gpus=1, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("one_gpu")
def test_stages_of_one_driver_take_turns_on_the_only_gpu(tmp_path: Path) -> None:
    import ray

    source = str(tmp_path / "rows.parquet")
    storage.write_table(source, pa.table({"id": list(range(40))}))
    for name in ("first", "second"):
        work = Work(
            stage=name,
            run="test",
            inputs={},
            out=str(tmp_path / name),
            engine=Engine(gpus=1),
            training=Training(),
            progress=Progress(Console(quiet=True)),
            fingerprint=name,
        )
        rows, _ = resumable_map(work, name, source, Pool(Holder, (), rows_at_once=32))
        assert storage.read_table(rows)["gpus"].to_pylist() == [1] * 40
        assert wait_for(lambda: ray.available_resources().get("GPU") == 1), f"{name} still holds the GPU"
    group = ray.util.placement_group([{"GPU": 1}])  # what training asks for next
    assert group.wait(timeout_seconds=20)


def wait_for(reached: Any, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
