"""The chat client over real HTTP on loopback: its pace, its pauses, and which completions it calls unusable."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bridge_ray.teacher import standin
from bridge_ray.teacher.answers import Ask, Reply
from bridge_ray.teacher.client import Client, Failure, read
from bridge_ray.teacher.prices import input_bound

KEY = "sk-secret-0123456789"
MESSAGES = [{"role": "user", "content": "What is two and two, if you add them up?"}]
BOUND = input_bound(MESSAGES)
ASK = Ask("key", MESSAGES, 0.01)


async def never() -> bool:
    raise AssertionError("nothing here may have been billed")


def asked(
    app: web.Application, asks: int, concurrency: int = 16, **options: Any
) -> tuple[list[Reply | Failure], list[float], list[int]]:
    """The outcomes of as many asks, and the times (seconds) and statuses of all requests that the server got."""
    times: list[float] = []
    statuses: list[int] = []

    @web.middleware
    async def watched(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        times.append(asyncio.get_running_loop().time())
        reply = await handler(request)
        statuses.append(reply.status)
        return reply

    async def run() -> list[Reply | Failure]:
        app.middlewares.append(watched)
        slots = asyncio.Semaphore(concurrency)

        async def one() -> Reply | Failure:
            async with slots:
                return await client.ask(ASK, never)

        options.setdefault("backoff", 0.05)
        async with (
            TestServer(app) as server,
            Client(str(server.make_url("/v1")), KEY, "gpt-4o", max_tokens=64, **options) as client,
        ):
            return list(await asyncio.gather(*(one() for _ in range(asks))))

    return asyncio.run(run()), times, statuses


def rate(times: list[float]) -> float:
    """Requests per minute, over the 20 that came fastest: other work on the machine only holds requests up."""
    return max(60 * 20 / (times[first + 20] - times[first]) for first in range(len(times) - 20))


def test_pace_reaches_the_allowed_requests_per_minute_and_stays_within() -> None:
    start = time.monotonic()
    app = standin.application(lambda message: "Four.", latency=0.1, rpm=600)
    outcomes, times, statuses = asked(app, asks=50, rpm=600)
    assert all(isinstance(outcome, Reply) for outcome in outcomes) and statuses == [200] * 50
    assert rate(times) >= 0.95 * 600
    assert all(at >= start + number * 0.1 for number, at in enumerate(times))


@pytest.mark.parametrize("binding", ["rpm", "tpm"])
def test_pace_keeps_to_the_limit_that_binds(binding: str) -> None:
    tokens = -(-len(MESSAGES[0]["content"]) // 4) + 64  # what the provider counts before it answers
    limits = {"rpm": 600, "tpm": 10_000 * tokens} if binding == "rpm" else {"rpm": 10_000, "tpm": 600 * tokens}
    start = time.monotonic()
    _, times, _ = asked(standin.application(lambda message: "Four.", latency=0.1), asks=50, **limits)
    assert rate(times[16:]) >= 0.95 * 600  # of the first ones in flight, more tokens are expected than there are
    assert all(at >= start + number * 0.1 for number, at in enumerate(times))


def refusing(seconds: float, *refused: int) -> web.Application:
    """Refuses the requests with these numbers, and names the seconds to wait."""
    count = -1

    async def complete(request: web.Request) -> web.Response:
        nonlocal count
        count += 1
        if count in refused:
            return web.json_response({}, status=429, headers={"Retry-After": str(seconds)})
        choice = {"message": {"content": "Four."}, "finish_reason": "stop"}
        await asyncio.sleep(0.02)
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    return app


@pytest.mark.parametrize("rpm", [None, 1200])
def test_everybody_waits_when_one_is_told_to(rpm: int | None) -> None:
    outcomes, times, statuses = asked(refusing(1.0, 8), asks=24, concurrency=4, rpm=rpm)
    assert all(isinstance(outcome, Reply) for outcome in outcomes) and statuses.count(429) == 1
    again = [at for at in times if at > times[8] + 0.9]
    assert len(times) - 12 <= len(again) <= len(times) - 9  # but for those that were on their way
    spacing = 60 / rpm if rpm else 0.0
    assert all(at >= times[8] + 1.0 + number * spacing for number, at in enumerate(again))  # no burst afterwards


def test_pauses_at_a_time_do_not_add_up() -> None:
    _, times, statuses = asked(refusing(1.0, 4, 5, 6, 7), asks=20, concurrency=4)
    assert statuses.count(429) == 4 and 1.0 <= times[-1] - times[4] < 3


# --- which completions can be used


def judged(text: str, question: str, finish: str = "stop", **message: str) -> str | None:
    choice = {"message": {"content": text} | message, "finish_reason": finish}
    body = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode()
    outcome = read(body, [{"role": "system", "content": "Explain."}, {"role": "user", "content": question}], 64)
    assert isinstance(outcome, Reply) and outcome.text == text and outcome.prompt_tokens == 1
    return outcome.error


ENGLISH = "A contract needs offer and acceptance.\nIs a signed letter of intent a contract?\nA) yes\nB) no"
GERMAN = "Ist eine unterschriebene Absichtserklärung ein Vertrag?"
CHINESE = "签署的意向书是合同吗？请说明理由，然后给出最终答案，并且简要解释你的推理过程。"
CHINESE_ANSWER = "意向书只是表示签署的意愿，并不构成合同，因为缺少承诺这一要件。"
RUSSIAN = "Подписанное письмо о намерениях ещё не является договором.\nAnswer: B"


@pytest.mark.parametrize(
    ("text", "question", "error"),
    [
        ("It lacks acceptance.\nAnswer: B", ENGLISH, None),
        ("Answer: B", ENGLISH, None),
        ("B) no", ENGLISH, None),  # too short to be an echo
        (ENGLISH, ENGLISH, "echo of the question"),
        ("  is a signed LETTER of intent:\n\na contract? ", ENGLISH, "echo of the question"),
        ("2 + 2", "2+2?", "echo of the question"),
        (f"{ENGLISH}\nIt lacks acceptance.\nAnswer: B", ENGLISH, None),  # repeats it, and answers
        (RUSSIAN, ENGLISH, "wrong language"),
        (CHINESE, ENGLISH, "wrong language"),
        ("It lacks acceptance, so it is none.", CHINESE, "wrong language"),
        (CHINESE[:4], ENGLISH, None),  # too short to tell
        ("Es fehlt die Annahme; das ist kein Vertrag.", GERMAN, None),
        ("It lacks acceptance, so it is none.", GERMAN, None),  # scripts are told apart, not languages
        ("意向书只是表示签署的意愿，并不构成合同，因为缺少承诺这一要件。", CHINESE, None),
        (
            "意向书只是表示签署的意愿，并不构成合同，因为缺少承诺这一要件。",
            f"{CHINESE}\n\nThe correct answer is 否.",
            None,
        ),
        (
            "契約にはなりません。申込みと承諾がそろっていないからです。",
            "意向書は契約ですか。理由を述べてください。",
            None,
        ),
        ("α, β and γ are the angles, so the sum is π.", "The sum of α, β and γ is to be found.", None),
        ("Two and two is four, as everybody knows.", "2 + 2 = ?", None),  # nothing to compare with
    ],
)
def test_echoes_and_wrong_languages_are_recorded(text: str, question: str, error: str | None) -> None:
    assert judged(text, question) == error


def test_how_it_ended_comes_before_what_it_says() -> None:
    assert judged(ENGLISH, ENGLISH, "length") == "cut off at teacher.max_tokens"
    assert judged(ENGLISH, ENGLISH, refusal="I cannot.") == "refusal"
    assert judged(" ", "", "stop") == "empty reply"


def test_unusable_completions_are_replies_that_were_paid_for() -> None:
    app = standin.application(lambda message: message)
    outcomes, _, _ = asked(app, asks=1)
    assert isinstance(outcomes[0], Reply) and outcomes[0].error == "echo of the question"
    assert outcomes[0].prompt_tokens > 0 and outcomes[0].completion_tokens > 0


def test_no_usage_is_read_as_the_most_it_can_be() -> None:
    body = json.dumps({"choices": [{"message": {"content": "Four."}, "finish_reason": "stop"}]}).encode()
    outcome = read(body, MESSAGES, 64)
    assert isinstance(outcome, Reply) and (outcome.prompt_tokens, outcome.completion_tokens) == (BOUND, 64)
