"""The client of the black-box teacher: one question in, one recorded outcome out. The only file to import openai.

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
from typing import Any, Self
from urllib.parse import urlsplit

import openai
from pydantic import BaseModel, Field, ValidationError

from bridge_ray.config import Teacher
from bridge_ray.errors import UserError
from bridge_ray.teacher.prices import input_bound
from bridge_ray.teacher.store import Messages, Reply

DEFAULT_URL = "https://api.openai.com/v1"
REASONING = ("o1", "o3", "o4", "gpt-5")  # prefixes of models that take max_completion_tokens and no temperature
FATAL = (401, 403, 404)  # the key or the model is wrong: no other question will fare better
GATEWAY_TIMEOUTS = (504, 524)  # answered by a gateway while the provider may still be working, and billing
UNSENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")  # of the HTTP library: nothing has left
LONGEST_WAIT_S = 300.0

Reserve = Callable[[], Awaitable[bool]]


@dataclass(frozen=True)
class Failure:
    """No completion came back.

    ``billed``: it may have been paid for all the same. ``fatal``: the next question would fail alike.
    ``retry_after`` is in seconds.
    """

    error: str
    billed: bool
    fatal: bool = False
    retry: bool = False
    retry_after: float = 0.0


class Client:
    """An OpenAI-compatible provider and one model of it. Close it, or use it as an async context manager.

    ``timeout`` (seconds) is of one request, ``attempts`` bounds the sends of one question, ``backoff`` (seconds) is
    the first wait between them. ``rpm`` and ``tpm`` limit requests and tokens per minute.
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
        timeout: float = 120.0,
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

    async def ask(self, messages: Messages, reserve: Reserve) -> Reply | Failure:
        """Send one question, again where that can help; whatever comes back is an outcome, not an exception.

        The caller has reserved the first send. ``reserve`` is awaited before a send that follows one that may have
        been billed, and says whether the budget has room for it.
        """
        for attempt in range(self._attempts):
            outcome = await self._send(messages)
            if isinstance(outcome, Reply) or not outcome.retry or attempt + 1 == self._attempts:
                break
            await asyncio.sleep(self._wait(attempt, outcome.retry_after))
            if outcome.billed and not await reserve():
                break
        return outcome

    async def _send(self, messages: Messages) -> Reply | Failure:
        await self._pace.turn(input_bound(messages) + self.max_tokens)
        create: Any = self._openai.chat.completions.with_raw_response.create
        try:
            raw = await create(model=self.model, messages=messages, **self.parameters)
        except openai.APIStatusError as error:
            return self._refused(error)
        except openai.APIConnectionError as error:  # timeouts too
            cause = type(error.__cause__ or error).__name__
            return Failure(f"connection failed: {cause}", billed=cause not in UNSENT, retry=True)
        except openai.OpenAIError as error:
            return Failure(f"malformed reply: {type(error).__name__}", billed=True)
        return read(raw.content, input_bound(messages), self.max_tokens)

    def _refused(self, error: openai.APIStatusError) -> Failure:
        status = error.status_code
        broke = error.code == "insufficient_quota"
        return Failure(
            _reason(error, self._key),
            billed=status in GATEWAY_TIMEOUTS,
            fatal=status in FATAL or broke,
            retry=(status == 429 and not broke) or status >= 500,
            retry_after=_retry_after(error.response.headers),
        )

    def _wait(self, attempt: int, retry_after: float) -> float:
        """Seconds until the next send: what the provider asks for, or else twice as long each time; with jitter."""
        jitter = random.uniform(0.5, 1.0) * self._backoff
        return min(LONGEST_WAIT_S, retry_after + jitter if retry_after else jitter * 2**attempt)


class _Pace:
    """Spaces requests out evenly, within limits per minute."""

    def __init__(self, rpm: int | None, tpm: int | None) -> None:
        self._per_request = 60 / rpm if rpm else 0.0
        self._per_token = 60 / tpm if tpm else 0.0
        self._free = 0.0

    async def turn(self, tokens: int) -> None:
        now = time.monotonic()
        start = max(now, self._free)
        self._free = start + max(self._per_request, self._per_token * tokens)
        await asyncio.sleep(start - now)


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


def read(body: bytes, most_prompt: int, most_completion: int) -> Reply | Failure:
    """Read a completion. Where the provider gives no usage, the tokens are taken to be the most they can be."""
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError:
        return Failure("malformed reply: not a chat completion", billed=True)
    choice = completion.choices[0]
    usage = completion.usage or _Usage(prompt_tokens=most_prompt, completion_tokens=most_completion)
    return Reply(
        text=choice.message.content or "",
        finish_reason=choice.finish_reason or "",
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        model=completion.model,
        created=completion.created,
        error=_unusable(choice),
    )


def _unusable(choice: _Choice) -> str | None:
    if choice.message.refusal:
        return "refusal"
    if choice.finish_reason == "content_filter":
        return "content filter"
    if choice.finish_reason == "length":
        return "cut off at teacher.max_tokens"
    return None if (choice.message.content or "").strip() else "empty reply"


def parameters(model: str, max_tokens: int, temperature: float) -> dict[str, Any]:
    """The sampling part of a request, in the form that the model takes; part of an answer's key."""
    if model.startswith(REASONING):
        return {"max_completion_tokens": max_tokens}
    return {"max_tokens": max_tokens, "temperature": temperature}


def connect(teacher: Teacher, base_url: str | None = None) -> Client:
    """The client that a config asks for; ``base_url`` replaces the config's (a stand-in's).

    Raises UserError when there is no key, or for a mode that cannot be had.
    """
    if teacher.mode != "chat":
        raise UserError(f"teacher.mode {teacher.mode}: not available; use chat")
    return Client(
        base_url or teacher.base_url or DEFAULT_URL,
        api_key(teacher),
        teacher.model,
        max_tokens=teacher.max_tokens,
        temperature=teacher.temperature,
        rpm=teacher.rpm,
        tpm=teacher.tpm,
    )


def api_key(teacher: Teacher) -> str:
    """The key from ``teacher.key_file``, else from OPENAI_API_KEY; a stand-in needs none.

    Raises UserError when neither is there or what is there cannot be a key; the message never shows it.
    """
    if teacher.standin is not None:
        return "standin"
    source = f"teacher.key_file {teacher.key_file}" if teacher.key_file else "OPENAI_API_KEY"
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
        raise UserError(f"teacher.key_file {path}: cannot be read ({type(error).__name__})") from None


def check(base_url: str, key: str, timeout: float = 10.0) -> None:
    """Ask the provider for its models, which costs nothing.

    Raises UserError when it cannot be reached, refuses the key, or does not speak the protocol.
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
                raise UserError(f"{shown}: {_reason(error, key)}") from None
        except ValueError:
            raise UserError(f"{shown}: does not speak OpenAI's protocol; does the address lack its /v1?") from None


def _reason(error: openai.APIStatusError, key: str) -> str:
    """The provider's words in one short line. Those about a key may quote it, so they are left out."""
    if error.status_code in (401, 403):
        return f"HTTP {error.status_code}: the key was refused"
    body = error.body if isinstance(error.body, dict) else {}
    words = " ".join(str(body.get("message", "")).replace(key, "***").split())[:200]
    return f"HTTP {error.status_code}: {words}" if words else f"HTTP {error.status_code}"


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
