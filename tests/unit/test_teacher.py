"""The teacher through real HTTP on loopback: what is bought, what it costs, and what a broken provider leads to."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer

from bridge_ray import config, records
from bridge_ray.answers import prompts
from bridge_ray.errors import Outage, UserError
from bridge_ray.objects import Store, open_store
from bridge_ray.teacher import answers as paid
from bridge_ray.teacher import provider, standin
from bridge_ray.teacher.answers import Reply, answer_key
from bridge_ray.teacher.asks import asks
from bridge_ray.teacher.buy import GIVE_UP, Purchases, Settings, buy
from bridge_ray.teacher.client import Client, api_key, check, connect, parameters
from bridge_ray.teacher.ledger import Account, Balance, Cap, balance
from bridge_ray.teacher.prices import PRICES, cost, price, worst_cost

KEY = "sk-secret-0123456789"
PRICE = config.Price(input=1.0, output=10.0)


def how(provider: str = "standin:test", guided: bool = True, **options: Any) -> Settings:
    teacher = config.Teacher(model="gpt-4o", max_tokens=64, price=PRICE, guided=guided)
    return Settings(partial(asks, provider=provider, teacher=teacher), PRICE, **options)


SETTINGS = how()


def question(number: int, gold: str | None = None) -> dict[str, Any]:
    return {
        "id": number,
        "key": f"row-{number}",
        "question": f"What is {number} plus {number}?",
        "context": "",
        "options": [],
        "answer": gold or str(2 * number),
        "answer_type": "number",
    }


RANKING = [question(number) for number in range(12)]


def recorded(wrong: tuple[int, ...] = (), guided: tuple[int, ...] = ()) -> list[dict[str, str]]:
    """Answers to the ranking's questions, wrong for some; some of those right when the gold answer is hinted at."""
    rows = [
        {
            "question": row["question"],
            "rationale": f"Twice {row['id']}.",
            "answer": "-1" if row["id"] in wrong else gold,
        }
        for row, gold in ((row, row["answer"]) for row in RANKING)
    ]
    hints = [RANKING[number] for number in guided]
    return rows + [
        {
            "question": prompts.teacher_guided(row, row["answer"])[1]["content"],
            "rationale": "As it is.",
            "answer": row["answer"],
        }
        for row in hints
    ]


def jittered(answerer: standin.Answerer, seed: int = 0) -> web.Application:
    """The stand-in, with answers that come in another order than they were asked for."""
    draw = random.Random(seed)

    @web.middleware
    async def late(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        await asyncio.sleep(draw.uniform(0, 0.02))
        return await handler(request)

    app = standin.application(answerer)
    app.middlewares.append(late)
    return app


def opened(store: Store, limit: int, settings: Settings = SETTINGS, name: str = "run") -> Account:
    return Account(store, name, Cap(limit, settings.max_usd), buyer=name, run="test", model="gpt-4o")


def owed(store: Store, name: str = "run") -> Balance:
    return asyncio.run(balance(store, name))


def walk(
    app: web.Application, store: Store, limit: int, settings: Settings = SETTINGS, account: str = "run", **client: Any
) -> tuple[Purchases, int]:
    """Buy from an application, and its own count of what it billed."""

    async def run() -> tuple[Purchases, int]:
        async with TestServer(app) as server, _client(server, **client) as teacher:
            payer = opened(store, limit, settings, account)
            bought = await buy(RANKING, teacher, store, payer, limit, settings, lambda counters: None)
            return bought, json.loads(await asyncio.to_thread(_read, str(server.make_url("/stats"))))["billed"]

    return asyncio.run(run())


def _client(server: BaseTestServer, **options: Any) -> Client:
    return Client(str(server.make_url("/v1")), KEY, "gpt-4o", **({"backoff": 0.01, "max_tokens": 64} | options))


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as reply:
        return bytes(reply.read())


def standin_app(**wrong: tuple[int, ...]) -> web.Application:
    return jittered(standin.Recorded(recorded(**wrong)).answer)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "teacher"))


