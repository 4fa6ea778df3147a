"""Selection on corpora small enough to check by hand or by brute force."""

import itertools
import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_ray.config import Budget, Select
from bridge_ray.errors import UserError
from bridge_ray.records import SELECTION
from bridge_ray.selection.describe import Facts, describe, map_2d
from bridge_ray.selection.lazy_greedy import gain, lazy_greedy, objective
from bridge_ray.selection.neighbours import Graph, clusters, graph, merge_near_duplicates, nearest, normalise
from bridge_ray.selection.problem import Problem
from bridge_ray.selection.rank import examples_in_budget, rank, rank_length
from bridge_ray.selection.strategies import STRATEGIES

SEEDS = st.integers(0, 2**32 - 1)
settings.register_profile("untimed", deadline=None)  # timings belong in benchmarks
settings.load_profile("untimed")
GEOMETRIC = ("bridge", "coverage", "kcenter", "kmeans")


def corpus(n, d=8, seed=0):
    """n random embeddings off the origin, and a difficulty for each."""
    random = np.random.default_rng(seed)
    return random.normal(size=(n, d)).astype(np.float32) + 3, random.permutation(n) / n


def blobs(sizes, noise=0.05, seed=0):
    """Unit vectors around orthogonal axes, sizes[i] around axis i."""
    random = np.random.default_rng(seed)
    axes = np.repeat(np.arange(len(sizes)), sizes)
    vectors = np.eye(len(sizes))[axes] + random.normal(scale=noise, size=(len(axes), len(sizes)))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), axes


def problem(vectors, difficulty=None, **fields):
    n = len(vectors)
    defaults = {"copies": np.ones(n, np.int64), "difficulty_weight": 0.5, "neighbours": 15, "seed": 0}
    return Problem(vectors, np.full(n, 0.5) if difficulty is None else difficulty, **defaults | fields)


def ids(vectors, difficulty, count, strategy="bridge", seed=0, **fields):
    return rank(vectors, difficulty, Select(strategy=strategy, **fields), count, seed)["id"].to_pylist()


def dense(similarities):
    """A Graph from a full (n, n) matrix of positive similarities."""
    n = len(similarities)
    return Graph(np.arange(n + 1) * n, np.tile(np.arange(n), n), similarities.astype(np.float32).ravel())


def plain_greedy(neighbours, weights, count):
    mass, chosen = np.zeros(len(neighbours)), []
    for _ in range(count):
        left = [row for row in range(len(neighbours)) if row not in chosen]
        best = max(left, key=lambda row: (gain(neighbours, weights, mass, row), -row))
        rows, similarities = neighbours.around(best)
        mass[rows] += similarities
        chosen.append(best)
    return chosen


# --- geometry ---


def test_normalise_centres_and_scales():
    unit = normalise(np.array([[1, 1], [3, 1], [2, 5], [2, 1]], np.float32))  # mean (2, 2)
    assert unit == pytest.approx(np.array([[-1, -1], [1, -1], [0, 1], [0, -1]]) / [[2**0.5], [2**0.5], [1], [1]])
    assert unit.dtype == np.float32


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_equal_embeddings_become_zeros(value):
    assert not normalise(np.full((777, 5), value, np.float32)).any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_embedding_that_is_not_finite_is_named(value):
    vectors, difficulty = corpus(10)
    vectors[7, 2] = value
    with pytest.raises(UserError, match="row 7 "):
        rank(vectors, difficulty, Select(), 2, seed=0)


def test_near_duplicates_join_their_first_row():
    vectors = np.array([[1, 0], [0, 1], [0.999, 0.0447], [-1, 0], [0, 1]], np.float32)
    assert merge_near_duplicates(vectors).tolist() == [0, 1, 0, 3, 1]


def test_near_duplicates_are_found_across_blocks():
    vectors = np.tile(normalise(corpus(700, d=16)[0]), (3, 1))
    assert (merge_near_duplicates(vectors) == np.tile(merge_near_duplicates(vectors[:700]), 3)).all()


@given(SEEDS)
def test_representatives_are_near_their_rows_and_far_from_one_another(seed):
    vectors = normalise(corpus(30, d=2, seed=seed)[0])
    representative = merge_near_duplicates(vectors)
    kept = np.unique(representative)
    assert (representative[kept] == kept).all()
    assert ((vectors * vectors[representative]).sum(axis=1) >= 0.98 - 1e-6).all()
    between = vectors[kept] @ vectors[kept].T
    assert (between[~np.eye(len(kept), dtype=bool)] < 0.98 + 1e-6).all()


