"""bridge-ray plan: what it promises is what can be worked out by hand, and it asks nobody and writes nothing."""

from __future__ import annotations

import asyncio
import json
import math
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from rich.console import Console

from bridge_ray import cli, config, hours, pipeline, records, storage
from bridge_ray.answers import prompts
from bridge_ray.errors import UserError
from bridge_ray.objects import open_store
from bridge_ray.progress import Progress
from bridge_ray.stage import Work, location, perform
from bridge_ray.teacher import answers, provider
from bridge_ray.teacher.answers import Ask, Reply, answer_key
from bridge_ray.teacher.asks import asks
from bridge_ray.teacher.buy import Purchases, Settings, buy
from bridge_ray.teacher.ledger import Account, Cap
from bridge_ray.teacher.prices import input_bound, price

KEY = "sk-test-secret"
PROVIDER = "http://127.0.0.1:9/v1"  # nobody is there
ROWS = [{"key": f"r{i}", "q": f"Is {i:02} odd?", "a": "no"} for i in range(40)]
# Bytes of a first ask: the system message and a question of 10 bytes; and of what the guided one has more.
FIRST = len(f"{prompts.TEACH} {prompts.FORMS['boolean']}") + 10
GUIDE = len("\n\nThe correct answer is no. Explain how it follows, as if you had found it yourself.")
# Dollars at $1 in and $10 out per million tokens: 16 tokens for each of the two roles, and 100 of an answer.
WORST = (FIRST + 32 + 1000) / 1e6
WORST_GUIDED = (FIRST + GUIDE + 32 + 1000) / 1e6
EXPECTED = (FIRST / 4 + 500) / 1e6  # half of teacher.max_tokens, as no answer is known

PRICE = config.Price(input=1, output=10)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with 30 training and 10 test questions, of which the budget buys 6."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe = {
        "name": "mine",
        "corpus": {
            "source": "jsonl",
            "path": "data.jsonl",
            "columns": {"id": "key", "question": "q", "answer": "a"},
            "test": 10,
        },
        "budget": {"fraction": 0.2},
        "teacher": {"base_url": PROVIDER, "model": "x", "price": {"input": 1, "output": 10}, "max_tokens": 100},
    }
    Path("mine.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process: exit code, standard output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["bridge-ray", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


def sets(*overrides: str) -> list[str]:
    return ["mine.yaml", *(part for override in overrides for part in ("--set", override))]


def plan(run: Run, *overrides: str) -> Any:
    code, out, err = run("plan", "--json", *sets(*overrides))
    assert (code, err) == (0, "")
    return json.loads(out)


def files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def keep(*replies: tuple[str, Reply]) -> None:
    """Put answers into the store."""
    store = open_store("storage/teacher")
    for key, reply in replies:
        asyncio.run(answers.keep(store, key, reply))


def reply(text: str, completion_tokens: int = 20, model: str = "x") -> Reply:
    return Reply(text, "stop", prompt_tokens=40, completion_tokens=completion_tokens, model=model, created=1)


def key_of(question: dict[str, Any]) -> str:
    """The key of the first ask, spelled out."""
    system = f"{prompts.TEACH} {prompts.FORMS['boolean']}"
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question["question"]}]
    return answer_key(PROVIDER, "x", messages, {"max_tokens": 100, "temperature": 0.0})


def finish(
    name: str,
    metrics: dict[str, Any],
    leave: Callable[[Work], None] = lambda work: None,
    overrides: Sequence[str] = (),
) -> pipeline.Run:
    """Make a stage of the recipe's run done, with what ``leave`` writes in place of its work."""
    prepared = pipeline.draft(config.load("mine.yaml", overrides))
    settings = prepared.config

    def work(todo: Work) -> dict[str, Any]:
        leave(todo)
        return metrics

    quiet = Progress(Console(quiet=True))
    part = replace(prepared.stages[name], run=work)
    perform(part, prepared.root, settings.name, settings.engine, settings.training, quiet)
    return prepared