@pytest.fixture
def answers(tmp_path: Path) -> str:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in recorded()), encoding="utf-8")
    return str(path)


@pytest.fixture
def process(answers: str) -> Iterator[str]:
    with standin.running("recorded", answers) as base_url:
        yield base_url


def ids(purchases: Purchases) -> list[int]:
    return [row["id"] for row in purchases.rows]


# --- the walk


def test_rows_have_the_record_schema_and_the_costs_of_their_answers(store: Store) -> None:
    bought, billed = walk(standin_app(), store, limit=5)
    table = pa.Table.from_pylist(bought.rows, schema=records.RATIONALE)
    assert table.num_rows == billed == bought.queries == bought.bought == 5
    first = bought.rows[3]
    assert (first["rationale"], first["answer"], first["verified"]) == ("Twice 3.", "6", True)
    assert bought.spent_usd == bought.usd_total == pytest.approx(sum(row["cost_usd"] for row in bought.rows))
    assert first["tokens"] == 5 and first["cost_usd"] > 0


@pytest.mark.parametrize("concurrency", [1, 3, 16])
@pytest.mark.parametrize("limit", [1, 2, 5, 8])
def test_hard_limit_and_the_same_rows_at_any_concurrency(store: Store, concurrency: int, limit: int) -> None:
    wrong = (0, 2, 3, 7)
    settings = how(concurrency=concurrency)
    bought, billed = walk(standin_app(wrong=wrong, guided=(2, 7)), store, limit, settings)
    rows, left = [], limit
    for number in range(len(RANKING)):  # one question after another
        take = min(left, 2 if number in wrong else 1)
        left -= take
        rows += [(number, take)] if take else []
    assert [(row["id"], row["attempts"]) for row in bought.rows] == rows
    assert billed == bought.queries == limit


def test_guided_ask_rescues_a_wrong_answer_and_a_hopeless_row_is_kept_unverified(store: Store) -> None:
    bought, billed = walk(standin_app(wrong=(1, 2), guided=(2,)), store, limit=5)
    assert ids(bought) == [0, 1, 2] and billed == 5
    assert [row["verified"] for row in bought.rows] == [True, False, True]
    assert [row["attempts"] for row in bought.rows] == [1, 2, 2]
    assert (bought.rows[1]["answer"], bought.rows[1]["source"]) == ("-1", "teacher")
    assert bought.rows[2]["rationale"] == "As it is."


def test_without_guided_asks_a_wrong_answer_takes_one_query(store: Store) -> None:
    bought, billed = walk(standin_app(wrong=(1,)), store, 3, how(guided=False))
    assert ids(bought) == [0, 1, 2] and billed == 3


def test_second_run_buys_nothing_and_counts_the_same(store: Store) -> None:
    first, _ = walk(standin_app(wrong=(1,)), store, limit=6)
    again, billed = walk(standin_app(wrong=(1,)), store, limit=6)
    assert billed == again.bought == 0 and again.spent_usd == 0
    assert (again.rows, again.queries, again.hits, again.usd_total) == (first.rows, 6, 6, first.usd_total)


def test_another_account_with_a_larger_budget_buys_the_difference(store: Store) -> None:
    walk(standin_app(), store, limit=4)
    more, billed = walk(standin_app(), store, limit=7, account="larger")
    assert billed == more.bought == 3 and (more.queries, more.hits) == (7, 4)
    assert more.spent_usd < more.usd_total


def test_another_provider_of_the_same_model_is_asked_again(store: Store) -> None:
    walk(standin_app(), store, limit=4)
    _, billed = walk(standin_app(), store, 4, how("https://elsewhere"), account="other")
    assert billed == 4


async def _reserve(store: Store, key: str) -> None:
    assert await (await opened(store, 5).open()).reserve(key, 0.001)