@given(SEEDS, st.integers(1, 12))
def test_graph_holds_the_nearest_is_symmetric_and_includes_self(seed, k):
    vectors = normalise(corpus(9, seed=seed)[0])
    cosine = vectors @ vectors.T
    neighbours = graph(vectors, k)
    edges = {(row, int(to)): s for row in range(9) for to, s in zip(*neighbours.around(row), strict=True)}
    for row in range(9):
        assert edges[row, row] == 1
        others = [to for to in np.argsort(-cosine[row]) if to != row and cosine[row, to] > 0]
        assert all((row, to) in edges for to in others[:k])
    for (row, to), similarity in edges.items():
        assert edges[to, row] == pytest.approx(similarity, abs=1e-6)
        assert similarity == pytest.approx(max(0, cosine[row, to]), abs=1e-5)


def test_inverted_lists_agree_with_the_exact_search():
    vectors, axes = blobs([400] * 5)
    exact, lists = graph(vectors, 5), graph(vectors, 5, exact_rows=100)
    shared = np.intersect1d(*(np.repeat(np.arange(2000), np.diff(g.starts)) * 2000 + g.rows for g in (exact, lists)))
    assert len(shared) > 0.9 * len(exact.rows)
    positions, cosine = nearest(vectors, vectors, exact_rows=100)
    assert (axes[positions] == axes).all() and cosine == pytest.approx(1, abs=1e-5)
    kept = np.unique(merge_near_duplicates(vectors, exact_rows=100))
    assert set(axes[kept]) == set(range(5))


# --- lazy greedy ---


def test_lazy_greedy_by_hand():
    neighbours = dense(np.array([[1, 0.5, 0.1], [0.5, 1, 0.5], [0.1, 0.5, 1]]))
    chosen, gains = lazy_greedy(neighbours, np.ones(3), 3)
    assert chosen.tolist() == [1, 0, 2]  # the middle, then a tie: the lower index
    assert gains[0] == pytest.approx(math.log(2) + 2 * math.log(1.5))
    assert gains[1] == pytest.approx(math.log(2.5 / 1.5) + math.log(2.5 / 2) + math.log(1.6 / 1.5))


@given(SEEDS, st.integers(1, 15), st.integers(1, 8))
def test_lazy_greedy_is_plain_greedy(seed, count, k):
    random = np.random.default_rng(seed)
    neighbours = graph(normalise(random.integers(-2, 3, (15, 3)).astype(np.float32)), k)  # many ties
    weights = random.integers(0, 3, 15) / 2
    chosen, gains = lazy_greedy(neighbours, weights, count)
    assert chosen.tolist() == plain_greedy(neighbours, weights, count)
    assert (np.diff(gains) <= 1e-9).all()
    assert gains.sum() == pytest.approx(objective(neighbours, weights, chosen))


@given(SEEDS, st.integers(1, 4))
def test_lazy_greedy_reaches_its_guarantee(seed, count):
    random = np.random.default_rng(seed)
    neighbours, weights = graph(normalise(random.normal(size=(8, 2)).astype(np.float32)), 4), random.random(8)
    optimum = max(objective(neighbours, weights, subset) for subset in itertools.combinations(range(8), count))
    assert objective(neighbours, weights, lazy_greedy(neighbours, weights, count)[0]) >= (1 - 1 / math.e) * optimum


# --- strategies ---


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("count", [1, 7, 40])
def test_every_strategy_gives_distinct_rows_and_repeats_itself(strategy, count):
    vectors, difficulty = corpus(40)
    table = rank(vectors, difficulty, Select(strategy=strategy), count, seed=3)
    assert table.schema == SELECTION
    assert len(set(table["id"].to_pylist())) == count
    assert table["rank"].to_pylist() == list(range(count))
    assert sum(table["covers"].to_pylist()) == 40 and min(table["covers"].to_pylist()) >= 1
    assert 0 <= min(table["cluster"].to_pylist()) <= max(table["cluster"].to_pylist()) < 32
    again = rank(vectors, difficulty, Select(strategy=strategy), count, seed=3)
    assert [again[c].combine_chunks() for c in ("id", "cluster", "covers")] == [
        table[c].combine_chunks() for c in ("id", "cluster", "covers")
    ]


def test_the_registry_holds_the_strategies_of_the_config():
    assert set(STRATEGIES) == set(Select.model_fields["strategy"].annotation.__args__)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "kmeans"])
def test_a_longer_ranking_begins_with_the_shorter(strategy):
    vectors, difficulty = corpus(60)
    assert ids(vectors, difficulty, 30, strategy)[:9] == ids(vectors, difficulty, 9, strategy)


def test_random_follows_its_seed():
    vectors, difficulty = corpus(40)
    assert ids(vectors, difficulty, 10, "random", seed=1) != ids(vectors, difficulty, 10, "random", seed=2)


