"""Rows of a user's own table -> examples, by the mapping in ``corpus.columns``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_ray.answers.extract import canonical, letters
from bridge_ray.config import FIELDS, Corpus
from bridge_ray.corpus.examples import Example
from bridge_ray.errors import UserError

REQUIRED_IN_EVERY_ROW = ("question", "id")
NARROW = ("boolean", "number")  # answer types that can be told from the answers
NEARLY_ALL = 0.9  # of the answers: the others are rather mistakes than texts
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def examples(rows: Iterable[tuple[str, Mapping[str, Any]]], corpus: Corpus) -> list[Example]:
    """Examples from (label, row) pairs; the label names file and row in messages.

    Without an id column the key is the row's number, from 1. The answer type is the config's, or inferred over
    all rows. Raises UserError.
    """
    labelled = list(rows)
    if not labelled:
        raise UserError(f"{corpus.path}: the file has no rows")
    columns = mapping(corpus, {name for _, row in labelled for name in row})
    _check_columns(labelled, columns)
    fields = [(label, fields_of(label, row, columns)) for label, row in labelled]
    answer_type = corpus.answer_type or infer(census(fields))
    default = Path(corpus.path or "").name.partition(".")[0]
    return [
        example_of(label, number, values, answer_type, default)
        for number, (label, values) in enumerate(fields, start=1)
    ]


def mapping(corpus: Corpus, available: Collection[str]) -> Mapping[str, str]:
    """Our fields -> the file's columns: as ``corpus.columns`` says, and of a field that it does not name the column
    with our name, unless another field has taken that.

    Raises UserError where a column is not there.
    """
    said = {field: column for field, column in corpus.columns.items() if column is not None}
    for field, column in said.items():
        if column not in available:
            raise UserError(f"{corpus.path}: no row has column {column!r}; fix corpus.columns.{field}")
    free = set(available) - set(said.values())
    found = {field: field for field in FIELDS if field in free and field not in corpus.columns} | said
    if "question" not in found:
        raise UserError(f"{corpus.path}: no column is called 'question'; name it: --set corpus.columns.question=COLUMN")
    return found


@dataclass(frozen=True)
class Census:
    """Of some rows: whether one has options, how many have an answer, and for each type of NARROW how many of the
    answers are of it and which is the first that is not, with its label."""

    options: bool
    answers: int
    of: Mapping[str, int]
    odd: Mapping[str, str]

    def __add__(self, other: Census) -> Census:
        """Of these rows and of others that come behind them."""
        of = {name: self.of[name] + other.of[name] for name in NARROW}
        return Census(self.options or other.options, self.answers + other.answers, of, {**other.odd, **self.odd})


def census(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Census:
    """Of (label, fields) pairs."""
    given = [(label, values["answer"]) for label, values in rows if values["answer"] is not None]
    others = {name: [one for one in given if not _is(one[1], name)] for name in NARROW}
    of = {name: len(given) - len(some) for name, some in others.items()}
    odd = {name: f"{some[0][0]}: answer {str(some[0][1])[:40]!r}" for name, some in others.items() if some}
    return Census(any(values["options"] for _, values in rows), len(given), of, odd)


def infer(found: Census) -> str:
    """The narrowest answer type that every given answer of the file has: one type per file.

    Raises UserError where nearly all answers have one: taken as texts, "1,200" and "1200" would be two answers.
    """
    if found.options:
        return "choice"
    for name in NARROW:
        if name not in found.odd:
            return name if found.answers else "text"
        if found.of[name] >= NEARLY_ALL * found.answers:
            raise UserError(
                f"{found.odd[name]} is not a {name}, and {found.of[name]:,} of {found.answers:,} answers are; fix it, "
                "or set corpus.answer_type (text compares the answers as texts)"
            )
    return "text"


def _is(answer: object, answer_type: str) -> bool:
    try:
        canonical(answer, answer_type, ())
    except ValueError:
        return False
    return True


def _check_columns(rows: Sequence[tuple[str, Mapping[str, Any]]], columns: Mapping[str, str]) -> None:
    for field in REQUIRED_IN_EVERY_ROW:
        missing = [label for label, row in rows if field in columns and columns[field] not in row]
        if missing:
            raise UserError(f"{missing[0]}: column {columns[field]!r} ({field}) is missing; add it")


def fields_of(label: str, row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Our fields of one row, blank values as None, options as a tuple. Raises UserError."""
    values = {field: None if _blank(value := row.get(column)) else value for field, column in columns.items()}
    for field, value in values.items():
        if field != "options" and isinstance(value, list | dict | bytes):
            raise UserError(f"{label}: {field} must be a text or a number, not {type(value).__name__}; fix the row")
        if isinstance(value, str):
            check_whole(label, field, value)
    blank = {"id": None, "question": None, "context": None, "answer": None, "domain": None}
    return blank | values | {"options": _options(label, values.get("options"))}