def test_queries_lost_in_a_crash_stay_counted(store: Store) -> None:
    """A reservation without an answer: the process was killed while the query was on its way."""
    messages = prompts.teacher(RANKING[0])
    key = answer_key("standin:test", "gpt-4o", messages, parameters("gpt-4o", 64, 0.0))
    asyncio.run(_reserve(store, key))
    bought, billed = walk(standin_app(), store, limit=5)
    assert billed == 4 and bought.queries == 5 and ids(bought) == [0, 1, 2, 3]
    assert bought.rows[0]["attempts"] == 2
    assert walk(standin_app(), store, limit=5)[1] == 0


def test_a_paid_answer_is_used_when_the_budget_is_gone_before_it(store: Store) -> None:
    walk(standin_app(), store, limit=3)
    key = answer_key("standin:test", "gpt-4o", prompts.teacher(RANKING[0]), parameters("gpt-4o", 64, 0.0))
    store.objects.delete(f"answers/{key}.json")  # as if killed before the first answer, but not the others, came
    bought, billed = walk(standin_app(), store, limit=3)
    assert billed == 0 and ids(bought) == [1, 2]


def test_sigkill_in_the_middle_of_a_walk_never_exceeds_the_budget(
    store: Store, tmp_path: Path, process: str, answers: str
) -> None:
    script = (
        "import asyncio, os, sys\n"
        "from test_teacher import *\n"
        "def die(counters):\n"
        "    if counters.bought == 3: os.kill(os.getpid(), 9)\n"
        f"store = open_store({str(tmp_path / 'teacher')!r})\n"
        "async def run():\n"
        f"    async with Client({process!r}, KEY, 'gpt-4o', max_tokens=64) as client:\n"
        "        await buy(RANKING, client, store, opened(store, 8), 8, SETTINGS, die)\n"
        "asyncio.run(run())\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, timeout=60, check=False)
    assert killed.returncode == -9

    async def go_on() -> Purchases:
        async with Client(process, KEY, "gpt-4o", max_tokens=64) as client:
            return await buy(RANKING, client, store, opened(store, 8), 8, SETTINGS, lambda counters: None)

    bought = asyncio.run(go_on())
    assert json.loads(_read(process.removesuffix("/v1") + "/stats"))["billed"] <= bought.queries <= 8
    assert ids(bought)[:3] == [0, 1, 2]


@pytest.mark.parametrize("concurrency", [1, 8])
def test_dollars_bind_as_queries_do(store: Store, concurrency: int) -> None:
    costs = [row["cost_usd"] for row in walk(standin_app(), store, 100, account="unbounded")[0].rows]
    worst = [worst_cost(PRICE, prompts.teacher(row), 64) for row in RANKING]
    most = worst[0] + 4.5 * costs[0]
    rows = next(number for number in range(len(RANKING)) if sum(costs[:number]) + worst[number] > most)
    bounded = how("standin:bounded", concurrency=concurrency, max_usd=most)
    bought, billed = walk(standin_app(), store, 100, bounded)
    assert 0 < len(bought.rows) == billed == rows < len(RANKING) and bought.usd_total <= most
    assert walk(standin_app(), store, 100, bounded)[0].rows == bought.rows


def test_an_address_is_the_same_provider_with_a_slash_and_without() -> None:
    """Else all that was paid for would be bought again."""
    named = [
        provider.identity(teacher, config.load("demo").corpus)
        for address in (None, "https://api.openai.com/v1", "https://api.openai.com/v1/", "https://elsewhere/v1")
        for teacher in [config.Teacher(base_url=address)]
    ]
    assert named[0] == named[1] == named[2] != named[3]


def test_equal_questions_are_asked_once(store: Store) -> None:
    async def run() -> Purchases:
        async with TestServer(standin_app()) as server, _client(server) as client:
            twice = [question(1), question(1) | {"id": 7}]
            return await buy(twice, client, store, opened(store, 10), 10, SETTINGS, lambda counters: None)

    bought = asyncio.run(run())
    assert (ids(bought), bought.queries, bought.bought) == ([1, 7], 1, 1)


def test_unlabelled_questions_are_asked_once_and_not_judged(store: Store) -> None:
    async def run() -> Purchases:
        async with TestServer(standin_app()) as server, _client(server) as client:
            unlabelled = [row | {"answer": None} for row in RANKING]
            return await buy(unlabelled, client, store, opened(store, 2), 2, SETTINGS, lambda counters: None)

    bought = asyncio.run(run())
    assert [row["verified"] for row in bought.rows] == [None, None]


def test_the_key_is_nowhere_on_disk(store: Store, tmp_path: Path) -> None:
    walk(standin_app(wrong=(1,)), store, limit=6)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 12 and not any(KEY.encode() in path.read_bytes() for path in files)


# --- a provider that misbehaves


class Broken:
    """Answers every question as it is told, and counts what it was sent."""

    def __init__(self, *replies: web.Response | float) -> None:
        self.replies, self.sent, self.times = list(replies), 0, list[float]()

    def app(self) -> web.Application:
        async def complete(request: web.Request) -> web.Response:
            self.times.append(asyncio.get_running_loop().time())
            self.sent += 1
            reply = self.replies[min(self.sent, len(self.replies)) - 1]
            if isinstance(reply, float):
                await asyncio.sleep(reply)
                return completion("too late")
            return web.Response(body=reply.body, status=reply.status, headers=reply.headers)

        async def stats(request: web.Request) -> web.Response:
            return web.json_response({"billed": self.sent})

        app = web.Application()
        app.router.add_post("/v1/chat/completions", complete)
        app.router.add_get("/stats", stats)
        return app


def completion(text: str | None, finish: str = "stop", **message: str) -> web.Response:
    choice = {"message": {"role": "assistant", "content": text} | message, "finish_reason": finish}
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    return web.json_response({"choices": [choice], "usage": usage, "model": "gpt-4o", "created": 1})


def failing(status: int, **headers: str) -> web.Response:
    body = {"error": {"message": f"no, {KEY}, not now", "type": "x", "param": None, "code": None}}
    return web.json_response(body, status=status, headers=headers)


def one(broken: Broken, store: Store, limit: int = 1, **client: Any) -> Purchases:
    """Ask the first question only."""

    async def run() -> Purchases:
        async with TestServer(broken.app()) as server, _client(server, **client) as teacher:
            payer = opened(store, limit)
            return await buy(RANKING[:1], teacher, store, payer, limit, SETTINGS, lambda counters: None)

    return asyncio.run(run())


GOOD = completion("Nothing and nothing.\nAnswer: 0")


def test_a_refused_query_is_sent_again_when_the_provider_says_and_counts_once(store: Store) -> None:
    broken = Broken(failing(429, **{"Retry-After": "0.3"}), failing(500), GOOD)
    bought = one(broken, store)
    assert (broken.sent, bought.queries, bought.rows[0]["verified"]) == (3, 1, True)
    assert broken.times[1] - broken.times[0] >= 0.3


def test_a_query_that_timed_out_is_another_query(store: Store) -> None:
    broken = Broken(0.5, GOOD)
    bought = one(broken, store, limit=2, timeout=0.2)
    assert (broken.sent, bought.queries, bought.rows[0]["attempts"]) == (2, 2, 2)
    assert bought.rows[0]["verified"] and bought.bought == 1


def test_a_teacher_that_is_always_too_slow_is_asked_twice(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has begun is billed each time, and a third try would be no faster; how long it has is the config's."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    broken = Broken(*[0.5] * 6)
    settings = config.load("demo", ["teacher.standin=null", "teacher.timeout=0.2", "teacher.model=o3"]).teacher

    async def run() -> Purchases:
        async with TestServer(broken.app()) as server, connect(settings, str(server.make_url("/v1"))) as teacher:
            payer = opened(store, 6)
            return await buy(RANKING[:1], teacher, store, payer, 6, SETTINGS, lambda counters: None)

    bought = asyncio.run(run())
    assert (broken.sent, bought.queries) == (2, 2)
    assert bought.rows[0]["error"] == "connection failed: ReadTimeout"


def test_a_query_that_timed_out_is_not_sent_again_without_budget(store: Store) -> None:
    broken = Broken(0.5, GOOD)
    bought = one(broken, store, limit=1, timeout=0.2)
    assert (broken.sent, bought.queries) == (1, 1)
    assert "Timeout" in bought.rows[0]["error"]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (completion("Nothing and", "length"), "cut off"),
        (completion(""), "empty"),
        (completion(None), "empty"),
        (completion(None, "content_filter"), "content filter"),
        (completion(None, refusal="I cannot help with that."), "refusal"),
    ],
)
def test_an_unusable_completion_is_paid_for_and_recorded(store: Store, reply: web.Response, error: str) -> None:
    bought = one(Broken(reply), store)
    row = bought.rows[0]
    assert error in row["error"] and row["source"] is None and not row["verified"]
    assert row["cost_usd"] == pytest.approx(cost(PRICE, 10, 5))
    assert one(Broken(reply), store).bought == 0


