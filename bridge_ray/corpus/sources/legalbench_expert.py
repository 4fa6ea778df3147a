"""A rule-based expert for LegalBench diversity_1 to diversity_4.

The rule: every plaintiff is a citizen of another state than every defendant, and one plaintiff's claims against
one defendant, added up, are worth more than $75,000. Amounts against several defendants are not added.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bridge_ray.corpus.examples import Solution

THRESHOLD = 75_000

_HOME = re.compile(r"\b([A-Z][a-z]+) is from ((?:[A-Z][a-z]+ ?)+)\.")
_SUIT = re.compile(
    r"\b([A-Z][a-z]+)(?: and ([A-Z][a-z]+) both)? sues? ([A-Z][a-z]+)(?: and ([A-Z][a-z]+) each)? for (.+?)\."
)
_AMOUNT = re.compile(r"\$([\d,]*\d)")


@dataclass(frozen=True)
class Suit:
    """Names with their states, and the amounts (US dollars) each plaintiff claims from each defendant."""

    plaintiffs: tuple[tuple[str, str], ...]
    defendants: tuple[tuple[str, str], ...]
    amounts: tuple[int, ...]

    @property
    def shared(self) -> set[str]:
        """States with a citizen on both sides."""
        return {state for _, state in self.plaintiffs} & {state for _, state in self.defendants}


def solve(text: str) -> Solution | None:
    """The answer and its rationale, from a text that contains the facts; None if they are not there."""
    suit = parse(text)
    if suit is None:
        return None
    answer = "yes" if not suit.shared and sum(suit.amounts) > THRESHOLD else "no"
    return Solution(answer, "boolean", (), _rationales(suit, answer))


def parse(text: str) -> Suit | None:
    """The facts of the suit in a text, or None."""
    found = _SUIT.search(text)
    homes = dict(_HOME.findall(text))
    if found is None or any(name not in homes for name in found.groups()[:4] if name):
        return None
    first, second, third, fourth, claims = found.groups()
    amounts = tuple(int(amount.replace(",", "")) for amount in _AMOUNT.findall(claims))
    plaintiffs = tuple((name, homes[name]) for name in (first, second) if name)
    defendants = tuple((name, homes[name]) for name in (third, fourth) if name)
    return Suit(plaintiffs, defendants, amounts)


def _rationales(suit: Suit, answer: str) -> tuple[str, ...]:
    citizens, amount = _citizenship(suit), _amount(suit)
    verdict = f"there is {'no ' if answer == 'no' else ''}diversity jurisdiction"
    return (
        f"{citizens} {amount} So {verdict}.",
        (
            f"The parties must be completely diverse and the amount must be more than $75,000. "
            f"{citizens} {amount} Therefore {verdict}."
        ),
        f"Step 1, citizenship: {citizens} Step 2, amount: {amount} Conclusion: {verdict}.",
    )


def _citizenship(suit: Suit) -> str:
    sides = f"{_side('plaintiff', suit.plaintiffs)} and {_side('defendant', suit.defendants)}."
    if suit.shared:
        shared = f"Both sides have a citizen of {min(suit.shared)}, so the parties are not diverse."
        return f"{sides[0].upper()}{sides[1:]} {shared}"
    return f"{sides[0].upper()}{sides[1:]} No state is on both sides, so the parties are diverse."


def _side(role: str, people: tuple[tuple[str, str], ...]) -> str:
    plural = "s" if len(people) > 1 else ""
    return f"{role}{plural} " + " and ".join(f"{name} ({state})" for name, state in people)


def _amount(suit: Suit) -> str:
    total = sum(suit.amounts)
    parts = " + ".join(f"${amount:,}" for amount in suit.amounts)
    worked = f"{parts} = ${total:,}" if len(suit.amounts) > 1 else parts
    each = " for each pair of parties" if len(suit.plaintiffs) + len(suit.defendants) > 2 else ""
    compare = "is more than" if total > THRESHOLD else "is not more than"
    return f"The amount{each}, {worked}, {compare} $75,000."
