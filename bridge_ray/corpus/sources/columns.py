"""Rows of a user's own table -> examples, by the mapping in ``corpus.columns``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge_ray.answers.extract import canonical
from bridge_ray.config import FIELDS, Corpus
from bridge_ray.corpus.examples import Example
from bridge_ray.errors import UserError

REQUIRED_IN_EVERY_ROW = ("question", "id")
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
    answer_type = corpus.answer_type or infer([values for _, values in fields])
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


def infer(rows: Sequence[Mapping[str, Any]]) -> str:
    """The narrowest answer type that every given answer of the file has: one type per file."""
    if any(row["options"] for row in rows):
        return "choice"
    answers = [row["answer"] for row in rows if row["answer"] is not None]
    for answer_type in ("boolean", "number"):
        if answers and all(_is(answer, answer_type) for answer in answers):
            return answer_type
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
        return canonical(value, answer_type, options)
    except ValueError as error:
        raise UserError(f"{label}: answer: {error}; fix the row or set corpus.answer_type") from error