def test_entropy_takes_the_hardest():
    vectors, difficulty = corpus(40)
    assert ids(vectors, difficulty, 3, "entropy") == np.argsort(-difficulty)[:3].tolist()


@pytest.mark.parametrize("strategy", ["bridge", "coverage", "kcenter"])
def test_every_blob_is_visited(strategy):
    vectors, axes = blobs([10, 9, 8, 7], noise=0.02)
    assert sorted(axes[STRATEGIES[strategy](problem(vectors), 4)[0]]) == [0, 1, 2, 3]


def test_coverage_gives_a_large_blob_its_second_row_before_a_small_one_its_first():
    vectors, axes = blobs([20, 9], noise=0.02)  # 20 ln(3/2) > 9 ln 2 > 20 ln(4/3)
    assert axes[STRATEGIES["coverage"](problem(vectors, neighbours=25), 3)[0]].tolist() == [0, 0, 1]


def test_kmeans_takes_the_largest_cluster_first():
    vectors, axes = blobs([4, 40], noise=0.02)
    assert axes[STRATEGIES["kmeans"](problem(vectors), 2)[0]].tolist()[0] == 1


@pytest.mark.parametrize("strategy", GEOMETRIC)
def test_geometric_strategies_cover_better_than_chance(strategy):
    vectors, _ = blobs([12] * 10)

    def closeness(chosen):
        return (vectors @ vectors[chosen].T).max(axis=1).mean()

    chance = np.mean([closeness(STRATEGIES["random"](problem(vectors, seed=s), 10)[0]) for s in range(20)])
    assert closeness(STRATEGIES[strategy](problem(vectors), 10)[0]) > chance


def test_kcenter_gains_are_falling_distances():
    _, gains = STRATEGIES["kcenter"](problem(normalise(corpus(40)[0])), 40)
    assert np.isnan(gains[0]) and (np.diff(gains[1:]) <= 1e-6).all()


def test_bridge_weighs_difficulty_against_coverage():
    vectors, axes = blobs([10, 10], noise=0.02)
    hard_second = axes.astype(float)
    assert axes[STRATEGIES["bridge"](problem(vectors, hard_second), 1)[0]] == 1
    assert axes[STRATEGIES["bridge"](problem(vectors, 1 - hard_second), 1)[0]] == 0
    coverage = STRATEGIES["coverage"](problem(vectors, hard_second), 5)[0]
    unweighted = STRATEGIES["bridge"](problem(vectors, hard_second, difficulty_weight=0.0), 5)[0]
    assert coverage.tolist() == unweighted.tolist()


def test_a_row_counts_once_per_copy():
    vectors = np.eye(3, dtype=np.float32)
    assert STRATEGIES["coverage"](problem(vectors, copies=np.array([1, 2, 5])), 3)[0].tolist() == [2, 1, 0]


# --- rank ---


@settings(max_examples=20)
@given(SEEDS, st.sampled_from(sorted(STRATEGIES)))
def test_near_duplicates_wait_until_every_group_is_represented(seed, strategy):
    vectors, difficulty = corpus(12, d=32, seed=seed)
    vectors, difficulty = np.tile(vectors, (3, 1)), np.tile(difficulty, 3)
    chosen = np.array(ids(vectors, difficulty, 20, strategy, seed=seed % 1000))
    assert sorted(chosen[:12]) == list(range(12))
    assert (difficulty[chosen[12:]] == np.sort(difficulty)[::-1][3 * np.arange(4)].repeat(2)).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equal_embeddings_fall_back_with_a_warning(strategy, caplog):
    difficulty = corpus(20)[1]
    with caplog.at_level(logging.WARNING):
        chosen = ids(np.ones((20, 4), np.float32), difficulty, 20, strategy)
    assert sorted(chosen) == list(range(20))
    assert "all 20 embeddings are equal" in caplog.text
    if strategy in ("bridge", "entropy"):
        assert chosen == np.argsort(-difficulty).tolist()
    if strategy in ("coverage", "kcenter", "kmeans"):
        assert chosen == list(range(20))


def test_equal_difficulties_fall_back_with_a_warning(caplog):
    vectors, _ = corpus(20)
    flat = np.full(20, 0.5)
    with caplog.at_level(logging.WARNING):
        assert ids(vectors, flat, 8, "bridge") == ids(vectors, flat, 8, "coverage")
    assert ids(vectors, flat, 8, "entropy") == list(range(8))
    assert "equally difficult" in caplog.text


def test_one_row_is_a_corpus():
    assert ids(np.ones((1, 4), np.float32), np.array([0.5]), 1) == [0]