@pytest.mark.parametrize(
    "reply",
    [
        web.Response(text="<html>hello</html>", content_type="text/html"),
        web.Response(text='{"choices": [', content_type="application/json"),
        web.json_response({"choices": []}),
        web.json_response({"choices": [{"message": "text"}]}),
        web.json_response([1]),
    ],
)
def test_garbage_is_an_error_row_and_counts_as_a_query(store: Store, reply: web.Response) -> None:
    bought = one(Broken(reply), store)
    assert bought.queries == 1 and bought.bought == 0
    assert bought.rows[0]["error"].startswith("malformed reply")


def test_a_bad_request_is_not_sent_again_and_is_not_a_query(store: Store) -> None:
    broken = Broken(failing(400))
    bought = one(broken, store)
    assert (broken.sent, bought.queries) == (1, 0)
    assert bought.rows[0]["error"] == "HTTP 400: no, ***, not now"


def test_no_usage_is_charged_at_its_worst(store: Store) -> None:
    body = {"choices": [{"message": {"content": "Answer: 0"}, "finish_reason": "stop"}]}
    bought = one(Broken(web.json_response(body)), store)
    assert bought.spent_usd == pytest.approx(worst_cost(PRICE, prompts.teacher(RANKING[0]), 64))


@pytest.mark.parametrize(("reply", "words"), [(failing(401), "key was refused"), (failing(404), "HTTP 404")])
def test_a_wrong_key_or_model_ends_the_walk_without_showing_the_key(
    store: Store, reply: web.Response, words: str
) -> None:
    with pytest.raises(UserError, match=words) as raised:
        one(Broken(reply), store)
    assert KEY not in str(raised.value)
    assert owed(store).queries == 0 and not owed(store).open


