"""Arithmetic that a text states: what holds, what does not, and what is not judged."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

import pytest

from bridge_ray.answers.arithmetic import mistakes, statements
from bridge_ray.config import Corpus
from bridge_ray.corpus.generated import read, solve
from bridge_ray.corpus.sources import files, gsm8k

GSM8K = Path(__file__).parents[2] / "../shared/data/gsm8k"
FILE = GSM8K / "train.jsonl.gz"
SLIPS = {
    167,
    168,
    198,
    224,
    502,
    716,
    847,
    1253,
}  # of the first 1,500 human rationales: "38 -32 = 32", "7+9+1+2 = 19.50"


@pytest.mark.parametrize(
    "text",
    [
        "3 * 150 = 450",
        "3 times 150 is 450, so the firm keeps it.",
        "20% of 50 is 10",
        "half of 50 is 25",
        "450 - 120 = 330",
        "$1,200 / 4 = 300",
        "100/3 = 33.3",
        "200/3 = 66.67 and 200/3 = 66.6",
        "7 / 2 = 4 buses",
        "5 snakes/jaguar * 6 jaguars = 30 snakes",
        "100% - 40% = 60%",
        "2 x 4 x 50% = 4",
        "10 / 40 = 25%",
        "5 * 20 cents = $1",
        "3 million / 4 = 750,000",
        "1 1/2 + 2 1/2 = 4",
        "(2 + 3) x 4 = 20",
        "-21/3 = -7",
        "600 minutes / 60 minutes = 10 hours",
        "3 * 5 = 15 + 4 = 19",  # run-on working: the first result is 15
        "11 + 20 + 7 = 38 stamps",
        "He sold 6*2.5=$<<6*2.5=15>>15",
    ],
)
def test_what_is_right_is_read_and_holds(text: str) -> None:
    assert statements(text) and mistakes(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "3 * 150 = 480",
        "3 times 150 is 480, so the firm keeps it.",
        "20% of 50 is 11",
        "half of 50 is 20",
        "450 - 120 = 320",
        "$1,200 / 4 = $310",
        "100/3 = 33.5",
        "0.4 + 0.3 = 1",
        "11 + 20 + 7 = 37 stamps",
        "5 snakes/jaguar * 6 jaguars = 32 snakes",
        "Step 1: the daily total is 3 times 14, which is 45 mg.",
        "The dose is 4 × 12 = 46 mg. That is 46, option B.",
        "9 + 2 = 16 more suckers than Jen",
        "He sold 6*2.5=$<<6*2.5=16>>15",
        "$7.50 + $2.50 = $11",
        "16 + 12 = $29 million",
        "95 - 25 - 50 = 30 cents",
        "The shelf holds (3 + 4) * 2 = 15",
    ],
)
def test_a_wrong_equation_is_found(text: str) -> None:
    assert len(mistakes(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "The parties are from the same state, so no.",
        "2x + 3 = 9, and x + 3 = 6",
        "3/4 of the class is 15",
        "80 - 20% = 64",
        "5 more than 6 + 7 = 18",
        "half of 10 + 20 is 15",
        "30 is below 45, from 2 to 4",
        "Each million is 4 percent of 25: 1 of 25 is 4 percent",
        "3 cups - 6 ounces = 18 ounces",
        "12 / 0 = 7",
        "$2 million + $500,000 = $2.5 million",
        "$2bn + $500,000,000 = $2.5bn",
        "2 dozen + 3 = 27",
        "2 dozen x 3 dozen = 864",
        "2 billion / 4 = 500 million",
        "20 + 3 = 1 dozen + 11",
        "4 pairs + 1 sock = 9 socks",
        "$3 - 50 cents = $2.50",
        "$3 - 50¢ = $2.50",
        "£2 - 30 pence = £1.70",
        "3 nickels + 2 dimes = 35 cents",
        "$2 * 4 = 80 dimes",
        "1 foot + 6 inches = 18 inches",
        "sqrt(16)+2 = 6",
        "3 + sqrt(16) + 1 = 8",
        "2 * 2 = 2 sqrt(4)",
        "log(100)*2 = 4",
        "the square root sqrt 16 + 2 = 6",
        "√16 + 2 = 6",
        "2² + 3 = 7",
        "3½ + 1 = 4.5",
        "5!/3! = 20",
        "|-3| + 2 = 5",
        "⌊7/2⌋ * 2 = 6",
        "From 8:00 to 12:00 is 4 hours",
        "9" * 400 + " + 1 = 2",
        "(" * 300 + "1 + 1" + ")" * 300 + " = 3",
        "1 + " * 500 + "1 = 3",
        "",
    ],
)
def test_what_cannot_be_read_for_certain_is_not_judged(text: str) -> None:
    assert mistakes(text) == []


def test_the_expert_makes_no_mistake_and_every_slip_in_its_sums_is_seen() -> None:
    """All styles of all templates; a slip is a result that is 7 too high."""
    seen = slipped = 0
    for example in read(Corpus(source="generated", train=540, test=0), seed=3):
        lettered = "".join(f"\n{chr(65 + i)}) {option}" for i, option in enumerate(example.options))
        solution = solve(example.question + lettered)
        assert solution is not None
        for rationale in solution.rationales:
            assert mistakes(rationale) == [], rationale
            for result in re.finditer(r"(?<= = )\d+", rationale):
                slip = rationale[: result.start()] + str(int(result[0]) + 7) + rationale[result.end() :]
                slipped, seen = slipped + 1, seen + bool(mistakes(slip))
    assert seen == slipped > 1000


@pytest.mark.skipif(not GSM8K.is_dir(), reason="the labelled data in ../shared/data is not here")
def test_human_rationales_hold_but_for_their_slips() -> None:
    recorded = gsm8k.recorded(str(GSM8K))[:1500]
    assert {number for number, row in enumerate(recorded) if mistakes(row.rationale)} == SLIPS
    random, found, changed = Random(0), 0, 0
    for row in recorded:
        results = list(re.finditer(r"(?<==)\s*\$?(\d+)(?![\d.,%/])", row.rationale))
        if results:
            result = random.choice(results)
            wrong = str(int(result[1]) + max(2, int(result[1]) // 2))
            text = row.rationale[: result.start(1)] + wrong + row.rationale[result.end(1) :]
            changed, found = changed + 1, found + bool(mistakes(text))
    assert found / changed > 0.85, "most of the results that were made wrong are seen"


@pytest.mark.skipif(not GSM8K.is_dir(), reason="the labelled data in ../shared/data is not here")
def test_what_a_calculator_has_noted_always_holds() -> None:
    notes = re.findall(r"<<.*?>>", json.dumps([row["answer"] for _, row in files.json_lines(FILE)][:1500]))
    assert len(notes) > 4000
    assert [note for note in notes if mistakes(note)] == []
