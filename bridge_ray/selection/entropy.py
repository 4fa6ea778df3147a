"""Difficulty of a question, from how much the local teacher assistant's answers to it disagree.

The formulas are this project's defaults; the paper does not publish its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
UNKNOWN = 0.5  # difficulty of a row that could not be scored: the median, so that it is neither sought nor shunned


def classes(answer_type: str, n_options: int, k: int) -> int:
    """Number of answers that K samples can choose from, at least 2.

    The number of options for ``choice``, 2 for ``boolean``, ``k`` for the open types ``number`` and ``text``.
    """
    if answer_type == "boolean":
        return 2
    return max(2, n_options if answer_type == "choice" else k)


def entropy(answers: Sequence[str | None], classes: int) -> float:
    """Normalised entropy in [0, 1] of K canonical answers: ``min(1, -sum p ln p / ln min(K, classes))``.

    Each None (unparsable) is a class of its own, so a model that only babbles is at 1, not at 0.
    One sample cannot disagree with itself: 0. No samples at all (the row errored): NaN.
    """
    k = len(answers)
    if k < 2:
        return 0.0 if k else math.nan
    parsed = Counter(answer for answer in answers if answer is not None)
    counts = [*parsed.values(), *(1 for answer in answers if answer is None)]
    # fsum is exact, hence blind to the order of the samples.
    total = math.fsum(count / k * math.log(k / count) for count in counts)
    return min(1.0, total / math.log(min(k, classes)))


def difficulty(entropy: Floats, nll: Floats, answer_type: NDArray[Any], samples: int) -> Floats:
    """Percentile (n,) in [0, 1] of each row within its answer type; 1 is hard.

    Rows are ordered by entropy, then by ``nll`` (nats per sampled token); with one sample by ``nll`` alone.
    Rows equal in both share the middle of their places, so a corpus without differences is 0.5 everywhere;
    a ranking breaks such ties by ascending id. A row whose leading key is NaN (it errored) is at 0.5, and
    a NaN ``nll`` beside a known entropy counts as the median ``nll`` of the type. All inputs are (n,).
    """
    return _within_types(nll if samples == 1 else entropy, nll, answer_type)


def tenths(entropy: Floats, nll: Floats, answer_type: NDArray[Any], samples: int) -> NDArray[np.int64]:
    """Which tenth of the rows each belongs to (n,), by rank of ``difficulty``, ties by place: 0 is the easiest.

    -1 where the difficulty is not known (the row errored). All inputs are (n,).
    """
    entropy, nll = np.asarray(entropy, np.float64), np.asarray(nll, np.float64)
    known = np.flatnonzero(~np.isnan(nll if samples == 1 else entropy))
    hardness = difficulty(entropy[known], nll[known], np.asarray(answer_type)[known], samples)
    result = np.full(len(entropy), -1)
    result[known[np.argsort(hardness, kind="stable")]] = np.arange(len(known)) * 10 // max(1, len(known))
    return result


def error_difficulty(share_correct: Floats, nll: Floats, answer_type: NDArray[Any]) -> Floats:
    """As ``difficulty``, with 1 - share of correct samples in the place of entropy; NaN (unlabelled) is at 0.5."""
    return _within_types(1.0 - np.asarray(share_correct, np.float64), nll, answer_type)


def _within_types(leading: Floats, tie_break: Floats, answer_type: NDArray[Any]) -> Floats:
    leading, tie_break = np.asarray(leading, np.float64), np.asarray(tie_break, np.float64)
    answer_type = np.asarray(answer_type)
    result = np.empty(len(leading))
    for kind in np.unique(answer_type):
        rows = answer_type == kind
        result[rows] = _percentile(leading[rows], tie_break[rows])
    return result


def _percentile(leading: Floats, tie_break: Floats) -> Floats:
    """Mid-rank percentile: (rows below + half of the rows level with this one) / rows."""
    result = np.full(len(leading), UNKNOWN)
    known = ~np.isnan(leading)
    first, second = leading[known], _median_for_nan(tie_break[known])
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    new = np.ones(len(order), bool)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    starts = np.append(np.flatnonzero(new), len(order))
    middle = (starts[:-1] + starts[1:]) / 2
    result[np.flatnonzero(known)[order]] = middle[np.cumsum(new) - 1] / max(1, len(order))
    return result


def _median_for_nan(values: Floats) -> Floats:
    known = values[~np.isnan(values)]
    return np.where(np.isnan(values), np.median(known) if len(known) else 0.0, values)
