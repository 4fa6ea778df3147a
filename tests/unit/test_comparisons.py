"""Comparisons that a text states: what holds, what does not, and what is not judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge_ray.answers.comparisons import comparisons, misjudged
from bridge_ray.config import Corpus
from bridge_ray.corpus.generated import read, solve
from bridge_ray.corpus.sources import gsm8k

GSM8K = Path(__file__).parents[2] / "../shared/data/gsm8k"


@pytest.mark.parametrize(
    "text",
    [
        "12 is more than 10.",
        "9 - 2 = 7 million. That is not less than 3 million, so it is due.",
        "The dose is 2 x 8 = 16 mg. That is more than the maximum of 12 mg, so 12 mg.",
        "$90,000 is more than $75,000.",
        "A kidney value of 50, which is from 40 to 60.",
        "40 is from 40 to 60, and 61 is not between 40 and 60",
        "4 hours is at least 4 hours",
        "8 is less than or equal to 8",
        "3 < 5, 5 >= 5 and 5 ≤ 6",
        "6 + 2 = 8 and 8 is below 9: yes",
        "45% is above 40%",
        "7.5 is clearly lower than 7.6",
        "5 isn't more than 5",
    ],
)
def test_what_is_right_is_read_and_holds(text: str) -> None:
    assert comparisons(text) and misjudged(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "12 is less than 10.",
        "9 - 2 = 7 million. That is less than 3 million, so it is not due.",
        "The dose is 2 x 8 = 16 mg. That is not more than the maximum of 12 mg, so 16 mg.",
        "$90,000 is not more than $75,000.",
        "A kidney value of 65, which is from 40 to 60.",
        "50 is not between 40 and 60",
        "3 hours is at least 4 hours",
        "9 is less than or equal to 8",
        "5 < 3",
        "6 + 2 = 8 and 8 is below 7: yes",
        "4% is above 40%",
        "7.5 is clearly higher than 7.6",
        "5 is more than 5",
        "9 is no more than 8",
    ],
)
def test_a_wrong_comparison_is_found(text: str) -> None:
    assert len(misjudged(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "If 5 is more than 7, there is a bonus.",
        "He asks whether 5 is more than 7.",
        "2 hours is less than 90 minutes",
        "$3 is more than 50 cents",
        "8 is less than 3 million",
        "3 million is more than 4",
        "40% is more than 50",
        "$3 million is less than 2",
        "$3 million is less than $2",
        "3 + 2 is more than 4",
        "2 x 3 is less than 4",
        "half of 50 is less than 30",
        "20% of 50 is less than 30",
        "the sum of 3 and 4 is less than 3",
        "4 is more than twice 5",
        "4 is more than 5 - 3",
        "4 is more than 2 x 1 x 3",
        "4 is more than the sum of 3 and 2",
        "40 is more than 50% of 60",
        "12 is 10 more than 2, and 9 is 3 times less than 27",
        "-3 is more than 2",
        "2:30 is less than 1",
        "twelve is less than 10",
        "In 2015, sales were more than 3",
        "Is 5 more than 7?",
        "",
    ],
)
def test_what_cannot_be_read_for_certain_is_not_judged(text: str) -> None:
    assert misjudged(text) == []


def test_the_expert_compares_rightly_and_is_found_out_where_it_does_not() -> None:
    """All styles of all templates; what is turned around is the first relation of a comparison that was read."""
    turned = {"is not more than": "is more than", "is more than": "is not more than", "is less than": "is at least"}
    turned |= {"is at least": "is less than", "is above": "is below", "is below": "is above"}
    seen = changed = 0
    for example in read(Corpus(source="generated", train=540, test=0), seed=3):
        lettered = "".join(f"\n{chr(65 + i)}) {option}" for i, option in enumerate(example.options))
        solution = solve(example.question + lettered)
        assert solution is not None
        for rationale in solution.rationales:
            assert misjudged(rationale) == [], rationale
            for statement in comparisons(rationale):
                relation = next((words for words in turned if words in statement.text), None)
                if relation is not None:
                    wrong = rationale.replace(statement.text, statement.text.replace(relation, turned[relation]))
                    changed, seen = changed + 1, seen + (len(misjudged(wrong)) == 1)
    assert seen == changed > 700


@pytest.mark.skipif(not GSM8K.is_dir(), reason="the labelled data in ../shared/data is not here")
def test_no_human_rationale_is_called_wrong() -> None:
    rationales = [row.rationale for row in gsm8k.recorded(str(GSM8K))]
    assert len([read for text in rationales for read in comparisons(text)]) > 20
    assert [text for text in rationales if misjudged(text)] == []
