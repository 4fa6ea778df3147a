"""Selection in partitions on real Ray workers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from bridge_ray import storage
from bridge_ray.errors import UserError
from bridge_ray.inference import local_ray, workers
from bridge_ray.selection.lazy_greedy import lazy_greedy, objective
from bridge_ray.selection.neighbours import graph, normalise
from tests.corpora import left, selected

ROWS = 4000


@pytest.fixture(scope="module", autouse=True)
def started() -> None:
    local_ray.start()


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    random = np.random.default_rng(0)
    topics = random.normal(size=(80, 48))
    return (topics[random.integers(0, 80, ROWS)] + random.normal(size=(ROWS, 48))).astype(np.float32)


def test_eight_partitions_are_nearly_as_good_as_exact_greedy_and_repeat_themselves(
    vectors: np.ndarray, tmp_path: Path
) -> None:
    entropy = np.random.default_rng(1).random(ROWS)
    inputs = left(tmp_path, vectors, entropy)
    table, metrics, cautions = selected(inputs, tmp_path / "out", ROWS, ROWS // 10, bought=ROWS // 20)
    assert metrics["chosen"] == ROWS // 20 and cautions == []
    whole = graph(normalise(vectors), 15)
    weights = 0.5 + 0.5 * storage.read_table(f"{tmp_path}/out/rows.parquet")["difficulty"].to_numpy()
    for count in (ROWS // 20, ROWS // 10):
        exact = objective(whole, weights, lazy_greedy(whole, weights, count)[0])
        assert objective(whole, weights, table["id"].to_numpy()[:count]) >= 0.98 * exact
    again, _, _ = selected(inputs, tmp_path / "again", ROWS, ROWS // 10)
    assert again.equals(table)


def test_a_mistake_in_a_worker_is_one_line_here(vectors: np.ndarray, tmp_path: Path) -> None:
    broken = vectors[:200].copy()
    broken[55, 0] = math.nan
    with pytest.raises(UserError, match="the embedding of row 55 holds NaN or infinity") as raised:
        selected(left(tmp_path, broken, np.zeros(200)), tmp_path / "out", 200, 20)
    assert "\n" not in str(raised.value)


def refuse(number: int) -> int:
    if number == 7:
        raise UserError("seven")
    return 2 * number


def test_workers_answer_in_order_and_refuse_in_plain_words() -> None:
    assert workers.each(refuse, [(number,) for number in (3, 1, 2, 5, 4)]) == [6, 2, 4, 10, 8]
    assert workers.each(refuse, []) == []
    for _ in range(100):  # calls that run then may be just ending: to cancel those killed the driver, now and then
        with pytest.raises(UserError, match="^seven$"):
            workers.each(refuse, [(number,) for number in range(20)])
