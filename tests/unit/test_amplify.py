"""One row's way to a verified rationale, with a scripted engine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import pyarrow as pa
import pytest

from bridge_ray.amplify import AmplifyCourse, count, guess_rate, metrics, stage, verified
from bridge_ray.answers.verify import majority
from bridge_ray.config import TA, Amplify
from bridge_ray.inference.engine import RowFault, Sample
from bridge_ray.stage import Stage

NUMBER = {"id": 1, "question": "2 + 2?", "context": "", "options": [], "answer": "4", "answer_type": "number"}
BOOLEAN = {"id": 2, "question": "Is it?", "context": "", "options": [], "answer": "yes", "answer_type": "boolean"}
CHOICE = {"id": 3, "question": "Which dose?", "context": "", "options": ["4 mg", "9 mg"], "answer": "B"}
CHOICE |= {"answer_type": "choice"}


class Script:
    """Answers with the given texts in turn, and remembers what it was asked."""

    def __init__(self, *texts: str, nlls: Sequence[float] = ()):
        self.texts, self.nlls, self.prompts, self.temperatures = list(texts), list(nlls), [], []

    async def __call__(self, messages: Sequence[dict[str, str]], **options: Any) -> list[Sample]:
        self.prompts.append(messages[-1]["content"])
        self.temperatures.append(options.get("temperature", 0.0))
        return [self._reply(options.get("likelihood", False)) for _ in range(options.get("n", 1))]

    def _reply(self, likelihood: bool) -> Sample:
        return Sample(self.texts.pop(0), 10, self.nlls.pop(0) if likelihood else math.nan, finished=True)


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


def test_the_hint_says_what_an_option_is_and_not_its_letter_alone() -> None:
    script = Script(*["A guess.\nAnswer: A"] * 4, "Six is above five, so 9 mg.\nAnswer: B")
    record = run(CHOICE, script)
    assert "correct answer is B) 9 mg." in script.prompts[-1]
    assert (record["source"], record["answer"]) == ("ta_hinted", "B")


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


def test_without_checks_nothing_is_new() -> None:
    """What is in the identity was there before there were checks, so that finished stages are found again."""
    upstream = Stage("any", 1, {}, {}, lambda work: {})
    plain, checked = (
        stage(settings, TA(), 0, upstream, upstream, upstream, upstream)
        for settings in (Amplify(checks=()), Amplify(checks=("arithmetic",)))
    )
    rule = {"samples": 3, "temperature": 0.7, "max_tokens": 256, "hint": True, "verify": "gold"}
    assert plain.identity == {"amplify": rule, "serve": "merged", "seed": 0}
    assert checked.identity["amplify"] == rule | {"checks": ["arithmetic"]}
    assert checked.fingerprint != plain.fingerprint
    assert (plain.version, checked.version) == (4, 4)
    assert "turned_away" not in run(NUMBER, Script("Two and two.\nAnswer: 4"), checks=[])
    assert "checks" not in metrics(count(written(*ROWS), Amplify(checks=())), 5)


def test_wrong_arithmetic_is_not_kept_and_the_next_reply_is_tried() -> None:
    script = Script("2 + 1 = 4.\nAnswer: 4", "2 + 2 = 4.\nAnswer: 4", "never asked")
    record = run(NUMBER, script, checks=["arithmetic"])
    assert (record["rationale"], record["turned_away"], record["attempts"]) == ("2 + 2 = 4.", ["arithmetic"], 2)


def test_a_wrong_comparison_is_not_kept_and_the_next_reply_is_tried() -> None:
    script = Script("4 is more than 5.\nAnswer: 4", "4 is less than 5.\nAnswer: 4", "never asked")
    record = run(NUMBER, script, checks=["comparisons"])
    assert (record["rationale"], record["turned_away"], record["attempts"]) == ("4 is less than 5.", ["comparisons"], 2)


def test_reasoning_towards_another_option_is_not_kept_and_the_next_reply_is_tried() -> None:
    away = "Six is above five, so 4 mg, option B.\nAnswer: B"
    script = Script(away, "Six is above five, so 9 mg, option B.\nAnswer: B", away, away)
    record = run(CHOICE, script, checks=["options"])
    assert (record["rationale"], record["turned_away"]) == ("Six is above five, so 9 mg, option B.", ["options"])


def test_hinted_tries_are_checked_too() -> None:
    wrong = ["No.\nAnswer: 5"] * 2
    hinted = "2 + 1 = 4.\nAnswer: 4"
    record = run(NUMBER, Script(*wrong, hinted), samples=1, checks=["arithmetic"])
    assert (record["source"], record["turned_away"]) == ("label_only", ["arithmetic"])
    assert run(NUMBER, Script(*wrong, hinted), samples=1)["source"] == "label_only", "sums are checked by default"
    assert run(NUMBER, Script(*wrong, hinted), samples=1, checks=[])["source"] == "ta_hinted"


@pytest.mark.parametrize(
    ("answers", "source"), [("4 5 4 4", "ta"), ("4 5 5 6", "label_only"), ("4 5 4 5", "label_only")]
)
def test_with_majority_an_open_answer_must_be_right_most_of_the_time(answers: str, source: str) -> None:
    script = Script(*[f"Because.\nAnswer: {answer}" for answer in answers.split()])
    record = run(NUMBER, script, hint=False, checks=["majority"])
    right = answers.split().count("4")
    assert (record["source"], record["attempts"]) == (source, 4)
    assert record["turned_away"] == ([] if source == "ta" else ["majority"] * right)


def test_the_likeliest_of_the_right_replies_that_pass_is_kept() -> None:
    """The wrong one and the one with wrong arithmetic are likelier, and one that is right is less likely."""
    texts = ("A.\nAnswer: 4", "B.\nAnswer: 4", "2 + 1 = 4.\nAnswer: 4", "D.\nAnswer: 5")
    script = Script(*texts, nlls=(0.9, 0.5, 0.2, 0.1))
    record = run(NUMBER, script, checks=["likeliest", "arithmetic"])
    assert (record["rationale"], record["source"], record["attempts"]) == ("B.", "ta", 4)
    assert sorted(record["turned_away"]) == ["arithmetic", "likeliest"]


def test_reasoning_must_lead_to_the_answer_again() -> None:
    """Two candidates, and each is asked for its answer without its conclusion, under the prompt without a hint."""
    script = Script("Two is odd. So it is 4.\nAnswer: 4", " 5", "Twice two. So 4.\nAnswer: 4", " 4.")
    record = run(NUMBER, script, checks=["reanswer"])
    assert (record["rationale"], record["turned_away"]) == ("Twice two. So 4.", ["reanswer"])
    assert [script.prompts[1], script.prompts[3]] == ["Two is odd.\nAnswer:", "Twice two.\nAnswer:"]
    assert (record["attempts"], record["tokens"]) == (4, 40), "re-answers cost tokens as well"
    assert script.temperatures == [0.0, 0.0, 0.7, 0.0]


def test_no_reasoning_at_all_leads_to_nothing_however_well_the_ta_guesses() -> None:
    """Nothing is left of the first reply but its conclusion, so that the TA is not asked what it would guess."""
    script = Script("So it is 4.\nAnswer: 4", "Twice two. So 4.\nAnswer: 4", " 4.")
    record = run(NUMBER, script, checks=["reanswer"])
    assert (record["rationale"], record["turned_away"]) == ("Twice two. So 4.", ["reanswer"])
    assert script.prompts[2] == "Twice two.\nAnswer:" and record["attempts"] == 3
    alone = run(NUMBER, Script("So it is 4.\nAnswer: 4"), samples=0, hint=False, checks=["reanswer"])
    assert (alone["source"], alone["turned_away"]) == ("label_only", ["reanswer"])


def test_a_hinted_reply_is_re_answered_without_the_hint() -> None:
    wrong = ["No.\nAnswer: 5"]
    record = run(NUMBER, script := Script(*wrong, "Twice two. So 4.\nAnswer: 4", " 5"), samples=0, checks=["reanswer"])
    assert (record["source"], record["turned_away"]) == ("label_only", ["reanswer"])
    assert "correct answer" in script.prompts[1] and script.prompts[2] == "Twice two.\nAnswer:"


def test_without_a_label_the_checks_look_at_the_majority_s_replies() -> None:
    unlabelled = {**NUMBER, "answer": None}
    script = Script("A.\nAnswer: 7", "2 + 1 = 4.\nAnswer: 4", "C.\nAnswer: 4", "D.\nAnswer: 9")
    record = run(unlabelled, script, verify="self_consistency", checks=["arithmetic"])
    assert (record["answer"], record["rationale"], record["turned_away"]) == ("4", "C.", ["arithmetic"])


def test_what_checks_turned_away_is_added_up() -> None:
    settings = Amplify(checks=("arithmetic", "reanswer"))
    turned = pa.array([None, ["arithmetic"], ["arithmetic", "reanswer"], [], None], pa.list_(pa.string()))
    counts = count(written(*ROWS).append_column("turned_away", turned), settings)
    assert metrics(counts, 5, settings.checks)["checks"] == {"arithmetic": 2, "reanswer": 1}
    assert metrics(count(written(*ROWS), Amplify(checks=())), 5, ("majority",))["checks"] == {"majority": 0}


def test_majority_does_not_make_an_open_answer_guessable() -> None:
    assert guess_rate("number", 0, Amplify(checks=("majority",))) == 0.0


@pytest.mark.parametrize(("samples", "rate"), [(0, 0.5), (2, 0.5), (3, 5 / 16), (1, 0.25)])
def test_the_keep_rate_of_blind_guesses(samples: int, rate: float) -> None:
    """Strict majority of samples + 1 fair coins; of four: C(4,3) + C(4,4) = 5 of 16."""
    assert guess_rate("boolean", 0, Amplify(samples=samples)) == pytest.approx(rate)
    assert guess_rate("number", 0, Amplify(samples=samples)) == 0.0


@pytest.mark.parametrize("options", [2, 3, 5])
@pytest.mark.parametrize("samples", [0, 1, 4])
def test_the_keep_rate_of_blind_guesses_is_that_of_all_of_them(samples: int, options: int) -> None:
    """Every way to guess so often, and how many of them the rule itself keeps."""
    guesses = list(product("abcde"[:options], repeat=samples + 1))
    kept = sum(majority(guess) == "a" for guess in guesses)
    assert guess_rate("choice", options, Amplify(samples=samples)) == pytest.approx(kept / len(guesses))


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


def test_the_teacher_is_trusted_where_there_is_no_gold_answer_to_compare_with() -> None:
    """Else all that a corpus without labels has bought would be thrown away."""
    rows = [
        ("gold", "teacher", "4", True),
        ("wrong", "teacher", "5", False),
        ("unlabelled", "teacher", "4", None),
        ("unreadable", "teacher", None, None),
        ("cut off", None, None, None),
        ("explained", "ta", "4", True),
        ("not explained", "label_only", None, False),
    ]
    schema = pa.schema({"id": pa.string(), "source": pa.string(), "answer": pa.string(), "verified": pa.bool_()})
    table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)
    assert verified(table)["id"].to_pylist() == ["gold", "unlabelled", "explained"]


def test_what_became_of_the_rows_is_counted_by_domain_and_difficulty() -> None:
    """By hand: four rows were tried and one of them was kept; two are boolean, which chance keeps with 5/16."""
    parts = [count(written(*some), Amplify(checks=())) for some in (ROWS[:2], ROWS[2:])]
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


@pytest.mark.parametrize("corpus", [4, 6])
def test_rows_are_conserved_or_the_run_fails(corpus: int) -> None:
    with pytest.raises(RuntimeError, match="lost or doubled"):
        metrics(count(written(*ROWS), Amplify(checks=())), corpus)


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
