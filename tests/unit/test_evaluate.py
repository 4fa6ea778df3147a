"""What counts as a right answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from bridge_ray import config, pipeline
from bridge_ray.answers import prompts
from bridge_ray.corpus.load import load
from bridge_ray.corpus.splits import split
from bridge_ray.errors import Outage, UserError
from bridge_ray.evaluate import SCORED, AnswerCourse, guesses, hardness_of, prediction
from bridge_ray.inference.engine import RowFault, Sample
from bridge_ray.objects import open_store
from bridge_ray.progress import Progress
from bridge_ray.records import HARDNESS, PREDICTION
from bridge_ray.selection.score import ScoreCourse
from bridge_ray.stage import Done, Stage, perform
from bridge_ray.teacher import teach
from bridge_ray.teacher.ledger import Account, Cap
from bridge_ray.teacher.statement import release
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


ANSWERS_ALONE = "student.curriculum=[{target: answer, epochs: 1}]"


@pytest.mark.parametrize(
    ("system", "field", "instruction"),
    [
        ("labels", "seed=0", prompts.ANSWER),
        ("bridge", "seed=0", prompts.REASON),
        ("bridge", "student.control=reasoning_only", prompts.REASON),
        ("bridge", "student.control=answers_only", prompts.ANSWER),
        ("direct_labels", ANSWERS_ALONE, prompts.ANSWER),
        ("direct", ANSWERS_ALONE, prompts.REASON),
        ("ta", "student.control=answers_only", prompts.REASON),
    ],
)
def test_a_student_is_asked_as_it_was_taught(system: str, field: str, instruction: str) -> None:
    async def ask(messages: Any, **_: Any) -> list[Sample]:
        assert messages[0]["content"] == instruction
        return [Sample("Answer: 4", 5, math.nan, True)]

    settings = config.load(str(TINY), ["teacher.standin={}", field])
    corpus = split(load(settings.corpus, settings.seed), settings.corpus, settings.seed)
    stage = pipeline.stages(settings, corpus)["evaluate"]
    [course] = [part for part in stage.run.args if isinstance(part, AnswerCourse)]
    assert asyncio.run(course({**ROW, "system": system}, ask))["correct"]


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


# --- the guess


def test_a_guess_is_the_commonest_training_answer_of_the_question_s_kind() -> None:
    def kind(answer_type: str, *answers: str | None) -> list[dict[str, Any]]:
        return [{"answer": answer, "answer_type": answer_type} for answer in answers]

    train = kind("boolean", "no", "yes", "no", None, None, None) + kind("choice", "B", "A") + kind("number", "3")
    asked = kind("boolean", "yes", "no") + kind("choice", "A", "B") + kind("text", "x")
    rows = [row | {"id": number} for number, row in enumerate(asked)]
    found = guesses(pa.Table.from_pylist(train), pa.Table.from_pylist(rows)).to_pylist()
    assert [row["answer"] for row in found] == ["no", "no", "A", "A", None]
    assert [row["correct"] for row in found] == [False, True, True, False, False]


# --- the teacher


def teacher_asked(root: Path, *fields: str) -> Callable[[], Done]:
    """What asks a stand-in the 12 test questions of the tiny recipe."""
    asked = ["teacher.standin={}", "evaluate.systems=[teacher]", f"storage={root}", *fields]
    settings = config.load(str(TINY), asked)
    stages = pipeline.stages(settings, split(load(settings.corpus, 0), settings.corpus, 0))
    quiet = Progress(Console(quiet=True))

    def performed() -> Done:
        for name in ("corpus", "evaluate"):
            done = perform(stages[name], str(root), "tiny", settings.engine, settings.training, quiet)
        return done

    return performed


def test_an_account_without_room_for_all_test_questions_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        teacher_asked(tmp_path, "budget.account={name: team, max_queries: 5}")()
    assert str(caught.value) == (
        "evaluate: the teacher was not asked 7 of the 12 test questions: budget.account team has no more room; raise "
        "its cap, or leave teacher out of evaluate.systems"
    )
    done = teacher_asked(tmp_path, "budget.account={name: team, max_queries: 12}")()
    assert (done.metrics["eval_queries"], done.metrics["systems"]["teacher"]["n"]) == (12, 12)


def test_a_teacher_that_was_away_for_a_while_is_not_taken_for_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, away = teach.buy, 2

    async def flaky(*arguments: Any) -> Any:
        return replace(await real(*arguments), unreached=away)

    monkeypatch.setattr(teach, "buy", flaky)
    asked = teacher_asked(tmp_path)
    with pytest.raises(Outage, match="2 of 12 questions got no answer.*run again"):
        asked()
    away = 1  # perhaps one that it never answers
    assert asked().metrics["systems"]["teacher"]["n"] == 12


def test_what_others_have_only_reserved_does_not_end_a_walk_for_good(tmp_path: Path) -> None:
    """They reserve the worst and will pay a part of it: the stage would be done, and short, once they have."""
    store, asked = (
        open_store(str(tmp_path / "teacher")),
        teacher_asked(tmp_path, "budget.account={name: team, max_queries: 12}"),
    )

    async def reserve() -> None:
        other = Account(store, "team", Cap(12), "other", "other", "stand-in-expert")
        for key in ("one", "two"):
            await other.reserve(key, 0.25)

    asyncio.run(reserve())
    with pytest.raises(
        Outage, match=r"account team: \$0.5000 of its cap of 12 queries is reserved for queries of others"
    ):
        asked()
    asyncio.run(release(store, "team", [], "not billed"))
    assert asked().metrics["systems"]["teacher"]["n"] == 12


def test_queries_that_were_lost_leave_no_room_until_they_are_released(tmp_path: Path) -> None:
    """Two queries left with an attempt that was killed, and no answer to them came."""
    store, asked = open_store(str(tmp_path / "teacher")), teacher_asked(tmp_path)
    settings = config.load(str(TINY), ["teacher.standin={}", "evaluate.systems=[teacher]"])
    stages = pipeline.stages(settings, split(load(settings.corpus, 0), settings.corpus, 0))
    fingerprint = stages["evaluate"].fingerprint

    async def lose() -> None:
        account = Account(store, f"evaluate-{fingerprint}", Cap(12), fingerprint, "tiny", "stand-in-expert")
        for key in ("one", "two"):
            await account.reserve(key, 0.01)

    asyncio.run(lose())
    with pytest.raises(UserError, match="not asked 2 of the 12 test questions: .* ledger release evaluate-"):
        asked()
    asyncio.run(release(store, f"evaluate-{fingerprint}", [], "not billed"))
    assert asked().metrics["systems"]["teacher"]["n"] == 12
