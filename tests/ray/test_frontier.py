"""A frontier's cells side by side, over stages that take no time, in real Ray tasks; tests/chaos has real stages."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from bridge_ray import config, pipeline, records, storage, workshop
from bridge_ray.errors import Outage, UserError
from bridge_ray.frontier import run
from bridge_ray.frontier.cells import Planned, Trial, numbers_of
from bridge_ray.frontier.grid import Cell, grid
from bridge_ray.inference import local_ray
from bridge_ray.progress import Progress
from bridge_ray.stage import Stage, Work
from tests import stub_stages

SYSTEMS = ("direct", "direct_labels", "bridge")
EVERY = (*SYSTEMS, "teacher")
PATIENCE = 120.0  # seconds that a training waits for the other one to begin


@pytest.fixture(scope="module", autouse=True)
def local() -> Iterator[None]:
    import ray

    local_ray.start()
    yield
    ray.shutdown()


def teach(work: Work) -> dict[str, Any]:
    stub_stages.note(work)
    if (down := Path(work.out).parents[2] / "down").exists():
        down.unlink()
        raise Outage("teacher.model stub: 503 after 10 rows; run again to go on")
    return {"queries": 12, "usd": 0.12}


def learn(work: Work, system: str) -> dict[str, Any]:
    """Neither direct nor direct_labels ends before the other one has begun; bridge fails where it is to."""
    root = Path(work.out).parents[2]
    stub_stages.note(work)
    if system == "bridge" and (root / "broken").exists():
        raise RuntimeError("the loss of update 1 is nan")
    (root / system).touch()
    began = time.monotonic()
    while system != "bridge" and not all((root / other).exists() for other in SYSTEMS[:2]):
        time.sleep(0.1)
        if time.monotonic() - began > PATIENCE:
            raise TimeoutError(f"{system} was alone")
    work.progress.console.print(f"{work.stage}: learnt")
    return {}


def evaluate(work: Work, system: str) -> dict[str, Any]:
    cells = {path.name.partition("-")[0] for path in Path(work.out).parents[2].glob("runs/stub/cells/*.json")}
    assert system != "teacher" or cells >= {"direct", "direct_labels"}, f"the teacher was asked after {cells} alone"
    stub_stages.note(work)
    rows = [{"id": number, "system": system, "correct": number == 8} for number in (8, 9)]
    table = pa.Table.from_pylist(rows, schema=records.PREDICTION)
    storage.write_table(storage.join(work.out, "predictions.parquet"), table)
    scores = {"accuracy": 0.5, "unparsable": 0.0, "by_domain": {}, "by_answer_type": {}}
    return {"eval_queries": 0, "systems": {system: scores}}


def frontier(root: Path, sharing: tuple[str, ...] = SYSTEMS[1:]) -> run.Frontier:
    """A cell of each system, of which some share their rationales, and one of the teacher itself, which has to come
    last."""
    settings = config.load("demo", [f"storage={root}", "training.workers=1"], name="stub")
    planned = []
    for system in SYSTEMS:
        bought = Stage("teach", 1, {"of": "all" if system in sharing else system}, {}, teach)
        name = "train_student" if system == "bridge" else f"train_{system}"
        student = Stage(name, 1, {"system": system}, {"teach": bought}, partial(learn, system=system))
        final = Stage("evaluate", 1, {"system": system}, {"student": student}, partial(evaluate, system=system))
        planned.append(Planned(Cell(system, 0.25, 48, 0), settings, (Trial(1.0, final, None),)))
    asked = Stage("evaluate", 1, {"system": "teacher"}, {}, partial(evaluate, system="teacher"))
    planned.append(Planned(Cell("teacher", 0.0, 48, 0), settings, (Trial(1.0, asked, None),)))
    base = pipeline.Run(settings, pa.table({}), {}, str(root))
    kept = {one.cell.name: there for one in planned if (there := numbers_of(one, base.home)) is not None}
    return run.Frontier(base, grid(EVERY, [0.25], 1), tuple(planned), kept, {}, {0: np.arange(2, dtype=np.uint64)})


def executed(made: run.Frontier, check: Callable[[], None] = lambda: None) -> tuple[dict[str, Any], str]:
    """The frontier's record, and what was said."""
    screen = io.StringIO()
    found = run.execute(made, Progress(Console(file=screen, width=200)), check, concurrency=2)
    return found, screen.getvalue()


def there(found: dict[str, Any]) -> list[str]:
    return [cell["system"] for cell in found["cells"]]


def test_two_trainings_run_at_once_and_what_cells_share_is_made_once(tmp_path: Path) -> None:
    """Each of two trainings waits for the other one to begin."""
    found, said = executed(frontier(tmp_path))
    assert there(found) == list(EVERY) and found["missing"] == []
    assert stub_stages.made(tmp_path).count("teach") == 2, "direct's, and the one that two systems share"
    assert "4 cells side by side: at a time at most 2 trainings, or 1 stages with engines" in said
    assert "direct_labels at 25 %, 48 rows, seed 0: train_direct_labels: learnt" in said
    assert "[4/4] teacher, 48 rows, seed 0: 50.0 % of 2" in said


def test_what_fails_leaves_the_others_and_ends_it_at_last_and_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with pytest.raises(RuntimeError, match="the loss of update 1 is nan"):
        executed(frontier(tmp_path))
    [missing] = storage.read_json(f"{tmp_path}/runs/stub/frontier.json")["missing"]
    assert missing["system"] == "bridge"
    (tmp_path / "broken").unlink()
    again = frontier(tmp_path)
    assert sorted(again.kept) == ["direct-b0.25-n48-s0", "direct_labels-b0.25-n48-s0", "teacher-b0-n48-s0"]
    assert there(executed(again)[0]) == list(EVERY)
    assert stub_stages.made(tmp_path).count("train_direct") == 1


def test_a_teacher_that_is_away_is_not_asked_again_by_other_cells(tmp_path: Path) -> None:
    """Each cell has rationales of its own to buy."""
    (tmp_path / "down").touch()
    with pytest.raises(Outage, match="at 25 %, 48 rows, seed 0: .*503 after 10 rows.*the cells that are there stay"):
        executed(frontier(tmp_path, sharing=()))
    assert stub_stages.made(tmp_path) == ["teach"]
    assert there(executed(frontier(tmp_path, sharing=()))[0]) == list(EVERY)


def test_a_stop_ends_all_of_it_and_the_same_command_goes_on(tmp_path: Path) -> None:
    begun: list[float] = []

    def check() -> None:
        begun.append(time.monotonic())
        if len(begun) > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executed(frontier(tmp_path), check)
    found, _ = executed(frontier(tmp_path))
    assert there(found) == list(EVERY)


def test_a_key_that_the_cluster_s_workers_do_not_have_is_missed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have the environment in which Ray was started, and this process's is another."""
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    fields = ["teacher.standin=null", "teacher.model=gpt-4o"]
    with pytest.raises(UserError, match="^OPENAI_API_KEY: is known here, but not to the cluster's workers"):
        workshop.check_key(config.load("demo", fields).teacher)
    workshop.check_key(config.load("demo").teacher)  # a stand-in needs none
