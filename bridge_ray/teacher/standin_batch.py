"""The stand-in teacher's Batch API, in OpenAI's protocol: files of requests go in, files of answers come out.

Everything is kept in memory. A batch works its lines off evenly over its time, and bills those it finishes; expired,
errored and cancelled lines cost nothing.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from bridge_ray.teacher.standin_chat import Desk, Request, error_body, first_error
from bridge_ray.teacher.standin_faults import Behaviour, Draw

MOST_LINES = 50_000
MOST_BYTES = 200_000_000
MOST_LISTED = 100
DAY_S = 86_400
TICKS = 20  # steps in which a batch's counts go up
EXPIRED = {"code": "batch_expired", "message": "This request could not be executed before the completion window."}


class _Create(BaseModel):
    input_file_id: str
    endpoint: Literal["/v1/chat/completions"]
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = Field(default=None, max_length=16)


class _Line(BaseModel):
    custom_id: str = Field(min_length=1, max_length=64)
    method: Literal["POST"]
    url: Literal["/v1/chat/completions"]
    body: dict[str, Any]


@dataclass(frozen=True)
class _File:
    name: str
    purpose: str
    data: bytes
    created: int = field(default_factory=lambda: int(time.time()))

    def describe(self, file_id: str) -> dict[str, Any]:
        return {
            "id": file_id,
            "object": "file",
            "bytes": len(self.data),
            "created_at": self.created,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }


@dataclass
class _Batch:
    """A batch as it is described to the client, and what has come of its lines so far."""

    shown: dict[str, Any]
    finished: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    expired: int = 0

    def enter(self, status: str) -> None:
        self.shown |= {"status": status, f"{status}_at": int(time.time())}

    def count(self) -> None:
        self.shown["request_counts"] |= {"completed": len(self.finished), "failed": len(self.failed)}


class Batches:
    """The Batch API over a desk that answers and bills."""

    def __init__(self, desk: Desk, behaviour: Behaviour) -> None:
        self._desk = desk
        self._seconds = behaviour.batch_seconds
        self._draw: Draw = behaviour.batch_draw()
        self._files: dict[str, _File] = {}
        self._batches: dict[str, _Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def add_to(self, app: web.Application) -> None:
        app.router.add_post("/v1/files", self._upload)
        app.router.add_get("/v1/files/{id}", self._file)
        app.router.add_get("/v1/files/{id}/content", self._content)
        app.router.add_post("/v1/batches", self._create)
        app.router.add_get("/v1/batches", self._list)
        app.router.add_get("/v1/batches/{id}", self._get)
        app.router.add_post("/v1/batches/{id}/cancel", self._cancel)
        app.on_cleanup.append(self._end)

    async def _end(self, app: web.Application) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # files

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        file = form.get("file")
        if form.get("purpose") != "batch" or not isinstance(file, web.FileField):
            return _refusal(400, "expected a multipart form with a file and purpose=batch")
        file_id = self._keep(_File(file.filename, "batch", file.file.read()))
        return web.json_response(self._files[file_id].describe(file_id))

    def _keep(self, file: _File) -> str:
        file_id = f"file-standin-{len(self._files)}"
        self._files[file_id] = file
        return file_id

    async def _file(self, request: web.Request) -> web.Response:
        file_id = request.match_info["id"]
        if file_id not in self._files:
            return _refusal(404, f"No such File object: {file_id}")
        return web.json_response(self._files[file_id].describe(file_id))

    async def _content(self, request: web.Request) -> web.Response:
        file_id = request.match_info["id"]
        if file_id not in self._files:
            return _refusal(404, f"No such File object: {file_id}")
        return web.Response(body=self._files[file_id].data, content_type="application/octet-stream")

    # batches

    async def _create(self, request: web.Request) -> web.Response:
        try:
            asked = _Create.model_validate_json(await request.read())
        except ValidationError as error:
            return _refusal(400, first_error(error))
        if asked.input_file_id not in self._files:
            return _refusal(400, f"input_file_id: no such file: {asked.input_file_id}")
        batch_id, now = f"batch_standin_{len(self._batches)}", int(time.time())
        batch = _Batch(
            {
                "id": batch_id,
                "object": "batch",
                "endpoint": asked.endpoint,
                "errors": None,
                "input_file_id": asked.input_file_id,
                "completion_window": asked.completion_window,
                "status": "validating",
                "output_file_id": None,
                "error_file_id": None,
                "created_at": now,
                "expires_at": now + DAY_S,
                "request_counts": {"total": 0, "completed": 0, "failed": 0},
                "metadata": asked.metadata,
            }
        )
        self._batches[batch_id] = batch
        task = asyncio.create_task(self._work(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return web.json_response(batch.shown)

    async def _get(self, request: web.Request) -> web.Response:
        batch = self._batches.get(request.match_info["id"])
        return _refusal(404, "No such batch") if batch is None else web.json_response(batch.shown)

    async def _list(self, request: web.Request) -> web.Response:
        limit, after = request.query.get("limit", "20"), request.query.get("after")
        if not limit.isdecimal() or not 1 <= int(limit) <= MOST_LISTED:
            return _refusal(400, f"limit: expected 1 to {MOST_LISTED}")
        newest = list(reversed(self._batches))
        if after is not None and after not in newest:
            return _refusal(400, f"after: no such batch: {after}")
        rest = newest[newest.index(after) + 1 :] if after else newest
        page = [self._batches[batch_id].shown for batch_id in rest[: int(limit)]]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return web.json_response({"object": "list", "data": page, "has_more": len(rest) > len(page)} | ends)

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self._batches.get(request.match_info["id"])
        if batch is None:
            return _refusal(404, "No such batch")
        if batch.shown["status"] not in ("validating", "in_progress"):
            return _refusal(409, f"Cannot cancel a batch with status '{batch.shown['status']}'.")
        batch.enter("cancelling")
        return web.json_response(batch.shown)

    # a batch's life

    async def _work(self, batch: _Batch) -> None:
        await asyncio.sleep(self._seconds / TICKS)
        try:
            lines = _lines(self._files[batch.shown["input_file_id"]].data)
        except _Invalid as invalid:
            batch.enter("failed")
            batch.shown["errors"] = {"object": "list", "data": [invalid.shown]}
            return
        batch.shown["request_counts"]["total"] = len(lines)
        if batch.shown["status"] == "validating":
            batch.enter("in_progress")
        await self._answer(batch, lines)
        cancelled = batch.shown["status"] == "cancelling"
        if not cancelled:
            batch.enter("finalizing")
        batch.shown["output_file_id"] = self._results("output", batch.finished)
        batch.shown["error_file_id"] = self._results("error", batch.failed)
        batch.enter("cancelled" if cancelled else "expired" if batch.expired else "completed")

    async def _answer(self, batch: _Batch, lines: list[_Line]) -> None:
        """Work the lines off evenly over the batch's time, unless it is cancelled first."""
        for tick in range(1, TICKS):
            await asyncio.sleep(self._seconds / TICKS)
            if batch.shown["status"] == "cancelling":
                return
            for line in lines[len(lines) * (tick - 1) // (TICKS - 1) : len(lines) * tick // (TICKS - 1)]:
                self._finish(batch, line)
            batch.count()

    def _finish(self, batch: _Batch, line: _Line) -> None:
        fate = self._draw.next()
        if fate == "expired":
            batch.expired += 1
            batch.failed.append(_result(line, None, EXPIRED))
            return
        if fate == "error":
            batch.failed.append(_result(line, (500, error_body("The server had an error.", "server_error"))))
            return
        try:
            asked = Request.model_validate(line.body)
        except ValidationError as error:
            batch.failed.append(_result(line, (400, error_body(first_error(error)))))
            return
        batch.finished.append(_result(line, (200, self._desk.answer(asked))))

    def _results(self, name: str, results: list[dict[str, Any]]) -> str | None:
        if not results:
            return None
        data = "".join(json.dumps(result) + "\n" for result in results).encode()
        return self._keep(_File(f"{name}.jsonl", "batch_output", data))


class _Invalid(Exception):
    """Why a batch fails validation, as the client is shown it."""

    def __init__(self, code: str, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.shown = {"code": code, "message": message, "param": None, "line": line}


def _lines(data: bytes) -> list[_Line]:
    """The requests of an input file. Raises _Invalid where one of them, or all together, will not do."""
    if len(data) > MOST_BYTES:
        raise _Invalid("file_too_large", f"The file is larger than {MOST_BYTES} bytes.")
    lines = list(_read(data))
    if not lines:
        raise _Invalid("empty_file", "The file holds no requests.")
    if len(lines) > MOST_LINES:
        raise _Invalid("too_many_requests", f"The file holds more than {MOST_LINES} requests.")
    return lines


def _read(data: bytes) -> Iterator[_Line]:
    ids: set[str] = set()
    models: set[Any] = set()
    for number, text in enumerate(data.splitlines(), 1):
        try:
            line = _Line.model_validate_json(text)
        except ValidationError as error:
            raise _Invalid("invalid_json_line", first_error(error), number) from None
        if line.custom_id in ids:
            raise _Invalid("duplicate_custom_id", f"The custom_id {line.custom_id} is there twice.", number)
        ids.add(line.custom_id)
        models.add(str(line.body.get("model")))
        if len(models) > 1:
            raise _Invalid("mismatched_model", "All requests of a batch must name one model.", number)
        yield line


def _result(line: _Line, response: tuple[int, dict[str, Any]] | None, error: object = None) -> dict[str, Any]:
    """A line of the output or error file."""
    shown = None
    if response is not None:
        shown = {"status_code": response[0], "request_id": f"req_{line.custom_id}", "body": response[1]}
    return {"id": f"batch_req_{line.custom_id}", "custom_id": line.custom_id, "response": shown, "error": error}


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response(error_body(message), status=status)
