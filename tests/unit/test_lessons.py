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
