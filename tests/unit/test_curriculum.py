"""Which rows make up which update."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_ray.config import Phase
from bridge_ray.training.curriculum import batch_at, learning_rate, make_plan, phase_at

ANSWER = Phase(target="answer", epochs=1)
RATIONALE = Phase(target="rationale", epochs=2, replay=0.25, order="easy_to_hard")


def easiest(**rows: int) -> dict[str, np.ndarray]:
    """Difficulty falls with the index: the last row is the easiest."""
    return {target: np.arange(count)[::-1] for target, count in rows.items()}


def test_every_system_takes_the_same_updates_whatever_its_rows() -> None:
    few = make_plan([ANSWER, RATIONALE], {"answer": 100, "rationale": 5}, 100, 8, 0)
    many = make_plan([ANSWER, RATIONALE], {"answer": 100, "rationale": 95}, 100, 8, 0)
    assert few.updates == many.updates == 13 + 26


def test_an_epoch_shows_every_row_once() -> None:
    plan = make_plan([ANSWER], {"answer": 24}, 24, 8, seed=3)
    seen = Counter(row for step in range(plan.updates) for row in batch_at(plan, step, easiest(answer=24)))
    assert seen == {("answer", index): 1 for index in range(24)}


def test_the_first_epoch_goes_from_easy_to_hard_and_replays_its_share() -> None:
    plan = make_plan([ANSWER, RATIONALE], {"answer": 40, "rationale": 40}, 40, 8, seed=0)
    rows = [row for step in range(5, plan.updates) for row in batch_at(plan, step, easiest(answer=40, rationale=40))]
    assert Counter(target for target, _ in rows) == {"rationale": 60, "answer": 20}
    own = [index for target, index in rows if target == "rationale"]
    assert own[:40] == list(range(39, -1, -1))
    assert sorted(own[40:]) != own[40:]


def test_phases_follow_one_another() -> None:
    plan = make_plan([ANSWER, RATIONALE], {"answer": 16, "rationale": 16}, 16, 8, 0)
    assert [phase_at(plan, step).target for step in range(plan.updates)] == ["answer"] * 2 + ["rationale"] * 4


def test_a_phase_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="phase 2 of the curriculum has no rationale rows"):
        make_plan([ANSWER, RATIONALE], {"answer": 16, "rationale": 0}, 16, 8, 0)


@given(
    rows=st.integers(1, 60),
    batch=st.integers(1, 16),
    replay=st.floats(0, 1),
    step=st.integers(0, 50),
    seed=st.integers(0, 9),
)
def test_a_batch_depends_on_seed_phase_and_step_alone(
    rows: int, batch: int, replay: float, step: int, seed: int
) -> None:
    phases = [ANSWER, Phase(target="rationale", epochs=2, replay=replay)]
    order = easiest(answer=rows, rationale=rows)
    plan = make_plan(phases, {"answer": rows, "rationale": rows}, rows, batch, seed)
    step %= plan.updates
    straight = [batch_at(plan, number, order) for number in range(plan.updates)]
    assert batch_at(plan, step, order) == straight[step]
    assert len(straight[step]) == batch
    assert all(0 <= index < rows for _, index in straight[step])


def test_the_learning_rate_rises_to_its_peak_and_falls_to_a_tenth() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
