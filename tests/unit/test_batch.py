"""The batch client over real HTTP on loopback: nothing is bought twice, and what was paid for is never lost."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from obstore.store import MemoryStore

from bridge_ray import config
from bridge_ray.errors import UserError
from bridge_ray.objects import Store, open_store
from bridge_ray.teacher import provider, standin
from bridge_ray.teacher.answers import Ask, Reply, answer_key
from bridge_ray.teacher.asks import asks
from bridge_ray.teacher.batch import BatchClient
from bridge_ray.teacher.buy import Purchases, Settings, buy
from bridge_ray.teacher.client import Client, Failure, check
from bridge_ray.teacher.ledger import Account, Cap, balance

KEY = "sk-secret-0123456789"
ROWS = [
    {"question": f"What is {number} plus {number}?", "rationale": f"Twice {number}.", "answer": str(2 * number)}
    for number in range(40)
]
Middleware = Callable[[web.Request, Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[Any]]


def ask(number: int) -> Ask:
    messages = [{"role": "user", "content": ROWS[number]["question"]}]
    return Ask(answer_key("test", "gpt-4o", messages, {}), messages, 0.01)


def questions() -> list[dict[str, Any]]:
    """The rows as a walk has them."""
    return [
        {"id": number, "key": str(number), "question": row["question"], "context": "", "options": []}
        | {"answer": row["answer"], "answer_type": "number"}
        for number, row in enumerate(ROWS)
    ]


KEYS = {ask(number).key: number for number in range(len(ROWS))}


async def never() -> bool:
    raise AssertionError("nothing here may have been billed")


class Server:
    """A stand-in and the clients of it."""

    def __init__(self, server: TestServer, requests: list[str]) -> None:
        self.server, self.requests = server, requests
        self.states: list[str] = []
        self.store = Store(MemoryStore(), "memory")

    def client(self, account: str = "run", **options: Any) -> BatchClient:
        chat = Client(str(self.server.make_url("/v1")), KEY, "gpt-4o", max_tokens=64)
        defaults = {"quiet": 0.05, "poll": 0.05, "poll_most": 0.2, "patience": 5, "on_state": self.states.append}
        return BatchClient(chat, self.store, account, **(defaults | options))

    async def bill(self) -> dict[int, int]:
        """How often each question was billed."""
        async with aiohttp.ClientSession() as session, session.get(self.server.make_url("/stats")) as reply:
            stats = await reply.json()
        numbers = {standin.question_hash(ask(number).messages): number for number in range(len(ROWS))}
        assert sum(stats["by_question"].values()) == stats["billed"]
        return {numbers[question]: times for question, times in stats["by_question"].items()}

    def count(self, request: str) -> int:
        return self.requests.count(request)


def serve(
    use: Callable[[Server], Awaitable[None]], *middlewares: Middleware, **options: Unpack[standin.Options]
) -> None:
    requests: list[str] = []

    @web.middleware
    async def counted(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        requests.append(f"{request.method} {request.path}")
        return await handler(request)

    async def run() -> None:
        app = standin.application(standin.Recorded(ROWS).answer, **options)
        app.middlewares.extend([counted, *middlewares])
        async with TestServer(app) as server:
            await use(Server(server, requests))

    asyncio.run(run())


async def bought(client: BatchClient, *numbers: int) -> list[Reply | Failure]:
    return list(await asyncio.gather(*(client.ask(ask(number), never) for number in numbers)))


async def recovered(client: BatchClient) -> dict[int, Reply | Failure]:
    found: dict[int, Reply | Failure] = {}
    async for key, outcome in client.recover():
        assert KEYS[key] not in found
        found[KEYS[key]] = outcome
    return found


def right(number: int, outcome: Reply | Failure) -> bool:
    return isinstance(outcome, Reply) and outcome.error is None and outcome.text.endswith(f"Answer: {2 * number}")


def breaking(path: str, after: bool, times: int = 1) -> Middleware:
    """Breaks the connection of a POST, before or after it took effect."""
    left = times

    @web.middleware
    async def middleware(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        nonlocal left
        if left == 0 or (request.method, request.path) != ("POST", path):
            return await handler(request)
        left -= 1
        reply = await handler(request) if after else web.Response()
        assert request.transport is not None
        request.transport.abort()
        return reply

    return middleware


# --- asking


def test_asks_are_answered_together_at_once() -> None:
    async def use(server: Server) -> None:
        async with server.client() as client:
            assert (client.model, client.max_tokens) == ("gpt-4o", 64) and client.parameters["max_tokens"] == 64
            outcomes = await bought(client, *range(40))
        assert all(right(number, outcome) for number, outcome in enumerate(outcomes))
        assert server.count("POST /v1/batches") == 1 and server.count("POST /v1/chat/completions") == 0
        assert await server.bill() == dict.fromkeys(range(40), 1)
        assert server.states[0].endswith(": validating 0/0") and server.states[-1].endswith(": completed 40/40")
        assert all(state.startswith("batch batch_standin_0: ") for state in server.states)

    serve(use)


def test_batches_are_as_large_as_allowed_and_several_are_under_way() -> None:
    async def use(server: Server) -> None:
        async with server.client(most_requests=4) as client:
            assert all(map(right, range(10), await bought(client, *range(10))))
        assert server.count("POST /v1/batches") == 3
        assert server.states.index("batch batch_standin_2: validating 0/0") < min(
            number for number, state in enumerate(server.states) if "completed" in state
        )
        async with server.client(most_bytes=600) as client:
            assert all(map(right, range(10, 14), await bought(client, *range(10, 14))))
        assert server.count("POST /v1/batches") == 5  # lines are of 250 to 300 bytes

    serve(use, batch_seconds=0.6)


def test_equal_asks_are_sent_once() -> None:
    async def use(server: Server) -> None:
        async with server.client() as client:
            first, second = await bought(client, 3, 3)
        assert first == second and await server.bill() == {3: 1}

    serve(use)


def test_later_asks_go_into_another_batch() -> None:
    async def use(server: Server) -> None:
        async with server.client() as client:
            early = asyncio.create_task(client.ask(ask(1), never))
            await asyncio.sleep(0.2)
            assert right(2, await client.ask(ask(2), never)) and right(1, await early)
        assert server.count("POST /v1/batches") == 2

    serve(use)


def test_partly_expired_batch_keeps_what_finished() -> None:
    async def use(server: Server) -> None:
        async with server.client(attempts=1) as client:
            outcomes = await bought(client, *range(40))
        finished = {number for number, outcome in enumerate(outcomes) if right(number, outcome)}
        expired = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        assert 0 < len(finished) == 40 - len(expired)
        assert set(expired) == {Failure("batch expired", billed=False, retry=True)}
        assert await server.bill() == dict.fromkeys(finished, 1)

    serve(use, batch_fail="expired:0.3")


def test_expired_and_failed_lines_go_into_another_batch() -> None:
    async def use(server: Server) -> None:
        async with server.client(attempts=20) as client:
            outcomes = await bought(client, *range(40))
        assert all(map(right, range(40), outcomes))
        assert await server.bill() == dict.fromkeys(range(40), 1)

    serve(use, batch_fail="expired:0.3,error:0.3", batch_seconds=0.1)


def test_failed_lines_are_what_the_same_status_is_in_chat() -> None:
    async def use(server: Server) -> None:
        async with server.client(attempts=1) as client:
            outcomes = set(await bought(client, 1, 2))
        assert outcomes == {Failure("HTTP 500: The server had an error.", billed=False, retry=True, status=500)}
        assert await server.bill() == {}

    serve(use, batch_fail="error:1")


def test_batch_that_fails_validation_is_fatal_in_the_providers_words() -> None:
    @web.middleware
    async def strict(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        reply = await handler(request)
        if request.method == "GET" and request.path.startswith("/v1/batches/"):
            assert isinstance(reply, web.Response) and isinstance(reply.body, bytes)
            errors = {"object": "list", "data": [{"code": "x", "message": f"the key {KEY}\nmay not", "line": None}]}
            return web.json_response(json.loads(reply.body) | {"status": "failed", "errors": errors})
        return reply

    async def use(server: Server) -> None:
        async with server.client() as client:
            outcomes = set(await bought(client, 1, 2))
            assert outcomes == {Failure("batch failed: the key *** may not", billed=False, fatal=True)}

    serve(use, strict, batch_seconds=30)


def test_cancelled_batch_keeps_what_finished() -> None:
    async def use(server: Server) -> None:
        async with server.client() as client, aiohttp.ClientSession() as session:
            tasks = [asyncio.create_task(client.ask(ask(number), never)) for number in range(40)]
            while not await server.bill():
                await asyncio.sleep(0.02)
            await (await session.post(server.server.make_url("/v1/batches/batch_standin_0/cancel"))).read()
            outcomes = await asyncio.gather(*tasks)
        finished = {number for number, outcome in enumerate(outcomes) if right(number, outcome)}
        assert 0 < len(finished) < 40 and await server.bill() == dict.fromkeys(finished, 1)
        assert {outcome for outcome in outcomes if isinstance(outcome, Failure)} == {
            Failure("batch cancelled", billed=False, fatal=True)  # who cancels wants no other questions bought either
        }

    serve(use, batch_seconds=2)


# --- crashes and broken connections


async def crash(server: Server, *numbers: int) -> None:
    """Ask, and be gone as soon as the batch is created: before anything of it is known to us."""
    async with server.client() as client:
        before = server.count("POST /v1/batches")
        tasks = [asyncio.create_task(client.ask(ask(number), never)) for number in numbers]
        while server.count("POST /v1/batches") == before:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
    left = await asyncio.gather(*tasks)
    assert all(isinstance(outcome, Failure) and outcome.billed and outcome.fatal for outcome in left)


def test_what_a_crash_leaves_behind_is_recovered_and_not_bought_again() -> None:
    async def use(server: Server) -> None:
        await crash(server, 1, 2, 3)
        async with server.client() as client:
            found = await recovered(client)  # it is still under way
            assert found.keys() == {1, 2, 3} and all(right(*one) for one in found.items())
            assert right(4, await client.ask(ask(4), never))
        assert await server.bill() == dict.fromkeys((1, 2, 3, 4), 1)
        async with server.client() as client:
            assert (await recovered(client)).keys() == {1, 2, 3, 4}
        assert server.count("POST /v1/batches") == 2

    serve(use, batch_seconds=0.5)


def test_asks_that_were_not_sent_are_known_to_be_free() -> None:
    async def use(server: Server) -> None:
        async with server.client(quiet=10) as client:
            task = asyncio.create_task(client.ask(ask(1), never))
            await asyncio.sleep(0.05)
        assert await task == Failure("not sent", billed=False, fatal=True)
        async with server.client() as client:
            assert await recovered(client) == {}

    serve(use)


def test_what_is_withdrawn_was_in_no_batch() -> None:
    async def use(server: Server) -> None:
        async with server.client(quiet=0.2) as client:
            first = [asyncio.create_task(client.ask(ask(number), never)) for number in (1, 2)]
            while not server.count("POST /v1/batches"):
                await asyncio.sleep(0.005)
            late = [asyncio.create_task(client.ask(ask(number), never)) for number in (3, 4)]
            await asyncio.sleep(0.02)
            assert sorted(KEYS[key] for key in client.withdraw()) == [3, 4]
            await asyncio.sleep(0.4)
            assert server.count("POST /v1/batches") == 1
            for task in (*first, *late):
                task.cancel()

    serve(use, batch_seconds=30)


def test_a_walk_that_is_stopped_before_its_batch_is_sent_owes_nothing(tmp_path: Path) -> None:
    """Else what was only reserved would be charged for good: no batch would tell what has become of it."""
    store = open_store(str(tmp_path))
    teacher = config.Teacher(model="gpt-4o", mode="batch", max_tokens=64, price=config.Price(input=1, output=10))
    how = Settings(partial(asks, provider="test", teacher=teacher), teacher.price, concurrency=40)
    rows = questions()

    async def use(server: Server) -> None:
        account = Account(store, "run", Cap(20), "run", "test", "gpt-4o")
        async with server.client(quiet=30) as client:
            walk = asyncio.create_task(buy(rows, client, store, account, 20, how, lambda counters: None))
            while (await balance(store, "run")).queries < 10:  # each has room for a second ask
                await asyncio.sleep(0.02)
            walk.cancel()
            with pytest.raises(asyncio.CancelledError):
                await walk
        owed = await balance(store, "run")
        assert (owed.queries, owed.reserved, owed.settled) == (0, 0, 0)
        assert not server.count("POST /v1/batches")
        async with server.client() as client:
            bought = await buy(rows, client, store, account, 20, how, lambda counters: None)
        assert [row["verified"] for row in bought.rows] == [True] * 20

    serve(use)


def test_what_has_expired_is_not_charged_when_others_have_answered_it_since(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    teacher = config.Teacher(model="gpt-4o", mode="batch", max_tokens=64, price=config.Price(input=1, output=10))
    how = Settings(partial(asks, provider="test", teacher=teacher), teacher.price, concurrency=40)

    async def walk(client: Client | BatchClient, name: str) -> Purchases:
        account = Account(store, name, Cap(20), name, "test", "gpt-4o")
        async with client:
            return await buy(questions(), client, store, account, 20, how, lambda counters: None)

    async def use(server: Server) -> None:
        first = asyncio.create_task(walk(server.client("first"), "first"))
        while not server.count("POST /v1/batches"):
            await asyncio.sleep(0.01)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert len((await balance(store, "first")).open) > 5
        other = await walk(Client(str(server.server.make_url("/v1")), KEY, "gpt-4o", max_tokens=64), "other")
        again = await walk(server.client("first"), "first")
        assert (other.bought, again.bought, again.hits) == (20, 0, 20)
        owed = await balance(store, "first")
        assert (owed.queries, owed.settled, owed.reserved) == (0, 0, 0)

    serve(use, batch_seconds=0.5, batch_fail="expired:1.0")


def test_other_accounts_batches_are_not_ours() -> None:
    async def use(server: Server) -> None:
        async with server.client("other") as client:
            await bought(client, 1)
        async with server.client() as client:
            assert await recovered(client) == {}
            await bought(client, 2)
        async with server.client() as client:
            assert (await recovered(client)).keys() == {2}

    serve(use)


def test_recovery_reads_all_pages() -> None:
    async def use(server: Server) -> None:
        async with server.client(most_requests=1) as client:
            await bought(client, *range(10))
        for _ in range(3):
            async with server.client("other", most_requests=1) as client:
                await bought(client, *range(35))
        async with server.client() as client:
            found = await recovered(client)
        assert found.keys() == set(range(10)) and all(right(*one) for one in found.items())
        assert server.count("GET /v1/batches") == 2

    serve(use, batch_seconds=0)


def test_recovery_tells_what_expired_unless_it_was_answered_later() -> None:
    async def use(server: Server) -> None:
        async with server.client(attempts=1) as client:
            first = dict(enumerate(await bought(client, *range(40))))
        async with server.client(attempts=1) as client:
            found = await recovered(client)
            assert found == first
            again = [number for number, outcome in found.items() if isinstance(outcome, Failure)]
            second = dict(zip(again, await bought(client, *again), strict=True))
        async with server.client() as client:
            assert await recovered(client) == first | second
        answered = {number for number, outcome in (first | second).items() if isinstance(outcome, Reply)}
        assert set(second.values()) & set(first.values()) and await server.bill() == dict.fromkeys(answered, 1)

    serve(use, batch_fail="expired:0.5")


def test_equal_keys_as_in_an_expired_batch_are_sent_again() -> None:
    """The nonce is the same, the batch is not."""

    async def use(server: Server) -> None:
        async with server.client(attempts=2) as client:
            outcomes = await bought(client, 1, 2)
        assert set(outcomes) == {Failure("batch expired", billed=False, retry=True)}
        assert server.count("POST /v1/batches") == 3  # one of them broke, and was not taken for the first

    second = 0

    @web.middleware
    async def breaks(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        nonlocal second
        second += (request.method, request.path) == ("POST", "/v1/batches")
        if second == 2 and request.method == "POST" and request.path == "/v1/batches":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return await handler(request)

    serve(use, breaks, batch_fail="expired:1")


@pytest.mark.parametrize("after", [True, False])
def test_creation_whose_connection_broke_is_not_repeated_if_it_took_effect(after: bool) -> None:
    async def use(server: Server) -> None:
        async with server.client() as client:
            assert all(map(right, range(10), await bought(client, *range(10))))
        assert await server.bill() == dict.fromkeys(range(10), 1)
        assert server.count("POST /v1/batches") == (1 if after else 2)

    serve(use, breaking("/v1/batches", after))


@pytest.mark.parametrize("after", [True, False])
def test_upload_whose_connection_broke_is_repeated(after: bool) -> None:
    async def use(server: Server) -> None:
        async with server.client() as client:
            assert all(map(right, range(3), await bought(client, *range(3))))
        assert server.count("POST /v1/files") == 2 and await server.bill() == dict.fromkeys(range(3), 1)

    serve(use, breaking("/v1/files", after))


def test_provider_that_stays_down_after_the_creation_counts_as_billed_and_is_recovered() -> None:
    down = True

    @web.middleware
    async def outage(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        if down and request.method == "GET" and request.path.startswith("/v1/batches"):
            return web.json_response({"error": {"message": f"down {KEY}"}}, status=503)
        return await handler(request)

    async def use(server: Server) -> None:
        nonlocal down
        async with server.client(poll=0.01) as client:
            outcomes = set(await bought(client, 1, 2))
        assert outcomes == {Failure("HTTP 503: down ***", billed=True, fatal=True, status=503)}
        async with server.client(poll=0.01) as client:
            with pytest.raises(UserError, match=r"teacher.model gpt-4o: .*HTTP 503.*run again") as raised:
                await recovered(client)
            assert KEY not in str(raised.value)
            down = False
            assert (await recovered(client)).keys() == {1, 2}
        assert await server.bill() == {1: 1, 2: 1}

    serve(use, outage)


def test_provider_that_is_down_for_a_while_is_waited_for() -> None:
    draw, refused = random.Random(0), 0

    @web.middleware
    async def shaky(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        nonlocal refused
        if request.path != "/stats" and draw.random() < 0.6:
            refused += 1
            if refused % 2 and not request.path.endswith("/content"):
                return web.Response(text="<html>", content_type="text/html")
            return web.json_response({}, status=draw.choice([429, 500, 503]))
        return await handler(request)

    async def use(server: Server) -> None:
        async with server.client(poll=0.01, poll_most=0.02, patience=20) as client:
            assert all(map(right, range(10), await bought(client, *range(10))))
        assert await server.bill() == dict.fromkeys(range(10), 1)
        assert refused > 3

    serve(use, shaky)


@pytest.mark.parametrize(("path", "batches"), [("/v1/files", 0), ("/v1/batches", 1)])
def test_refused_key_is_fatal_and_free(path: str, batches: int) -> None:
    @web.middleware
    async def refuse(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        if request.path == path and request.method == "POST":
            return web.json_response({"error": {"message": f"Incorrect key: {KEY}"}}, status=401)
        return await handler(request)

    async def use(server: Server) -> None:
        async with server.client() as client:
            outcomes = set(await bought(client, 1, 2))
        assert outcomes == {Failure("HTTP 401: the key was refused", billed=False, fatal=True, status=401)}
        assert server.count("POST /v1/batches") == batches

    serve(use, refuse)


def test_results_that_are_gone_count_as_billed() -> None:
    @web.middleware
    async def forgetful(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        if request.path.endswith("/content"):
            return web.json_response({"error": {"message": "No such File object"}}, status=404)
        return await handler(request)

    async def use(server: Server) -> None:
        async with server.client() as client:
            outcomes = set(await bought(client, 1, 2))
        assert outcomes == {Failure("the provider no longer has the batch's results", billed=True)}

    serve(use, forgetful)


def test_lines_that_are_missing_or_garbled_count_as_billed() -> None:
    @web.middleware
    async def garbled(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        reply = await handler(request)
        if request.path.endswith("/content") and isinstance(reply, web.Response) and isinstance(reply.body, bytes):
            lines = [json.loads(line) for line in reply.body.splitlines()]
            lines = sorted(lines, key=lambda line: KEYS[line["custom_id"]])
            lines[0]["response"]["body"] = {"choices": []}
            return web.Response(body=json.dumps(lines[0]).encode() + b"\n{" + b"\n" + json.dumps(lines[3]).encode())
        return reply

    async def use(server: Server) -> None:
        async with server.client() as client:
            outcomes = await bought(client, *range(4))
        assert outcomes[0] == Failure("malformed reply: not a chat completion", billed=True)
        assert outcomes[1] == outcomes[2] == Failure("missing in the batch's results", billed=True)
        assert right(3, outcomes[3])

    serve(use, garbled)


# --- which client


def test_mode_chooses_the_client() -> None:
    teacher = config.Teacher(standin=config.StandIn())
    store, nobody = Store(MemoryStore(), "memory"), "http://127.0.0.1:9/v1"
    assert isinstance(provider.client_of(teacher, nobody, store, "run"), Client)
    batch = provider.client_of(teacher.model_copy(update={"mode": "batch"}), nobody, store, "run")
    assert isinstance(batch, BatchClient) and batch.model == teacher.model


def test_check_tells_a_provider_without_batches() -> None:
    async def use(server: Server) -> None:
        await asyncio.to_thread(check, str(server.server.make_url("/v1")), KEY, batch=True)

    serve(use)

    @web.middleware
    async def chat_only(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        return await handler(request) if "batches" not in request.path else web.Response(status=404)

    with pytest.raises(UserError, match=r"Batch API cannot be used \(HTTP 404\); set teacher.mode to chat"):
        serve(use, chat_only)
