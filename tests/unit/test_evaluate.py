"""What counts as a right answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pytest

from bridge_ray.answers import prompts
from bridge_ray.evaluate import AnswerCourse, prediction
from bridge_ray.inference.engine import Sample

ROW = {"system": "bridge", "question": "2 + 2?", "context": "", "answer": "4", "answer_type": "number", "options": []}


def test_an_unparsable_reply_and_an_errored_row_are_wrong() -> None:
    row = {"system": "bridge", "answer": "4", "answer_type": "number", "options": []}
    assert prediction(row, "Two and two.\nAnswer: 4", None)["correct"]
    assert not prediction(row, "I cannot say.", None)["correct"]
    assert not prediction(row, None, "prompt too long")["correct"]


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (("3", "4", "4"), "Because.\nAnswer: 4"),
        (("3", "4"), "Because.\nAnswer: 3"),  # no majority: the first
        (("?", "4"), "Because.\nAnswer: 4"),  # what cannot be read has no voice
    ],
)
def test_of_several_samples_the_majority_counts(said: Sequence[str], text: str) -> None:
    async def ask(messages: Any, *, max_tokens: int, n: int, temperature: float, **_: Any) -> list[Sample]:
        assert (n, temperature) == (len(said), 0.7)
        return [Sample("Because.\nAnswer: " + one if one != "?" else "Because.", 5, math.nan, True) for one in said]

    found = asyncio.run(AnswerCourse(64, len(said), 0.7)(ROW, ask))
    assert (found["text"], found["tokens"]) == (text, 5 * len(said))


def test_one_sample_is_greedy() -> None:
    async def ask(messages: Any, *, n: int, temperature: float, **_: Any) -> list[Sample]:
        assert (n, temperature) == (1, 0.0)
        return [Sample("Because.\nAnswer: 4", 5, math.nan, True)]

    assert asyncio.run(AnswerCourse(64, 1, 0.7)(ROW, ask))["correct"]


@pytest.mark.parametrize(("system", "instruction"), [("labels", prompts.ANSWER), ("bridge", prompts.REASON)])
def test_a_student_is_asked_as_it_was_taught(system: str, instruction: str) -> None:
    async def ask(messages: Any, **_: Any) -> list[Sample]:
        assert messages[0]["content"] == instruction
        return [Sample("Answer: 4", 5, math.nan, True)]

    assert asyncio.run(AnswerCourse(64, 1, 0.7)({**ROW, "system": system}, ask))["correct"]
