"""LegalBench diversity_1 to diversity_4: is there federal diversity jurisdiction, from template-made facts.

The columns ``parties_are_diverse`` and ``aic_is_met`` are half the answer and are not read.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from bridge_ray.answers.extract import canonical
from bridge_ray.config import Corpus
from bridge_ray.corpus.examples import Example, Recorded
from bridge_ray.corpus.sources import files, legalbench_expert
from bridge_ray.errors import UserError

TASKS = ("diversity_1", "diversity_2", "diversity_3", "diversity_4")
ASK = "Is there federal diversity jurisdiction?"


def read(corpus: Corpus, seed: int) -> list[Example]:
    """The test rows of the four tasks; ``path`` is the folder that holds the task folders. Raises UserError."""
    return [example for task in TASKS for example in _task(Path(corpus.path or "."), task)]


def recorded(path: str) -> list[Recorded]:
    """A rule-based expert's rationale and answer for every question (see legalbench_expert)."""
    solutions = ((row, legalbench_expert.solve(row.question)) for task in TASKS for row in _task(Path(path), task))
    return [Recorded(row.question, found.rationales[0], found.answer) for row, found in solutions if found]


def _task(root: Path, task: str) -> Iterator[Example]:
    file = root / task / "test.tsv"
    rows = csv.DictReader(files.read_text(file).splitlines(), delimiter="\t")
    for number, row in enumerate(rows, start=1):
        try:
            answer = canonical(row["label"], "boolean", ())
            question = f"{row['text'].strip()} {ASK}"
        except (KeyError, AttributeError, ValueError) as error:
            raise UserError(f"{file} row {number}: not a LegalBench row (text, label): {error!r}") from error
        yield Example(f"{task}/{number}", question, "", (), answer, "boolean", task)
