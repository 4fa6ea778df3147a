"""Options that a text calls by another option's letter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge_ray.answers.options import misnamed
from bridge_ray.config import Corpus
from bridge_ray.corpus.generated import read, solve

AQUA = Path(__file__).parents[2] / "../shared/data/aqua/dev.json"
DOSES = ("4 mg", "1 mg", "9 mg")
MET = ("only different states", "both requirements", "neither requirement", "only the amount")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("The table gives 9 mg, option C.", DOSES),
        ("The table gives 9 MG (C).", DOSES),
        ("9 mg is more than 4 mg, so C) 9 mg", DOSES),
        ("Not 4 mg, so option C", DOSES),  # another clause
        ("The value is high. So the answer is option C.", DOSES),
        ("Option A or option C: 9 mg", DOSES),  # which letter is meant is not known
        ("Both requirements are met: option B", MET),
        ("Vitamin C helps, so 4 mg.", DOSES),
        ("It is 14 mg, option C", DOSES),  # no option's text
        ("4 mg, option C", ()),
    ],
)
def test_what_is_right_or_not_certain_is_left_alone(text: str, options: tuple[str, ...]) -> None:
    assert misnamed(text, options) == []


@pytest.mark.parametrize(
    ("text", "options", "clause"),
    [
        ("The kidney value is 65. The table gives 4 mg, option C.", DOSES, "The table gives 4 mg, option C"),
        ("C) 1 mg", DOSES, "C) 1 mg"),
        ("So what is met is both requirements, option D.", MET, "So what is met is both requirements, option D"),
    ],
)
def test_another_option_s_letter_is_found(text: str, options: tuple[str, ...], clause: str) -> None:
    assert misnamed(text, options) == [clause]


def test_no_expert_s_rationale_is_turned_away() -> None:
    rows = [row for row in read(Corpus(source="generated", train=900, test=0), 0) if row.options]
    for row in rows:
        lettered = "".join(f"\n{chr(65 + i)}) {option}" for i, option in enumerate(row.options))
        solution = solve(row.question + lettered)
        assert solution is not None
        assert not any(misnamed(text, row.options) for text in solution.rationales)
    assert len(rows) >= 250


@pytest.mark.skipif(not AQUA.is_file(), reason="the labelled data in ../shared/data is not here")
def test_no_human_rationale_is_turned_away() -> None:
    """Four of them give a letter beside an option's text; the others must not be mistaken for such."""
    rows = [json.loads(line) for line in AQUA.read_text().splitlines()]
    options = [[option.partition(")")[2] for option in row["options"]] for row in rows]
    assert len(rows) > 200
    assert not any(misnamed(row["rationale"], texts) for row, texts in zip(rows, options, strict=True))
