"""Accuracies, their intervals, and paired differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_ray.statistics import bootstrap, gap, mcnemar, paired, summary


def test_accuracy_by_hand() -> None:
    groups = {"domain": ["law", "law", "law", "med"], "answer_type": ["text", "number", "text", "number"]}
    found = summary(np.array([1.0, 0.0, 1.0, 1.0]), groups, 500, seed=0)
    assert found["accuracy"] == 0.75
    assert found["by_domain"] == {"law": {"accuracy": 0.6667, "n": 3}, "med": {"accuracy": 1.0, "n": 1}}
    assert found["by_answer_type"] == {"number": {"accuracy": 0.5, "n": 2}, "text": {"accuracy": 1.0, "n": 2}}
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


def test_mcnemar_by_hand() -> None:
    """Of 5 questions that one of the two got right, all went to the first: 2 * (1/2)^5 = 0.0625."""
    one, other = np.array([1.0] * 5 + [1, 0]), np.array([0.0] * 5 + [1, 0])
    assert mcnemar(one, other) == {"only_one": 5, "only_other": 0, "p": 0.0625}
    assert mcnemar(other, one) == {"only_one": 0, "only_other": 5, "p": 0.0625}
    many = mcnemar(np.ones(100), np.zeros(100))
    assert 0 < many["p"] < 1e-20, "a p that is small is not 0"
    assert mcnemar(one, one) == {"only_one": 0, "only_other": 0, "p": 1.0}


def test_gain_and_gap_by_hand() -> None:
    """0.4 against 0.2, and a teacher with 0.8: twice as good, and a third of the way."""
    bridge, direct, teacher = (np.repeat([1.0, 0.0], [right, 100 - right]) for right in (40, 20, 80))
    found = gap(bridge, direct, teacher, 1000, seed=0)
    assert (found["relative_gain"], found["gap_closed"]) == (1.0, 0.3333)
    for name in ("relative_gain", "gap_closed"):
        low, high = found[f"{name}_interval"]
        assert low < found[name] < high


def test_what_cannot_be_divided_by_is_left_out() -> None:
    none, some = np.zeros(40), np.repeat([1.0, 0.0], [10, 30])
    assert gap(some, none, None, 100, seed=0) == {
        "relative_gain": None, "relative_gain_interval": None, "gap_closed": None, "gap_closed_interval": None
    }  # fmt: skip
    assert gap(some, np.repeat([1.0, 0.0], [2, 38]), None, 100, seed=0)["relative_gain"] is None, "of exactly 0.05"
    near = np.repeat([1.0, 0.0], [12, 28])  # a teacher that is ahead by exactly 0.05
    assert gap(some, some, near, 100, seed=0)["gap_closed"] is None


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=50))
def test_a_system_does_not_differ_from_itself_and_intervals_hold_the_mean(hits: list[float]) -> None:
    correct = np.array(hits)
    found = paired(correct, correct, 50, seed=1)
    assert (found["difference"], found["interval"], found["mcnemar"]["p"]) == (0.0, [0.0, 0.0], 1.0)
    low, high = bootstrap(correct, 200, seed=1)
    assert 0 <= low <= high <= 1
