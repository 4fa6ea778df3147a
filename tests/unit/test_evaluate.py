"""Accuracies, their intervals, and paired differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_ray.evaluate import bootstrap, paired, prediction, summary


def test_accuracy_by_hand() -> None:
    found = summary(np.array([1.0, 0.0, 1.0, 1.0]), ["law", "law", "law", "med"], 500, seed=0)
    assert found["accuracy"] == 0.75
    assert found["by_domain"] == {"law": {"accuracy": 0.6667, "n": 3}, "med": {"accuracy": 1.0, "n": 1}}
    assert found["n"] == 4


def test_the_interval_is_the_binomial_one_for_many_items() -> None:
    """p = 0.5, n = 400: 1.96 * sqrt(0.25 / 400) = 0.049 on either side."""
    low, high = bootstrap(np.repeat([0.0, 1.0], 200), 4000, seed=0)
    assert (low, high) == (pytest.approx(0.451, abs=0.006), pytest.approx(0.549, abs=0.006))


def test_pairing_sees_what_two_intervals_cannot() -> None:
    """Both near one half, but one system is right wherever the other is, and on ten more of 100 items."""
    other = np.array([1.0] * 45 + [0.0] * 55)
    one = np.array([1.0] * 55 + [0.0] * 45)
    found = paired(one, other, 2000, seed=0)
    assert found["difference"] == pytest.approx(0.1)
    assert found["interval"][0] > 0


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=50))
def test_a_system_does_not_differ_from_itself_and_intervals_hold_the_mean(hits: list[float]) -> None:
    correct = np.array(hits)
    assert paired(correct, correct, 50, seed=1) == {"difference": 0.0, "interval": [0.0, 0.0]}
    low, high = bootstrap(correct, 200, seed=1)
    assert 0 <= low <= high <= 1


def test_an_unparsable_reply_and_an_errored_row_are_wrong() -> None:
    row = {"system": "bridge", "answer": "4", "answer_type": "number", "options": []}
    assert prediction(row, "Two and two.\nAnswer: 4", None)["correct"]
    assert not prediction(row, "I cannot say.", None)["correct"]
    assert not prediction(row, None, "prompt too long")["correct"]