def test_a_provider_that_is_down_ends_the_walk(store: Store) -> None:
    broken = Broken(failing(503))
    with pytest.raises(Outage, match="503.*run again"):
        walk(broken.app(), store, 100, how(concurrency=2), attempts=2)
    assert broken.sent <= 2 * (GIVE_UP + 1)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (completion("I think and think", "length"), "id row-[0-9]+: .*cut off.*; mend it .a longer teacher.max_tokens"),
        (completion("So.\nAnswer: 99"), "id row-[0-9]+: the answer is '99', and '[0-9]+' in the corpus"),
    ],
)
def test_a_walk_ends_where_all_that_it_has_paid_for_is_of_no_use(store: Store, reply: web.Response, says: str) -> None:
    broken = Broken(reply)
    with pytest.raises(UserError, match=f"of the first 5 questions none has a rationale that holds .{says}"):
        walk(broken.app(), store, 100, how(concurrency=2, in_vain=5))
    assert broken.sent <= 2 * (5 + 2)  # asks of a row, guided too; rows, and those on their way
    assert owed(store).queries == broken.sent


def test_it_goes_on_where_one_answer_was_right(store: Store) -> None:
    bought, _ = walk(Broken(GOOD).app(), store, 100, how(concurrency=2, in_vain=5))  # right about the first one alone
    assert [row["verified"] for row in bought.rows] == [True] + [False] * 11


