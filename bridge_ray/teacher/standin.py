"""The stand-in teacher: a server that speaks OpenAI's protocol on loopback and answers without a model.

``expert`` works the generated domains' questions out; ``recorded`` looks answers up in a JSONL file of
{question, rationale, answer}. It bills what it answers, in tokens of four bytes, so that budgets, prices and stores
are exercised as with a real provider. Started as a process of its own, it ends with the one that started it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from bridge_ray.errors import UserError

EXPERT_VERSION = 1  # raise it when the expert's answers change: it is part of their keys
UNKNOWN = "I do not know."
TOKEN_BYTES = 4
STYLE_SEED = "bridge-ray"

Answers = Literal["expert", "recorded"]
Answerer = Callable[[str], str | None]  # user message -> completion


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class _Request(BaseModel):
    model: str
    messages: list[_Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, gt=0)
    max_completion_tokens: int | None = Field(default=None, gt=0)
    stream: Literal[False] | None = None
    n: Literal[1] | None = None


def application(answerer: Answerer) -> web.Application:
    """The server as an aiohttp application; ``GET /stats`` gives its own count of billed requests."""
    billed: list[dict[str, int]] = []

    async def complete(request: web.Request) -> web.Response:
        try:
            asked = _Request.model_validate_json(await request.read())
        except ValidationError as error:
            return _error(400, _first(error), "invalid_request_error")
        completion = _completion(asked, answerer, len(billed))
        billed.append(completion["usage"])
        return web.json_response(completion)

    async def stats(request: web.Request) -> web.Response:
        return web.json_response({"billed": len(billed), "tokens": sum(usage["total_tokens"] for usage in billed)})

    app = web.Application(middlewares=[_unknown_paths])
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_get("/v1/models", _models)
    app.router.add_get("/stats", stats)
    app.router.add_get("/health", _health)
    return app


async def _models(request: web.Request) -> web.Response:
    model = {"id": "standin", "object": "model", "created": 0, "owned_by": "bridge-ray"}
    return web.json_response({"object": "list", "data": [model]})


async def _health(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


@web.middleware
async def _unknown_paths(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _error(error.status, f"{request.method} {request.path}: {error.reason}", "invalid_request_error")


def _error(status: int, message: str, kind: str) -> web.Response:
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return web.json_response(body, status=status)


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}"


def _completion(asked: _Request, answerer: Answerer, number: int) -> dict[str, Any]:
    user = next((message.text for message in reversed(asked.messages) if message.role == "user"), "")
    most = asked.max_completion_tokens or asked.max_tokens
    text, cut = _truncate(answerer(user) or UNKNOWN, most)
    prompt, completion = sum(_tokens(message.text) for message in asked.messages), _tokens(text)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "finish_reason": "length" if cut else "stop",
        "logprobs": None,
    }
    return {
        "id": f"chatcmpl-standin-{number}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": asked.model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }


def _tokens(text: str) -> int:
    return -(-len(text.encode()) // TOKEN_BYTES)


def _truncate(text: str, most: int | None) -> tuple[str, bool]:
    """At most ``most`` tokens of the text, and whether that cut something off."""
    if most is None or _tokens(text) <= most:
        return text, False
    return text.encode()[: most * TOKEN_BYTES].decode(errors="ignore"), True


def answerer(answers: Answers, file: str | None) -> Answerer:
    """What answers the questions. Raises UserError when the recorded file cannot be used."""
    return _expert if answers == "expert" else Recorded(_read(file)).answer


def _expert(message: str) -> str | None:
    from bridge_ray.corpus.generated import solve

    solution = solve(message)
    if solution is None:
        return None
    style = Random(f"{STYLE_SEED}:{message}")  # the same question is always answered alike
    return _text(solution.explain(style), solution.answer)


def _text(rationale: str, answer: str) -> str:
    return f"{rationale}\nAnswer: {answer}"


class Recorded:
    """Recorded completions, found by their question standing in a message, word for word.

    Of several questions in one message, the longest counts.
    """

    STEM = 4  # words that questions are indexed by

    def __init__(self, rows: Iterable[Mapping[str, str]]) -> None:
        self._completions: dict[str, str] = {}
        self._lengths: defaultdict[tuple[str, ...], set[int]] = defaultdict(set)  # in words, by a question's first few
        for row in rows:
            words = row["question"].split()
            self._completions[" ".join(words)] = _text(row["rationale"], row["answer"])
            self._lengths[tuple(words[: self.STEM])].add(len(words))

    def answer(self, message: str) -> str | None:
        longest = max(self._found(message.split()), key=len, default=None)
        return None if longest is None else self._completions[longest]

    def _found(self, words: list[str]) -> Iterator[str]:
        for start in range(len(words)):
            for stem in range(1, self.STEM + 1):
                for length in self._lengths.get(tuple(words[start : start + stem]), ()):
                    question = " ".join(words[start : start + length])
                    if question in self._completions:
                        yield question


def _read(file: str | None) -> list[dict[str, str]]:
    lines = _bytes(file).decode("utf-8", errors="replace").split("\n")  # text may hold other line separators
    return [_row(f"{file}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]


def _row(place: str, line: str) -> dict[str, str]:
    try:
        row = json.loads(line)
        question, rationale, answer = (str(row[field]) for field in ("question", "rationale", "answer"))
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{place}: expected a JSON object with question, rationale and answer") from None
    if not question.strip():
        raise UserError(f"{place}: the question is empty")
    return {"question": question, "rationale": rationale, "answer": answer}


def _bytes(file: str | None) -> bytes:
    if file is None:
        raise UserError("teacher.standin.file: recorded answers need a file (JSONL of question, rationale, answer)")
    try:
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"teacher.standin.file {file}: cannot be read ({type(error).__name__})") from None


def identity(answers: Answers, file: str | None = None) -> str:
    """The provider's name in answer keys: what the stand-in answers from, wherever it listens.

    Raises UserError when the recorded file cannot be read.
    """
    if answers == "expert":
        return f"standin:expert:{EXPERT_VERSION}"
    return f"standin:recorded:{hashlib.sha256(_bytes(file)).hexdigest()}"


def serve(answers: Answers, file: str | None, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until the process ends; ``ready`` is called with the base_url. Port 0 takes a free one."""
    asyncio.run(_serve(application(answerer(answers, file)), host, port, ready))


