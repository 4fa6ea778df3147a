"""A frontier on the tiny model, with real Ray, vLLM, DeepSpeed and HTTP: cells side by side, what they share made and
billed once, killed and resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bridge_ray import storage
from tests.chaos.test_kill import kill_when
from tests.conftest import billed, bridge_ray, read, tiny

SYSTEMS = "labels,direct,bridge,untaught_ta"
CELLS = {
    ("labels", 0.0): 0,  # queries
    ("direct", 0.25): 12,
    ("bridge", 0.25): 12,
    ("direct", 1.0): 48,
    ("bridge", 1.0): 48,
    ("untaught_ta", 0.25): 12,
}


def frontier(root: Path, model: str, teacher: str, *more: str) -> list[str]:
    asked = ["--budgets", "0.25,1.0", "--seeds", "1", "--systems", SYSTEMS, *more]
    return ["frontier", *tiny(root, model, teacher, "budget.max_queries=100")[1:], *asked]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: str, teacher_url: str) -> tuple[Path, int, str]:
    """A frontier that was killed when two of its cells were there, and started again: its storage, the teacher's bill
    for both attempts, and what the second one printed."""
    root, before = tmp_path_factory.mktemp("storage"), billed(teacher_url)
    arguments = frontier(root, tiny_model, teacher_url, "--concurrency", "2")
    there = root / "runs" / "tiny" / "cells"
    assert kill_when(arguments, lambda: len(list(there.glob("*.json"))) >= 2, timeout=500), "it ended too early"
    early = {path: path.stat().st_mtime_ns for path in there.glob("*.json")}
    done = bridge_ray(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(path.stat().st_mtime_ns == when for path, when in early.items()), "a cell was made again"
    return root, billed(teacher_url) - before, done.stdout + done.stderr


def test_the_cells_are_those_of_the_grid_with_what_each_took(finished: tuple[Path, int, str]) -> None:
    found = read(finished[0] / "runs" / "tiny" / "frontier.json")
    assert {(cell["system"], cell["budget"]): cell["queries"] for cell in found["cells"]} == CELLS
    assert not found["missing"]
    for cell in found["cells"]:
        assert (cell["n"], cell["rows"], cell["seed"]) == (12, 48, 0)
        assert cell["accuracy"] == pytest.approx(cell["correct"] / 12, abs=1e-4)
        assert (cell["usd"] > 0) == (cell["queries"] > 0) and cell["local_hours"] > 0
        name = f"{cell['system']}-b{cell['budget']:g}-n48-s0"
        rows = storage.read_table(str(finished[0] / "runs" / "tiny" / "cells" / f"{name}.parquet"))
        assert rows.num_rows == 12 and set(rows["system"].to_pylist()) == {cell["system"]}
        assert sum(rows["correct"].to_pylist()) == cell["correct"]
    assert found["recommendation"]["verdict"] == "unknown", "one seed decides nothing"


def test_what_cells_have_in_common_was_made_once_and_each_answer_bought_once(finished: tuple[Path, int, str]) -> None:
    root, bill, _ = finished
    made = {stage.name: len(list(stage.glob("*/manifest.json"))) for stage in (root / "stages").iterdir()}
    assert bill == 48, "the union of what the cells need"
    assert (made["score"], made["embed"], made["student_init"], made["train_labels"]) == (1, 1, 1, 1)
    assert (made["teach"], made["train_ta"], made["amplify"], made["train_student"]) == (2, 2, 3, 3)
    assert made["evaluate"] == len(CELLS)


def test_it_ends_with_the_lines_the_page_and_the_next_command(finished: tuple[Path, int, str]) -> None:
    root, _, said = finished
    page = root / "runs" / "tiny" / "frontier.html"
    assert f"page: {page}" in said and "next: bridge-ray frontier RECIPE --budgets " in said, (
        "a forecast needs three budgets"
    )
    assert "[6/6]" in said and "Unknown: its budgets have 1 of the 3 seeds" in said
    assert "<svg" in page.read_text()


def test_cells_that_were_carried_to_another_storage_are_not_made_again(
    finished: tuple[Path, int, str], tmp_path: Path, tiny_model: str, teacher_url: str
) -> None:
    before = billed(teacher_url)
    shutil.copytree(finished[0] / "runs" / "tiny" / "cells", tmp_path / "runs" / "tiny" / "cells")
    done = bridge_ray(*frontier(tmp_path, tiny_model, teacher_url))
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (tmp_path / "stages").exists() and billed(teacher_url) == before
    here, there = (read(root / "runs" / "tiny" / "frontier.json") for root in (tmp_path, finished[0]))
    assert here["cells"] == there["cells"]


def test_cells_of_another_config_are_refused_by_name(
    finished: tuple[Path, int, str], tiny_model: str, teacher_url: str
) -> None:
    changed = bridge_ray(*frontier(finished[0], tiny_model, teacher_url), "--set", "evaluate.max_tokens=9")
    assert changed.returncode == 2 and "is of another config or corpus" in changed.stderr


def test_dev_chooses_the_length_and_test_is_asked_once(
    finished: tuple[Path, int, str], tiny_model: str, teacher_url: str
) -> None:
    root = finished[0]
    asked = ["--systems", "labels", "--lengths", "0.5,1", "--name", "lengths"]
    done = bridge_ray(*frontier(root, tiny_model, teacher_url, *asked))
    assert done.returncode == 0, done.stderr[-3000:]
    [cell] = read(root / "runs" / "lengths" / "frontier.json")["cells"]
    by_length = {one["length"]: one["dev_accuracy"] for one in cell["tried"]}
    assert by_length.keys() == {0.5, 1.0} and cell["dev_accuracy"] == max(by_length.values())
    assert by_length[cell["length"]] == cell["dev_accuracy"] and cell["n"] == 12
