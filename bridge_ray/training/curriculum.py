"""Which rows make up which update: a pure function of seed, phase and step, so that resuming is exact.

A phase draws from pools of token rows (``answer``, ``rationale``, and of either those that were bought), epoch after
epoch, and replays a share of the phase before it. Any rank can compute any batch at any time without having seen the
ones before.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np

from bridge_ray.config import Phase
from bridge_ray.errors import TooFew

Row = tuple[str, int]  # pool, index into that pool's token rows


@dataclass(frozen=True)
class Mixture:
    """The rows of one or several pools, counted through: pool names, and the rows of each."""

    pools: tuple[str, ...]
    rows: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.rows)

    def row(self, number: int) -> Row:
        ends = list(accumulate(self.rows))
        pool = bisect.bisect_right(ends, number)
        return self.pools[pool], number - (ends[pool - 1] if pool else 0)


@dataclass(frozen=True)
class PhasePlan:
    """A phase resolved against the rows there are. ``first`` is its first update, counted over the whole run."""

    number: int
    draws: Mixture
    first: int
    updates: int
    order: str
    replay: float
    replayed: Mixture | None
    rewarm: bool


@dataclass(frozen=True)
class Plan:
    """``mixed``: the phases' lessons, all of them, in one random order; the learning rate is the phases' still."""

    phases: tuple[PhasePlan, ...]
    batch: int  # rows per update, all ranks together
    seed: int
    mixed: bool = False

    @property
    def updates(self) -> int:
        return sum(phase.updates for phase in self.phases)

    @property
    def reasons(self) -> bool:
        """Whether any lesson has a rationale."""
        return any(pool.startswith("rationale") for phase in self.phases for pool in phase.draws.pools)


def pools(phase: Phase) -> tuple[str, ...]:
    """The pools that a phase draws from."""
    targets = ("answer", "rationale") if phase.target == "mix" else (phase.target,)
    return tuple(target if phase.source == "all" else f"{target}_bought" for target in targets)


def updates_per_epoch(corpus_rows: int, batch: int) -> int:
    """An epoch is the corpus once, whatever the rows of a phase: so every system takes the same updates."""
    return math.ceil(corpus_rows / batch)


def resolved(phases: Sequence[Phase], control: str | None, epoch: int) -> tuple[Phase, ...]:
    """The phases with their updates, ``epoch`` of which are an epoch; or the control of as many updates.

    ``reasoning_only`` and ``answers_only`` have rationales or answers in every phase; ``reversed`` has the phases in
    the opposite order. What is replayed, and where the learning rate warms up, stays at its place, so they differ in
    what is taught alone. ``joint`` teaches the very lessons of the phases, mixed: it is up to ``make_plan``.
    """
    given = tuple(
        phase.model_copy(update={"updates": phase.updates or max(1, round(phase.epochs * epoch))}) for phase in phases
    )
    if control in (None, "joint"):
        return given
    if control == "reversed":
        placed = zip(reversed(given), given, strict=True)
        return tuple(one.model_copy(update={"replay": at.replay, "rewarm": at.rewarm}) for one, at in placed)
    target = {"reasoning_only": "rationale", "answers_only": "answer"}[control]
    return tuple(phase.model_copy(update={"target": target}) for phase in given)


def make_plan(phases: Sequence[Phase], rows: Mapping[str, int], batch: int, seed: int, mixed: bool = False) -> Plan:
    """Plan ``resolved`` phases against the number of token rows per pool.

    A replay share without a phase before it, or before which there are no rows, is not drawn.
    Raises TooFew when a phase has no rows to learn from.
    """
    plans: list[PhasePlan] = []
    for number, phase in enumerate(phases):
        assert phase.updates is not None, "the phases are not resolved"
        before = plans[-1] if plans else None
        plans.append(
            PhasePlan(
                number=number,
                draws=_mixture(phase, rows, number),
                first=before.first + before.updates if before else 0,
                updates=phase.updates,
                order=phase.order,
                replay=phase.replay if before else 0.0,
                replayed=before.draws if before else None,
                rewarm=phase.rewarm,
            )
        )
    return Plan(tuple(plans), batch, seed, mixed)


def _mixture(phase: Phase, rows: Mapping[str, int], number: int) -> Mixture:
    names = tuple(pool for pool in pools(phase) if rows.get(pool))
    if not names:
        kind = f"{'bought ' if phase.source == 'bought' else ''}{phase.target}"
        raise TooFew(f"phase {number + 1} of the curriculum has no {kind} rows; leave it out, or see what was kept")
    return Mixture(names, tuple(rows[pool] for pool in names))


def phase_at(plan: Plan, step: int) -> PhasePlan:
    """The phase that update ``step`` belongs to."""
    return next(phase for phase in reversed(plan.phases) if phase.first <= step)


def left_out(plan: Plan) -> dict[int, int]:
    """Phase number -> how many of its rows it has no time for, of phases that go from easy to hard."""
    left = {
        phase.number: phase.draws.total - _own(phase, phase.updates * plan.batch)
        for phase in plan.phases
        if phase.order == "easy_to_hard"
    }
    return {number: rows for number, rows in left.items() if rows > 0}


def easiest_first(plan: Plan, difficulty: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
    """Phase number -> the numbers of its rows by rising difficulty, ties in order, where a phase wants that: int64.

    A phase that is shorter than an epoch has the rows at even distances of that order, so that the hardest are not
    those that it leaves out. ``difficulty`` maps a pool to its rows' difficulties, (rows,) float64.
    """
    lacking = left_out(plan)
    return {
        phase.number: _evenly(
            np.argsort(np.concatenate([difficulty[pool] for pool in phase.draws.pools]), kind="stable"),
            phase.draws.total - lacking.get(phase.number, 0),
        )
        for phase in plan.phases
        if phase.order == "easy_to_hard"
    }


def _evenly(ranked: np.ndarray, taken: int) -> np.ndarray:
    """So many of the rows, each from the middle of its share of them; all of them as they are."""
    return ranked[(2 * np.arange(taken) + 1) * len(ranked) // (2 * taken)]


def batch_at(plan: Plan, step: int, order: Mapping[int, np.ndarray]) -> list[Row]:
    """The ``plan.batch`` rows of update ``step``; ``order`` is that of ``easiest_first``."""
    places = range(step * plan.batch, (step + 1) * plan.batch)
    if plan.mixed:
        mixture = _permutation(plan.seed, len(plan.phases), 0, 0, plan.updates * plan.batch)
        return [_lesson(plan, int(mixture[place]), order) for place in places]
    return [_lesson(plan, place, order) for place in places]


def _lesson(plan: Plan, place: int, order: Mapping[int, np.ndarray]) -> Row:
    """The row at a place of the phases one after another."""
    phase = phase_at(plan, place // plan.batch)
    return _row(plan.seed, phase, place - phase.first * plan.batch, order)


def _row(seed: int, phase: PhasePlan, position: int, order: Mapping[int, np.ndarray]) -> Row:
    """The row at a position of a phase's endless stream; every 1/replay-th position is a replayed one."""
    own = _own(phase, position)
    replayed = position - own
    if math.floor((position + 1) * phase.replay) > replayed:
        assert phase.replayed is not None
        return phase.replayed.row(_draw(seed, phase.number, 1, phase.replayed.total, replayed))
    if phase.number in order and own < len(order[phase.number]):
        return phase.draws.row(int(order[phase.number][own]))
    return phase.draws.row(_draw(seed, phase.number, 0, phase.draws.total, own))


def _own(phase: PhasePlan, positions: int) -> int:
    """How many of a phase's first positions are not replayed ones."""
    return positions - math.floor(positions * phase.replay)


def _draw(seed: int, phase: int, stream: int, rows: int, position: int) -> int:
    epoch, offset = divmod(position, rows)
    return int(_permutation(seed, phase, stream, epoch, rows)[offset])


@lru_cache(maxsize=16)
def _permutation(seed: int, phase: int, stream: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng([seed, phase, stream, epoch]).permutation(rows)


def learning_rate(plan: Plan, step: int, peak: float, warmup: float) -> float:
    """Linear warm-up over a share of the updates, then cosine to a tenth of the peak; anew where a phase rewarms."""
    starts = [0, *(phase.first for phase in plan.phases[1:] if phase.rewarm), plan.updates]
    first = max(start for start in starts if start <= step)
    updates = min(start for start in starts if start > step) - first
    rising, done = max(1, round(warmup * updates)), step - first
    if done < rising:
        return peak * (done + 1) / rising
    progress = (done - rising) / max(1, updates - rising)
    return peak * (0.55 + 0.45 * math.cos(math.pi * progress))
