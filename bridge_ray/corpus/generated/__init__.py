"""The demo corpus: rule application in three domains, with exact answers and an expert that explains them.

Facts are small and the rules are stated, so that a tiny model can learn the reasoning. The rules are simplified
and the drugs and firms are invented: this is no advice of any kind.
"""

from __future__ import annotations

from itertools import cycle
from random import Random

from bridge_ray.config import Corpus
from bridge_ray.corpus.examples import Example, Solution
from bridge_ray.corpus.generated import financial, legal, medical, template
from bridge_ray.corpus.generated.template import Question, Template
from bridge_ray.errors import UserError

DOMAINS = {"medical": medical, "legal": legal, "financial": financial}
TRIES = 200  # draws in a row that may repeat a question before a template counts as exhausted


def read(corpus: Corpus, seed: int) -> list[Example]:
    """Train + dev + test different questions, in turn from every template; a longer corpus continues a shorter one.

    Raises UserError when a template has no new question left.
    """
    size = (corpus.made or corpus.train or 0) + corpus.dev + corpus.test
    rng = Random(seed)
    seen: set[str] = set()
    return [
        _example(number, domain, family, _fresh(domain, family, seen, rng))
        for number, (domain, family) in zip(range(size), cycle(families(corpus.templates)), strict=False)
    ]


def solve(text: str) -> Solution | None:
    """The expert's solution of the generated question that a text contains, or None if it contains none.

    A choice question is solved only if its options follow it in lines "A) ...".
    """
    solutions = (template.solve(family, text) for _, family in families())
    return next((solution for solution in solutions if solution), None)


def families(each: int | None = None) -> list[tuple[str, Template]]:
    """(domain, template) of so many templates of each domain, or of all, the domains in turn."""
    return [
        (domain, family)
        for row in zip(*(module.TEMPLATES[:each] for module in DOMAINS.values()), strict=True)
        for domain, family in zip(DOMAINS, row, strict=True)
    ]


def _fresh(domain: str, family: Template, seen: set[str], rng: Random) -> Question:
    for _ in range(TRIES):
        question = template.pose(family, DOMAINS[domain].NOTES, rng)
        if question.text not in seen:
            seen.add(question.text)
            return question
    raise UserError(
        f"corpus.train, dev and test: template {family.name} has no new question left after {len(seen)} questions; "
        "ask for a smaller generated corpus"
    )


def _example(number: int, domain: str, family: Template, question: Question) -> Example:
    key = f"{family.name}-{number}"
    return Example(key, question.text, "", question.options, question.answer, family.answer_type, domain)
