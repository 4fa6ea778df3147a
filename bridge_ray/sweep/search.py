"""Which point is tried next: Optuna's samplers or a grid, told of every trial that has ended, in this sweep or before.

A point is tried once. Optuna's own storage is not used: the study is built anew from the trials on record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bridge_ray.sweep import space
from bridge_ray.sweep.space import Point
from bridge_ray.sweep.spec import Dimension, Range, Spec
from bridge_ray.sweep.trials import Trial

if TYPE_CHECKING:
    import optuna

ASKS = 200  # for a point that is new, before the first one left is taken


class Grid:
    """All points in order."""

    def __init__(self, spec: Spec):
        self._points: Iterator[Point] = space.grid(spec.space)

    def ask(self, known: Sequence[Trial]) -> Point | None:
        """A point that no trial has had; None where there is none left."""
        tried = {space.key(trial.point) for trial in known}
        return next((point for point in self._points if space.key(point) not in tried), None)

    def take(self, trial: Trial) -> None:
        """A trial goes on that had begun before."""

    def tell(self, trial: Trial) -> None:
        """A trial has ended."""


class Sampled:
    """Optuna's TPE, which learns from the trials so far, or its random sampler."""

    def __init__(self, spec: Spec, known: Sequence[Trial]):
        import optuna

        self._spec, self._open = spec, dict[str, Any]()
        seed = spec.seed + len(known)  # one that goes on does not begin with the same points again
        if spec.search == "random":
            sampler: Any = optuna.samplers.RandomSampler(seed=seed)
        else:
            first = min(10, max(4, (spec.trials or 0) // 3))
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=first)
        self._study = study(spec, sampler)
        for trial in known:
            if (frozen := frozen_trial(spec, trial)) is not None:
                self._study.add_trial(frozen)

    def ask(self, known: Sequence[Trial]) -> Point | None:
        """A point that no trial has had; None where there is none left, or none that can be found."""
        by_point = {space.key(trial.point): trial for trial in known}
        for _ in range(ASKS):
            asked = self._study.ask()
            point = space.draw(self._spec.space, partial(suggest, asked))
            if space.key(point) not in by_point:
                self._open[space.key(point)] = asked
                return point
            self._answer(asked, by_point[space.key(point)])
        # Draws that follow what was good may keep to what is known, while other points are left.
        points = space.grid(self._spec.space) if space.finite(self._spec.space) else iter(())
        left = next((point for point in points if space.key(point) not in by_point), None)
        return None if left is None else self._enqueued(left)

    def take(self, trial: Trial) -> None:
        """A trial goes on that had begun before."""
        self._enqueued(trial.point)

    def _enqueued(self, point: Point) -> Point:
        """The point, which Optuna is told of as if it had drawn it."""
        self._study.enqueue_trial({name: space.label(value) for name, value in point.items()})
        asked = self._study.ask()
        space.draw(self._spec.space, partial(suggest, asked))
        self._open[space.key(point)] = asked
        return point

    def tell(self, trial: Trial) -> None:
        """A trial has ended."""
        if (asked := self._open.pop(space.key(trial.point), None)) is not None:  # else it has been told before
            self._answer(asked, trial)

    def _answer(self, asked: Any, trial: Trial) -> None:
        import optuna

        states = optuna.trial.TrialState
        if trial.state == "finished":
            self._study.tell(asked, objectives(self._spec, trial))
            return
        for step, accuracy in _reports(self._spec, trial).items():
            asked.report(accuracy, step)
        self._study.tell(asked, state=states.PRUNED if trial.state == "stopped" else states.FAIL)


def make(spec: Spec, known: Sequence[Trial]) -> Grid | Sampled:
    """The search, which has been told of the known trials."""
    return Grid(spec) if spec.search == "grid" else Sampled(spec, known)


def study(spec: Spec, sampler: Any = None) -> optuna.Study:
    """An empty study of the spec's objectives, in memory."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = ["maximize" if name == "accuracy" else "minimize" for name in spec.objectives]
    return optuna.create_study(sampler=sampler, directions=directions)


def objectives(spec: Spec, trial: Trial) -> list[float]:
    """The values of a finished trial, in the spec's order."""
    return [getattr(trial, name) for name in spec.objectives]


def frozen_trial(spec: Spec, trial: Trial, values: Sequence[float] | None = None) -> optuna.trial.FrozenTrial | None:
    """An ended trial as Optuna keeps it; None for one that says nothing, or whose point is not in the space.

    ``values`` stand for the objectives of one that has none because it was stopped; else it is kept as pruned.
    """
    import optuna

    if trial.state not in ("finished", "stopped") or not space.contains(spec.space, trial.point):
        return None
    if trial.state == "finished":
        values = objectives(spec, trial)
    states = optuna.trial.TrialState
    return optuna.trial.create_trial(
        state=states.PRUNED if values is None else states.COMPLETE,
        values=values,
        intermediate_values=_reports(spec, trial),
        params={name: space.label(value) for name, value in trial.point.items()},
        distributions={name: _distribution(spec.space[name]) for name in trial.point},
    )


def _reports(spec: Spec, trial: Trial) -> dict[int, float]:
    """Percent of the updates -> accuracy, of a stopped trial: for several objectives Optuna takes none."""
    if trial.state != "stopped" or len(spec.objectives) > 1:
        return {}
    return {round(100 * share): accuracy for share, accuracy in trial.rungs}


def suggest(trial: Any, name: str, part: Dimension) -> Any:
    """The value of a dimension that Optuna suggests."""
    if isinstance(part, Range):
        draw = trial.suggest_int if part.whole else trial.suggest_float
        return draw(name, part.low, part.high, log=part.log, **_step(part))
    known = {space.label(value): value for value in part.choices}
    return known[trial.suggest_categorical(name, list(known))]


def _distribution(part: Dimension) -> Any:
    from optuna import distributions

    if isinstance(part, Range):
        kind = distributions.IntDistribution if part.whole else distributions.FloatDistribution
        return kind(part.low, part.high, log=part.log, **_step(part))
    return distributions.CategoricalDistribution([space.label(value) for value in part.choices])


def _step(part: Range) -> dict[str, Any]:
    return {} if part.step is None else {"step": part.step}
