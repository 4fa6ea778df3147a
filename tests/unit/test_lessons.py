"""What a model is taught: which rows, and in which order."""

from __future__ import annotations

import pyarrow as pa
import pytest

from bridge_ray.training import lessons

CORPUS = pa.table(
    {
        "id": pa.chunked_array([[0, 1, 2], [3, 4]]),
        "question": [f"q{number}" for number in range(5)],
        "context": [""] * 5,
        "options": pa.array([[]] * 5, pa.list_(pa.string())),
    }
)
DIFFICULTY = pa.table({"id": [4, 3, 2, 1, 0], "difficulty": [0.4, 0.3, 0.2, 0.1, 0.0]})


def test_a_corpus_of_more_than_2_gib_of_text_is_learnt_from() -> None:
    """Which no array of strings can hold at once: to take rows of such a column fails."""
    chunk, times = pa.array(["x" * 65_536] * 1024), 40
    context = pa.chunked_array([chunk] * times)  # 2.5 GiB, of the same 64 MiB
    rows = len(context)
    texts = {
        "question": pa.array(["q"] * rows),
        "context": context,
        "options": pa.array([[]] * rows, pa.list_(pa.string())),
    }
    corpus = pa.table({"id": range(rows)} | texts)
    with pytest.raises(pa.ArrowInvalid, match="overflow"):
        corpus.take(pa.array([0]))
    written = pa.table({"id": [3, rows - 1], "rationale": ["r", "s"], "answer": ["a", "b"]})
    difficulty = pa.table({"id": range(rows), "difficulty": [0.5] * rows})
    assert lessons.rationales(corpus, written, difficulty)["id"].to_pylist() == [3, rows - 1]


@pytest.mark.parametrize("ids", [[1, 2, 4], [4, 1, 2]])
def test_each_rationale_stands_beside_its_question_in_order_of_id(ids: list[int]) -> None:
    """As *amplify* leaves them, and as they were bought, best first; one has none."""
    rationales = [None if number == 2 else f"r{number}" for number in ids]
    written = pa.table({"id": ids, "rationale": rationales, "answer": [f"a{number}" for number in ids]})
    found = lessons.rationales(CORPUS, written, DIFFICULTY).to_pylist()
    assert [row["id"] for row in found] == [1, 4]
    for row in found:
        number = row["id"]
        assert (row["question"], row["rationale"], row["label"]) == (f"q{number}", f"r{number}", f"a{number}")
        assert row["difficulty"] == number / 10 and row["pool"] == "rationale"
