"""One row's way to a verified rationale, with a scripted engine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from bridge_ray.amplify import AmplifyCourse, count, guess_rate, metrics
from bridge_ray.config import Amplify
from bridge_ray.inference.engine import RowFault, Sample

NUMBER = {"id": 1, "question": "2 + 2?", "context": "", "options": [], "answer": "4", "answer_type": "number"}
BOOLEAN = {"id": 2, "question": "Is it?", "context": "", "options": [], "answer": "yes", "answer_type": "boolean"}


class Script:
    """Answers with the given texts in turn, and remembers what it was asked."""

    def __init__(self, *texts: str):
        self.texts, self.prompts, self.temperatures = list(texts), [], []

    async def __call__(self, messages: Sequence[dict[str, str]], **options: Any) -> list[Sample]:
        self.prompts.append(messages[-1]["content"])
        self.temperatures.append(options.get("temperature", 0.0))
        return [Sample(self.texts.pop(0), 10, math.nan, finished=True) for _ in range(options.get("n", 1))]


def run(row: dict[str, Any], script: Script, **settings: Any) -> dict[str, Any]:
    return asyncio.run(AmplifyCourse(Amplify(**settings), "ta", "hash")(row, script))


def test_an_open_answer_stops_at_the_first_match() -> None:
    script = Script("Wrong.\nAnswer: 5", "Two and two.\nAnswer: 4", "never asked")
    record = run(NUMBER, script)
    assert (record["source"], record["rationale"], record["verified"]) == ("ta", "Two and two.", True)
    assert (record["attempts"], record["tokens"]) == (2, 20)
    assert script.temperatures == [0.0, 0.7]
    assert not any("4" in prompt.removeprefix("2 + 2?") for prompt in script.prompts)


@pytest.mark.parametrize(
    ("answers", "source"), [("yes no yes yes", "ta"), ("no yes no no", "label_only"), ("yes no yes no", "label_only")]
)
def test_a_guessable_answer_must_be_the_majority(answers: str, source: str) -> None:
    script = Script(*[f"Because.\nAnswer: {answer}" for answer in answers.split()])
    record = run(BOOLEAN, script, hint=False)
    assert record["source"] == source
    assert record["attempts"] == 4
    assert (record["rationale"] is None) == (source == "label_only")


def test_the_last_try_is_hinted_and_may_not_say_so() -> None:
    wrong = ["No.\nAnswer: 5"] * 4
    told = run(NUMBER, Script(*wrong, "As I was told, it is four.\nAnswer: 4"))
    found = run(NUMBER, hinted := Script(*wrong, "Two and two make four.\nAnswer: 4"))
    assert (told["source"], found["source"]) == ("label_only", "ta_hinted")
    assert "correct answer is 4" in hinted.prompts[-1]
    assert (told["answer"], told["rationale"]) == ("4", None)


def test_an_answer_without_a_rationale_does_not_count() -> None:
    record = run(NUMBER, Script("Answer: 4", "Answer: 4"), samples=1, hint=False)
    assert record["source"] == "label_only"


def test_two_answers_in_one_reply_do_not_count() -> None:
    record = run(NUMBER, Script("So.\nAnswer: 5.\nAnswer: 4"), samples=0, hint=False)
    assert record["source"] == "label_only"


def test_without_a_label_the_majority_decides() -> None:
    unlabelled = {**NUMBER, "answer": None}
    script = Script("A.\nAnswer: 7", "B.\nAnswer: 4", "C.\nAnswer: 4", "D.\nAnswer: 9")
    record = run(unlabelled, script, verify="self_consistency")
    assert (record["answer"], record["rationale"], record["source"]) == ("4", "B.", "ta")
    undecided = run(unlabelled, Script("A.\nAnswer: 7", "B.\nAnswer: 4"), verify="self_consistency", samples=1)
    assert (undecided["source"], undecided["answer"]) == ("label_only", None)


def test_verification_off_keeps_what_comes() -> None:
    record = run(NUMBER, Script("So.\nAnswer: 5"), verify="off")
    assert (record["answer"], record["verified"], record["source"]) == ("5", False, "ta")


@pytest.mark.parametrize(("samples", "rate"), [(0, 0.5), (2, 0.5), (3, 5 / 16), (1, 0.25)])
def test_the_keep_rate_of_blind_guesses(samples: int, rate: float) -> None:
    """Strict majority of samples + 1 fair coins; of four: C(4,3) + C(4,4) = 5 of 16."""
    assert guess_rate("boolean", 0, Amplify(samples=samples)) == pytest.approx(rate)
    assert guess_rate("number", 0, Amplify(samples=samples)) == 0.0


def written(*rows: tuple[str | None, str, str, list[str], float]) -> pa.Table:
    """Records as *amplify* leaves them, with what the corpus and the selection know of the same rows."""
    names = ("source", "domain", "answer_type", "options", "difficulty")
    table = pa.Table.from_pylist(
        [dict(zip(names, row, strict=True)) | {"attempts": 2, "tokens": 30, "error": None} for row in rows],
        schema=pa.schema(
            [
                ("source", pa.string()),
                ("domain", pa.string()),
                ("answer_type", pa.string()),
                ("options", pa.list_(pa.string())),
                ("difficulty", pa.float64()),
                ("attempts", pa.int64()),
                ("tokens", pa.int64()),
                ("error", pa.string()),
            ]
        ),
    )
    errors = ["the prompt fills it: 900 tokens" if row[0] is None else None for row in rows]
    return table.set_column(table.schema.get_field_index("error"), "error", pa.array(errors, pa.string()))


ROWS = (
    ("teacher", "law/uk", "boolean", [], 1.0),
    ("ta", "law/uk", "boolean", [], 0.05),
    ("label_only", "law/uk", "boolean", [], 0.95),
    ("ta_hinted", "sums", "number", [], 0.5),
    (None, "sums", "number", [], 0.55),
)


def test_what_became_of_the_rows_is_counted_by_domain_and_difficulty() -> None:
    """By hand: four rows were tried and one of them was kept; two are boolean, which chance keeps with 5/16."""
    parts = [count(written(*some), Amplify()) for some in (ROWS[:2], ROWS[2:])]
    found = metrics(parts[0] + parts[1], 5)
    assert found["rows"] == {"corpus": 5, "teacher": 1, "ta": 1, "ta_hinted": 1, "label_only": 1, "errored": 1}
    assert found["domains"] == {
        "law/uk": {"teacher": 1, "ta": 1, "label_only": 1},
        "sums": {"ta_hinted": 1, "failed": 1},
    }
    assert found["difficulty"] == {
        "0": {"ta": 1},
        "5": {"ta_hinted": 1, "failed": 1},
        "9": {"label_only": 1, "teacher": 1},
    }
    assert (found["attempts"], found["tokens"]) == (8, 120)
    c = 2 * (5 / 16) / 4
    assert found["keep"] == {"ta": 0.25, "by_chance": round(c, 4), "above_chance": round((0.25 - c) / (1 - c), 4)}
    assert parts[1]["fault/the prompt fills it"] == 1


@pytest.mark.parametrize("corpus", [4, 6])
def test_rows_are_conserved_or_the_run_fails(corpus: int) -> None:
    with pytest.raises(RuntimeError, match="lost or doubled"):
        metrics(count(written(*ROWS), Amplify()), corpus)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ""}, "the question is empty"),
        ({"answer": None}, "no answer to verify with"),
        ({"fault": "the row cannot be read: no number"}, "no number"),
    ],
)
def test_a_row_that_cannot_be_explained_says_why(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RowFault, match=message):
        run({**NUMBER, **change}, Script())
