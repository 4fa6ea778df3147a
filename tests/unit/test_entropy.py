"""Difficulty by hand-computed cases and by properties."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_ray.selection.entropy import classes, difficulty, entropy, error_difficulty, tenths

ANSWERS = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=12)
NAN = math.nan


def within(keys, nll, kinds=None, samples=8):
    return difficulty(np.array(keys), np.array(nll), np.array(kinds or ["choice"] * len(keys)), samples).tolist()


@pytest.mark.parametrize(
    ("answers", "n_classes", "expected"),
    [
        (["a"] * 8, 4, 0.0),
        (["a"] * 4 + ["b"] * 4, 4, 0.5),  # ln 2 / ln 4
        (["a"] * 4 + ["b"] * 4, 2, 1.0),  # boolean: as divided as it can be
        (["true"] * 3 + ["false"], 2, -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)),
        (["1", "2", "3", "4"], 4, 1.0),
        (["a", "b"], 4, 1.0),  # two samples can show two classes only: ln min(2, 4)
        (["a", "a", None, None], 4, 0.75),  # {a: 1/2, two classes of 1/4} = 1.5 ln 2 / ln 4
        (["a", "b", None, None], 2, 1.0),  # capped
        ([None] * 8, 4, 1.0),
        ([None] * 8, 8, 1.0),
        (["a"], 4, 0.0),
        ([None], 4, 0.0),
    ],
)
def test_entropy_by_hand(answers, n_classes, expected):
    assert entropy(answers, n_classes) == pytest.approx(expected, abs=1e-12)


def test_entropy_of_no_samples_is_unknown():
    assert math.isnan(entropy([], 4))


@given(ANSWERS, st.integers(2, 12), st.randoms())
def test_entropy_is_bounded_and_blind_to_order(answers, n_classes, random):
    shuffled = random.sample(answers, len(answers))
    assert 0 <= entropy(answers, n_classes) <= 1
    assert entropy(shuffled, n_classes) == entropy(answers, n_classes)


@given(ANSWERS, st.integers(2, 12))
def test_an_unparsable_answer_never_looks_easier_than_an_agreeing_one(answers, n_classes):
    assert entropy([*answers, None], n_classes) >= entropy([*answers, answers[0] or "a"], n_classes) - 1e-12


@given(st.integers(2, 20), st.integers(2, 20))
def test_all_unparsable_is_hard(k, n_classes):
    assert entropy([None] * k, n_classes) == pytest.approx(1.0)


def test_classes():
    assert classes("boolean", 0, 8) == 2
    assert classes("choice", 5, 8) == 5
    assert classes("choice", 1, 8) == 2
    assert classes("number", 0, 8) == 8
    assert classes("text", 0, 1) == 2


def test_difficulty_orders_by_entropy_then_nll():
    # 0.9 is hardest; the three at 0 go by nll. Mid-rank percentiles of four rows: 1/8, 3/8, 5/8, 7/8.
    assert within([0.0, 0.9, 0.0, 0.0], [0.3, 0.0, 0.1, 0.2]) == [0.625, 0.875, 0.125, 0.375]


def test_difficulty_is_relative_to_the_answer_type():
    kinds = ["number", "number", "boolean", "boolean"]
    assert within([0.1, 0.2, 0.8, 0.9], [0, 0, 0, 0], kinds) == [0.25, 0.75, 0.25, 0.75]


def test_one_sample_goes_by_nll_alone():
    assert within([0.0, 0.0, 0.0, 0.0], [4.0, 1.0, 3.0, 2.0], samples=1) == [0.875, 0.125, 0.625, 0.375]
    assert within([0.9, 0.1], [1.0, 2.0], samples=1) == [0.25, 0.75]


def test_rows_without_a_score_are_in_the_middle():
    assert within([NAN, 0.1, 0.9], [NAN, 1.0, 1.0]) == [0.5, 0.25, 0.75]
    assert within([0.0, 0.0], [NAN, 1.0], samples=1) == [0.5, 0.5]
    assert within([NAN, NAN], [NAN, NAN]) == [0.5, 0.5]


def test_a_missing_nll_counts_as_the_median_of_the_type():
    assert within([0.0] * 4, [3.0, 1.0, NAN, 2.0]) == [0.875, 0.125, 0.5, 0.5]


def test_ties_share_their_place_and_no_differences_are_no_crash():
    assert within([0.5, 0.5, 0.9], [1.0, 1.0, 1.0]) == pytest.approx([1 / 3, 1 / 3, 5 / 6])
    assert within([0.5] * 3, [1.0] * 3) == [0.5] * 3
    assert within([], []) == []


@given(st.lists(st.tuples(st.floats(0, 1) | st.just(NAN), st.floats(0, 9) | st.just(NAN)), min_size=1, max_size=30))
def test_difficulty_is_bounded_monotone_and_blind_to_row_order(rows):
    keys, nll = zip(*rows, strict=True)
    forward = within(keys, nll)
    assert all(0 <= value <= 1 for value in forward)
    assert within(keys[::-1], nll[::-1]) == forward[::-1]
    known = sorted((key, value) for key, value in zip(keys, forward, strict=True) if not math.isnan(key))
    assert all(low <= high for (a, low), (b, high) in itertools.pairwise(known) if a < b)


def test_error_difficulty():
    share, nll = np.array([1.0, 0.0, 0.5, NAN]), np.array([0.1, 0.1, 0.1, 0.1])
    result = error_difficulty(share, nll, np.array(["choice"] * 4))
    assert result.tolist() == pytest.approx([1 / 6, 5 / 6, 0.5, 0.5])


def test_tenths_go_by_rank_within_the_type_and_leave_errored_rows_out():
    # Twenty rows of one type, the hardest first, and one that errored: two rows to a tenth.
    keys = [(20 - i) / 20 for i in range(20)]
    found = tenths(np.array([*keys, NAN]), np.zeros(21), np.array(["number"] * 21), 8)
    assert found.tolist() == [9 - i // 2 for i in range(20)] + [-1]
    # Each type is spread over all tenths, whatever its entropies are.
    keys = [0.001 * i for i in range(10)] + [0.9 + 0.001 * i for i in range(10)]
    kinds = np.array(["number"] * 10 + ["boolean"] * 10)
    assert tenths(np.array(keys), np.zeros(20), kinds, 8).tolist() == [*range(10)] * 2
    assert tenths(np.array([]), np.array([]), np.array([]), 8).tolist() == []
