"""What counts as a right answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from bridge_ray import config, pipeline
from bridge_ray.answers import prompts
from bridge_ray.corpus.load import load
from bridge_ray.corpus.splits import split
from bridge_ray.errors import UserError
from bridge_ray.evaluate import SCORED, AnswerCourse, hardness_of, prediction
from bridge_ray.inference.engine import RowFault, Sample
from bridge_ray.records import HARDNESS, PREDICTION
from bridge_ray.selection.score import ScoreCourse
from bridge_ray.stage import Stage
from tests.conftest import TINY

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


# --- by entropy

QUESTIONS = {"id": [7, 8, 9], "answer_type": ["number"] * 3}
SCORING = ScoreCourse(2, 0.7, 32)


def answered(system: str, fault: bool = False) -> dict[str, Any]:
    """What a course with scoring records of ROW for a system whose greedy reply is right and whose samples differ."""

    async def ask(messages: Any, *, n: int, temperature: float, max_tokens: int, **_: Any) -> list[Sample]:
        if n == 1:
            return [Sample("Because.\nAnswer: 4", 5, math.nan, True)]
        assert (n, temperature, max_tokens) == (2, 0.7, 32), "the samples are asked as stage score asks"
        if fault:
            raise RowFault("prompt too long")
        return [Sample(f"Because.\nAnswer: {one}", 6, 0.5, True) for one in (3, 4)]

    return asyncio.run(AnswerCourse(64, 1, 0.7, SCORING)({**ROW, "system": system}, ask))


def test_the_untaught_ta_alone_is_asked_for_the_entropy() -> None:
    base = answered("ta_base")
    assert base["correct"] and (base["entropy"], base["nll"], base["tokens"]) == (1.0, 0.5, 5 + 12)
    assert "entropy" not in answered("bridge") and answered("bridge")["correct"]


def test_a_question_that_cannot_be_scored_is_still_answered() -> None:
    base = answered("ta_base", fault=True)
    assert base["correct"] and "entropy" not in base


def test_hardness_is_of_the_rows_of_the_untaught_ta_and_unknown_where_they_errored() -> None:
    columns = {**dict.fromkeys(PREDICTION.names, [None] * 3), "entropy": [0.9, None, 0.1], "nll": [1.0, None, 1.0]}
    found = hardness_of(pa.table(QUESTIONS), pa.table(columns, schema=SCORED), 8)
    assert found.schema == HARDNESS
    assert [(row["id"], row["tenth"]) for row in found.to_pylist()] == [(7, 5), (8, -1), (9, 0)]


def evaluated(*fields: str) -> Stage:
    settings = config.load(str(TINY), fields)
    return pipeline.stages(settings, split(load(settings.corpus, 0), settings.corpus, 0))["evaluate"]


def test_what_is_asked_by_entropy_is_in_the_identity_and_nothing_is_where_it_is_off() -> None:
    plain = evaluated()
    assert "by_entropy" not in plain.identity["evaluate"] and "score" not in plain.identity
    assert evaluated("score.samples=3").identity == plain.identity
    asked = evaluated("evaluate.by_entropy=true")
    assert asked.identity["evaluate"] == {**plain.identity["evaluate"], "by_entropy": True}
    assert asked.identity["score"] == {"samples": 2, "temperature": 0.7, "max_tokens": 8}


def test_by_entropy_needs_the_engine_of_the_untaught_ta() -> None:
    with pytest.raises(UserError, match="by_entropy needs ta_base among evaluate.systems"):
        config.load(str(TINY), ["evaluate.by_entropy=true", "evaluate.systems=[bridge]"])
