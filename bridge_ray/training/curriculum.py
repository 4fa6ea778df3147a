"""Which rows make up which update: a pure function of seed, phase and step, so that resuming is exact.

A phase draws from one set of token rows (``answer`` or ``rationale``), epoch after epoch, and replays a share of
the phase before it. Any rank can compute any batch at any time without having seen the ones before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bridge_ray.config import Phase

Row = tuple[str, int]  # target, index into that target's token rows


@dataclass(frozen=True)
class PhasePlan:
    """A phase resolved against the rows there are. ``first`` is its first update, counted over the whole run."""

    number: int
    target: str
    rows: int
    first: int
    updates: int
    order: str
    replay: float
    replay_target: str | None
    replay_rows: int


@dataclass(frozen=True)
class Plan:
    phases: tuple[PhasePlan, ...]
    batch: int  # rows per update, all ranks together
    seed: int

    @property
    def updates(self) -> int:
        return sum(phase.updates for phase in self.phases)


def updates_per_epoch(corpus_rows: int, batch: int) -> int:
    """An epoch is the corpus once, whatever the rows of a phase: so every system takes the same updates."""
    return math.ceil(corpus_rows / batch)


def make_plan(phases: Sequence[Phase], rows: Mapping[str, int], corpus_rows: int, batch: int, seed: int) -> Plan:
    """Resolve phases against the number of token rows per target.

    A replay share without a phase before it, or before whose target there are no rows, is not drawn.
    Raises ValueError when a phase has no rows to learn from.
    """
    plans: list[PhasePlan] = []
    for number, phase in enumerate(phases):
        if not rows.get(phase.target):
            raise ValueError(f"phase {number + 1} of the curriculum has no {phase.target} rows")
        before = phases[number - 1].target if number else None
        replay_rows = rows.get(before, 0) if before else 0
        updates = max(1, round(phase.epochs * updates_per_epoch(corpus_rows, batch)))
        plans.append(
            PhasePlan(
                number=number,
                target=phase.target,
                rows=rows[phase.target],
                first=plans[-1].first + plans[-1].updates if plans else 0,
                updates=updates,
                order=phase.order,
                replay=phase.replay if replay_rows else 0.0,
                replay_target=before,
                replay_rows=replay_rows,
            )
        )
    return Plan(tuple(plans), batch, seed)


def phase_at(plan: Plan, step: int) -> PhasePlan:
    """The phase that update ``step`` belongs to."""
    return next(phase for phase in reversed(plan.phases) if phase.first <= step)


def batch_at(plan: Plan, step: int, by_difficulty: Mapping[str, np.ndarray]) -> list[Row]:
    """The ``plan.batch`` rows of update ``step``.

    ``by_difficulty`` maps a target to its rows' indices, easiest first: shape (rows,), int64.
    """
    phase = phase_at(plan, step)
    start = (step - phase.first) * plan.batch
    return [_row(plan.seed, phase, position, by_difficulty) for position in range(start, start + plan.batch)]


def _row(seed: int, phase: PhasePlan, position: int, by_difficulty: Mapping[str, np.ndarray]) -> Row:
    """The row at a position of a phase's endless stream; every 1/replay-th position is a replayed one."""
    replayed = math.floor(position * phase.replay)
    if math.floor((position + 1) * phase.replay) > replayed:
        assert phase.replay_target is not None
        return phase.replay_target, _draw(seed, phase.number, 1, phase.replay_rows, replayed)
    own = position - replayed
    if phase.order == "easy_to_hard" and own < phase.rows:
        return phase.target, int(by_difficulty[phase.target][own])
    return phase.target, _draw(seed, phase.number, 0, phase.rows, own)


def _draw(seed: int, phase: int, stream: int, rows: int, position: int) -> int:
    epoch, offset = divmod(position, rows)
    return int(_permutation(seed, phase, stream, epoch, rows)[offset])


@lru_cache(maxsize=8)
def _permutation(seed: int, phase: int, stream: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng([seed, phase, stream, epoch]).permutation(rows)


def learning_rate(step: int, updates: int, peak: float, warmup: float) -> float:
    """Linear warm-up over a share of the updates, then cosine down to a tenth of the peak."""
    rising = max(1, round(warmup * updates))
    if step < rising:
        return peak * (step + 1) / rising
    progress = (step - rising) / max(1, updates - rising)
    return peak * (0.55 + 0.45 * math.cos(math.pi * progress))
