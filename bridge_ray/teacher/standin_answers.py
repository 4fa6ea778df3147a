"""What the stand-in teacher knows: the generated domains' questions, worked out, or a file of recorded answers."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Literal

from bridge_ray.errors import UserError

EXPERT_VERSION = 1  # raise it when the expert's answers change: it is part of their keys
STYLE_SEED = "bridge-ray"

Answers = Literal["expert", "recorded"]
Styles = Literal["one", "many"]
Answerer = Callable[[str], str | None]  # user message -> completion


def answerer(answers: Answers, file: str | None, styles: Styles = "many") -> Answerer:
    """What answers the questions; ``styles`` are the expert's.

    Raises UserError when the recorded file cannot be used.
    """
    return partial(_expert, styles) if answers == "expert" else Recorded(_read(file)).answer


def _expert(styles: Styles, message: str) -> str | None:
    from bridge_ray.corpus.generated import solve

    solution = solve(message)
    if solution is None:
        return None
    if styles == "one":
        return _text(solution.rationales[0], solution.answer)
    style = Random(f"{STYLE_SEED}:{message}")  # the same question is always answered alike
    return _text(solution.explain(style), solution.answer)


def _text(rationale: str, answer: str) -> str:
    return f"{rationale}\nAnswer: {answer}"


class Recorded:
    """Recorded completions, found by their question standing in a message, word for word.

    Of several questions in one message, the longest counts.
    """

    STEM = 4  # words that questions are indexed by

    def __init__(self, rows: Iterable[Mapping[str, str]]) -> None:
        self._completions: dict[str, str] = {}
        self._lengths: defaultdict[tuple[str, ...], set[int]] = defaultdict(set)  # in words, by a question's first few
        for row in rows:
            words = row["question"].split()
            self._completions[" ".join(words)] = _text(row["rationale"], row["answer"])
            self._lengths[tuple(words[: self.STEM])].add(len(words))

    def answer(self, message: str) -> str | None:
        longest = max(self._found(message.split()), key=len, default=None)
        return None if longest is None else self._completions[longest]

    def _found(self, words: list[str]) -> Iterator[str]:
        for start in range(len(words)):
            for stem in range(1, self.STEM + 1):
                for length in self._lengths.get(tuple(words[start : start + stem]), ()):
                    question = " ".join(words[start : start + length])
                    if question in self._completions:
                        yield question


def _read(file: str | None) -> list[dict[str, str]]:
    lines = _bytes(file).decode("utf-8", errors="replace").split("\n")  # text may hold other line separators
    return [_row(f"{file}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]


def _row(place: str, line: str) -> dict[str, str]:
    try:
        row = json.loads(line)
        question, rationale, answer = (str(row[field]) for field in ("question", "rationale", "answer"))
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{place}: expected a JSON object with question, rationale and answer") from None
    if not question.strip():
        raise UserError(f"{place}: the question is empty")
    return {"question": question, "rationale": rationale, "answer": answer}


def _bytes(file: str | None) -> bytes:
    if file is None:
        raise UserError("teacher.standin.file: recorded answers need a file (JSONL of question, rationale, answer)")
    try:
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"teacher.standin.file {file}: cannot be read ({type(error).__name__})") from None


def identity(answers: Answers, file: str | None = None, styles: Styles = "many") -> str:
    """The provider's name in answer keys: what the stand-in answers from, wherever it listens.

    Raises UserError when the recorded file cannot be read.
    """
    if answers == "expert":
        return f"standin:expert:{EXPERT_VERSION}" + (":one" if styles == "one" else "")
    return f"standin:recorded:{hashlib.sha256(_bytes(file)).hexdigest()}"
