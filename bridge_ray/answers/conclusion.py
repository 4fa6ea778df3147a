"""A rationale without its conclusion: the reasoning alone, from which the answer should follow."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bridge_ray.answers.arithmetic import statements
from bridge_ray.answers.extract import canonical

_OPENING = r"(?:and\s+)?(?:so|thus|therefore|hence|(?:in\s+)?conclusion|(?:that|this|which)\s+means)\b"
_CONCLUDES = re.compile(_OPENING, re.IGNORECASE)
_BOUNDARY = re.compile(rf"[.!?;:]+(?:\s+|$)|\s*\n\s*|,\s+(?={_OPENING})", re.IGNORECASE)
_NUMBER = re.compile(r"[-−]?[$€£]?\d[\d,]*(?:\.\d+)?%?")
_SAID = {"yes": "yes|true", "no": "no|false"}


def without_conclusion(rationale: str, answer: str, answer_type: str, options: Sequence[str]) -> str:
    """The rationale without the last clauses that only state the (canonical) answer or conclude without a number.

    Working stays, also where its result is the answer: ``2 x 14 = 28``. Empty where there is nothing but a statement.
    """
    end, spans = len(rationale), _spans(rationale)
    while spans and _only_concludes(rationale[slice(*spans[-1])], answer, answer_type, options):
        end = spans.pop()[0]
    return rationale[:end].rstrip(" ,;:\n")


def clauses(text: str) -> list[str]:
    """The text's clauses; empty ones are left out."""
    return [text[slice(*span)] for span in _spans(text)]


def _spans(text: str) -> list[tuple[int, int]]:
    """Where each clause begins and ends."""
    starts, ends = [0], []
    for boundary in _BOUNDARY.finditer(text):
        ends.append(boundary.start())
        starts.append(boundary.end())
    return [(start, end) for start, end in zip(starts, [*ends, len(text)], strict=True) if text[start:end].strip()]


def _only_concludes(clause: str, answer: str, answer_type: str, options: Sequence[str]) -> bool:
    if statements(clause):
        return False
    rest = _without_answer(clause, answer, answer_type, options)
    return not re.search(r"\d", rest) and (rest != clause or bool(_CONCLUDES.match(clause.strip())))


def _without_answer(clause: str, answer: str, answer_type: str, options: Sequence[str]) -> str:
    """The clause without the answer where it is said; the clause itself where it is not."""
    if answer_type == "number":
        return _NUMBER.sub(lambda found: "" if _is(found[0], answer) else found[0], clause)
    if answer_type == "boolean":  # nothing but the word: "no allergies" is reasoning
        return re.sub(rf"^\W*(?:the answer is\s+)?(?:{_SAID[answer]})\W*$", "", clause, flags=re.IGNORECASE)
    if answer_type == "choice":
        option = re.escape(options[ord(answer) - ord("A")])
        return re.sub(rf"(?i:(?<!\w){option}(?!\w)|\boption\s+{answer}\b)|(?<!\w){answer}\)", "", clause)
    return re.sub(rf"(?<!\w){re.escape(answer)}(?!\w)", "", clause, flags=re.IGNORECASE)


def _is(number: str, answer: str) -> bool:
    try:
        return canonical(number.rstrip(","), "number", ()) == answer
    except ValueError:
        return False
