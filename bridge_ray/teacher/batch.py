"""The client for half the price: it collects asks and has them answered in batches, within a day.

A batch outlives the process that created it. So that nothing is bought twice, every batch carries the account's name
and a nonce made of its keys in its metadata (see ``sent``): ``recover`` finds what an earlier process left behind, and
a creation whose fate is unknown is looked for before it is tried again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ValidationError

from bridge_ray.errors import UserError
from bridge_ray.objects import Store
from bridge_ray.teacher import sent
from bridge_ray.teacher.answers import Ask, Messages, Reply
from bridge_ray.teacher.client import COMPLETIONS, LONGEST_WAIT_S, Batch, Client, Failure, Reserve, read

ENDED = ("completed", "failed", "expired", "cancelled")
GROWTH = 1.5  # of the time between two looks at a batch
LEFT = Failure("left with the provider; run again to take it up", billed=True, fatal=True)
NOT_SENT = Failure("not sent", billed=False, fatal=True)

Outcomes = dict[str, Reply | Failure]  # by key
L = TypeVar("L", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True)
class _Request:
    messages: Messages
    line: bytes


class BatchClient:
    """Stands in for a ``Client`` where nobody waits for a single answer. Use it as an async context manager.

    A batch is made when no ask has come for ``quiet`` seconds, or when it is as large as the provider allows. It is
    looked at after ``poll`` seconds, then less and less often, down to every ``poll_most``. ``attempts`` bounds the
    batches that one question goes into, ``patience`` the calls in a row that may fail before the provider is taken to
    be down. ``on_state`` is called with a line on where a batch stands.
    """

    def __init__(
        self,
        client: Client,
        store: Store,
        account: str,
        *,
        quiet: float = 1.0,
        poll: float = 1.0,
        poll_most: float = 60.0,
        attempts: int = 3,
        patience: int = 30,
        most_requests: int = 50_000,
        most_bytes: int = 200_000_000,
        on_state: Callable[[str], None] | None = None,
    ) -> None:
        self.model, self.parameters, self.max_tokens = client.model, client.parameters, client.max_tokens
        self.account = account
        self._client, self._store = client, store
        self._quiet, self._poll, self._poll_most = quiet, poll, poll_most
        self._attempts, self._patience = attempts, patience
        self._most_requests, self._most_bytes = most_requests, most_bytes
        self._on_state = on_state or (lambda line: None)
        self._next: dict[str, _Request] = {}  # collected for the next batch, by key
        self._bytes = 0  # of it
        self._timer: asyncio.TimerHandle | None = None
        self._coming: dict[str, asyncio.Future[Reply | Failure]] = {}  # by key
        self._tasks: set[asyncio.Task[None]] = set()
        self._known: set[str] = set()  # ids of batches that were created by us or recovered
        self._uploading: set[asyncio.Task[None]] = set()  # tasks whose batch was certainly not created yet
        self._sent: set[str] = set()  # keys that may have been in a batch

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Batches that are under way go on without us."""
        self._stop_timer()
        for key in self._next:
            self._coming.pop(key).set_result(NOT_SENT)
        self._next = {}
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.__aexit__(kind, error, trace)

    async def ask(self, ask: Ask, reserve: Reserve) -> Reply | Failure:
        """Have one question answered in a batch, and in another one where that can help; never raises for an outcome.

        The caller has reserved the first send; ``reserve`` is as for ``Client.ask``. A caller that is cancelled loses
        nothing: the batch goes on, and ``recover`` finds it.
        """
        for attempt in range(self._attempts):
            outcome = await asyncio.shield(self._collect(ask))
            if isinstance(outcome, Reply) or not outcome.retry or attempt + 1 == self._attempts:
                break
            if outcome.billed and not await reserve():
                break
        return outcome

    async def recover(self) -> AsyncIterator[tuple[str, Reply | Failure]]:
        """What has come of the batches that this account has at the provider; waits for those under way.

        Call it before the first ask. Every key that was ever sent in a batch is yielded once, as a Reply if it has
        one; of the others no batch was bought. Raises UserError when the provider cannot be asked.
        """
        failures: Outcomes = {}
        replied: set[str] = set()
        tasks: list[asyncio.Task[Outcomes]] = []
        try:
            batches = self._own(await self._listed())
            self._known.update(batch.id for batch in batches)
            tasks += [asyncio.create_task(self._recovered(batch)) for batch in batches]
            for task in asyncio.as_completed(tasks):
                for key, outcome in (await task).items():
                    if isinstance(outcome, Failure):
                        failures[key] = outcome
                    elif key not in replied:
                        replied.add(key)
                        yield key, outcome
        except _Lost as lost:
            raise UserError(
                f"teacher.model {self.model}: earlier batches cannot be looked up: {lost.failure.error}; "
                "nothing is lost: run again to go on"
            ) from None
        finally:
            for task in tasks:
                task.cancel()
        for key, failure in failures.items():
            if key not in replied:
                yield key, failure

    async def replies(self, nonce: str) -> dict[str, Reply]:
        """What others' batch of that nonce has brought, once it has ended; what has not come of it is theirs to know.

        Raises UserError when the provider cannot be asked.
        """
        found: dict[str, Reply] = {}
        try:
            for batch in [batch for batch in await self._listed() if _nonce(batch) == nonce]:
                outcomes = await self._recovered(batch)
                found |= {key: one for key, one in outcomes.items() if isinstance(one, Reply)}
        except _Lost as lost:
            raise UserError(
                f"teacher.model {self.model}: what is asked now was sent before, in a batch that cannot be looked up: "
                f"{lost.failure.error}; take a key that may list batches and run again, or remove sent/{nonce}.json "
                "from teacher.store and the questions are bought anew"
            ) from None
        return found

    def withdraw(self) -> list[str]:
        """Create no more batches: the keys of asks on their way that were in none. Who waits for them is to be
        cancelled."""
        self._stop_timer()
        for task in self._uploading:
            task.cancel()
        self._next, self._bytes = {}, 0
        return [key for key in self._coming if key not in self._sent]

    # collecting

    def _collect(self, ask: Ask) -> asyncio.Future[Reply | Failure]:
        """What will come of an ask: it is under way already, or goes into the next batch."""
        if ask.key not in self._coming:
            request = _Request(ask.messages, self._line(ask))
            if self._bytes + len(request.line) > self._most_bytes:
                self._send()
            self._coming[ask.key] = asyncio.get_running_loop().create_future()
            self._next[ask.key] = request
            self._bytes += len(request.line)
            self._stop_timer()
            self._timer = asyncio.get_running_loop().call_later(self._quiet, self._send)
            if len(self._next) == self._most_requests:
                self._send()
        return self._coming[ask.key]

    def _line(self, ask: Ask) -> bytes:
        body = {"model": self.model, "messages": ask.messages, **self.parameters}
        line = {"custom_id": ask.key, "method": "POST", "url": COMPLETIONS, "body": body}
        return json.dumps(line).encode() + b"\n"

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _send(self) -> None:
        """Make a batch of what has been collected."""
        self._stop_timer()
        if not self._next:
            return
        task = asyncio.create_task(self._answer(self._next))
        self._tasks.add(task)
        self._uploading.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._uploading.discard)
        self._next, self._bytes = {}, 0

    async def _answer(self, requests: Mapping[str, _Request]) -> None:
        try:
            batch = await self._create(requests)
            outcomes = await self._outcomes(batch, {key: request.messages for key, request in requests.items()})
        except _Lost as lost:
            outcomes = dict.fromkeys(requests, lost.failure)
        except asyncio.CancelledError:
            outcomes = dict.fromkeys(requests, LEFT)
        except Exception as error:
            for key in requests:
                self._coming.pop(key).set_exception(error)
            return
        for key in requests:
            self._coming.pop(key).set_result(outcomes[key])

    # one batch

    async def _create(self, requests: Mapping[str, _Request]) -> Batch:
        upload = partial(self._client.upload, b"".join(request.line for request in requests.values()))
        file = await self._lasting(upload, billed=False)
        nonce = await sent.note(self._store, self.account, requests)
        self._sent.update(requests)
        task = asyncio.current_task()
        assert task is not None
        self._uploading.discard(task)
        batch = await self._lasting(partial(self._create_or_find, file, nonce), billed=None)
        self._known.add(batch.id)
        return batch

    async def _create_or_find(self, file: str, nonce: str) -> Batch | Failure:
        """Create a batch; where that seems to have failed, see whether it has."""
        made = await self._client.create_batch(file, self._metadata | {"nonce": nonce})
        if isinstance(made, Batch) or not (made.retry or made.billed):
            return made
        await asyncio.sleep(self._wait(0))
        return await self._created(nonce) or made

    @property
    def _metadata(self) -> dict[str, str]:
        return {"bridge_ray": self.account}

    async def _created(self, nonce: str) -> Batch | None:
        """The batch that a call has created although it seemed to fail."""
        own = self._own(await self._listed())
        new = (batch for batch in own if batch.id not in self._known)  # the same keys may have been in one before
        return next((batch for batch in new if _nonce(batch) == nonce), None)

    def _own(self, listed: Iterable[Batch]) -> list[Batch]:
        """This account's."""
        return [batch for batch in listed if self._metadata.items() <= (batch.metadata or {}).items()]

    async def _listed(self) -> list[Batch]:
        """All batches that the provider has, newest first."""
        listed: list[Batch] = []
        after = None
        while True:
            page = await self._lasting(partial(self._client.batches, after))
            listed += page.data
            if not (page.has_more and page.data):
                return listed
            after = page.data[-1].id

    async def _recovered(self, batch: Batch) -> Outcomes:
        data = await self._file(batch.input_file_id) or b""
        asked: dict[str, Messages] = {line.custom_id: line.body.messages for line in _lines(_Input, data)}
        outcomes = await self._outcomes(batch, asked)
        # That an earlier batch was refused does not say that the next one will be.
        return {key: replace(one, fatal=False) if isinstance(one, Failure) else one for key, one in outcomes.items()}

    async def _outcomes(self, batch: Batch, asked: Mapping[str, Messages]) -> Outcomes:
        """What has come of a batch's requests, once it has ended."""
        batch = await self._ended(batch)
        lines: dict[str, _Line] = {}
        absent = self._absent(batch)
        for file in filter(None, (batch.error_file_id, batch.output_file_id)):  # if it is in both, it was answered
            data = await self._file(file)
            if data is None:
                absent = Failure("the provider no longer has the batch's results", billed=True)
            lines |= {line.custom_id: line for line in _lines(_Line, data or b"")}
        found = {key: self._outcome(line, asked.get(key, ())) for key, line in lines.items()}
        return dict.fromkeys(asked, absent) | found

    async def _ended(self, batch: Batch) -> Batch:
        looks = 0
        while True:
            counts = batch.request_counts
            done = f" {counts.completed}/{counts.total}" if counts else ""
            self._on_state(f"batch {batch.id}: {batch.status}{done}")
            if batch.status in ENDED:
                return batch
            await asyncio.sleep(self._wait(looks))
            batch = await self._lasting(partial(self._client.batch, batch.id))
            looks += 1

    def _absent(self, batch: Batch) -> Failure:
        """What it means that a request is in neither of an ended batch's results."""
        if batch.status == "failed":
            problems = (batch.errors and batch.errors.data) or []
            words = self._client.quoted(problems[0].message if problems else "no reason given")
            return Failure(f"batch failed: {words}", billed=False, fatal=True)
        if batch.status == "completed":
            return Failure("missing in the batch's results", billed=True)
        # Who cancels a batch wants to pay for no others either.
        expired = batch.status == "expired"
        return Failure(f"batch {batch.status}", billed=False, retry=expired, fatal=not expired)

    def _outcome(self, line: _Line, messages: Messages) -> Reply | Failure:
        if line.response is None:
            error = line.error or _Error()
            if error.code == "batch_expired":
                return Failure("batch expired", billed=False, retry=True)
            return Failure(self._client.quoted(f"batch: {error.code}: {error.message}"), billed=False)
        body, status = line.response.body, line.response.status_code
        if status >= 400:
            return self._client.refused(status, body.get("error") if isinstance(body, dict) else None)
        return read(json.dumps(body).encode(), messages, self.max_tokens)

    # the provider

    async def _file(self, file: str) -> bytes | None:
        """A file's content, or None where the provider has it no longer."""
        try:
            return await self._lasting(partial(self._client.download, file))
        except _Lost as lost:
            if lost.failure.status == 404:
                return None
            raise

    async def _lasting(self, call: Callable[[], Awaitable[T | Failure]], billed: bool | None = True) -> T:
        """What a call gives in the end, if it is repeated where that can help. Raises _Lost where that is a failure.

        ``billed`` is what such a failure means for the batch's requests; None: what it says itself.
        """
        for attempt in range(self._patience):
            outcome = await call()
            if not isinstance(outcome, Failure):
                return outcome
            failure = replace(outcome, billed=outcome.billed if billed is None else billed, retry=False, fatal=True)
            if not outcome.retry:
                break
            await asyncio.sleep(self._wait(attempt, outcome.retry_after))
        raise _Lost(failure)

    def _wait(self, attempt: int, retry_after: float = 0.0) -> float:
        """Seconds until the next call: longer each time, and at least what the provider asks for."""
        longer = min(self._poll_most, self._poll * GROWTH ** min(attempt, 50))
        return max(longer, min(LONGEST_WAIT_S, retry_after))


class _Lost(Exception):
    """Nothing more will be learned of a batch in this run."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error)
        self.failure = failure


def _nonce(batch: Batch) -> str | None:
    return (batch.metadata or {}).get("nonce")


class _Error(BaseModel):
    code: str | None = None
    message: str | None = None


class _Response(BaseModel):
    status_code: int
    body: Any = None


class _Line(BaseModel):
    """A line of a batch's results."""

    custom_id: str
    response: _Response | None = None
    error: _Error | None = None


class _Body(BaseModel):
    messages: list[dict[str, str]]


class _Input(BaseModel):
    """A line of what a batch was asked."""

    custom_id: str
    body: _Body


def _lines(kind: type[L], data: bytes) -> Iterator[L]:
    """The lines of a file that are what they should be; a key without one is reported as missing."""
    for line in data.splitlines():
        try:
            yield kind.model_validate_json(line)
        except ValidationError:
            continue
