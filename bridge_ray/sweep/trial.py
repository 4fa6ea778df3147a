"""A trial as Ray Tune knows it: it tells Tune what the keeper hears of its training, and holds nothing itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Of a trial's reports; AT is the share of the student's updates, and SHARE what ASHA hears of it, see ``told``.
AT, SHARE, ACCURACY = "at", "share", "accuracy"


def told(share: float) -> float:
    """A share in percent, as it is reported. ASHA hears only what has reached a milestone of its own, and multiplies
    in another order: a report that was short of it by a rounding error would decide nothing."""
    return 100 * share + 1e-6


def follow(config: Mapping[str, Any], keeper: Any) -> None:
    """Ray Tune's trainable: report every rung of trial ``config["number"]`` until it has ended.

    A report returns once the scheduler lets the trial go on; where it does not, this process is ended instead.
    """
    import ray
    from ray import tune

    number, seen = config["number"], 0
    while (rung := ray.get(keeper.news.remote(number, seen))) is not None:
        share, accuracy = rung
        seen += 1
        tune.report({AT: share, SHARE: told(share), ACCURACY: accuracy})
        ray.get(keeper.passed.remote(number, seen))