def rank(*ids: int) -> list[dict[str, Any]]:
    """Make *select* done; the training questions in the ranking's order."""

    def leave(work: Work) -> None:
        columns = {"id": ids, "rank": range(len(ids)), "gain": [1.0] * len(ids)}
        rows = pa.table({name: columns.get(name, [0] * len(ids)) for name in records.SELECTION.names})
        storage.write_table(storage.join(work.out, "selection.parquet"), rows.cast(records.SELECTION))

    prepared = finish("select", {}, leave)
    train = [row for row in prepared.corpus.to_pylist() if row["split"] == "train"]
    return [train[number] for number in ids]


# --- money


def test_before_select_the_average_is_expected_and_the_dearest_asks_are_the_worst(run: Run, folder: Path) -> None:
    before = files(folder)
    found = plan(run)
    teach = found["teacher"]["teach"]
    assert (found["questions"], found["queries"], found["binds"]) == (30, 6, "budget.fraction")
    assert teach["expected"] == {
        "queries": 6,
        "prompt_tokens": round(6 * FIRST / 4),
        "completion_tokens": 300,
        "usd": pytest.approx(6 * EXPECTED),
    }
    assert teach["worst"] == {
        "queries": 6,
        "prompt_tokens": 6 * (FIRST + GUIDE + 32),
        "completion_tokens": 600,
        "usd": pytest.approx(6 * WORST_GUIDED),
    }
    assert teach["paid"] is None and found["answered"] == 0
    assert found["next"] == "bridge-ray run mine.yaml"
    assert "half of teacher.max_tokens" in found["reply_tokens_from"]
    assert files(folder) == before, "something was written"


def test_without_guided_asks_the_worst_case_is_of_first_asks(run: Run) -> None:
    assert plan(run, "teacher.guided=false")["teacher"]["teach"]["worst"]["usd"] == pytest.approx(6 * WORST)


def test_a_reply_is_expected_to_be_as_long_as_the_models_answers_in_the_store(run: Run, folder: Path) -> None:
    keep(
        ("a" * 64, reply("one", 20)),
        ("b" * 64, reply("two", 40, model="x-2026-01-31")),
        ("c" * 64, reply("not this model's", 99, model="x-mini")),
        ("d" * 64, reply("nor anybody's", 0, model="imported")),
    )
    before = files(folder)
    found = plan(run)
    assert found["reply_tokens"] == 30 and "2 answers of x" in found["reply_tokens_from"]
    assert found["teacher"]["teach"]["expected"]["completion_tokens"] == 180
    assert files(folder) == before


@pytest.mark.parametrize(
    ("override", "queries", "binds"),
    [
        ("budget.max_queries=4", 4, "budget.max_queries"),
        ("budget.max_queries=6", 6, "budget.fraction"),
        ("budget={fraction: null, max_usd: 100}", 30, "corpus"),
        (f"budget.max_usd={2 * EXPECTED + WORST + 1e-6}", 3, "budget.max_usd"),
        ("budget.account={name: team, max_queries: 2}", 2, "budget.account"),
        (f"budget.account={{name: team, max_usd: {EXPECTED + WORST + 1e-6}}}", 2, "budget.account"),
    ],
)
@pytest.mark.parametrize("ranked", [False, True])
def test_the_bound_that_is_reached_first_is_named(
    run: Run, ranked: bool, override: str, queries: int, binds: str
) -> None:
    if ranked and queries <= 6:
        rank(*range(10))
    found = plan(run, override)
    assert (found["teacher"]["teach"]["expected"]["queries"], found["binds"]) == (queries, binds)


def test_the_worst_case_is_not_more_than_the_cap(run: Run) -> None:
    cap = 3 * WORST
    assert plan(run, f"budget.max_usd={cap}")["teacher"]["teach"]["worst"]["usd"] == pytest.approx(cap)


def test_what_others_have_spent_of_a_shared_account_is_not_there_to_spend(run: Run) -> None:
    async def spend() -> None:
        account = Account(open_store("storage/teacher"), "team", Cap(3, None), buyer="b", run="other", model="x")
        assert await (await account.open()).reserve("key", 0.1)

    asyncio.run(spend())
    found = plan(run, "budget.account={name: team, max_queries: 3}")
    assert found["teacher"]["teach"]["expected"]["queries"] == 2
    assert found["teacher"]["teach"]["worst"]["queries"] == 2


