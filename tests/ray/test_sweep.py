"""Ray Tune, ASHA, the keeper and the trials' records, over stages that take no time; tests/chaos has the real ones."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from bridge_ray import config
from bridge_ray.inference import local_ray
from bridge_ray.progress import Progress
from bridge_ray.stopping import Stop
from bridge_ray.sweep import run, space, spec
from bridge_ray.sweep.shared import Ended
from bridge_ray.sweep.trials import Repeat, Trial, open_book
from tests import stub_stages

BASE = {"evaluate.split": "dev", "evaluate.systems": ["bridge"], "training.workers": 1}


def prepared(root: Path, rates: list[float], **fields: Any) -> run.Sweep:
    raw = {"name": "stub", "base": "demo", "search": "grid", "concurrency": 2} | fields
    made = spec.validate({"space": {"student.train.lr": rates}, **raw}, "stub")
    base = config.changed(config.load("demo"), BASE | {"storage": str(root), "teacher.standin": None}, "demo")
    return run.Sweep(
        made, base, str(root / "sweep"), open_book(str(root / "sweep")), space.count(made.space), (), stub_stages.draft
    )


def executed(sweep: run.Sweep) -> tuple[dict[int, Trial], Ended | None, str]:
    """The trials, how one has ended for which the teacher could not be asked, and what was said."""
    local_ray.start()
    screen = io.StringIO()
    unasked = run.execute(sweep, Progress(Console(file=screen, width=200)), Stop())
    return open_book(sweep.home).trials, unasked, screen.getvalue()


def states(trials: dict[int, Trial]) -> list[str]:
    return [trials[number].state for number in sorted(trials)]


def test_what_trials_share_is_made_once_and_a_failed_one_keeps_its_reason(tmp_path: Path) -> None:
    """Two trials come to need the teacher at once; one has a bad rate, of one the process dies at its first try."""
    trials, unasked, said = executed(prepared(tmp_path, [0.1, 1.0, 0.5], seeds=2))
    assert unasked is None and states(trials) == ["finished", "failed", "failed"]
    assert stub_stages.made(tmp_path) == ["evaluate"] * 2 + ["teach"] + ["train_student"] * 2
    assert trials[2].reason is not None and "the loss of update 1 is nan" in trials[2].reason
    assert trials[3].reason
    assert [repeat.seed for repeat in trials[1].repeats] == [0, 1]
    assert (trials[1].accuracy, trials[1].queries, trials[1].usd) == (0.1, 10, 0.01)
    assert "trial 2: failed" in said and "(3 of 3, 0:00:00 left)" in said
    again = prepared(tmp_path, [0.1, 1.0, 0.5], seeds=2)
    again.book.write(Trial(3, trials[3].point))  # what --retry does
    after, _, _ = executed(again)
    assert states(after) == ["finished", "failed", "finished"] and after[1] == trials[1]


def test_asha_ends_a_training_from_within_and_its_stage_is_not_done(tmp_path: Path) -> None:
    trials, _, _ = executed(prepared(tmp_path, [0.4, 0.3, 0.2], asha={"first": 0.5}, concurrency=1))
    assert states(trials) == ["finished", "stopped", "stopped"]
    assert [trial.rungs for trial in trials.values()] == [((0.5, rate),) for rate in (0.4, 0.3, 0.2)]
    assert stub_stages.made(tmp_path) == ["evaluate", "teach", "train_student"]
    assert len(list(tmp_path.glob("stages/train_student/*/manifest.json"))) == 1


def test_a_trial_that_goes_on_is_judged_by_the_rung_that_was_heard_before(tmp_path: Path) -> None:
    """Its training went on behind the rung, and says nothing of it again."""
    sweep = prepared(tmp_path, [0.2, 0.4], asha={"first": 0.5}, concurrency=1)
    sweep.book.write(Trial(1, {"student.train.lr": 0.4}, "finished", (Repeat(0, 0.4, (0, 1), 1, 0, 0),), ((0.5, 0.4),)))
    sweep.book.write(Trial(2, {"student.train.lr": 0.2}, rungs=((0.5, 0.2),)))
    trials, _, _ = executed(sweep)
    assert states(trials) == ["finished", "stopped"] and trials[2].rungs == ((0.5, 0.2),)
    assert "train_student" not in stub_stages.made(tmp_path)


def test_a_teacher_that_gives_up_ends_the_sweep_and_no_trial(tmp_path: Path) -> None:
    """Three trials need what it did not say; all go on with the same command."""
    spec = {"space": {"budget.fraction": [0.5], "student.train.lr": [0.1, 0.2, 0.3]}}
    (tmp_path / "down").touch()
    trials, unasked, _ = executed(prepared(tmp_path, [], **spec))
    assert unasked is not None and unasked.state == "unanswered" and "503 after 10 rows" in (unasked.reason or "")
    assert unasked.outage and set(states(trials)) == {"running"}
    after, unasked, _ = executed(prepared(tmp_path, [], **spec))
    assert unasked is None and states(after) == ["finished"] * 3


def test_the_cap_ends_the_sweep_and_what_it_could_not_pay_goes_on_later(tmp_path: Path) -> None:
    fractions = {"space": {"budget.fraction": [0.05, 0.1]}, "concurrency": 1}
    trials, capped, _ = executed(prepared(tmp_path, [], **fractions, budget={"max_queries": 7}))
    assert capped is not None and capped.state == "capped"
    assert "its cap of 7 queries is reached" in (capped.reason or "")
    assert states(trials) == ["finished", "running"]
    after, capped, _ = executed(prepared(tmp_path, [], **fractions, budget={"max_queries": 10}))
    assert capped is None and states(after) == ["finished", "finished"] and after[1] == trials[1]


def test_a_trial_that_the_cap_has_room_for_ends_beside_one_that_it_has_not(tmp_path: Path) -> None:
    trials, capped, _ = executed(
        prepared(tmp_path, [], space={"budget.fraction": [0.1, 0.05]}, budget={"max_queries": 7})
    )
    assert capped is not None and capped.state == "capped" and states(trials) == ["running", "finished"]
