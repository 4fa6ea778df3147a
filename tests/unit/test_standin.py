"""The stand-in teacher over real HTTP on loopback: what it knows, how it misbehaves, its Batch API, and its bill."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

import aiohttp
import openai
import pytest
from aiohttp.test_utils import TestServer

from bridge_ray import config
from bridge_ray.answers import prompts
from bridge_ray.errors import UserError
from bridge_ray.teacher import standin
from bridge_ray.teacher.client import check
from bridge_ray.teacher.standin_faults import Bucket
from tests.conftest import bridge_ray

KEY = "sk-secret-0123456789"
ROWS = [
    {"question": f"What is {number} plus {number}?", "rationale": f"Twice {number}.", "answer": str(2 * number)}
    for number in range(12)
]


@pytest.fixture
def answers(tmp_path: Path) -> str:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return str(path)


@pytest.fixture
def process(answers: str) -> Iterator[str]:
    with standin.running("recorded", answers) as base_url:
        yield base_url


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as reply:
        return bytes(reply.read())


def _post(base_url: str, body: bytes) -> tuple[int, Any]:
    request = urllib.request.Request(f"{base_url}/chat/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_standin_speaks_the_protocol(process: str) -> None:
    messages = [{"role": "user", "content": "Tell me:  What is 3\nplus 3? Now."}]
    status, reply = _post(process, json.dumps({"model": "m", "messages": messages}).encode())
    assert status == 200 and reply["choices"][0]["message"]["content"] == "Twice 3.\nAnswer: 6"
    assert reply["usage"] == {"prompt_tokens": 8, "completion_tokens": 5, "total_tokens": 13}
    status, reply = _post(process, json.dumps({"model": "m", "messages": messages, "max_tokens": 2}).encode())
    assert (reply["choices"][0]["finish_reason"], reply["usage"]["completion_tokens"]) == ("length", 2)
    for bad in (b"{", b"{}", json.dumps({"model": "m", "messages": []}).encode()):
        status, reply = _post(process, bad)
        assert status == 400 and reply["error"]["type"] == "invalid_request_error"
    assert json.loads(_read(process.removesuffix("/v1") + "/stats"))["billed"] == 2
    with pytest.raises(urllib.error.HTTPError, match="404"):
        _read(f"{process}/nowhere")


def test_standin_does_not_know_what_was_not_recorded() -> None:
    known = standin.Recorded([{"question": "a b", "rationale": "r", "answer": "1"}])
    assert known.answer("x a b y") == "r\nAnswer: 1"
    assert known.answer("x ab y") is None and known.answer("") is None


def test_standin_finds_one_of_many_questions_quickly() -> None:
    rows = [
        {"question": f"Is the number {i} odd, do you think?", "rationale": "r", "answer": str(i)} for i in range(10_000)
    ]
    known = standin.Recorded(rows)
    assert all((known.answer(f"Well. {row['question']}") or "").endswith(row["answer"]) for row in rows[::100])


def test_standin_expert_is_right_and_always_says_the_same() -> None:
    from bridge_ray.answers.extract import extract
    from bridge_ray.corpus import generated

    expert = standin.answerer("expert", None)
    for example in generated.read(config.Corpus(train=30, test=1), seed=0):
        row = {
            "question": example.question,
            "context": "",
            "options": example.options,
            "answer_type": example.answer_type,
        }
        message = prompts.teacher(row)[1]["content"]
        completion = expert(message)
        assert completion is not None and completion == expert(message)
        assert extract(completion, example.answer_type, example.options) == example.answer
    assert expert("What is love?") is None


def test_the_expert_has_one_style_or_many_and_is_another_provider_then() -> None:
    from bridge_ray.corpus.generated import read, solve

    examples = read(config.Corpus(train=60, dev=0, test=12), 0)
    one, many = (standin.answerer("expert", None, styles) for styles in ("one", "many"))
    messages = [prompts.teacher(asdict(example))[1]["content"] for example in examples]
    solutions = [solve(message) for message in messages]
    said = [one(message) for message in messages]
    assert said == [f"{known.rationales[0]}\nAnswer: {known.answer}" for known in solutions if known]
    assert said != [many(message) for message in messages] == [standin.answerer("expert", None)(m) for m in messages]
    assert standin.identity("expert", styles="many") == standin.identity("expert") == "standin:expert:1"
    assert standin.identity("expert", styles="one") == "standin:expert:1:one"


def test_standin_identity_follows_the_content(answers: str) -> None:
    before = standin.identity("recorded", answers)
    assert before.startswith("standin:recorded:") and standin.identity("expert").startswith("standin:expert:")
    Path(answers).write_text("")
    assert standin.identity("recorded", answers) != before


def test_standin_says_what_is_wrong_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"question": "q"}\n')
    with pytest.raises(UserError, match=r"answers.jsonl:1: expected"), standin.running("recorded", str(file)):
        pass
    with pytest.raises(UserError, match="cannot be read"):
        standin.identity("recorded", str(tmp_path / "none"))


def test_standin_ends_with_the_process_that_started_it(answers: str) -> None:
    script = (
        "import os, sys\n"
        "from bridge_ray.teacher import standin\n"
        "with standin.running('recorded', sys.argv[1]) as base_url:\n"
        "    print(base_url, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", script, answers]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    base_url = killed.stdout.strip()
    assert killed.returncode == -9 and base_url.startswith("http://127.0.0.1:")
    with pytest.raises(UserError, match="unreachable"):
        for _ in range(100):
            check(base_url, KEY, timeout=1)


# --- faults


def messages(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": ROWS[number]["question"]}]


Session = Callable[..., Awaitable[tuple[int, bytes]]]


def served(use: Callable[[TestServer, Session], Awaitable[None]], **options: Unpack[standin.Options]) -> dict[str, Any]:
    """Run a stand-in while ``use`` asks it; its own bill afterwards."""

    async def run() -> dict[str, Any]:
        app = standin.application(standin.Recorded(ROWS).answer, **options)
        async with TestServer(app) as server, aiohttp.ClientSession() as session:

            async def ask(number: int, seconds: float = 10.0) -> tuple[int, bytes]:
                body = {"model": "m", "messages": messages(number)}
                timeout = aiohttp.ClientTimeout(total=seconds)
                url = server.make_url("/v1/chat/completions")
                async with session.post(url, json=body, timeout=timeout) as reply:
                    return reply.status, await reply.read()

            await use(server, ask)
            async with session.get(server.make_url("/stats")) as stats:
                return dict(await stats.json())

    return asyncio.run(run())


def test_bill_counts_every_question() -> None:
    async def use(server: TestServer, ask: Session) -> None:
        for number in (1, 2, 2):
            await ask(number)

    bill = served(use)
    assert (bill["billed"], bill["tokens"]) == (3, 3 * 10)
    assert bill["by_question"] == {standin.question_hash(messages(1)): 1, standin.question_hash(messages(2)): 2}


def statuses(seed: int) -> tuple[list[int], dict[str, Any]]:
    seen: list[int] = []

    async def use(server: TestServer, ask: Session) -> None:
        for _ in range(60):
            seen.append((await ask(1))[0])

    bill = served(use, fail="429:0.3,500:0.2", seed=seed)
    return seen, bill


def test_refusals_are_drawn_by_a_seed_and_not_billed() -> None:
    seen, bill = statuses(0)
    assert seen == statuses(0)[0] != statuses(1)[0]
    assert 8 <= seen.count(429) <= 28 and 4 <= seen.count(500) <= 20
    assert bill["billed"] == seen.count(200) == 60 - seen.count(429) - seen.count(500)


@pytest.mark.parametrize(
    ("kind", "raised"), [("reset", aiohttp.ClientConnectionError), ("timeout", TimeoutError), ("garbage", None)]
)
def test_what_breaks_after_the_answer_is_billed(kind: str, raised: type[Exception] | None) -> None:
    async def use(server: TestServer, ask: Session) -> None:
        if raised is None:
            status, body = await ask(1)
            assert status == 200
            with pytest.raises(ValueError):
                json.loads(body)
            return
        with pytest.raises(raised):
            await ask(1, seconds=0.5)

    assert served(use, fail=f"{kind}:1")["billed"] == 1


def test_latency_is_what_each_completion_takes() -> None:
    async def use(server: TestServer, ask: Session) -> None:
        start = time.monotonic()
        await asyncio.gather(*(ask(number) for number in range(8)))
        assert 0.5 <= time.monotonic() - start < 3  # at a time

    assert served(use, latency=0.5)["billed"] == 8


def test_too_many_requests_are_told_when_to_come_again_and_not_billed() -> None:
    async def use(server: TestServer, ask: Session) -> None:
        assert [(await ask(1))[0] for _ in range(4)] == [200, 200, 429, 429]
        async with aiohttp.ClientSession() as session:
            refused = await session.post(
                server.make_url("/v1/chat/completions"), json={"model": "m", "messages": messages(1)}
            )
            assert refused.status == 429 and 1 <= int(refused.headers["Retry-After"]) <= 20

    assert served(use, rpm=3)["billed"] == 2


def test_bucket_lets_through_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    bucket = Bucket(rpm=600)
    let_in = 0
    while now < 60:
        let_in += bucket.wait() == 0
        now += 0.01
    assert 600 <= let_in <= 610  # a minute's, and the second's that it held


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fail": "teapot:0.1"}, "--fail teapot:0.1: 'teapot' is unknown"),
        ({"fail": "429:0.1,429:0.1"}, "twice"),
        ({"fail": "429"}, "expected KIND:SHARE"),
        ({"fail": "429:1.5"}, "from 0 to 1"),
        ({"fail": "429:nan"}, "from 0 to 1"),
        ({"fail": "429:0.6,500:0.6"}, "more than 1"),
        ({"batch_fail": "429:0.1"}, "--batch-fail 429:0.1: '429' is unknown"),
        ({"latency": -1.0}, "--latency -1.0"),
        ({"batch_seconds": float("inf")}, "--batch-seconds inf"),
        ({"rpm": 0}, "--rpm 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: standin.Options, words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        standin.application(lambda message: None, **options)
    assert "\n" not in str(raised.value)


def test_options_reach_a_process_and_its_mistakes_come_back(answers: str) -> None:
    with standin.running("recorded", answers, fail="500:1", rpm=None, latency=0.1, batch_seconds=0.5) as base_url:
        body = json.dumps({"model": "m", "messages": messages(1)}).encode()
        assert _post(base_url, body)[0] == 500
    with pytest.raises(UserError, match="--fail x"), standin.running("recorded", answers, fail="x"):
        pass


def test_command_line_refuses_bad_options_in_one_line() -> None:
    refused = bridge_ray("teacher", "serve", "--port", "0", "--fail", "429:2", timeout=60)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "bridge-ray: --fail 429:2: expected KIND:SHARE with a share from 0 to 1\n"


# --- batches, through the provider's own SDK


def line(number: int, **changes: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": messages(number)}
    return {"custom_id": f"key-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body} | changes


def batched(use: Callable[[openai.AsyncOpenAI], Awaitable[None]], **options: Unpack[standin.Options]) -> dict[str, Any]:
    async def with_sdk(server: TestServer, ask: Session) -> None:
        async with openai.AsyncOpenAI(
            api_key=KEY,
            base_url=str(server.make_url("/v1")),
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        ) as sdk:
            await use(sdk)

    return served(with_sdk, **options)


async def submit(sdk: openai.AsyncOpenAI, lines: list[Any], **metadata: str) -> Any:
    data = "".join(json.dumps(one) + "\n" for one in lines).encode()
    file = await sdk.files.create(file=("input.jsonl", data), purpose="batch")
    assert (file.bytes, file.filename, file.purpose) == (len(data), "input.jsonl", "batch")
    assert (await sdk.files.retrieve(file.id)).id == file.id
    return await sdk.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata=metadata
    )


async def ended(sdk: openai.AsyncOpenAI, batch: Any) -> tuple[Any, set[str]]:
    """The batch at its end, and the statuses that it went through."""
    seen = {batch.status}
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        await asyncio.sleep(0.01)
        batch = await sdk.batches.retrieve(batch.id)
        seen.add(batch.status)
    return batch, seen


async def results(sdk: openai.AsyncOpenAI, file: str | None) -> dict[str, Any]:
    if file is None:
        return {}
    lines = [json.loads(text) for text in (await sdk.files.content(file)).text.splitlines()]
    return {one["custom_id"]: one for one in lines}


def test_batch_is_answered_and_billed() -> None:
    async def use(sdk: openai.AsyncOpenAI) -> None:
        batch, seen = await ended(sdk, await submit(sdk, [line(1), line(2), line(3, body={"model": "m"})], name="a"))
        assert seen >= {"validating", "in_progress", "completed"} and batch.status == "completed"
        assert batch.metadata == {"name": "a"} and batch.completed_at >= batch.in_progress_at >= batch.created_at
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
        output, errors = await results(sdk, batch.output_file_id), await results(sdk, batch.error_file_id)
        body = output["key-2"]["response"]["body"]
        assert output.keys() == {"key-1", "key-2"} and output["key-2"]["response"]["status_code"] == 200
        assert body["choices"][0]["message"]["content"] == "Twice 2.\nAnswer: 4"
        assert errors["key-3"]["response"]["status_code"] == 400

    assert served_by_question(batched(use)) == [1, 1]


def served_by_question(bill: dict[str, Any]) -> list[int]:
    assert bill["billed"] == sum(bill["by_question"].values())
    return list(bill["by_question"].values())


def test_batch_lines_that_expire_or_fail_are_not_billed() -> None:
    async def use(sdk: openai.AsyncOpenAI) -> None:
        batch, _ = await ended(sdk, await submit(sdk, [line(number) for number in range(12)]))
        output, errors = await results(sdk, batch.output_file_id), await results(sdk, batch.error_file_id)
        assert batch.status == "expired" and len(output) + len(errors) == 12
        assert batch.request_counts.completed == len(output)
        expired = [one for one in errors.values() if one["response"] is None]
        assert {one["error"]["code"] for one in expired} == {"batch_expired"}
        assert {one["response"]["status_code"] for one in errors.values() if one not in expired} == {500}
        nonlocal finished
        finished = len(output)

    finished = 0
    bill = batched(use, batch_fail="expired:0.3,error:0.3", seed=1)
    assert bill["billed"] == finished and 0 < finished < 12


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([], "empty_file"),
        (["no request"], "invalid_json_line"),
        ([line(1), line(1)], "duplicate_custom_id"),
        ([line(1, url="/v1/embeddings")], "invalid_json_line"),
        ([line(1), line(2, body={"model": "other"})], "mismatched_model"),
    ],
)
def test_batch_that_will_not_do_fails(lines: list[Any], code: str) -> None:
    async def use(sdk: openai.AsyncOpenAI) -> None:
        batch, _ = await ended(sdk, await submit(sdk, lines))
        assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
        assert [error.code for error in batch.errors.data] == [code]

    assert batched(use)["billed"] == 0


def test_batch_cancelled_keeps_what_is_finished() -> None:
    async def use(sdk: openai.AsyncOpenAI) -> None:
        batch = await submit(sdk, [line(number) for number in range(12)])
        while not batch.request_counts.completed:
            await asyncio.sleep(0.01)
            batch = await sdk.batches.retrieve(batch.id)
        assert (await sdk.batches.cancel(batch.id)).status == "cancelling"
        batch, _ = await ended(sdk, batch)
        assert batch.status == "cancelled"
        nonlocal finished
        finished = len(await results(sdk, batch.output_file_id))
        with pytest.raises(openai.ConflictError):
            await sdk.batches.cancel(batch.id)

    finished = 0
    assert batched(use, batch_seconds=2)["billed"] == finished and 0 < finished < 12


def test_batches_are_listed_newest_first_in_pages() -> None:
    async def use(sdk: openai.AsyncOpenAI) -> None:
        ids = [(await submit(sdk, [line(1)])).id for _ in range(5)]
        page = await sdk.batches.list(limit=2)
        assert [batch.id for batch in page.data] == ids[:2:-1] and page.has_more
        assert [batch.id async for batch in sdk.batches.list(limit=2)] == ids[::-1]
        assert [batch.id for batch in (await sdk.batches.list(after=ids[1])).data] == [ids[0]]
        for wrong in (sdk.batches.list(limit=0), sdk.batches.list(after="nothing")):
            with pytest.raises(openai.BadRequestError):
                await wrong

    batched(use)


def test_unknown_files_and_batches_are_refused() -> None:
    async def use(sdk: openai.AsyncOpenAI) -> None:
        for call in (
            sdk.files.retrieve("x"),
            sdk.files.content("x"),
            sdk.batches.retrieve("x"),
            sdk.batches.cancel("x"),
        ):
            with pytest.raises(openai.NotFoundError):
                await call
        with pytest.raises(openai.BadRequestError, match="no such file"):
            await sdk.batches.create(input_file_id="x", endpoint="/v1/chat/completions", completion_window="24h")
        with pytest.raises(openai.BadRequestError, match="purpose=batch"):
            await sdk.files.create(file=b"x", purpose="user_data")

    batched(use)
