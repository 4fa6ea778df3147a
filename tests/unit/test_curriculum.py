"""Which rows make up which update, and at what learning rate."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_ray.config import Phase
from bridge_ray.errors import UserError
from bridge_ray.training.curriculum import (
    Plan,
    batch_at,
    easiest_first,
    learning_rate,
    left_out,
    make_plan,
    phase_at,
    resolved,
)

ANSWER = Phase(target="answer", epochs=1)
RATIONALE = Phase(target="rationale", epochs=2, replay=0.25, order="easy_to_hard")


def plan_of(phases: list[Phase], rows: dict[str, int], epoch: int, control: str | None = None) -> Plan:
    return make_plan(resolved(phases, control, epoch), rows, 8, seed=0, mixed=control == "joint")


def stream(plan: Plan) -> list[tuple[str, int]]:
    """All rows of a plan; difficulty falls with the index: the last row is the easiest."""
    rows = dict(part for phase in plan.phases for part in zip(phase.draws.pools, phase.draws.rows, strict=True))
    order = easiest_first(plan, {pool: -np.arange(count, dtype=float) for pool, count in rows.items()})
    return [row for step in range(plan.updates) for row in batch_at(plan, step, order)]


def test_every_system_takes_the_same_updates_whatever_its_rows() -> None:
    few = plan_of([ANSWER, RATIONALE], {"answer": 100, "rationale": 5}, 13)
    many = plan_of([ANSWER, RATIONALE], {"answer": 100, "rationale": 95}, 13)
    assert few.updates == many.updates == 13 + 26


def test_updates_take_the_place_of_epochs() -> None:
    phases = [ANSWER, RATIONALE.model_copy(update={"updates": 7})]
    assert [phase.updates for phase in plan_of(phases, {"answer": 100, "rationale": 95}, 13).phases] == [13, 7]


def test_an_epoch_shows_every_row_once() -> None:
    assert Counter(stream(plan_of([ANSWER], {"answer": 24}, 3))) == {("answer", index): 1 for index in range(24)}


def test_the_first_epoch_goes_from_easy_to_hard_and_replays_its_share() -> None:
    rows = stream(plan_of([ANSWER, RATIONALE], {"answer": 40, "rationale": 40}, 5))[40:]
    assert Counter(pool for pool, _ in rows) == {"rationale": 60, "answer": 20}
    own = [index for pool, index in rows if pool == "rationale"]
    assert own[:40] == list(range(39, -1, -1))
    assert sorted(own[40:]) != own[40:]


def test_a_mixed_phase_shows_both_kinds_of_lessons_once_an_epoch() -> None:
    rows = stream(plan_of([Phase(target="mix")], {"answer": 10, "rationale": 6}, 2))
    assert Counter(rows) == {("answer", i): 1 for i in range(10)} | {("rationale", i): 1 for i in range(6)}


def test_a_mixed_phase_goes_from_easy_to_hard_across_both() -> None:
    plan = plan_of([Phase(target="mix", order="easy_to_hard")], {"answer": 4, "rationale": 4}, 1)
    order = easiest_first(plan, {"answer": np.array([0.1, 0.3, 0.5, 0.7]), "rationale": np.array([0.8, 0.6, 0.4, 0.2])})
    own = [("answer", 0), ("rationale", 3), ("answer", 1), ("rationale", 2), ("answer", 2), ("rationale", 1)]
    assert batch_at(plan, 0, order) == [*own, ("answer", 3), ("rationale", 0)]


def test_a_phase_of_the_bought_rows_draws_from_those_alone() -> None:
    phases = [ANSWER, Phase(target="rationale", source="bought")]
    rows = stream(plan_of(phases, {"answer": 16, "rationale": 16, "rationale_bought": 2}, 2))
    assert Counter(pool for pool, _ in rows) == {"answer": 16, "rationale_bought": 16}


def test_phases_follow_one_another() -> None:
    plan = plan_of([ANSWER, RATIONALE], {"answer": 16, "rationale": 16}, 2)
    pools = [phase_at(plan, step).draws.pools for step in range(plan.updates)]
    assert pools == [("answer",)] * 2 + [("rationale",)] * 4


@pytest.mark.parametrize(
    ("control", "drawn"),
    [
        ("reasoning_only", {"rationale": 48}),
        ("answers_only", {"answer": 48}),
        ("reversed", {"rationale": 32, "answer": 16}),
    ],
)
def test_a_control_takes_as_many_updates_as_what_it_stands_for(control: str, drawn: dict[str, int]) -> None:
    phases = [ANSWER, RATIONALE.model_copy(update={"replay": 0.0})]
    plan = plan_of(phases, {"answer": 8, "rationale": 8}, 2, control)
    assert plan.updates == 6
    assert Counter(pool for pool, _ in stream(plan)) == drawn


def test_joint_shows_the_very_lessons_of_the_curriculum_in_another_order() -> None:
    """Also where a phase is shorter than an epoch."""
    given, joint = (plan_of([ANSWER, RATIONALE], {"answer": 40, "rationale": 90}, 5, how) for how in (None, "joint"))
    assert Counter(stream(joint)) == Counter(stream(given)) and stream(joint) != stream(given)
    kinds = [pool for pool, _ in stream(joint)]
    assert 0.3 < kinds[:60].count("answer") / 60 < 0.7, "of 120 lessons 60 are answers, and none come first"


def test_a_phase_shorter_than_an_epoch_spans_all_difficulties() -> None:
    """Ten updates of 8 rows, a quarter of them replayed: 60 of 90 lessons, two of every three, up to the hardest."""
    own = [
        index
        for pool, index in stream(plan_of([ANSWER, RATIONALE], {"answer": 40, "rationale": 90}, 5))
        if pool == "rationale"
    ]
    easy_to_hard = [89 - index for index in own]
    assert easy_to_hard == sorted(set(easy_to_hard)) and len(own) == 60
    assert all(len(set(easy_to_hard) & set(range(first, first + 3))) == 2 for first in range(0, 90, 3))


def test_it_is_known_how_many_rows_a_phase_leaves_out() -> None:
    """Two epochs of 5 updates of 8 rows, a quarter of them replayed: 60 own lessons."""
    assert left_out(plan_of([ANSWER, RATIONALE], {"answer": 40, "rationale": 90}, 5)) == {1: 30}
    assert left_out(plan_of([ANSWER, RATIONALE], {"answer": 40, "rationale": 60}, 5)) == {}


def test_reversed_begins_with_the_rationales_and_replays_them() -> None:
    plan = plan_of([ANSWER, RATIONALE], {"answer": 8, "rationale": 8}, 4, "reversed")
    rows = [pool for pool, _ in stream(plan)]
    assert set(rows[:64]) == {"rationale"}
    assert Counter(rows[64:]) == {"answer": 24, "rationale": 8}


@pytest.mark.parametrize(("source", "said"), [("all", "no rationale rows"), ("bought", "no bought rationale rows")])
def test_a_phase_without_rows_is_refused(source: str, said: str) -> None:
    phases = [ANSWER, RATIONALE.model_copy(update={"source": source})]
    with pytest.raises(UserError, match=f"phase 2 of the curriculum has {said}"):
        plan_of(phases, {"answer": 16, "rationale": 0}, 2)


@given(rows=st.integers(1, 60), replay=st.floats(0, 1), step=st.integers(0, 50), seed=st.integers(0, 9))
def test_a_batch_depends_on_seed_phase_and_step_alone(rows: int, replay: float, step: int, seed: int) -> None:
    phases = resolved([ANSWER, Phase(target="rationale", epochs=2, replay=replay)], None, 5)
    plan = make_plan(phases, {"answer": rows, "rationale": rows}, 8, seed)
    step %= plan.updates
    straight = [batch_at(plan, number, {}) for number in range(plan.updates)]
    assert batch_at(plan, step, {}) == straight[step]
    assert len(straight[step]) == 8
    assert all(0 <= index < rows for _, index in straight[step])


def test_the_learning_rate_rises_to_its_peak_and_falls_to_a_tenth() -> None:
    plan = plan_of([ANSWER], {"answer": 8}, 100)
    rates = [learning_rate(plan, step, 1.0, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_a_phase_that_rewarms_has_a_schedule_of_its_own() -> None:
    again = RATIONALE.model_copy(update={"rewarm": True, "updates": 50})
    plan = plan_of([ANSWER, again], {"answer": 8, "rationale": 8}, 100)
    rates = [learning_rate(plan, step, 1.0, 0.1) for step in range(150)]
    alone = plan_of([again], {"rationale": 8}, 100)
    assert rates[:100] == [learning_rate(plan_of([ANSWER], {"answer": 8}, 100), step, 1.0, 0.1) for step in range(100)]
    assert rates[100:] == [learning_rate(alone, step, 1.0, 0.1) for step in range(50)]