def check_whole(label: str, field: str, text: str) -> None:
    """Raise UserError for half a character, which JSON can hold and UTF-8 cannot."""
    if LONE_SURROGATE.search(text):
        raise UserError(f"{label}: {field} holds half of a character (a lone surrogate); fix the row's encoding")


def _blank(value: Any) -> bool:
    """Whether a cell says nothing: empty, white space, or not a number."""
    return (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and math.isnan(value))


def _options(label: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = _split_options(label, value)
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or any(str(option).strip() == "" for option in value):
        raise UserError(f"{label}: options must be a list, a JSON list or texts separated by '|', none of them empty")
    for option in value:
        if option is None or _blank(option) or isinstance(option, list | tuple | dict | bytes):
            kind = "missing" if option is None or _blank(option) else f"a {type(option).__name__}"
            raise UserError(f"{label}: an option is {kind}; each must be a text or a number: fix the row")
    texts = tuple(str(option).strip() for option in value)
    if len(set(texts)) < len(texts):
        raise UserError(f"{label}: options are given twice; leave each in once")
    return texts


def _split_options(label: str, value: str) -> list[Any]:
    if not value.lstrip().startswith("["):
        return value.split("|")
    try:
        parsed: list[Any] = json.loads(value)
    except json.JSONDecodeError as error:
        raise UserError(f"{label}: options start with '[' but are not a JSON list: {error}") from error
    return parsed


def example_of(label: str, number: int, values: Mapping[str, Any], answer_type: str, default_domain: str) -> Example:
    """The example of a row's fields. Raises UserError."""
    options = values["options"] if answer_type == "choice" else ()
    if answer_type == "choice" and not 2 <= len(options) <= 26:
        raise UserError(f"{label}: a choice question needs 2 to 26 options, got {len(options)}")
    return Example(
        key=str(number if values["id"] is None else values["id"]),
        question=str(values["question"] or "").strip(),
        context=str(values["context"] or "").strip(),
        options=options,
        answer=_answer(label, values["answer"], answer_type, options),
        answer_type=answer_type,
        domain=str(values["domain"] or default_domain),
    )


def _answer(label: str, value: object, answer_type: str, options: Sequence[str]) -> str | None:
    if value is None:
        return None
    try:
        answer = canonical(value, answer_type, options)
        _check_unequivocal(str(value).strip(), answer, options)
        return answer
    except ValueError as error:
        raise UserError(f"{label}: answer: {error}; fix the row or set corpus.answer_type") from error


def _check_unequivocal(value: str, letter: str, options: Sequence[str]) -> None:
    """Raise ValueError for an answer that is one option's letter and another one's text: a blood group of O, A, B, AB.

    A model is asked for letters, so a reply's A is one; what a file's A means, only its author knows.
    """
    if value in options and (other := letters(options)[options.index(value)]) != letter:
        raise ValueError(f"{value!r} is option {letter}'s letter and option {other}'s text: say {letter}) or {other})")
