"""The client of the black-box teacher: one question in, one recorded outcome out. The only file to import openai.

Also the calls of the provider's Batch API, which ``batch`` builds on.

The SDK's own retries are off, because it cannot know the budget: a query whose connection broke may have been
billed, so sending it again is another query, while one that the provider refused (429, 5xx) was not billed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import openai
from pydantic import BaseModel, Field, ValidationError

from bridge_ray.config import Teacher
from bridge_ray.errors import UserError
from bridge_ray.teacher.answers import Ask, Messages, Reply
from bridge_ray.teacher.prices import input_bound
from bridge_ray.teacher.usable import unusable

DEFAULT_URL = "https://api.openai.com/v1"
REASONING = ("o1", "o3", "o4", "gpt-5")  # prefixes of models that take max_completion_tokens and no temperature
FATAL = (401, 403, 404)  # the key or the model is wrong: no other question will fare better
GATEWAY_TIMEOUTS = (504, 524)  # answered by a gateway while the provider may still be working, and billing
UNSENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")  # of the HTTP library: nothing has left
BILLED_SENDS = 2  # of one question that may be billed with nothing to show for it, as where a reply takes too long
LONGEST_WAIT_S = 300.0
FILE_TIMEOUT_S = 900.0  # of 200 MB up or down
COMPLETIONS = "/v1/chat/completions"  # what a batch's lines are sent to

Reserve = Callable[[], Awaitable[bool]]
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Failure:
    """No completion came back.

    ``billed``: it may have been paid for all the same. ``fatal``: the next question would fail alike.
    ``retry_after`` is in seconds, ``status`` an HTTP status where there was one.
    """

    error: str
    billed: bool
    fatal: bool = False
    retry: bool = False
    retry_after: float = 0.0
    status: int | None = None


class Counts(BaseModel):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Problem(BaseModel):
    message: str | None = None
    line: int | None = None


class Problems(BaseModel):
    data: list[Problem] | None = None


class Batch(BaseModel):
    """A batch, in the provider's own words."""

    id: str
    status: str
    input_file_id: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    request_counts: Counts | None = None
    metadata: dict[str, Any] | None = None
    errors: Problems | None = None  # why it failed validation


class Page(BaseModel):
    """Some of the account's batches, newest first."""

    data: list[Batch]
    has_more: bool = False


class _File(BaseModel):
    id: str


