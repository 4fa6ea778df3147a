"""Whole sweeps on the tiny model: shared work, one bill, early stops without a leak, kills, caps, the best recipe."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import sweeps
from tests.chaos.test_kill import kill_when
from tests.conftest import billed, bridge_ray, read

AT_MOST = 1500  # seconds that twelve trials may take; a placement group that leaks makes the sweep wait for ever


def curriculum(answers: int) -> dict[str, Any]:
    """Only who has had many lessons replies in the form that an answer has."""
    phases = [{"target": "answer", "updates": answers}, {"target": "rationale", "updates": 2}]
    return {"student.curriculum": phases}


CURRICULA = {"choices": {"long": curriculum(60), "short": curriculum(2), "none": curriculum(1)}}
SPACE = {"budget.fraction": [0.1, 0.2], "select.difficulty_weight": [0.0, 1.0], "curriculum": CURRICULA}
SMALL = {"budget.fraction": [0.1, 0.2], "curriculum": {"choices": {"short": curriculum(2), "none": curriculum(1)}}}

Swept = tuple[Path, list[str], str, int]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with sweeps.teacher(tmp_path_factory.mktemp("teacher")) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny_model: str, teacher: str) -> Swept:
    """A finished sweep of twelve trials, two at a time: its folder, command and messages, and the teacher's bill."""
    folder, before = tmp_path_factory.mktemp("sweep"), billed(teacher)
    command = sweeps.write(folder, tiny_model, teacher, space=SPACE, search="grid", asha={"first": 0.5, "reduction": 3})
    done = bridge_ray(*command, timeout=AT_MOST)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, command, done.stderr, billed(teacher) - before


def test_twelve_trials_end_and_asha_stops_some_of_them(swept: Swept) -> None:
    trials = sweeps.trials(swept[0])
    states = [trial["state"] for trial in trials.values()]
    assert len(states) == 12 and set(states) == {"finished", "stopped"}, trials
    for trial in trials.values():
        assert trial["rungs"] and all(share == 0.5 for share, _ in trial["rungs"])
        assert f"trial {trial['number']}: " in swept[2]


def test_the_teacher_is_asked_for_the_union_of_what_the_trials_need_once(swept: Swept) -> None:
    found = read(sweeps.home(swept[0]) / "sweep.json")
    assert swept[3] == sweeps.bought(swept[0]) == found["bill"]["queries"] > 0
    assert sum(trial["added"]["queries"] for trial in found["trials"]) == swept[3]
    finished = [trial for trial in found["trials"] if trial["state"] == "finished"]
    costs = {trial["point"]["budget.fraction"]: trial["queries"] for trial in finished}
    assert all(costs[trial["point"]["budget.fraction"]] == trial["queries"] for trial in finished)
    assert all(0 < queries <= fraction * sweeps.TRAIN for fraction, queries in costs.items())


def test_no_stage_is_made_twice_and_none_that_was_stopped_is_done(swept: Swept) -> None:
    stages = swept[0] / "storage" / "stages"
    made = {stage.name: len(list(stage.glob("*/manifest.json"))) for stage in stages.iterdir()}
    finished = [trial for trial in sweeps.trials(swept[0]).values() if trial["state"] == "finished"]
    assert made["score"] == made["embed"] == made["student_init"] == 1
    assert made["train_ta"] == made["amplify"] <= 4
    assert made["train_student"] == made["evaluate"] == len(finished)


def test_run_again_it_repeats_nothing(swept: Swept, teacher: str) -> None:
    folder, command, _, _ = swept
    before, bill = sweeps.trials(folder), billed(teacher)
    again = bridge_ray(*command, timeout=120)
    assert again.returncode == 0, again.stderr[-3000:]
    assert sweeps.trials(folder) == before and billed(teacher) == bill


