"""Stage *select* on a small corpus, and what it reads of the stages before; its task runs in this process."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

from bridge_ray import storage
from bridge_ray.config import Budget, Engine, Score, Select, Training
from bridge_ray.errors import UserError
from bridge_ray.inference import workers
from bridge_ray.progress import Progress
from bridge_ray.selection import facts, select
from bridge_ray.selection.large import run as large
from bridge_ray.selection.rank import rank
from bridge_ray.stage import Stage, Work
from tests.corpora import left

ROWS = 60


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Tasks are plain calls."""
    monkeypatch.setattr(workers, "call", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(workers, "each", lambda function, calls: [function(*arguments) for arguments in calls])


def corpus(seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(ROWS, 8)).astype(np.float32), random.permutation(ROWS) / ROWS


def work(inputs, out, screen=None):
    progress = Progress(Console(file=screen or io.StringIO()))
    places = {"corpus": inputs.corpus, "score": inputs.score, "embed": inputs.embed}
    return Work("select", "test", places, str(out), Engine(), Training(), progress, "0")


def perform(inputs, out, cells=0, scored=None, screen=None):
    return select.run(work(inputs, out, screen), Select(), scored or Score(), ROWS, 6, 3, 0, cells)


@pytest.mark.parametrize("cells", [0, 4])
def test_files_and_metrics(cells, tmp_path):
    vectors, entropy = corpus()
    inputs = left(tmp_path, vectors, entropy, order=np.random.default_rng(0).permutation(ROWS))
    metrics = perform(inputs, tmp_path / "out", cells=cells)
    rows = storage.read_table(f"{tmp_path}/out/rows.parquet")
    assert rows.column_names == ["id", "difficulty", "entropy", "x", "y"]
    assert rows["id"].to_pylist() == list(range(ROWS)) and rows["entropy"].to_pylist() == entropy.tolist()
    ranking = storage.read_table(f"{tmp_path}/out/selection.parquet")
    assert ranking.equals(rank(vectors, rows["difficulty"].to_numpy(), Select(), 6, seed=0)) or cells
    chosen = ranking["id"].to_numpy()[:3]
    assert metrics["chosen"] == 3 and metrics["rows"] == ROWS and metrics["cautions"] == []
    assert metrics["entropy"]["chosen"] == pytest.approx(entropy[chosen].mean())
    assert metrics["entropy"]["rest"] == pytest.approx(np.delete(entropy, chosen).mean())
    again = select.describe_bought(inputs, f"{tmp_path}/out", 3)
    assert again == {name: value for name, value in metrics.items() if name != "cautions"}


@pytest.mark.parametrize(
    ("scored", "entropy", "says"),
    [
        (Score(samples=1), 0.0, "score.samples is 1"),
        (Score(), 0.0, "all entropies are 0"),
        (Score(), math.nan, "no row could be scored"),
        (Score(), 0.3, "equally difficult"),
        (Score(difficulty="error"), 0.3, "equally difficult"),  # no row has a label
    ],
)
@pytest.mark.parametrize("cells", [0, 4])
def test_difficulties_that_rest_on_little_are_told(scored, entropy, says, cells, tmp_path):
    vectors, _ = corpus()
    screen = io.StringIO()
    metrics = perform(left(tmp_path, vectors, np.full(ROWS, entropy)), tmp_path / "out", cells, scored, screen)
    assert says in str(metrics["cautions"]) and says in screen.getvalue()


@pytest.mark.parametrize("cells", [0, 4])
def test_one_sample_is_ordered_by_likelihood(cells, tmp_path):
    vectors, _ = corpus()
    nll = np.random.default_rng(0).permutation(ROWS) / 10
    perform(left(tmp_path, vectors, np.zeros(ROWS), nll=nll), tmp_path / "out", cells=cells, scored=Score(samples=1))
    hard = storage.read_table(f"{tmp_path}/out/rows.parquet")["difficulty"].to_numpy()
    assert np.argsort(hard).tolist() == np.argsort(nll).tolist()


def test_a_budget_for_everything_is_told_unless_money_bounds_it(tmp_path):
    vectors, entropy = corpus()
    inputs, before = left(tmp_path, vectors, entropy), Stage("corpus", 1, {}, {}, lambda work: {})
    for budget, told in ((Budget(fraction=1), True), (Budget(fraction=None, max_queries=99), True), (Budget(), False)):
        made = select.stage(Select(), Score(), budget, ROWS, 0, before, before, before)
        assert ("nothing to select" in str(made.run(work(inputs, tmp_path / "out"))["cautions"])) == told
    made = select.stage(Select(), Score(), Budget(fraction=None, max_usd=1), ROWS, 0, before, before, before)
    assert made.run(work(inputs, tmp_path / "out"))["cautions"] == []


def test_bad_embeddings_are_refused(tmp_path):
    vectors, entropy = corpus()
    vectors[41, 2] = math.nan
    inputs = left(tmp_path, vectors, entropy, order=np.arange(ROWS)[::-1])
    with pytest.raises(UserError, match="row 41 holds NaN"):
        perform(inputs, tmp_path / "out")
    ragged = [*vectors[:50], *vectors[50:, :3]]
    with pytest.raises(UserError, match="not of one length"):
        perform(left(tmp_path / "ragged", ragged, entropy), tmp_path / "out")
    with pytest.raises(UserError, match="its 59 ids are not those of the 60 train rows"):
        perform(left(tmp_path / "short", vectors, entropy, order=np.arange(ROWS - 1)), tmp_path / "out")


def test_columns_come_in_order_of_id(tmp_path):
    vectors, entropy = corpus()
    inputs = left(tmp_path, vectors, entropy, order=np.random.default_rng(0).permutation(ROWS))
    assert (select.read_vectors(inputs.embed, ROWS) == vectors).all()
    known = facts.gathered(inputs.corpus, inputs.score, ROWS, Score())
    assert known.entropy.tolist() == entropy.tolist()
    assert [known.domains[number] for number in known.domain[:3]] == ["law", "medicine", "law"]


def test_only_a_large_corpus_is_cut_and_only_then_is_the_stage_another():
    before = Stage("corpus", 1, {}, {}, lambda work: {})
    small, big = (
        select.stage(Select(), Score(), Budget(), rows, 0, before, before, before) for rows in (50_000, 50_001)
    )
    assert set(small.identity) == {"select", "difficulty", "count", "seed"} and small.version == 1
    assert big.identity["partitions"] == large.partitions(50_001) == 21 and big.version == 2
