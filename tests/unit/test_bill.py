"""The provider's bill against the ledger: with faults, a kill at every state of the ledger, and drivers that race.

The stand-in is a process of its own and keeps its own count of what it billed; drivers are processes too.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bridge_ray import config
from bridge_ray.answers import prompts
from bridge_ray.objects import Store, open_store
from bridge_ray.teacher import standin
from bridge_ray.teacher.asks import asks
from bridge_ray.teacher.batch import BatchClient
from bridge_ray.teacher.buy import Purchases, Settings, buy
from bridge_ray.teacher.client import Client
from bridge_ray.teacher.ledger import Account, Balance, Cap, balance
from bridge_ray.teacher.standin_chat import question_hash
from bridge_ray.teacher.statement import statement

PRICE = config.Price(input=1.0, output=10.0)
FAULTS = "429:0.04,500:0.02,reset:0.02,timeout:0.01,garbage:0.01"
QUESTIONS = 24
TEACHER = config.Teacher(model="gpt-4o", max_tokens=64, price=PRICE)
SETTINGS = Settings(partial(asks, provider="standin:test", teacher=TEACHER), PRICE, 6, beat=0.1, lapse=1.0)
RANKING = [
    {
        "id": number,
        "question": f"What is {number} plus {number}?",
        "context": "",
        "options": [],
        "answer": str(2 * number),
        "answer_type": "number",
    }
    for number in range(QUESTIONS)
]


@pytest.fixture
def answers(tmp_path: Path) -> str:
    """Recorded answers, two of them wrong, so that a second ask is part of the walk."""
    path = tmp_path / "answers.jsonl"
    rows = [
        {"question": row["question"], "rationale": "Twice.", "answer": "-1" if row["id"] in (3, 9) else row["answer"]}
        for row in RANKING
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def provider(answers: str) -> Iterator[str]:
    with standin.running("recorded", answers) as base_url:
        yield base_url


@pytest.fixture
def faulty(answers: str, request: pytest.FixtureRequest) -> Iterator[str]:
    faults = getattr(request, "param", FAULTS)
    with standin.running("recorded", answers, fail=faults, seed=7) as base_url:
        yield base_url


def bill(base_url: str) -> dict[str, Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(base_url.removesuffix("/v1") + "/stats", timeout=5) as reply:
        found: dict[str, Any] = json.load(reply)
    return found


def steps(path: str, data: bytes) -> set[str]:
    """Which steps of purchases an object is: one, or all those of a segment's entries."""
    if not path.startswith("accounts/"):
        return {path.split("/")[0]}
    return {json.loads(line)["op"] for line in data.splitlines()}


class Doomed(Store):
    """Kills its process with an object of a kind, just before it is written or just after.

    With the third, so that other rows are on their way; of the rare kinds, and of batches, with the first.
    """

    async def create(self, path: str, data: bytes) -> bool:
        kind, when = os.environ["KILL"].split(":")
        seen[kind] = seen.get(kind, 0) + (kind in steps(path, data))
        doomed = kind in steps(path, data) and seen[kind] == (1 if kind in ("lost", "release", "sent") else 3)
        if doomed and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        created = await super().create(path, data)
        if doomed:
            os.kill(os.getpid(), signal.SIGKILL)
        return created


seen: dict[str, int] = {}


async def drive(store: Store, base_url: str, account: Account, limit: int, ranking: list[dict[str, Any]]) -> Purchases:
    chat = Client(base_url, "none", "gpt-4o", max_tokens=64, backoff=0.01, timeout=0.4)
    batch = os.environ.get("MODE") == "batch"
    settings = replace(SETTINGS, concurrency=limit) if batch else SETTINGS
    async with (
        BatchClient(chat, store, account.name, quiet=float(os.environ.get("QUIET", "0.2")), poll=0.1)
        if batch
        else chat as client
    ):
        return await buy(ranking, client, store, account, limit, settings, lambda counters: None)


def driver(location: str, base_url: str, name: str, queries: int, limit: int, rotate: int, kind: type[Store]) -> None:
    """A whole driver; what the tests below run as a process."""
    plain = open_store(location)
    store = kind(plain.objects, plain.location)
    payer = Account(store, name, Cap(queries=queries), buyer=f"walk-{rotate}", run="test", model="gpt-4o")
    bought = asyncio.run(drive(store, base_url, payer, limit, RANKING[rotate:] + RANKING[:rotate]))
    print(json.dumps({"ids": [row["id"] for row in bought.rows], "queries": bought.queries, "bought": bought.bought}))


