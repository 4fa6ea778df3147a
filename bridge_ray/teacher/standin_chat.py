"""One chat completion of the stand-in teacher, in OpenAI's protocol, and its bill."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from bridge_ray.teacher.standin_answers import Answerer

UNKNOWN = "I do not know."
TOKEN_BYTES = 4


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Request(BaseModel):
    model: str
    messages: list[_Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, gt=0)
    max_completion_tokens: int | None = Field(default=None, gt=0)
    stream: Literal[False] | None = None
    n: Literal[1] | None = None


class Desk:
    """Answers requests and keeps the bill: how many, their tokens, and how often each question was answered."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer
        self._billed = self._tokens = 0
        self._by_question: Counter[str] = Counter()

    def answer(self, asked: Request) -> dict[str, Any]:
        """The completion, billed."""
        completion = _completion(asked, self._answerer, self._billed)
        self._billed += 1
        self._tokens += completion["usage"]["total_tokens"]
        self._by_question[question_hash([message.model_dump() for message in asked.messages])] += 1
        return completion

    def stats(self) -> dict[str, Any]:
        return {"billed": self._billed, "tokens": self._tokens, "by_question": self._by_question}


def question_hash(messages: Sequence[Mapping[str, Any]]) -> str:
    """What the bill calls a question: 64 hex digits of its messages."""
    return hashlib.sha256(json.dumps(messages, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def error_body(message: str, kind: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}"


def _completion(asked: Request, answerer: Answerer, number: int) -> dict[str, Any]:
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