def test_the_best_recipe_gives_the_trials_score_without_any_work(swept: Swept, teacher: str) -> None:
    home, bill = sweeps.home(swept[0]), billed(teacher)
    done = bridge_ray("run", str(home / "best.yaml"), timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = read(swept[0] / "storage" / "runs" / "tiny-best" / "metrics.json")
    found = read(home / "sweep.json")
    best = next(trial for trial in found["trials"] if trial["number"] == found["best"])
    assert metrics["systems"]["bridge"]["accuracy"] == best["accuracy"] and metrics["split"] == "dev"
    assert all(stage["skipped"] for stage in metrics["stages"].values())
    assert billed(teacher) == bill


def test_a_killed_sweep_goes_on_repeats_no_trial_and_buys_nothing_twice(
    tmp_path: Path, tiny_model: str, teacher: str
) -> None:
    before = billed(teacher)
    command = sweeps.write(tmp_path, tiny_model, teacher, space=SMALL, search="grid")
    ended = random.randint(1, 3)

    def reached() -> bool:
        return sum(trial["state"] == "finished" for trial in sweeps.trials(tmp_path).values()) >= ended

    assert kill_when(command, reached, timeout=900), "it ended before it could be killed"
    kept = {number: trial for number, trial in sweeps.trials(tmp_path).items() if trial["state"] == "finished"}
    stages = made(tmp_path)
    done = bridge_ray(*command, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    after = sweeps.trials(tmp_path)
    assert len(after) == 4 and all(trial["state"] == "finished" for trial in after.values())
    assert {number: after[number] for number in kept} == kept
    assert not [number for number in kept if f"trial {number}: " in done.stderr]
    assert stages.items() <= made(tmp_path).items()
    assert billed(teacher) - before == sweeps.bought(tmp_path)


def test_a_sweep_that_is_killed_behind_a_rung_goes_on_with_what_asha_has_heard(
    tmp_path: Path, tiny_model: str, teacher: str
) -> None:
    space = {"curriculum": SMALL["curriculum"]}
    command = sweeps.write(tmp_path, tiny_model, teacher, space=space, search="grid", asha={"first": 0.5})

    def begun() -> dict[int, dict[str, Any]]:
        trials = sweeps.trials(tmp_path)
        return {number: one for number, one in trials.items() if one["state"] == "running" and one["rungs"]}

    assert kill_when(command, lambda: bool(begun()), timeout=900), "it ended before it could be killed"
    heard = {number: trial["rungs"] for number, trial in begun().items()}
    done = bridge_ray(*command, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    after = sweeps.trials(tmp_path)
    assert len(after) == 2 and {trial["state"] for trial in after.values()} <= {"finished", "stopped"}
    assert heard and {number: after[number]["rungs"] for number in heard} == heard


def made(folder: Path) -> dict[str, str]:
    """When each stage that is done was made."""
    return {str(file): read(file)["created"] for file in folder.glob("storage/stages/*/*/manifest.json")}


def test_the_cap_ends_the_sweep_in_one_line_and_a_higher_one_lets_it_go_on(
    tmp_path: Path, tiny_model: str, teacher: str
) -> None:
    before = billed(teacher)
    spec: dict[str, Any] = {"space": {"budget.fraction": [0.1, 0.2]}, "search": "grid", "concurrency": 1}
    command = sweeps.write(tmp_path, tiny_model, teacher, **spec, budget={"max_queries": 4})
    capped = bridge_ray(*command, timeout=900)
    assert capped.returncode == 2, capped.stderr[-3000:]
    [line] = [line for line in capped.stderr.splitlines() if line.startswith("bridge-ray: ")]
    assert "its cap of 4 queries is reached, and 1 of 2 trials have ended" in line
    assert billed(teacher) - before <= 4
    [first] = [trial for trial in sweeps.trials(tmp_path).values() if trial["state"] == "finished"]
    sweeps.write(tmp_path, tiny_model, teacher, **spec, budget={"max_queries": 12})
    done = bridge_ray(*command, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    after = sweeps.trials(tmp_path)
    assert [trial["state"] for trial in after.values()] == ["finished", "finished"]
    assert after[first["number"]] == first
    assert billed(teacher) - before == sweeps.bought(tmp_path)
