"""Is an answer right, and what do several answers say together. All answers are in canonical form."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def matches(answer: str | None, gold: str, answer_type: str) -> bool:
    """Whether a canonical answer equals the canonical gold answer; an unparsable one (None) never does."""
    if answer is None:
        return False
    if answer_type == "number":
        return math.isclose(float(answer), float(gold), rel_tol=1e-6, abs_tol=1e-9)
    return answer == gold


def majority(answers: Sequence[str | None]) -> str | None:
    """The answer given more often than any other, unparsable ones aside; None on a tie or without answers."""
    ranking = Counter(answer for answer in answers if answer is not None).most_common(2)
    if not ranking or (len(ranking) == 2 and ranking[0][1] == ranking[1][1]):
        return None
    return ranking[0][0]


def chance(answer_type: str, options: Sequence[str]) -> float:
    """The probability that a blind guess is right: 0 where answers are open."""
    if answer_type == "choice":
        return 1 / len(options)
    return 0.5 if answer_type == "boolean" else 0.0
