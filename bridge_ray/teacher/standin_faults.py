"""How the stand-in teacher misbehaves: slow, limited, failing; by rates that a seed makes repeatable."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypedDict

from bridge_ray.errors import UserError

KINDS = ("429", "500", "reset", "timeout", "garbage")
BATCH_KINDS = ("expired", "error")


class Options(TypedDict, total=False):
    """The fields of ``Behaviour``, as keyword arguments."""

    latency: float
    rpm: int | None
    fail: str
    seed: int
    batch_seconds: float
    batch_fail: str


@dataclass(frozen=True)
class Behaviour:
    """How requests fare.

    ``latency`` is seconds per completion, ``rpm`` the requests allowed per minute, ``batch_seconds`` how long a batch
    takes. ``fail`` gives probabilities per request, as "429:0.1,reset:0.01": 429 and 500 are refusals and cost
    nothing; reset, timeout and garbage are billed, and then the connection is closed, or nothing ever comes, or no
    JSON. ``batch_fail`` gives those of a batch's line: expired or error, neither billed.

    Raises UserError, naming the option, for values that make no sense.
    """

    latency: float = 0.0
    rpm: int | None = None
    fail: str = ""
    seed: int = 0
    batch_seconds: float = 0.2
    batch_fail: str = ""

    def __post_init__(self) -> None:
        for option, seconds in (("--latency", self.latency), ("--batch-seconds", self.batch_seconds)):
            if not (seconds >= 0 and math.isfinite(seconds)):
                raise UserError(f"{option} {seconds}: expected seconds, 0 or more")
        if self.rpm is not None and self.rpm < 1:
            raise UserError(f"--rpm {self.rpm}: expected requests per minute, 1 or more")
        self.draw()
        self.batch_draw()

    def draw(self) -> Draw:
        """What happens to one request after the other."""
        return Draw(_shares("--fail", self.fail, KINDS), f"{self.seed}:requests")

    def batch_draw(self) -> Draw:
        """What happens to one line of a batch after the other."""
        return Draw(_shares("--batch-fail", self.batch_fail, BATCH_KINDS), f"{self.seed}:lines")


class Draw:
    """Draws a kind of failure, or None, with given probabilities."""

    def __init__(self, shares: Mapping[str, float], seed: str) -> None:
        self._shares = shares
        self._random = Random(seed)

    def next(self) -> str | None:
        point = self._random.random()
        for kind, share in self._shares.items():
            if point < share:
                return kind
            point -= share
        return None


class Bucket:
    """A token bucket of requests: refilled at ``rpm`` a minute, it holds what one second brings.

    Two requests at least: no sender that spaces its requests evenly keeps time to the millisecond.
    """

    def __init__(self, rpm: int) -> None:
        self._rate = rpm / 60
        self._level = self._size = max(2.0, self._rate)
        self._time = time.monotonic()

    def wait(self) -> float:
        """Let a request in, and 0; or, where the bucket is empty, the seconds until one may come."""
        now = time.monotonic()
        self._level = min(self._size, self._level + self._rate * (now - self._time))
        self._time = now
        if self._level < 1:
            return (1 - self._level) / self._rate
        self._level -= 1
        return 0.0


def _shares(option: str, text: str, kinds: Sequence[str]) -> dict[str, float]:
    """Kind -> probability, of "kind:share,kind:share"."""
    shares: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        kind, _, share = part.strip().partition(":")
        if kind not in kinds or kind in shares:
            raise UserError(f"{option} {text}: {kind!r} is unknown or twice there; kinds are {', '.join(kinds)}")
        shares[kind] = _share(option, part, share)
    if sum(shares.values()) > 1 + 1e-9:
        raise UserError(f"{option} {text}: the shares add up to more than 1")
    return shares


def _share(option: str, part: str, share: str) -> float:
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UserError(f"{option} {part.strip()}: expected KIND:SHARE with a share from 0 to 1")
    return value