def test_an_account_that_others_have_used_up_is_said_before_anything_is_scored(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless a first answer that is wanted lies in the store: it costs nothing more."""
    monkeypatch.setattr(provider, "check", lambda *_: None)  # nobody is there

    async def spend() -> None:
        account = Account(open_store("storage/teacher"), "team", Cap(1, None), buyer="b", run="other", model="x")
        assert await (await account.open()).reserve("key", 0.1)

    def prepare(account: str) -> None:
        pipeline.prepare(config.load("mine.yaml", [f"budget.account={{name: team, {account}}}"]))

    prepare("max_queries: 1")
    asyncio.run(spend())
    for cap, says in (("max_queries: 1", "no query of its cap"), ("max_usd: 0.1001", r"\$0.000100 of its cap is left")):
        with pytest.raises(UserError, match=rf"^budget.account team: {says}.* one request of x can cost \$0.00"):
            prepare(cap)
    prepare("max_queries: 2")
    keep(*[(key_of({"question": row["q"]}), reply("So.\nAnswer: no")) for row in ROWS])
    prepare("max_queries: 1")


def test_after_select_what_is_paid_already_is_exact(run: Run) -> None:
    """Of 6 queries, two are answers in the store, the second of them wrong; a guided ask and three others are left."""
    ranking = rank(5, 3, 8, 0, 1, 2, 9, 7)
    right, wrong, late = (key_of(ranking[number]) for number in (0, 1, 7))
    keep((right, reply("So.\nAnswer: no", 20)), (wrong, reply("So.\nAnswer: yes", 30)), (late, reply("Answer: no")))
    found = plan(run)
    teach = found["teacher"]["teach"]
    assert found["ranked"] and found["answered"] == 3
    assert teach["paid"] == {
        "queries": 2,
        "prompt_tokens": 80,
        "completion_tokens": 50,
        "usd": pytest.approx((80 + 500) / 1e6),
    }
    mean = (20 + 30 + 20) / 3
    assert teach["expected"] == {
        "queries": 4,
        "prompt_tokens": round((4 * FIRST + GUIDE) / 4),
        "completion_tokens": round(4 * mean),
        "usd": pytest.approx(((4 * FIRST + GUIDE) / 4 + 10 * 4 * mean) / 1e6),
    }
    assert teach["worst"]["queries"] == 4
    assert teach["worst"]["usd"] == pytest.approx(4 * WORST_GUIDED)


def test_where_all_is_paid_nothing_is_bought_at_worst(run: Run) -> None:
    keep(*((key_of(question), reply("So.\nAnswer: no")) for question in rank(*range(8))))
    teach = plan(run)["teacher"]["teach"]
    assert teach["paid"]["queries"] == 6
    assert teach["expected"]["queries"] == teach["worst"]["queries"] == teach["worst"]["usd"] == 0


def test_a_plan_takes_no_key(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with_key = plan(run)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert plan(run) == with_key


def test_where_teach_is_done_nothing_is_bought(run: Run) -> None:
    rank(*range(8))
    finish("teach", {"queries": 6, "usd": 0.25})
    found = plan(run)
    assert found["teacher"]["teach"]["paid"] == {
        "queries": 6,
        "prompt_tokens": None,
        "completion_tokens": None,
        "usd": 0.25,
    }
    assert found["teacher"]["teach"]["worst"]["usd"] == found["egress"]["questions"] == 0


def test_a_teacher_that_is_evaluated_is_asked_every_test_question_outside_the_budget(run: Run) -> None:
    assert list(plan(run)["teacher"]) == ["teach"]
    found = plan(run, "evaluate.systems=[bridge, teacher]", "budget.max_usd=0.01")
    assert found["teacher"]["evaluate"]["worst"]["queries"] == 10
    assert found["teacher"]["evaluate"]["worst"]["usd"] == pytest.approx(10 * WORST)
    assert found["egress"]["questions"] == 6 + 10


def test_a_batch_costs_half_the_list_price_and_a_given_price_is_taken_as_it_stands() -> None:
    assert price("gpt-4o", None) == config.Price(input=2.5, output=10)
    assert price("gpt-4o", None, batch=True) == config.Price(input=1.25, output=5)
    given = config.Price(input=2.5, output=10)
    assert price("gpt-4o", given, batch=True) == price("gpt-17", given) == given


class Guessing:
    """A client whose replies are right or wrong by chance, and as long as they can be."""

    model, max_tokens, parameters = "x", 100, {"max_tokens": 100, "temperature": 0.0}

    def __init__(self, draw: random.Random, right: float) -> None:
        self._draw, self._right = draw, right

    async def ask(self, ask: Ask, again: Any) -> Reply:
        text = "Answer: no" if self._draw.random() < self._right else "Answer: yes"
        return Reply(text, "stop", input_bound(ask.messages), self.max_tokens, "x", created=1)


@pytest.mark.parametrize("seed", range(12))
def test_no_walk_buys_more_than_the_worst_case(run: Run, seed: int) -> None:
    draw = random.Random(seed)
    ranking = rank(*draw.sample(range(30), 12))
    known = draw.sample(ranking, draw.randint(0, 8))
    keep(*((key_of(row), reply(f"Answer: {draw.choice(['no', 'yes'])}")) for row in known))
    cap = draw.choice([None, 0.004])
    teach = plan(run, f"budget.max_usd={'null' if cap is None else cap}")["teacher"]["teach"]

    async def walk() -> Purchases:
        store = open_store("storage/teacher")
        account = Account(store, "run", Cap(6, cap), buyer="b", run="mine", model="x")
        how = config.Teacher(model="x", max_tokens=100, price=PRICE)
        settings = Settings(partial(asks, provider=PROVIDER, teacher=how), PRICE, max_usd=cap)
        teacher: Any = Guessing(draw, draw.choice([0.0, 0.5, 1.0]))
        return await buy(ranking, teacher, store, account, 6, settings, lambda counters: None)

    bought = asyncio.run(walk())
    assert bought.bought <= teach["worst"]["queries"]
    assert bought.spent_usd <= teach["worst"]["usd"] + 1e-12
    assert bought.hits + bought.bought <= 6


# --- nobody is asked, nothing is written


def test_plan_connects_to_nobody(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        plan(run, f"teacher.base_url=http://127.0.0.1:{server.getsockname()[1]}/v1")
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("teacher.price=null", "teacher.price"),
        (f"budget.max_usd={WORST - 1e-6}", f"budget.max_usd {WORST - 1e-6:g}: one request of x can cost $0.00"),
        ("corpus.path=nowhere.jsonl", "nowhere.jsonl"),
        ("ta.model=./no-model", "ta.model"),
        (
            "teacher.key_file=sk-no-path",
            "teacher.key_file: cannot be read (FileNotFoundError); give the path of a file",
        ),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_mistake_is_one_line_for_plan_as_for_run(
    run: Run, folder: Path, command: str, override: str, says: str
) -> None:
    before = files(folder)
    code, _, err = run(command, *sets(override))
    assert (code, err.count("\n")) == (2, 1), err
    assert says in err
    assert files(folder) == before, "something was written"


def test_a_cap_that_one_request_fits_under_is_not_refused(run: Run) -> None:
    assert plan(run, f"budget.max_usd={WORST + 1e-9}")["teacher"]["teach"]["expected"]["queries"] == 1


def test_plan_of_an_unreachable_teacher_is_what_run_then_refuses(run: Run) -> None:
    plan(run)
    code, _, err = run("run", *sets())
    assert code == 2 and "unreachable" in err


# --- local hours


def test_hours_are_those_of_an_earlier_run_in_proportion(run: Run) -> None:
    prepared = finish("corpus", {"train": 30, "dev": 0, "test": 10})
    finish("score", {})
    manifest = Path(location(prepared.stages["score"], prepared.root)) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"seconds": 3600.0}))

    def score(*overrides: str) -> Any:
        return next(stage for stage in plan(run, *overrides)["stages"] if stage["stage"] == "score")

    assert (score()["done"], score()["hours"]) == (True, 0)
    more = score("score.samples=16", "corpus.train=20")  # 8 samples of 30 rows took an hour
    assert (more["done"], more["hours"]) == (False, pytest.approx(2 * 20 / 30))
    assert "30 rows × 8 samples × 128 tokens" in more["basis"]
    other = score("ta.model=some/other-model")
    assert other["hours"] is None and "no earlier run" in other["basis"]


def took_an_hour(name: str, metrics: dict[str, Any], *overrides: str) -> None:
    """Make a stage of an earlier run done, with all before it: it took an hour for the recipe with those overrides."""
    known = {"corpus": {"train": 30, "dev": 0, "test": 10}, name: metrics}
    for stage in pipeline.draft(config.load("mine.yaml", overrides)).stages:
        prepared = finish(stage, known.get(stage, {}), overrides=overrides)
        if stage == name:
            break
    manifest = Path(location(prepared.stages[name], prepared.root)) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"seconds": 3600.0}))


def planned_hours(name: str, *overrides: str) -> tuple[float, str]:
    """A stage's hours and where they come from."""
    stages = hours.estimate(pipeline.draft(config.load("mine.yaml", overrides)))
    found = next(stage for stage in stages if stage.stage == name)
    assert not found.done and found.hours is not None
    return found.hours, found.basis


ALL = "amplify.checks=[likeliest]"
REANSWER = "amplify.checks=[reanswer]"


def test_hours_of_amplify_count_what_the_checks_ask(folder: Path) -> None:
    """Of 3 samples and the greedy reply of at most 256 tokens, 45 replies were drawn of 30 rows: 1.5 a row."""
    took_an_hour("amplify", {"attempts": 45})
    assert planned_hours("amplify", "amplify.samples=7")[0] == pytest.approx(2)
    for check in ("majority", "likeliest"):
        found, basis = planned_hours("amplify", f"amplify.checks=[{check}]")
        assert found == pytest.approx(4 / 1.5)
        assert "30 rows × 384 tokens; assumes all replies of every row" in basis
    found, basis = planned_hours("amplify", REANSWER)
    assert found == pytest.approx((4 * 256 + 16) / (4 * 256))
    assert "assumes one re-answer of 16 tokens a row" in basis
    assert planned_hours("amplify", "amplify.verify=off")[0] == pytest.approx(1 / 1.5)


def test_hours_of_amplify_are_at_most_those_of_a_run_that_drew_all(folder: Path) -> None:
    took_an_hour("amplify", {"attempts": 120}, ALL)
    assert planned_hours("amplify", ALL, "amplify.samples=7")[0] == pytest.approx(2)
    assert planned_hours("amplify")[0] == pytest.approx(1)


def test_hours_of_evaluate_count_the_scoring_of_its_split(folder: Path) -> None:
    """Six systems answer with at most 256 tokens, and by_entropy asks for 8 samples of at most 128."""
    took_an_hour("evaluate", {})
    found, basis = planned_hours("evaluate", "evaluate.by_entropy=true")
    assert found == pytest.approx((6 * 256 + 8 * 128) / (6 * 256))
    assert "10 rows × 1536 tokens; assumes that scoring takes its 8 × 128 tokens a row" in basis
    assert planned_hours("evaluate", "evaluate.samples=3")[0] == pytest.approx(3)
    assert planned_hours("evaluate", "evaluate.systems=[bridge, direct]")[0] == pytest.approx(1 / 3)


# --- for people


def test_people_see_the_sums_what_leaves_and_the_next_command(run: Run) -> None:
    code, out, _ = run("plan", *sets("teacher.model=gpt-4o", "teacher.price=null"), "--storage", "my storage")
    said = " ".join(out.split())
    assert code == 0
    assert "all questions by kind of answer: 40 boolean; 0 with context" in said
    assert "6 queries (20 % of 30 questions); budget.fraction binds first" in said
    assert "for 127.0.0.1: the text of up to 6 questions, and the gold answer" in said
    assert "whether the terms of 127.0.0.1 allow training" in said
    assert "not known before select is done (the store answers 0 of the 30" in said
    assert "the teacher was not asked" in said
    worst = 6 * (FIRST + GUIDE + 32) * 2.5e-6 + 600 * 10e-6
    assert f"teach, at worst 6 {6 * (FIRST + GUIDE + 32):,} 600 ${math.ceil(worst * 1e4) / 1e4:.4f}" in said
    assert out.splitlines()[-1] == (
        "next: bridge-ray run mine.yaml --storage 'my storage' --set teacher.model=gpt-4o --set teacher.price=null"
    )
    assert KEY not in out


def test_a_stand_in_leaves_nothing(run: Run) -> None:
    assert plan(run, "teacher.standin={answers: expert}")["egress"] is None


def test_draft_raises_for_people_too() -> None:
    with pytest.raises(UserError, match="no such stage"):
        pipeline.draft(config.load("demo"), until="scoring")
