"""What a teacher is asked and what it has answered: ``answers/<key>.json`` is an answer that somebody has paid for.

Answers are shared by all who use the store, written once and never overwritten; none is bought again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from bridge_ray.objects import Store, gather

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Reply:
    """A completion that was paid for. ``error`` says why it cannot be used; null when it can."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    model: str
    created: int  # seconds since 1970, the provider's clock
    error: str | None = None


@dataclass(frozen=True)
class Ask:
    """One question to the provider: its answer's key, and the most that it can cost in US dollars."""

    key: str
    messages: Messages
    worst_usd: float


def answer_key(provider: str, model: str, messages: Messages, parameters: Mapping[str, Any]) -> str:
    """64 hex digits that name a question to one provider. The provider counts: two may use one model name."""
    parts = {"provider": provider, "model": model, "messages": messages, "parameters": parameters}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


async def answer(store: Store, key: str) -> Reply | None:
    """The answer that was paid for, if there is one."""
    data = await store.get(_path(key))
    return None if data is None else Reply(**json.loads(data))


async def keep(store: Store, key: str, reply: Reply) -> None:
    """Store an answer; one that is there already stays."""
    await store.create(_path(key), json.dumps(asdict(reply), ensure_ascii=False).encode())


async def answers(store: Store, keys: Iterable[str]) -> dict[str, Reply]:
    """Those of the keys that have an answer."""

    async def one(key: str) -> Reply | None:
        return await answer(store, key)

    found = await gather(one, keys)
    return {key: reply for key, reply in found.items() if reply is not None}


async def keys(store: Store) -> list[str]:
    """Those of all answers, sorted."""
    return [PurePosixPath(path).stem for path in await store.paths("answers")]


def _path(key: str) -> str:
    return f"answers/{key}.json"
