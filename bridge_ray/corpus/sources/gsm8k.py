"""GSM8K: grade-school word problems; the worked steps are a recorded teacher's rationale."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bridge_ray.answers.extract import canonical
from bridge_ray.config import Corpus
from bridge_ray.corpus.examples import Example, Recorded
from bridge_ray.corpus.sources import files
from bridge_ray.errors import UserError

FILES = ("train.jsonl.gz", "train.jsonl")


def read(corpus: Corpus, seed: int) -> list[Example]:
    """The training half in the file's order; ``path`` is the folder or one file of it. Raises UserError."""
    return [
        Example(f"gsm8k/{number}", row.question, "", (), row.answer, "number", "gsm8k")
        for number, row in enumerate(_rows(corpus.path))
    ]


def recorded(path: str) -> list[Recorded]:
    """The worked steps of every question, without the calculator's <<..>> notes."""
    return list(_rows(path))


def _rows(path: str | None) -> Iterator[Recorded]:
    for label, row in files.json_lines(files.find(path, *FILES)):
        try:
            steps, _, answer = row["answer"].partition("####")
            question, gold = row["question"].strip(), canonical(answer, "number", ())
        except (KeyError, AttributeError, ValueError) as error:
            raise UserError(f"{label}: not a GSM8K row (question, answer with '#### number'): {error!r}") from error
        yield Recorded(question, re.sub(r"<<.*?>>", "", steps).strip(), gold)
