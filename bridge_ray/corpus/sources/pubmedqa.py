"""PubMedQA: does an abstract say yes, no or maybe to its title's question.

The human-written LONG_ANSWER gives the answer away: it is a recorded teacher's rationale, never part of a question.
"""

from __future__ import annotations

from collections.abc import Iterator

from bridge_ray.answers.extract import canonical
from bridge_ray.config import Corpus
from bridge_ray.corpus.examples import Example, Recorded
from bridge_ray.corpus.sources import files
from bridge_ray.errors import UserError

FILES = ("pqal_train.json.gz", "ori_pqal.json")
OPTIONS = ("yes", "no", "maybe")


def read(corpus: Corpus, seed: int) -> list[Example]:
    """The records in the file's order; ``path`` is the folder or one file of it. Raises UserError."""
    return [example for example, _ in _rows(corpus.path)]


def recorded(path: str) -> list[Recorded]:
    """The authors' conclusion for every question."""
    return [conclusion for _, conclusion in _rows(path)]


def _rows(path: str | None) -> Iterator[tuple[Example, Recorded]]:
    file = files.find(path, *FILES)
    records = files.parse_json(files.read_text(file), str(file))
    if not isinstance(records, dict):
        raise UserError(f"{file}: expected an object from PubMed id to record")
    for key, row in records.items():
        try:
            question, context, conclusion = row["QUESTION"].strip(), "\n".join(row["CONTEXTS"]), row["LONG_ANSWER"]
            answer = canonical(row["final_decision"], "choice", OPTIONS)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{file} record {key}: not a PubMedQA record: {error!r}") from error
        example = Example(key, question, context, OPTIONS, answer, "choice", "pubmedqa")
        yield example, Recorded(question, conclusion.strip(), answer)
