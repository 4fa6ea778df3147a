"""Everything the page shows, as plain values: gathered by pipeline code, drawn by ``page``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge_ray.teacher.statement import Statement


@dataclass(frozen=True)
class Point:
    """A training row on the map: two principal components of its embedding, entropy 0..1 (None: not scored)."""

    x: float
    y: float
    entropy: float | None
    chosen: bool


@dataclass(frozen=True)
class Counts:
    """Training rows, and the chosen ones among them, by entropy: equal steps of 0..1, rows without a score left out."""

    rows: tuple[int, ...] = ()
    chosen: tuple[int, ...] = ()


@dataclass(frozen=True)
class SampleRow:
    """One training question with what teacher or TA wrote for it."""

    question: str
    answer: str | None
    route: str  # teacher | ta | ta_hinted | label_only
    rationale: str | None
    asked: str = ""  # context, question and options; "" where the question is all
    before: str | None = None  # what the TA sampled for it before it was taught, in stage *score*


@dataclass(frozen=True)
class TestRow:
    """One question of the evaluated split and what each system replied: system -> (text, correct)."""

    question: str
    answer: str
    replies: Mapping[str, tuple[str, bool]]
    domain: str = ""
    asked: str = ""  # as of a SampleRow


@dataclass(frozen=True)
class Replies:
    """Questions that have something in common: some of ``total``, as many of one domain as of another."""

    title: str
    total: int
    rows: Sequence[TestRow]


@dataclass(frozen=True)
class ReportData:
    metrics: Mapping[str, Any]  # metrics.json
    points: Sequence[Point]  # of a large corpus a sample, in which chosen rows have a larger share than in the corpus
    losses: Mapping[str, Sequence[Mapping[str, float]]]  # training stage -> per update {update, phase, loss, lr, ...}
    samples: Sequence[SampleRow]
    replies: Sequence[Replies]
    config: str  # YAML
    versions: Mapping[str, str]
    reproduce: str  # the command
    entropies: Counts = Counts()
    accounts: Sequence[Statement] = ()  # what the ledger says of the accounts that paid for the run
    unread: str = ""  # why the ledger could not be read
