"""What Ray Tune calls: a searcher that passes on what comes next, and a callback that passes on what has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.search import Searcher

from bridge_ray.sweep.trial import ACCURACY, AT

if TYPE_CHECKING:
    from bridge_ray.sweep.run import Conductor


class Suggestions(Searcher):
    """The conductor's trials, as configs of Ray Tune's."""

    def __init__(self, conductor: Conductor):
        super().__init__()
        self._conductor = conductor

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        config = self._conductor.next()
        return Searcher.FINISHED if config is None else config

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The callback has told the conductor."""

    def save(self, checkpoint_path: str) -> None:
        """A sweep goes on from its trials' records."""

    def restore(self, checkpoint_path: str) -> None:
        """As ``save``."""


class Heard(tune.Callback):
    """Tells the conductor that a trial has ended, or was stopped."""

    def __init__(self, conductor: Conductor):
        self._conductor = conductor

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if AT in result:
            self._conductor.heard(trial.config["number"], (result[AT], result[ACCURACY]))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._conductor.over(trial.config["number"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_pickled_error()
        said = str(error).strip().splitlines() if error else []
        self._conductor.over(trial.config["number"], f"its process ended: {said[-1] if said else 'no reason is known'}")
