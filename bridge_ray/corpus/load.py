"""One corpus config -> its examples."""

from __future__ import annotations

from bridge_ray.config import Corpus
from bridge_ray.corpus.examples import Example
from bridge_ray.corpus.sources import SOURCES
from bridge_ray.errors import UserError


def load(corpus: Corpus, seed: int) -> list[Example]:
    """Every example of the corpus, in the source's order.

    Raises UserError that names file and row, also for an empty question and for an id that occurs twice.
    """
    examples = SOURCES[corpus.source](corpus, seed)
    seen: dict[str, int] = {}
    for number, example in enumerate(examples, start=1):
        row = f"{corpus.path or corpus.source} row {number}"
        if not example.question:
            raise UserError(f"{row}: the question is empty; remove or complete the row")
        if seen.setdefault(example.key, number) != number:
            raise UserError(f"{row}: id {example.key!r} is also the id of row {seen[example.key]}; make ids unique")
    return examples
