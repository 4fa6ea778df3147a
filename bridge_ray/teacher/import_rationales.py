"""Rationales that a team already owns, brought into the store as answers: *teach* finds them there and pays nothing.

A rationale becomes the answer to the first ask of its question, under the key that the config's teacher is asked with.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from bridge_ray.answers import prompts
from bridge_ray.config import Config
from bridge_ray.corpus.examples import Recorded
from bridge_ray.corpus.load import load
from bridge_ray.corpus.sources.columns import check_whole
from bridge_ray.corpus.splits import split
from bridge_ray.errors import UserError
from bridge_ray.objects import gather, open_store
from bridge_ray.teacher import answers, provider
from bridge_ray.teacher.answers import Reply
from bridge_ray.teacher.asks import Question, key
from bridge_ray.teacher.buy import judge

FIELDS = ("question", "rationale", "answer")
MODEL = "imported"  # what the answers name as their model
SHOWN = 3


@dataclass(frozen=True)
class Imported:
    """What became of a file's rows: each is in one of the counts but ``wrong``.

    ``new`` are answers now, ``there`` found one that was there before or came earlier in the file. ``held_out`` are
    questions of the dev or test split, ``ambiguous`` stand in several training rows that differ in context or
    options, and ``unmatched`` in none. ``wrong`` of the new ones end in another answer than the corpus's.
    """

    rows: int
    new: int
    there: int
    held_out: int
    ambiguous: Sequence[str]
    unmatched: Sequence[str]
    wrong: int


def import_rationales(config: Config, file: str) -> Imported:
    """Bring a file of question, rationale and answer into the config's store.

    Raises UserError, before anything is written, for a file with a row that cannot be used.
    """
    recorded = read(file)
    name = provider.identity(config.teacher, config.corpus)
    rows = defaultdict(list)
    for row in split(load(config.corpus, config.seed), config.corpus, config.seed).to_pylist():
        rows[_words(row["question"])].append(row)
    replies: dict[str, Reply] = {}
    asked: dict[str, Question] = {}
    held_out, ambiguous, unmatched = 0, [], []
    for one in recorded:
        same = rows[_words(one.question)]
        train = {key(prompts.teacher(row), name, config.teacher): row for row in same if row["split"] == "train"}
        if len(train) == 1:
            asked |= train
            replies = {found: _reply(one) for found in train} | replies  # the file's first counts
        elif train:
            ambiguous.append(one.question)
        elif same:
            held_out += 1
        else:
            unmatched.append(one.question)
    before = asyncio.run(_keep(config.teacher_store, replies)) if replies else set()
    new = replies.keys() - before
    return Imported(
        rows=len(recorded),
        new=len(new),
        there=len(recorded) - len(new) - held_out - len(ambiguous) - len(unmatched),
        held_out=held_out,
        ambiguous=ambiguous,
        unmatched=unmatched,
        wrong=sum(judge(asked[found], replies[found]).verified is False for found in new),
    )


async def _keep(location: str, replies: Mapping[str, Reply]) -> set[str]:
    """Store the answers that are missing; the keys of those that are not."""
    store = open_store(location)
    before = set(await answers.answers(store, replies))

    async def one(name: str) -> None:
        await answers.keep(store, name, replies[name])

    await gather(one, replies.keys() - before)
    return before


def _reply(recorded: Recorded) -> Reply:
    text = prompts.completion(recorded.rationale, recorded.answer)
    return Reply(text, "stop", prompt_tokens=0, completion_tokens=0, model=MODEL, created=int(time.time()))


def _words(text: str) -> str:
    return " ".join(text.split())


def read(file: str) -> list[Recorded]:
    """The rationales of a JSON Lines or Parquet file. Raises UserError that names the row and the field."""
    path = Path(file).expanduser()
    rows = _parquet(path) if path.suffix == ".parquet" else _json_lines(path)
    recorded = [_recorded(place, row) for place, row in rows]
    if not recorded:
        raise UserError(f"{file}: the file has no rows; expected rows of {', '.join(FIELDS)}")
    return recorded


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # text may hold other line separators
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as JSON Lines ({type(error).__name__})") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except ValueError:
                raise UserError(f"{path}:{number}: not valid JSON; expected an object of {', '.join(FIELDS)}") from None


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({type(error).__name__})") from None
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{path}:{number}", row


def _recorded(place: str, row: Any) -> Recorded:
    if not isinstance(row, dict):
        raise UserError(f"{place}: expected an object of {', '.join(FIELDS)}, got {type(row).__name__}")
    return Recorded(*(_text(place, field, row.get(field)) for field in FIELDS))


def _text(place: str, field: str, value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UserError(f"{place}: {field} is missing or empty; every row needs {', '.join(FIELDS)}")
    if not isinstance(value, str | int | float if field == "answer" else str):
        raise UserError(f"{place}: {field} is a {type(value).__name__}; write it as text")
    check_whole(place, field, str(value))
    return str(value).strip()


def show(imported: Imported, store: str, console: Console) -> None:
    """Print what became of the rows."""
    counts = {
        f"imported into {store}": imported.new,
        "have an answer there already": imported.there,
        "are dev or test questions, left out": imported.held_out,
        "stand in several training rows, left out": len(imported.ambiguous),
        "are no question of the corpus": len(imported.unmatched),
    }
    console.print(f"{imported.rows:>7,} rows read, of which", highlight=False)
    for what, number in counts.items():
        console.print(f"{number:>7,} {what}", highlight=False, markup=False, soft_wrap=True)
    for question in [*imported.ambiguous, *imported.unmatched][:SHOWN]:
        console.print(f"        e.g. {_words(question)[:90]}", highlight=False, markup=False)
    if imported.wrong:
        console.print(
            f"{imported.wrong:,} of the imported end in another answer than the corpus's: they are not learnt from, "
            "and with teacher.guided their questions are bought",
            soft_wrap=True,
        )