def start(*arguments: object, kind: str = "Store", **environment: str) -> subprocess.Popen[str]:
    code = f"from test_bill import *\ndriver(*{arguments!r}, {kind})"
    here, env = Path(__file__).parent, os.environ | environment
    return subprocess.Popen([sys.executable, "-c", code], cwd=here, env=env, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> Any:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, process.returncode
    return json.loads(out)


def owed(location: Path, name: str) -> Balance:
    return asyncio.run(balance(open_store(str(location)), name))


# What each state needs to be reached: queries are lost where connections break, and released where all is refused.
FAULTS_OF = dict.fromkeys(("claims", "reserve", "answers", "settle"), FAULTS)
FAULTS_OF |= {"lost": "reset:0.4", "release": "500:0.8"}
STATES = [(f"{kind}:{when}", faults) for kind, faults in FAULTS_OF.items() for when in ("before", "after")]


@pytest.mark.parametrize(("state", "faulty"), STATES, indirect=["faulty"], ids=[state for state, _ in STATES])
def test_a_kill_at_any_state_overspends_nothing_and_buys_nothing_settled_again(
    state: str, tmp_path: Path, faulty: str
) -> None:
    limit, store = 20, tmp_path / "teacher"
    first = start(str(store), faulty, "team", limit, limit, 0, kind="Doomed", KILL=state)
    assert first.wait(60) == -signal.SIGKILL
    kept = {path.stem: path.read_bytes() for path in (store / "answers").glob("*.json")}
    before = bill(faulty)["by_question"]
    again = result(start(str(store), faulty, "team", limit, limit, 0))
    found, after = owed(store, "team"), bill(faulty)
    assert after["billed"] <= found.queries <= limit
    assert again["queries"] <= limit
    settled = {question_hash(prompts.teacher(row)) for row in RANKING if SETTINGS.asks(row)[0].key in kept}
    assert settled or not state.startswith("settle")
    assert all(after["by_question"][question] == before[question] for question in settled)
    assert asyncio.run(statement(open_store(str(store)), "team")).broken == []


def test_faults_alone_are_charged_at_least_what_was_billed(tmp_path: Path, faulty: str) -> None:
    store = tmp_path / "teacher"
    done = result(start(str(store), faulty, "team", 40, 40, 0))
    found = owed(store, "team")
    assert bill(faulty)["billed"] <= found.queries <= 40
    assert done["ids"] == list(range(QUESTIONS))


@pytest.mark.parametrize("queries", [10, 26])
def test_two_drivers_at_once_share_one_account_and_pay_once(tmp_path: Path, provider: str, queries: int) -> None:
    """Two walks over the same questions from different ends of the ranking, under one cap."""
    store = tmp_path / "teacher"
    drivers = [start(str(store), provider, "team", queries, 100, rotate) for rotate in (0, 12)]
    found = [result(one) for one in drivers]
    paid, bought = bill(provider), owed(store, "team")
    assert paid["billed"] == bought.queries <= queries
    assert set(paid["by_question"].values()) == {1}
    assert sum(one["bought"] for one in found) == bought.queries == len(list((store / "answers").iterdir()))
    if queries == 26:  # every question, and a second ask for two of them
        assert bought.queries == 26 and all(sorted(one["ids"]) == list(range(QUESTIONS)) for one in found)
    else:
        assert bought.queries == 10


def test_two_accounts_do_not_pay_twice_for_one_answer(tmp_path: Path, provider: str) -> None:
    store = tmp_path / "teacher"
    drivers = [start(str(store), provider, f"team-{rotate}", 100, 100, rotate) for rotate in (0, 1)]
    found = [result(one) for one in drivers]
    assert bill(provider)["billed"] == 26 == sum(one["bought"] for one in found)
    assert all(sorted(one["ids"]) == list(range(QUESTIONS)) for one in found)


def test_batches_are_billed_once_whatever_expires_and_whenever_the_driver_dies(tmp_path: Path, answers: str) -> None:
    """Half price: a driver is killed while its batch is under way, and the next one takes the batch up."""
    store = tmp_path / "teacher"
    options = {"batch_seconds": 2.0, "batch_fail": "expired:0.2,error:0.1", "seed": 3}
    with standin.running("recorded", answers, **options) as provider:
        first = start(str(store), provider, "team", 30, 30, 0, kind="Store", MODE="batch")
        while not bill_batches(provider):
            assert first.poll() is None
        first.kill()
        first.wait()
        again = result(start(str(store), provider, "team", 30, 30, 0, kind="Store", MODE="batch"))
        paid, found = bill(provider), owed(store, "team")
    assert paid["billed"] <= found.queries <= 30
    assert set(paid["by_question"].values()) == {1}, "something was bought twice"
    assert again["ids"] == list(range(len(again["ids"]))) and len(again["ids"]) > 12


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_was_only_reserved_for_a_batch_when_the_driver_died_is_given_back(
    tmp_path: Path, provider: str, when: str
) -> None:
    """Before the list of what is sent was written nothing can have been sent; from then on it may have been."""
    store, limit = tmp_path / "teacher", 20
    first = start(str(store), provider, "team", limit, limit, 0, kind="Doomed", MODE="batch", KILL=f"sent:{when}")
    assert first.wait(60) == -signal.SIGKILL
    before = owed(store, "team")
    assert before.queries == len(before.open) > 5 and not bill_batches(provider)
    again = result(start(str(store), provider, "team", limit, limit, 0, MODE="batch"))
    found = owed(store, "team")
    assert again["queries"] == found.queries <= limit
    if when == "before":
        assert not found.open and again["bought"] == bill(provider)["billed"] == limit
    else:
        assert len(found.open) == before.queries and again["bought"] == limit - before.queries


@pytest.mark.parametrize("mode", ["batch", "chat"])
def test_a_batch_under_way_is_taken_up_by_whoever_wants_its_answers(tmp_path: Path, answers: str, mode: str) -> None:
    """Another budget, or the other mode, makes another account and buyer: the questions are the same."""
    store = tmp_path / "teacher"
    with standin.running("recorded", answers, batch_seconds=2.0) as provider:
        first = start(str(store), provider, "small", 10, 10, 0, MODE="batch")
        while not bill_batches(provider):
            assert first.poll() is None
        first.kill()
        first.wait()
        again = result(start(str(store), provider, "large", 26, 26, 0, MODE=mode))
        sent = len(owed(store, "small").open)
        paid, large = bill(provider), owed(store, "large")
    assert set(paid["by_question"].values()) == {1} and paid["billed"] == 26
    assert sent == 5 and large.queries == again["bought"] == 26 - sent and not large.open
    assert again["ids"] == list(range(QUESTIONS))


@pytest.mark.parametrize("mode", ["batch", "chat"])
def test_a_batch_that_its_maker_leaves_while_others_wait_for_it_is_not_bought_again(
    tmp_path: Path, answers: str, mode: str
) -> None:
    """The second run began when nothing was sent yet: it waits for the first one's claims, and then for its batch."""
    store = tmp_path / "teacher"
    with standin.running("recorded", answers, batch_seconds=4.0) as provider:
        first = start(str(store), provider, "small", 10, 10, 0, MODE="batch", QUIET="3")
        while len(owed(store, "small").open) < 5:
            assert first.poll() is None
            time.sleep(0.05)
        second = start(str(store), provider, "large", 26, 26, 0, MODE=mode)
        while not any(batch["metadata"]["bridge_ray"] == "small" for batch in bill_batches(provider)):
            assert first.poll() is None
        first.kill()
        first.wait()
        again, paid = result(second), bill(provider)
    assert set(paid["by_question"].values()) == {1} and paid["billed"] == 26
    assert again["ids"] == list(range(QUESTIONS)) and again["bought"] == 21


def test_two_processes_at_the_same_walk_have_the_same_rows(tmp_path: Path, answers: str) -> None:
    """Two people with one config and one teacher.store: each would count the other's open queries as its own."""
    store = tmp_path / "teacher"
    with standin.running("recorded", answers, batch_seconds=1.0) as provider:
        walks = [start(str(store), provider, "team", 10, 10, 0, MODE="batch") for _ in range(2)]
        found = sorted((result(one) for one in walks), key=lambda one: -int(one["bought"]))
        paid = bill(provider)
    assert found[0]["ids"] == found[1]["ids"] and paid["billed"] == 10
    assert [one["bought"] for one in found] == [10, 0]


def bill_batches(base_url: str) -> list[Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{base_url}/batches", timeout=5) as reply:
        found: list[Any] = json.load(reply)["data"]
    return found
