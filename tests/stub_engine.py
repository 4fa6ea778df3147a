"""An engine that needs no model: it adds two numbers up, wrongly or not at all where the question says so.

Deterministic, so that a run that was interrupted can be compared with one that was not. It takes the place of vLLM in
tests of what lies around the engine; the same courses run on the real one in tests/ray/test_end_to_end.py.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bridge_ray.config import Engine
from bridge_ray.corpus.stream import READABLE
from bridge_ray.inference.engine import RowFault, Sample
from bridge_ray.inference.generate import Served

QUESTION = re.compile(r"(\d+) plus (\d+)")


@dataclass(frozen=True)
class Stub:
    """Made in an actor in place of an engine; every reply takes ``seconds``.

    Of the rows whose first number is n: n % 10 == 3 is right at the second attempt, n % 10 == 7 with the hint only,
    and n % 10 == 9 never. Asked to end a reply that is begun, n % 10 == 1 is wrong only. The engine refuses the rows in
    ``refused``. The row and the seconds in ``fatal`` are of a question that ends the process, so late, in as many
    processes as ``deaths``, in order.
    """

    seconds: float = 0.0
    refused: tuple[int, ...] = ()
    fatal: tuple[int, float] | None = None
    deaths: int | None = None  # None: in all of them; else they are ``seen``
    seen: str | None = None  # a folder in which every actor leaves its process's number

    def __call__(self, served: Served, settings: Engine) -> Stub:
        if self.seen is not None:
            (Path(self.seen) / str(os.getpid())).touch()
        return self

    async def ask(
        self,
        messages: Sequence[dict[str, str]],
        *,
        max_tokens: int,
        n: int = 1,
        temperature: float = 0.0,
        likelihood: bool = False,
        priority: int = 0,
    ) -> list[Sample]:
        await asyncio.sleep(self.seconds)
        text = messages[1]["content"]
        found = QUESTION.search(text)
        assert found is not None, text
        first, second = int(found[1]), int(found[2])
        if self.fatal is not None and first == self.fatal[0]:
            await self._die(self.fatal[1])
        if first in self.refused:
            raise RowFault(f"out of memory: row {first}")
        if messages[-1]["role"] == "assistant":
            return [Sample(f" {first + second + (first % 10 == 1)}", 2, math.nan, True)] * n
        answer = first + second + self._mistake(first, temperature > 0, "correct answer" in text)
        return [Sample(f"{first} and {second} make {answer}.\nAnswer: {answer}", 12, math.nan, True)] * n

    async def _die(self, seconds: float) -> None:
        if self.deaths is None or len(list(Path(self.seen or "").iterdir())) <= self.deaths:
            await asyncio.sleep(seconds)
            os._exit(1)

    def _mistake(self, number: int, sampled: bool, hinted: bool) -> int:
        right = {3: sampled or hinted, 7: hinted, 9: False}.get(number % 10, True)
        return 0 if right else 1

    def shutdown(self) -> None:
        pass


def write_corpus(folder: Path, rows: int, file_rows: int = 131_072) -> str:
    """Sums to do, as the stage *corpus* leaves them; returns the folder of the stage."""
    (folder / "train").mkdir(parents=True)
    for start in range(0, rows, file_rows):
        ids = range(start, min(rows, start + file_rows))
        columns = {
            "id": list(ids),
            "key": [f"row-{number}" for number in ids],
            "question": [f"What is {number} plus {number % 97}?" for number in ids],
            "context": [""] * len(ids),
            "options": [[]] * len(ids),
            "answer": [str(number + number % 97) for number in ids],
            "answer_type": ["number"] * len(ids),
            "domain": ["sums"] * len(ids),
            "split": ["train"] * len(ids),
            "fault": [None] * len(ids),
        }
        pq.write_table(pa.table(columns, schema=READABLE), folder / "train" / f"part-{start:09d}.parquet")
    return str(folder)