@pytest.mark.parametrize("n", [0, 5])
def test_more_rows_asked_than_there_are(n):
    vectors, difficulty = corpus(max(n, 1))
    with pytest.raises(UserError, match=f"cannot rank 6 of {n} train rows"):
        rank(vectors[:n], difficulty[:n], Select(), 6, seed=0)


def test_examples_in_budget():
    assert examples_in_budget(1000, Budget(fraction=0.05)) == 50
    assert examples_in_budget(100, Budget(fraction=0.29)) == 29  # 28.999999999999996 in floating point
    assert examples_in_budget(39, Budget(fraction=0.05)) == 1
    assert examples_in_budget(3, Budget(fraction=0.05)) == 1
    assert examples_in_budget(1000, Budget(fraction=0.05, max_queries=7)) == 7
    assert examples_in_budget(1000, Budget(fraction=None, max_queries=7)) == 7
    assert examples_in_budget(5, Budget(fraction=None, max_queries=7)) == 5
    assert examples_in_budget(1000, Budget(fraction=None, max_usd=1.0)) == 1000


def test_rank_length():
    assert rank_length(1000, Budget(fraction=0.05)) == 100
    assert rank_length(1001, Budget(fraction=0.05)) == 101
    assert rank_length(1000, Budget(fraction=0.3)) == 300
    assert rank_length(3, Budget(fraction=0.05)) == 1
    assert rank_length(1000, Budget(fraction=1.0)) == 1000


@given(st.integers(1, 3000), st.floats(0.001, 0.1), st.floats(0.001, 0.1))
def test_small_budgets_share_one_ranking_and_are_nested(n, one, other):
    low, high = (Budget(fraction=fraction) for fraction in sorted([one, other]))
    assert rank_length(n, low) == rank_length(n, high)
    assert 1 <= examples_in_budget(n, low) <= examples_in_budget(n, high) <= rank_length(n, high) <= n


# --- embedding, describe ---


def test_mean_pool_leaves_padding_out():
    torch = pytest.importorskip("torch")
    from bridge_ray.selection.embedding import mean_pool

    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [99.0, 99.0]], [[5.0, 5.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert mean_pool(hidden.bfloat16(), mask).tolist() == [[2.0, 3.0], [0.0, 0.0]]


def test_describe_by_hand():
    vectors = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
    difficulty = np.array([0.8, 0.2, 0.6, 0.4])
    table = rank(vectors, difficulty, Select(strategy="entropy"), 2, seed=0)  # rows 0 and 2
    entropy = np.array([0.9, math.nan, 0.5, 0.1])
    facts = Facts(difficulty, entropy, np.array([0, 0, 0, 2]), ["law", "unused", "finance"])
    result = describe(table, vectors, facts)
    assert result["chosen"] == 2 and result["rows"] == 4
    assert result["distance"] == {"mean": pytest.approx(0.5), "max": pytest.approx(1.0)}
    assert result["difficulty"] == {"chosen": pytest.approx(0.7), "rest": pytest.approx(0.3)}
    assert result["entropy"] == {"chosen": pytest.approx(0.7), "rest": pytest.approx(0.1)}  # NaN: not scored
    assert result["domains"] == {
        "finance": {"chosen": 0.0, "corpus": 0.25},
        "law": {"chosen": 1.0, "corpus": 0.75},
    }


def test_describe_where_everything_is_chosen():
    vectors, difficulty = corpus(5)
    facts = Facts(difficulty, np.full(5, math.nan), np.zeros(5, np.int64), ["law"])
    result = describe(rank(vectors, difficulty, Select(), 5, seed=0), vectors, facts)
    assert result["difficulty"]["rest"] is None and result["entropy"] == {"chosen": None, "rest": None}
    assert result["distance"]["max"] == 0


def test_map_keeps_the_two_widest_axes_and_is_not_mirrored():
    random = np.random.default_rng(0)
    vectors = (random.normal(size=(200, 5)) * [0.1, 9, 0.1, 3, 0.1] + 7).astype(np.float32)
    flat = map_2d(vectors, seed=0)
    assert flat.shape == (200, 2) and flat.dtype == np.float32
    assert flat == pytest.approx(vectors[:, [1, 3]] - vectors[:, [1, 3]].mean(axis=0), abs=2)


@pytest.mark.parametrize("shape", [(1, 5), (4, 1), (1, 1)])
def test_map_of_too_little_is_padded(shape):
    assert map_2d(np.ones(shape, np.float32), seed=0).shape == (shape[0], 2)


def test_clusters_find_the_blobs():
    vectors, axes = blobs([30, 30, 30], noise=0.02)
    centroids, labels = clusters(vectors, 3, seed=0)
    assert centroids.shape == (3, 3)
    assert len({(axis, label) for axis, label in zip(axes, labels, strict=True)}) == 3
