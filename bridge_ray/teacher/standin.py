"""The stand-in teacher: a server that speaks OpenAI's protocol on loopback and answers without a model.

``expert`` works the generated domains' questions out; ``recorded`` looks answers up in a JSONL file of
{question, rationale, answer}. It bills what it answers, in tokens of four bytes, so that budgets, prices and stores
are exercised as with a real provider, one at a time or in batches; and it misbehaves as it is told. Started as a
process of its own, it ends with the one that started it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

from aiohttp import web
from pydantic import ValidationError

from bridge_ray.errors import UserError
from bridge_ray.teacher.standin_answers import Answerer, Answers, Recorded, Styles, answerer, identity
from bridge_ray.teacher.standin_batch import MOST_BYTES, Batches
from bridge_ray.teacher.standin_chat import Desk, Request, error_body, first_error, question_hash
from bridge_ray.teacher.standin_faults import Behaviour, Bucket, Options

__all__ = [
    "Answerer",
    "Answers",
    "Options",
    "Recorded",
    "answerer",
    "application",
    "identity",
    "question_hash",
    "running",
    "serve",
]

HANG_UP_S = 0.05  # how often a request that is never answered looks whether its client is still there


def application(answerer: Answerer, **options: Unpack[Options]) -> web.Application:
    """The server as an aiohttp application; ``GET /stats`` gives its own count of billed requests.

    Raises UserError for options that make no sense; see ``standin_faults.Behaviour`` for what they mean.
    """
    behaviour = Behaviour(**options)
    desk = Desk(answerer)

    async def stats(request: web.Request) -> web.Response:
        return web.json_response(desk.stats())

    app = web.Application(middlewares=[_unknown_paths], client_max_size=MOST_BYTES + 2**20)
    app.router.add_post("/v1/chat/completions", _Completions(desk, behaviour).complete)
    app.router.add_get("/v1/models", _models)
    app.router.add_get("/stats", stats)
    app.router.add_get("/health", _health)
    Batches(desk, behaviour).add_to(app)
    return app


class _Completions:
    """The chat-completions endpoint, as well as it is told to work."""

    def __init__(self, desk: Desk, behaviour: Behaviour) -> None:
        self._desk = desk
        self._latency = behaviour.latency
        self._bucket = Bucket(behaviour.rpm) if behaviour.rpm else None
        self._draw = behaviour.draw()

    async def complete(self, request: web.Request) -> web.Response:
        wait = self._bucket.wait() if self._bucket else 0.0
        if wait:
            return _error(429, "Rate limit reached.", "rate_limit_error", {"Retry-After": str(math.ceil(wait))})
        try:
            asked = Request.model_validate_json(await request.read())
        except ValidationError as error:
            return _error(400, first_error(error))
        fate = self._draw.next()
        if fate == "429":
            return _error(429, "The engine is overloaded.", "rate_limit_error")
        if fate == "500":
            return _error(500, "The server had an error.", "server_error")
        await asyncio.sleep(self._latency)
        completion = self._desk.answer(asked)
        if fate == "garbage":
            return web.Response(body=b"<html>Bad gateway", content_type="text/html")
        if fate == "reset":
            _abort(request)
        while fate == "timeout" and request.transport is not None:
            await asyncio.sleep(HANG_UP_S)
        return web.json_response(completion)


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


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
        return _error(error.status, f"{request.method} {request.path}: {error.reason}")


def _error(
    status: int, message: str, kind: str = "invalid_request_error", headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.json_response(error_body(message, kind), status=status, headers=headers)


def serve(
    answers: Answers,
    file: str | None,
    host: str,
    port: int,
    ready: Callable[[str], None],
    styles: Styles = "many",
    **options: Unpack[Options],
) -> None:
    """Serve until the process ends; ``ready`` is called with the base_url. Port 0 takes a free one.

    Raises UserError when the recorded file or an option cannot be used.
    """
    asyncio.run(_serve(application(answerer(answers, file, styles), **options), host, port, ready))


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
def running(
    answers: Answers, file: str | None = None, styles: Styles = "many", **options: Unpack[Options]
) -> Iterator[str]:
    """A stand-in in a process of its own, on loopback; yields its base_url.

    Raises UserError when it does not start. It ends with the block, or when this process dies.
    """
    command = [sys.executable, "-m", "bridge_ray.teacher.standin", "--answers", answers, "--styles", styles]
    command += ["--follow-stdin"]
    command += ["--file", str(Path(file).expanduser().absolute())] if file else []
    command += [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]
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
            assert process.stdin is not None
            process.stdin.close()


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
    parser = argparse.ArgumentParser(
        prog="python -m bridge_ray.teacher.standin", description=__doc__, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("--answers", choices=("expert", "recorded"), default="expert")
    parser.add_argument("--file", help="JSONL of question, rationale, answer", default=None)
    parser.add_argument("--styles", choices=("one", "many"), help="of the expert's rationales", default="many")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--follow-stdin", action="store_true", help="end when standard input closes", default=False)
    parser.add_argument("--latency", type=float, help="seconds that each completion takes")
    parser.add_argument("--rpm", type=int, help="requests per minute; above it 429 with Retry-After")
    parser.add_argument("--fail", help="probabilities per request: 429:0.1,500:0.02,reset:0.01,timeout:0.01,...")
    parser.add_argument("--seed", type=int, help="of the failures")
    parser.add_argument("--batch-seconds", type=float, help="how long a batch takes")
    parser.add_argument("--batch-fail", help="probabilities per line of a batch: expired:0.1,error:0.1")
    options = vars(parser.parse_args())
    if options.pop("follow_stdin"):
        # A job that is stopped has all of its processes told so: answers on their way must still come.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Thread(target=_end_with_stdin, daemon=True).start()

    def announce(**line: str) -> None:
        print(json.dumps(line), flush=True)

    try:
        serve(ready=lambda url: announce(base_url=url), **options)
    except UserError as error:
        announce(error=str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
