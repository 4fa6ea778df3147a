"""How sure an accuracy is, and a difference between two systems on the same questions.

Wherever ``correct`` stands it is one 0 or 1 per question, float64 of shape (n,), in order of the questions' ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Correct = NDArray[np.float64]

Questions = Mapping[int, NDArray[np.uint64]]
"""Seed -> a number for each question that it was asked, in order of their ids; the same for the same question."""

NARROW = 0.05  # what is too small to divide by: direct's accuracy, or the gap between it and the teacher


def summary(correct: Correct, groups: Mapping[str, Sequence[str]], resamples: int, seed: int) -> dict[str, Any]:
    """Accuracy with its 95 % bootstrap interval over questions, and by group: ``by_KIND`` -> name -> accuracy and n.

    ``groups`` maps a kind (domain …) to every question's name in it.
    """
    return {
        "accuracy": round(float(correct.mean()), 4),
        "interval": bootstrap(correct, resamples, seed),
        "n": len(correct),
        **{f"by_{kind}": _by(correct, np.array(names)) for kind, names in groups.items()},
    }


def _by(correct: Correct, names: NDArray[np.str_]) -> dict[str, dict[str, Any]]:
    return {
        str(name): {"accuracy": round(float(correct[names == name].mean()), 4), "n": int((names == name).sum())}
        for name in np.unique(names)
    }


def paired(one: Correct, other: Correct, resamples: int, seed: int) -> dict[str, Any]:
    """Difference of two systems' accuracies on the same questions, with its 95 % interval and McNemar's test."""
    difference = one - other
    return {
        "difference": round(float(difference.mean()), 4),
        "interval": bootstrap(difference, resamples, seed),
        "mcnemar": mcnemar(one, other),
    }


def unpaired(one: Correct, other: Correct, resamples: int, seed: int) -> dict[str, Any]:
    """Difference of two accuracies on different questions, with its 95 % interval: each is resampled on its own."""
    generator = np.random.default_rng(seed)
    draws = [
        values[generator.integers(0, len(values), (resamples, len(values)))].mean(axis=1) for values in (one, other)
    ]
    low, high = np.quantile(draws[0] - draws[1], [0.025, 0.975])
    difference = round(float(one.mean() - other.mean()), 4)
    return {"difference": difference, "interval": [round(float(low), 4), round(float(high), 4)]}


def mcnemar(one: Correct, other: Correct) -> dict[str, Any]:
    """Questions that only one of two systems got right, and the probability of so uneven a split, or a more uneven one,
    if both were equally good: McNemar's exact test (1947), two-sided."""
    from scipy.stats import binomtest

    only_one, only_other = int(((one == 1) & (other == 0)).sum()), int(((one == 0) & (other == 1)).sum())
    split = only_one + only_other
    p = binomtest(only_one, split).pvalue if split else 1.0
    return {"only_one": only_one, "only_other": only_other, "p": float(f"{p:.4g}")}


def gap(bridge: Correct, direct: Correct, teacher: Correct | None, resamples: int, seed: int) -> dict[str, Any]:
    """What BRIDGE brings, relative to direct distillation.

    ``relative_gain`` is (bridge - direct) / direct, ``gap_closed`` (bridge - direct) / (teacher - direct), None without
    a teacher's answers. Either is None where its denominator is not more than 0.05: a ratio to next to nothing says
    nothing. Both with 95 % intervals over questions, of the draws in which they can be computed.
    """
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(bridge), (resamples, len(bridge)))
    found: dict[str, Any] = _ratio("relative_gain", bridge - direct, direct, draws)
    if teacher is None:
        return found | {"gap_closed": None, "gap_closed_interval": None}
    return found | _ratio("gap_closed", bridge - direct, teacher - direct, draws)


def _ratio(name: str, above: Correct, below: Correct, draws: NDArray[np.int64]) -> dict[str, Any]:
    if below.mean() <= NARROW:
        return {name: None, f"{name}_interval": None}
    tops, bottoms = above[draws].mean(axis=1), below[draws].mean(axis=1)
    usable = bottoms > NARROW
    low, high = np.quantile(tops[usable] / bottoms[usable], [0.025, 0.975])
    value = round(float(above.mean() / below.mean()), 4)
    return {name: value, f"{name}_interval": [round(float(low), 4), round(float(high), 4)]}


def bootstrap(values: NDArray[np.float64], resamples: int, seed: int) -> list[float]:
    """95 % percentile interval of the mean of ``values`` (n,), resampling questions."""
    generator = np.random.default_rng(seed)
    means = [generator.choice(values, len(values)).mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return [round(float(low), 4), round(float(high), 4)]


def places_in_common(asked: Sequence[NDArray[np.uint64]]) -> list[NDArray[np.int64]]:
    """For the questions of each of several groups, their places among those that several groups were asked, 0, 1, …;
    -1 for the others. Equal numbers are the same question; no group has one twice."""
    _, places, times = np.unique(np.concatenate(asked), return_inverse=True, return_counts=True)
    ranks = np.where(times > 1, np.cumsum(times > 1) - 1, -1)
    return np.split(ranks[places], np.cumsum([len(questions) for questions in asked])[:-1])