async def _serve(app: web.Application, host: str, port: int, ready: Callable[[str], None]) -> None:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        ready(f"http://{host}:{runner.addresses[0][1]}/v1")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


@contextmanager
def running(answers: Answers, file: str | None = None) -> Iterator[str]:
    """A stand-in in a process of its own, on loopback; yields its base_url.

    Raises UserError when it does not start. It ends with the block, or when this process dies.
    """
    command = [sys.executable, "-m", "bridge_ray.teacher.standin", "--answers", answers, "--follow-stdin"]
    command += ["--file", str(Path(file).expanduser().absolute())] if file else []
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_environment(),
        start_new_session=True,  # Ctrl-C ends the one who asks first: answers on their way still come
    ) as process:
        try:
            yield _announced(process)
        finally:
            process.terminate()


def _environment() -> dict[str, str]:
    """This process's, with this package importable and without the key, which the stand-in has no use for."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"} | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths))
    }


def _announced(process: subprocess.Popen[bytes]) -> str:
    """The base_url, from the first line that the stand-in prints."""
    assert process.stdout is not None
    line = process.stdout.readline()
    announced = json.loads(line) if line else {"error": "the stand-in teacher did not start; see its messages above"}
    if "error" in announced:
        raise UserError(announced["error"])
    return str(announced["base_url"])


def _end_with_stdin() -> None:
    """End this process when its standard input closes: the process that started it is gone."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bridge_ray.teacher.standin", description=__doc__)
    parser.add_argument("--answers", choices=("expert", "recorded"), default="expert")
    parser.add_argument("--file", help="JSONL of question, rationale, answer")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--follow-stdin", action="store_true", help="end when standard input closes")
    options = parser.parse_args()
    if options.follow_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()

    def announce(**line: str) -> None:
        print(json.dumps(line), flush=True)

    try:
        serve(options.answers, options.file, options.host, options.port, lambda url: announce(base_url=url))
    except UserError as error:
        announce(error=str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
