"""What a family of generated questions is, and everything one can do with it.

A template's phrasings and rationale styles are format strings over the same facts. The pattern that reads the
facts back is derived from the phrasing itself, so what is asked and what is understood cannot drift apart.

Fields in a phrasing: ``{name}`` is one or more capitalised words, ``{claim:s}`` is a lower-case phrase,
``{dose:d}`` is a whole number, and ``{note}`` is where a distractor may stand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from string import Formatter, ascii_uppercase
from typing import Any

from bridge_ray.corpus.examples import Solution

Facts = dict[str, Any]

DISTRACTED = 0.2  # share of the questions that carry a fact that plays no part
FIELDS = {"": r"[A-Z][a-z]+(?: [A-Z][a-z]+)*", "s": r"[a-z][a-z ]*?", "d": r"\d+"}
NOTE = r"(?P<note>(?:[A-Z][^.?!\n]*\. )?)"
OPTION = re.compile(r"^[ \t]*([A-Z])\) (.+?)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Template:
    """One family of questions."""

    name: str
    answer_type: str  # choice | boolean | number
    phrasings: tuple[str, ...]
    styles: tuple[str, ...]  # rationales over facts and workings, each ending in the conclusion
    draw: Callable[[Random], Facts]  # the outcome first and then facts that lead to it, so that answers balance
    work: Callable[[Facts], Facts]  # "answer" (for choice: the option's text) and what the styles mention
    choices: Callable[[Facts], Sequence[str]] | None = None  # option texts in any order


@dataclass(frozen=True)
class Question:
    """A rendered question with its gold answer (canonical)."""

    text: str
    options: tuple[str, ...]
    answer: str


def pose(template: Template, notes: Sequence[str], rng: Random) -> Question:
    """Draw facts and render them: one phrasing, perhaps a distractor from ``notes``, options in random order."""
    facts = template.draw(rng)
    note = rng.choice(notes).format(n=rng.randint(2, 60)) + " " if rng.random() < DISTRACTED else ""
    text = rng.choice(template.phrasings).format(note=note, **facts)
    options = list(template.choices(facts)) if template.choices else []
    rng.shuffle(options)
    return Question(text, tuple(options), _canonical(template.work(facts)["answer"], options))


def solve(template: Template, text: str) -> Solution | None:
    """The template's solution of the question in a text, or None if the text does not hold one of its questions.

    Options of a choice question are read from the lines "A) ..." after the question.
    """
    found = parse(template, text)
    if found is None:
        return None
    facts, end = found
    options = tuple(option for _, option in OPTION.findall(text[end:])) if template.choices else ()
    workings = template.work(facts)
    if template.choices and workings["answer"] not in options:
        return None
    answer = _canonical(workings["answer"], options)
    return Solution(answer, template.answer_type, options, explanations(template, facts, answer))


def parse(template: Template, text: str) -> tuple[Facts, int] | None:
    """The facts of the template's first question in a text, and where that question ends."""
    for phrasing in template.phrasings:
        found = _pattern(phrasing).search(text)
        if found:
            numeric = _numeric(phrasing)
            facts = {key: int(value) if key in numeric else value for key, value in found.groupdict().items()}
            return facts, found.end()
    return None


def explanations(template: Template, facts: Mapping[str, Any], letter: str) -> tuple[str, ...]:
    """One rationale per style, without the answer line. ``letter`` is the right option of a choice question."""
    workings = {**facts, **template.work(dict(facts)), "letter": letter}
    return tuple(style.format(**workings) for style in template.styles)


def yes_no(condition: bool) -> str:
    """The canonical boolean answer."""
    return "yes" if condition else "no"


def _canonical(answer: str | int, options: Sequence[str]) -> str:
    return ascii_uppercase[options.index(str(answer))] if options else str(answer)


@cache
def _pattern(phrasing: str) -> re.Pattern[str]:
    parts, seen = [], set()
    for literal, field, spec, _ in Formatter().parse(phrasing):
        parts.append(re.escape(literal))
        if field == "note":
            parts.append(NOTE)
        elif field is not None:
            parts.append(f"(?P={field})" if field in seen else f"(?P<{field}>{FIELDS[spec or '']})")
            seen.add(field)
    return re.compile(r"(?<!\w)" + "".join(parts))


@cache
def _numeric(phrasing: str) -> frozenset[str]:
    return frozenset(field for _, field, spec, _ in Formatter().parse(phrasing) if field and spec == "d")
