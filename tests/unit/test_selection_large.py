"""Selection in partitions, its steps run in this process; tests/ray runs them in workers."""

import itertools
import math
import os

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge_ray import storage
from bridge_ray.config import Select
from bridge_ray.errors import UserError
from bridge_ray.inference import workers
from bridge_ray.records import SELECTION
from bridge_ray.selection import select
from bridge_ray.selection.describe import describe
from bridge_ray.selection.facts import remembered
from bridge_ray.selection.large import run as large
from bridge_ray.selection.lazy_greedy import lazy_greedy, objective
from bridge_ray.selection.neighbours import graph, normalise
from bridge_ray.selection.rank import rank
from bridge_ray.selection.strategies import STRATEGIES
from tests.corpora import left, selected


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Tasks are plain calls, with one thread each: for so few rows more would wait on one another."""
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    faiss.omp_set_num_threads(1)
    monkeypatch.setattr(workers, "call", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(workers, "each", lambda function, calls: [function(*arguments) for arguments in calls])


def corpus(n, d=16, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(n, d)).astype(np.float32) + 1, random.permutation(n) / n


def difficulty(out):
    return storage.read_table(f"{out}/rows.parquet")["difficulty"].to_numpy()


def share_of_exact(out, vectors, chosen, k=15):
    """F of the chosen rows over that of exact lazy greedy."""
    whole, weights = graph(normalise(vectors), k), 0.5 + 0.5 * difficulty(out)
    return objective(whole, weights, chosen) / objective(whole, weights, lazy_greedy(whole, weights, len(chosen))[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("count", [1, 60, 300])
def test_every_strategy_fills_the_ranking(strategy, count, tmp_path):
    vectors, entropy = corpus(300)
    inputs = left(tmp_path, vectors, entropy)
    table, metrics, cautions = selected(inputs, tmp_path / "out", 300, count, strategy=strategy)
    assert table.schema == SELECTION and cautions == []
    assert len(set(table["id"].to_pylist())) == count
    assert table["rank"].to_pylist() == list(range(count))
    assert sum(table["covers"].to_pylist()) == 300 and min(table["covers"].to_pylist()) >= 1
    assert 0 <= min(table["cluster"].to_pylist()) <= max(table["cluster"].to_pylist()) < 18
    assert metrics["chosen"] == count and (metrics["distance"]["max"] == 0) == (count == 300)
    assert not (tmp_path / "out" / "parts").exists()
    again, _, _ = selected(inputs, tmp_path / "again", 300, count, strategy=strategy)
    assert repr(again.to_pydict()) == repr(table.to_pydict())  # as text, where NaN is NaN


@pytest.mark.parametrize("strategy", ["random", "entropy"])
def test_what_looks_at_no_vector_ranks_as_the_whole_corpus_does(strategy, tmp_path):
    vectors, entropy = corpus(400)
    inputs = left(tmp_path, vectors, entropy, order=np.random.default_rng(1).permutation(400))
    table, _, _ = selected(inputs, tmp_path / "out", 400, 50, strategy=strategy, seed=3)
    whole = rank(vectors, difficulty(tmp_path / "out"), Select(strategy=strategy), 50, seed=3)
    assert table["id"].to_pylist() == whole["id"].to_pylist()


@pytest.mark.parametrize("strategy", ["bridge", "coverage"])
def test_where_every_partition_is_looked_into_the_ranking_is_the_exact_one(strategy, tmp_path):
    vectors, entropy = corpus(500)
    inputs = left(tmp_path, vectors, entropy, order=np.random.default_rng(1).permutation(500))
    table, _, _ = selected(inputs, tmp_path / "out", 500, 500, strategy=strategy)
    whole = rank(vectors, difficulty(tmp_path / "out"), Select(strategy=strategy), 500, seed=0)
    assert table["id"].to_pylist() == whole["id"].to_pylist()
    assert table["gain"].to_pylist() == pytest.approx(whole["gain"].to_pylist(), abs=1e-6)


@pytest.mark.parametrize(("cells", "least"), [(8, 0.98), (24, 0.93)])
def test_two_rounds_are_nearly_as_good_as_exact_greedy(cells, least, tmp_path):
    random = np.random.default_rng(0)
    vectors = (random.normal(size=(40, 32))[random.integers(0, 40, 3000)] + random.normal(size=(3000, 32))).astype("f4")
    inputs = left(tmp_path, vectors, random.random(3000))
    table, _, _ = selected(inputs, tmp_path / "out", 3000, 300, cells=cells)
    for count in (150, 300):
        assert share_of_exact(tmp_path / "out", vectors, table["id"].to_numpy()[:count]) >= least


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_two_rounds_reach_the_guarantee_of_greedy(tmp_path_factory, seed, count):
    folder = tmp_path_factory.mktemp("tiny")
    vectors, entropy = corpus(9, d=3, seed=seed)
    inputs = left(folder, vectors, entropy)
    table, _, _ = selected(inputs, folder / "out", 9, count, cells=3, neighbours=4)
    representatives = normalise(vectors)
    whole, weights = graph(representatives, 4), 0.5 + 0.5 * difficulty(folder / "out")
    optimum = max(objective(whole, weights, subset) for subset in itertools.combinations(range(9), count))
    reached = objective(whole, weights, table["id"].to_numpy())
    assert reached >= (1 - 1 / math.e) * optimum


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_near_duplicates_wait_also_across_partitions(strategy, tmp_path):
    random = np.random.default_rng(0)
    once = random.normal(size=(60, 32)).astype(np.float32)
    vectors = np.concatenate([once + 0.01 * random.normal(size=once.shape) for _ in range(3)]).astype(np.float32)
    entropy = random.permutation(180) / 180
    inputs = left(tmp_path, vectors, entropy)
    table, _, _ = selected(inputs, tmp_path / "out", 180, 100, cells=40, strategy=strategy)
    chosen = table["id"].to_numpy()
    assert sorted(chosen[:60] % 60) == list(range(60))
    hard = difficulty(tmp_path / "out")
    left_over = np.setdiff1d(np.arange(180), chosen[:60])
    assert chosen[60:].tolist() == left_over[np.argsort(-hard[left_over], kind="stable")][:40].tolist()
    assert np.isnan(table["gain"].to_numpy()[60:]).all()


def test_a_row_that_half_the_corpus_copies_is_ranked_once(tmp_path):
    vectors, entropy = corpus(600)
    vectors[::2] = vectors[0]
    inputs = left(tmp_path, vectors, entropy)
    table, _, _ = selected(inputs, tmp_path / "out", 600, 200, cells=10)
    assert (table["id"].to_numpy() % 2 == 0).sum() == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equal_embeddings_fall_back_with_a_caution(strategy, tmp_path):
    entropy = np.random.default_rng(0).permutation(90) / 90
    inputs = left(tmp_path, np.full((90, 4), 0.1), entropy)
    table, metrics, cautions = selected(inputs, tmp_path / "out", 90, 90, strategy=strategy)
    chosen = table["id"].to_pylist()
    assert sorted(chosen) == list(range(90)) and "all 90 embeddings are equal" in cautions[0]
    if strategy in ("bridge", "entropy"):
        assert chosen == np.argsort(-entropy).tolist()
    if strategy in ("coverage", "kcenter", "kmeans"):
        assert chosen == list(range(90))
    assert metrics["distance"] == {"mean": 0, "max": 0}


def test_equal_difficulties_fall_back_with_cautions(tmp_path):
    vectors, _ = corpus(200)
    inputs = left(tmp_path, vectors, np.zeros(200))
    bridge, _, cautions = selected(inputs, tmp_path / "out", 200, 40)
    assert [
        part for part in ("all entropies are 0", "all 200 rows are equally difficult") if part not in str(cautions)
    ] == []
    coverage, _, _ = selected(inputs, tmp_path / "coverage", 200, 40, strategy="coverage")
    assert bridge["id"] == coverage["id"]
    hardest, _, _ = selected(inputs, tmp_path / "entropy", 200, 40, strategy="entropy")
    assert hardest["id"].to_pylist() == list(range(40))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_embedding_that_is_not_finite_is_named(value, tmp_path):
    vectors, entropy = corpus(200)
    vectors[[120, 77], 3] = value
    inputs = left(tmp_path, vectors, entropy, order=np.arange(200)[::-1])
    with pytest.raises(UserError, match=r"row 77 holds NaN or infinity \(2 such rows\)"):
        selected(inputs, tmp_path / "out", 200, 20)


def test_embeddings_of_several_lengths_are_refused(tmp_path):
    vectors, entropy = corpus(200)
    rows = [*vectors[:150], *vectors[150:, :7]]
    with pytest.raises(UserError, match="not of one length"):
        selected(left(tmp_path, rows, entropy, files=1), tmp_path / "out", 200, 20)
    with pytest.raises(UserError, match="not of one length"):
        selected(left(tmp_path / "b", rows, entropy, files=4), tmp_path / "out", 200, 20)


def test_missing_rows_are_refused(tmp_path):
    vectors, entropy = corpus(200)
    with pytest.raises(
        UserError, match="there are 200 embeddings of 201 train rows|its 200 ids are not those of the 201"
    ):
        selected(left(tmp_path, vectors, entropy), tmp_path / "out", 201, 20)
    short = left(tmp_path / "short", vectors, entropy, order=np.arange(199))
    with pytest.raises(UserError, match="there are 199 embeddings of 200 train rows"):
        selected(short, tmp_path / "out", 200, 20)


@pytest.mark.parametrize("count", [0, 201])
def test_a_ranking_must_have_rows_and_no_more_than_there_are(count, tmp_path):
    vectors, entropy = corpus(200)
    with pytest.raises(UserError, match=f"cannot rank {count} of 200 train rows"):
        selected(left(tmp_path, vectors, entropy), tmp_path / "out", 200, count)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_fewer_rows_than_partitions(rows, tmp_path):
    vectors, entropy = corpus(rows)
    table, _, _ = selected(left(tmp_path, vectors, entropy, files=1), tmp_path / "out", rows, rows)
    assert sorted(table["id"].to_pylist()) == list(range(rows))


def test_metrics_are_those_of_the_whole_corpus(tmp_path):
    vectors, entropy = corpus(300)
    inputs = left(tmp_path, vectors, entropy)
    out = tmp_path / "out"
    table, metrics, _ = selected(inputs, out, 300, 60, bought=30)
    exact = describe(table.slice(0, 30), vectors, remembered(inputs.corpus, str(out)))
    assert metrics.pop("distance") == pytest.approx(exact.pop("distance"), abs=1e-5)  # 8 lists: all are looked into
    assert metrics == exact
    fewer = select.describe_bought(inputs, str(out), 17)
    exact = describe(table.slice(0, 17), vectors, remembered(inputs.corpus, str(out)))
    assert fewer.pop("distance") == pytest.approx(exact.pop("distance"), abs=1e-5) and fewer == exact


def test_rows_are_in_order_of_id_and_on_the_map(tmp_path):
    vectors, entropy = corpus(300)
    vectors[:, 5] *= 50
    entropy[7] = math.nan
    inputs = left(tmp_path, vectors, entropy, order=np.random.default_rng(1).permutation(300))
    selected(inputs, tmp_path / "out", 300, 30)
    rows = storage.read_table(f"{tmp_path}/out/rows.parquet")
    assert rows["id"].to_pylist() == list(range(300))
    assert rows["entropy"].to_pylist()[7] is None and rows["entropy"][8].as_py() == entropy[8]
    assert abs(np.corrcoef(rows["x"].to_numpy(), vectors[:, 5])[0, 1]) > 0.999


def test_partitions_of_the_whole_corpus_in_an_object_store(tmp_path, s3):
    vectors, entropy = corpus(60)
    table, metrics, _ = selected(left(s3, vectors, entropy), f"{s3}/out", 60, 12, cells=4)
    local, expected, _ = selected(left(tmp_path, vectors, entropy), tmp_path / "out", 60, 12, cells=4)
    assert table.equals(local) and metrics == expected


def test_a_large_corpus_gets_partitions_and_a_small_one_none():
    assert large.partitions(20_000) == 8 and large.partitions(1_000_000) == 400


def test_a_step_with_all_cores_leaves_none_of_them_to_the_next(monkeypatch) -> None:
    """Ray uses its processes again: two of them with two threads each once took twice as long on two cores."""
    before = faiss.omp_get_max_threads()
    try:
        monkeypatch.delenv("LOKY_MAX_CPU_COUNT")
        assert large.with_all_cores(faiss.omp_get_max_threads) == len(os.sched_getaffinity(0))
        assert faiss.omp_get_max_threads() == 1
    finally:
        faiss.omp_set_num_threads(before)
