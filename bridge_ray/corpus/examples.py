"""What every source yields: examples, and for some sources a recorded or worked-out rationale."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Example:
    """One question of a corpus, before it has an id and a split (see records.EXAMPLE)."""

    key: str  # the user's own id, unique in the corpus
    question: str
    context: str  # "" when there is none
    options: tuple[str, ...]  # empty unless answer_type is choice
    answer: str | None  # canonical; None when unlabelled
    answer_type: str  # choice | boolean | number | text
    domain: str


@dataclass(frozen=True)
class Recorded:
    """A teacher's answer that was written down before: the rationale has no answer line."""

    question: str  # exactly Example.question
    rationale: str
    answer: str  # canonical


@dataclass(frozen=True)
class Solution:
    """What an expert says to a question: the answer, and the same reasoning in several styles."""

    answer: str  # canonical
    answer_type: str
    options: tuple[str, ...]
    rationales: tuple[str, ...]  # one per style, never empty; the first is the style to use when one is wanted

    def explain(self, rng: Random) -> str:
        """A rationale in a style drawn by rng, without the answer line."""
        return rng.choice(self.rationales)