class Client:
    """An OpenAI-compatible provider and one model of it. Close it, or use it as an async context manager.

    ``timeout`` (seconds) is of one request, ``attempts`` bounds the sends of one question, of which no more than
    ``BILLED_SENDS`` may have been billed in vain; ``backoff`` (seconds) is the first wait between them. ``rpm`` and
    ``tpm`` limit requests and tokens per minute.
    """

    def __init__(
        self,
        base_url: str,
        key: str,
        model: str,
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        rpm: int | None = None,
        tpm: int | None = None,
        timeout: float = 600.0,
        attempts: int = 6,
        backoff: float = 1.0,
    ) -> None:
        self.model = model
        self.max_tokens = max_tokens
        self.parameters = parameters(model, max_tokens, temperature)
        self._key = key
        self._attempts = attempts
        self._backoff = backoff
        self._pace = _Pace(rpm, tpm)
        direct = openai.DefaultAsyncHttpxClient(trust_env=False) if _loopback(base_url) else None
        self._openai = openai.AsyncOpenAI(
            api_key=key, base_url=base_url, max_retries=0, timeout=timeout, http_client=direct
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._openai.close()

    async def ask(self, ask: Ask, reserve: Reserve) -> Reply | Failure:
        """Send one question, again where that can help; whatever comes back is an outcome, not an exception.

        The caller has reserved the first send. ``reserve`` is awaited before a send that follows one that may have
        been billed, and says whether the budget has room for it.
        """
        billed = 0
        for attempt in range(self._attempts):
            outcome = await self._send(ask.messages)
            if isinstance(outcome, Reply) or not outcome.retry or attempt + 1 == self._attempts:
                break
            billed += outcome.billed
            if billed == BILLED_SENDS:
                break
            await asyncio.sleep(self._wait(attempt, outcome.retry_after))
            if outcome.billed and not await reserve():
                break
        return outcome

    async def _send(self, messages: Messages) -> Reply | Failure:
        bound = input_bound(messages)
        await self._pace.turn(bound + self.max_tokens)
        body = await self._call(
            self._openai.chat.completions, "create", model=self.model, messages=messages, **self.parameters
        )
        if isinstance(body, Failure):
            self._pace.pause(min(LONGEST_WAIT_S, body.retry_after))
            return body
        outcome = read(body, messages, self.max_tokens)
        if isinstance(outcome, Reply):
            self._pace.give_back(bound - outcome.prompt_tokens)
        return outcome

    async def upload(self, lines: bytes) -> str | Failure:
        """Store a batch's input, one JSON request a line; the file's id. It costs nothing."""
        file = ("bridge_ray.jsonl", lines)
        body = await self._call(self._openai.files, "create", file=file, purpose="batch", timeout=FILE_TIMEOUT_S)
        stored = _parsed(_File, body)
        return stored if isinstance(stored, Failure) else stored.id

    async def download(self, file: str) -> bytes | Failure:
        """A file's content."""
        return await self._call(self._openai.files, "content", file_id=file, timeout=FILE_TIMEOUT_S)

    async def create_batch(self, file: str, metadata: Mapping[str, str]) -> Batch | Failure:
        """Have a file's requests answered within a day. A Failure that is billed may have created it all the same."""
        body = await self._call(
            self._openai.batches,
            "create",
            input_file_id=file,
            endpoint=COMPLETIONS,
            completion_window="24h",
            metadata=dict(metadata),
        )
        return _parsed(Batch, body)

    async def batch(self, batch: str) -> Batch | Failure:
        """A batch as it stands now."""
        return _parsed(Batch, await self._call(self._openai.batches, "retrieve", batch_id=batch))

    async def batches(self, after: str | None) -> Page | Failure:
        """The newest batches of everybody with this key, or those that are older than the batch ``after``."""
        place = {} if after is None else {"after": after}
        return _parsed(Page, await self._call(self._openai.batches, "list", limit=100, **place))

    async def _call(self, resource: Any, method: str, **arguments: Any) -> bytes | Failure:
        """The body of the provider's reply to one request."""
        try:
            raw = await getattr(resource.with_raw_response, method)(**arguments)
        except openai.APIStatusError as error:
            return self.refused(error.status_code, error.body, _retry_after(error.response.headers))
        except openai.APIConnectionError as error:  # timeouts too
            cause = type(error.__cause__ or error).__name__
            return Failure(f"connection failed: {cause}", billed=cause not in UNSENT, retry=True)
        except openai.OpenAIError as error:
            return Failure(f"malformed reply: {type(error).__name__}", billed=True)
        return bytes(raw.content)

    def refused(self, status: int, error: object, retry_after: float = 0.0) -> Failure:
        """What an HTTP status above 399 means for a question; ``error`` is the error object of the reply's body."""
        broke = isinstance(error, dict) and error.get("code") == "insufficient_quota"
        return Failure(
            _reason(status, error, self._key),
            billed=status in GATEWAY_TIMEOUTS,
            fatal=status in FATAL or broke,
            retry=(status == 429 and not broke) or status >= 500,
            retry_after=retry_after,
            status=status,
        )

    def quoted(self, words: object) -> str:
        """The provider's words in one short line, without the key."""
        return _quoted(words, self._key)

    def _wait(self, attempt: int, retry_after: float) -> float:
        """Seconds until the next send: what the provider asks for, or else twice as long each time; with jitter."""
        jitter = random.uniform(0.5, 1.0) * self._backoff
        return min(LONGEST_WAIT_S, retry_after + jitter if retry_after else jitter * 2**attempt)


class _Pace:
    """Spaces requests out evenly, within limits per minute, on a clock that stands still during pauses.

    A request's turn is fixed when it asks for it, so late wake-ups do not add up: as long as requests wait for their
    turn, the limit is reached.
    """

    def __init__(self, rpm: int | None, tpm: int | None) -> None:
        self._per_request = 60 / rpm if rpm else 0.0
        self._per_token = 60 / tpm if tpm else 0.0
        self._last = self._free = 0.0  # turns, on that clock
        self._paused = 0.0  # seconds in all
        self._until = 0.0  # the end of the last pause

    async def turn(self, tokens: int) -> None:
        """Wait for this request's turn. It takes ``tokens`` at most."""
        self._last = max(max(time.monotonic(), self._until) - self._paused, self._free)
        self._free = self._last + max(self._per_request, self._per_token * tokens)
        start = self._last
        while (wait := start + self._paused - time.monotonic()) > 0:  # there may be a pause meanwhile
            await asyncio.sleep(wait)

    def pause(self, seconds: float) -> None:
        """Nobody's turn comes for as long; a pause within another one only makes it last until the later end."""
        now = time.monotonic()
        until = max(self._until, now + seconds)
        self._paused += until - max(self._until, now)
        self._until = until

    def give_back(self, tokens: int) -> None:
        """Of a request's tokens, these were not taken after all."""
        self._free = max(self._free - self._per_token * tokens, self._last + self._per_request)


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None
    model: str = ""
    created: int = 0


def read(body: bytes, messages: Messages, most_completion: int) -> Reply | Failure:
    """Read the completion of messages. Where the provider gives no usage, the tokens are the most they can be."""
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError:
        return Failure("malformed reply: not a chat completion", billed=True)
    choice = completion.choices[0]
    text, finish_reason = choice.message.content or "", choice.finish_reason or ""
    usage = completion.usage or _Usage(prompt_tokens=input_bound(messages), completion_tokens=most_completion)
    question = messages[-1]["content"] if messages else ""
    return Reply(
        text=text,
        finish_reason=finish_reason,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        model=completion.model,
        created=completion.created,
        error=unusable(text, finish_reason, bool(choice.message.refusal), question),
    )


def _parsed(model: type[M], body: bytes | Failure) -> M | Failure:
    if isinstance(body, Failure):
        return body
    try:
        return model.model_validate_json(body)
    except ValidationError:
        return Failure(f"malformed reply: not a {model.__name__.strip('_').lower()}", billed=True, retry=True)


def parameters(model: str, max_tokens: int, temperature: float) -> dict[str, Any]:
    """The sampling part of a request, in the form that the model takes; part of an answer's key."""
    if model.startswith(REASONING):
        return {"max_completion_tokens": max_tokens}
    return {"max_tokens": max_tokens, "temperature": temperature}


def connect(teacher: Teacher, base_url: str | None = None) -> Client:
    """The client that a config asks for; ``base_url`` replaces the config's (a stand-in's).

    Raises UserError when there is no key.
    """
    return Client(
        base_url or teacher.base_url or DEFAULT_URL,
        api_key(teacher),
        teacher.model,
        max_tokens=teacher.max_tokens,
        temperature=teacher.temperature,
        rpm=teacher.rpm,
        tpm=teacher.tpm,
        timeout=teacher.timeout,
    )


def api_key(teacher: Teacher) -> str:
    """The key from ``teacher.key_file``, else from OPENAI_API_KEY; a stand-in needs none.

    Raises UserError when neither is there or what is there cannot be a key; the message never shows it.
    """
    if teacher.standin is not None:
        return "standin"
    source = "teacher.key_file" if teacher.key_file else "OPENAI_API_KEY"
    key = _key_of(Path(teacher.key_file)) if teacher.key_file else os.environ.get("OPENAI_API_KEY", "").strip()
    if not key:
        raise UserError(f"{source}: no key; set teacher.key_file to a file that holds it, or OPENAI_API_KEY")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{source}: not a key; expected one line of printable characters without spaces")
    return key


def _key_of(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(  # not what it holds: it may be a key
            f"teacher.key_file: cannot be read ({type(error).__name__}); give the path of a file that holds the key"
        ) from None


def check(base_url: str, key: str, batch: bool = False, timeout: float = 10.0) -> None:
    """Ask the provider for its models, and for its batches if ``batch``, which costs nothing.

    Raises UserError when it cannot be reached, refuses the key, does not speak the protocol or takes no batches.
    ``timeout`` is in seconds.
    """
    if not _is_address(base_url):
        raise UserError(f"teacher.base_url {base_url}: not an address; expected http(s)://host/v1")
    direct = openai.DefaultHttpxClient(trust_env=False) if _loopback(base_url) else None
    shown = f"teacher.base_url {_shown(base_url)}"
    with openai.OpenAI(api_key=key, base_url=base_url, max_retries=0, timeout=timeout, http_client=direct) as client:
        try:
            json.loads(client.models.with_raw_response.list().content)
        except openai.APIConnectionError as error:
            cause = type(error.__cause__ or error).__name__
            raise UserError(f"{shown}: unreachable ({cause}); is the address right and the server up?") from None
        except openai.APIStatusError as error:
            if error.status_code != 404:  # some servers do not list their models
                raise UserError(f"{shown}: {_reason(error.status_code, error.body, key)}") from None
        except ValueError:
            raise UserError(f"{shown}: does not speak OpenAI's protocol; does the address lack its /v1?") from None
        if batch:
            _check_batches(client, shown, key)


def _check_batches(client: openai.OpenAI, shown: str, key: str) -> None:
    try:
        Page.model_validate_json(client.batches.with_raw_response.list(limit=1).content)
        return
    except openai.APIStatusError as error:
        reason = _reason(error.status_code, error.body, key)
    except (openai.OpenAIError, ValidationError) as error:
        reason = type(error).__name__
    raise UserError(f"{shown}: its Batch API cannot be used ({reason}); set teacher.mode to chat")


def _reason(status: int, error: object, key: str) -> str:
    """The provider's words in one short line. Those about a key may quote it, so they are left out."""
    if status in (401, 403):
        return f"HTTP {status}: the key was refused"
    words = _quoted(error.get("message") or "", key) if isinstance(error, dict) else ""
    return f"HTTP {status}: {words}" if words else f"HTTP {status}"


def _quoted(words: object, key: str) -> str:
    return " ".join(str(words).replace(key, "***").split())[:200]


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the provider asks to wait, 0 where it says nothing; given in seconds or as a date."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _is_address(base_url: str) -> bool:
    try:
        parts = urlsplit(base_url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _loopback(base_url: str) -> bool:
    """Whether the address is this machine's, where a proxy from the environment has no business."""
    return urlsplit(base_url).hostname in ("127.0.0.1", "::1", "localhost")


def _shown(base_url: str) -> str:
    """The address without a password."""
    return base_url.replace(f"{urlsplit(base_url).netloc.rpartition('@')[0]}@", "")