def test_a_provider_that_is_away_for_a_while_leaves_rows_that_are_asked_again(store: Store) -> None:
    away = Broken(failing(503), failing(503), completion("So.\nAnswer: 4"))
    bought, _ = walk(away.app(), store, 100, how(concurrency=1), attempts=1)
    assert bought.unreached == 2 and [row["error"] is None for row in bought.rows[:3]] == [False, False, True]
    again, _ = walk(standin_app(), store, 100)
    assert again.unreached == 0 and all(row["verified"] for row in again.rows[:2])
    refused, _ = walk(Broken(failing(400)).app(), store, 100, account="other")
    assert refused.unreached == 0, "it will never be answered"


# --- prices, keys, addresses


def test_an_unknown_price_is_refused_unless_given() -> None:
    with pytest.raises(UserError, match="teacher.price"):
        price("gpt-17", None)
    assert price("gpt-17", PRICE) is PRICE
    assert cost(PRICES["gpt-4o-mini"], 1_000_000, 1_000_000) == pytest.approx(0.75)


def test_the_key_comes_from_the_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert api_key(config.Teacher()) == "from-environment"
    assert api_key(config.Teacher(key_file=str(file))) == KEY
    assert api_key(config.Teacher(standin=config.StandIn())) == "standin"
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="no key"):
        api_key(config.Teacher())
    with pytest.raises(UserError, match="cannot be read"):
        api_key(config.Teacher(key_file=str(tmp_path / "none")))


def test_a_file_that_is_no_key_is_refused_without_showing_it(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"OPENAI_API_KEY = {KEY}\nOTHER = 1\n")
    with pytest.raises(UserError, match="not a key") as raised:
        api_key(config.Teacher(key_file=str(file)))
    assert KEY not in str(raised.value)


def test_reasoning_models_get_their_own_parameters() -> None:
    assert parameters("o3-mini", 9, 0.0) == {"max_completion_tokens": 9}
    assert parameters("gpt-4o", 9, 0.0) == {"max_tokens": 9, "temperature": 0.0}


def test_check_costs_nothing_and_tells_an_unreachable_address(process: str) -> None:
    check(process, KEY)
    assert json.loads(_read(process.removesuffix("/v1") + "/stats"))["billed"] == 0
    with pytest.raises(UserError, match=r"teacher.base_url http://127.0.0.1:9/v1: unreachable") as raised:
        check("http://user:word@127.0.0.1:9/v1", KEY)
    assert "\n" not in str(raised.value) and "word" not in str(raised.value)


@pytest.mark.parametrize("base_url", ["", "localhost:8000/v1", "http://[::1", "ftp://host/v1"])
def test_check_refuses_what_is_no_address(base_url: str) -> None:
    with pytest.raises(UserError, match="not an address"):
        check(base_url, KEY)


@pytest.mark.parametrize(
    ("reply", "words"), [(failing(401), "key was refused"), (web.Response(text="<html>"), "lack its /v1")]
)
def test_check_tells_a_wrong_key_and_a_server_that_is_no_api(reply: web.Response, words: str) -> None:
    async def models(request: web.Request) -> web.Response:
        return web.Response(body=reply.body, status=reply.status, headers=reply.headers)

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/v1/models", models)
        async with TestServer(app) as server:
            await asyncio.to_thread(check, str(server.make_url("/v1")), KEY)

    with pytest.raises(UserError, match=words) as raised:
        asyncio.run(run())
    assert KEY not in str(raised.value)


def test_store_keeps_the_first_answer(store: Store) -> None:
    first = Reply("one", "stop", 1, 1, "m", 0)
    asyncio.run(paid.keep(store, "k", first))
    asyncio.run(paid.keep(store, "k", replace(first, text="two")))
    assert asyncio.run(paid.answer(store, "k")) == first
