"""A sweep's page: what accuracy costs, which values did well, which fields matter, and every trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge_ray.report import charts
from bridge_ray.report.charts import WIDTH, Box, Tick, ticks
from bridge_ray.report.templates import environment

AXIS = 118.0  # between two axes of the parallel coordinates
SPREAD = 6  # values of an axis that are drawn evenly spaced; more of them are drawn to scale
NAMES = {
    "accuracy": "accuracy on dev, %",
    "usd": "dollars, in an empty store",
    "queries": "queries, in an empty store",
    "local_hours": "local hours",
}
NONE = "–"  # a field that does not apply


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    kind: str  # best, front or other
    title: str


@dataclass(frozen=True)
class Front:
    """Trials by what they cost and how accurate they are; ``path`` joins those that no other beats."""

    box: Box
    dots: tuple[Dot, ...]
    path: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_label: str


@dataclass(frozen=True)
class Axis:
    x: float
    name: str
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Line:
    path: str
    level: int  # of accuracy, from 0, as on the map of a run's report
    best: bool
    title: str


@dataclass(frozen=True)
class Parallel:
    """A line for each trial, across an axis for each field and one for accuracy."""

    width: float
    box: Box
    axes: tuple[Axis, ...]
    lines: tuple[Line, ...]


def render(found: Mapping[str, Any], best_path: str) -> str:
    """The page as HTML of what sweep.json holds."""
    finished = [trial for trial in found["trials"] if trial["state"] == "finished"]
    return (
        environment()
        .get_template("sweep.html.j2")
        .render(
            found=found,
            finished=finished,
            best=next((trial for trial in finished if trial["number"] == found["best"]), None),
            front=front(found, finished),
            parallel=parallel(found, finished),
            shares=_shares(found["importance"]),
            trials=sorted(found["trials"], key=lambda trial: (trial["accuracy"] is None, -(trial["accuracy"] or 0))),
            states={state: _count(found, state) for state in ("finished", "stopped", "failed", "running")},
            command=f"bridge-ray run {best_path}",
            value=value,
            WIDTH=WIDTH,
        )
    )


def _count(found: Mapping[str, Any], state: str) -> int:
    return sum(trial["state"] == state for trial in found["trials"])


def _shares(importance: Mapping[str, Any] | None) -> list[tuple[str, float]]:
    return sorted(importance["shares"].items(), key=lambda one: -one[1]) if importance else []


def value(given: Any) -> str:
    """A field's value, short enough for a line."""
    text = f"{given:.4g}" if isinstance(given, float) else str(given)
    return text if len(text) <= 40 else f"{text[:39]}…"


def front(found: Mapping[str, Any], finished: Sequence[Mapping[str, Any]]) -> Front | None:
    """Accuracy against the first other objective; None without finished trials."""
    if not finished:
        return None
    other = next(name for name in found["front"]["objectives"] if name != "accuracy")
    box = Box(44, 26, WIDTH - 14, 220)
    costs, hits = [trial[other] for trial in finished], [100 * trial["accuracy"] for trial in finished]
    x_ticks, y_ticks = ticks(*_around(costs)), ticks(*_around(hits))
    x = charts.linear(*_around(costs), box.left, box.right)
    y = charts.linear(*_around(hits), box.bottom, box.top)
    chosen = set(found["front"]["trials"])

    def kind(trial: Mapping[str, Any]) -> str:
        return "best" if trial["number"] == found["best"] else "front" if trial["number"] in chosen else "other"

    dots = [Dot(x(trial[other]), y(100 * trial["accuracy"]), kind(trial), _title(trial, other)) for trial in finished]
    unbeaten = sorted((dot for dot in dots if dot.kind != "other"), key=lambda dot: (dot.x, -dot.y))
    return Front(
        box,
        tuple(sorted(dots, key=lambda dot: ("other", "front", "best").index(dot.kind))),
        _path([(dot.x, dot.y) for dot in unbeaten]) if len(unbeaten) > 1 else "",
        tuple(Tick(x(at), f"{at:g}") for at in x_ticks),
        tuple(Tick(y(at), f"{at:g}") for at in y_ticks),
        NAMES[other],
    )


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _title(trial: Mapping[str, Any], other: str) -> str:
    return f"trial {trial['number']}: {100 * trial['accuracy']:.1f} %, {trial[other]:.4g} {NAMES[other]}"


def _around(values: Sequence[float]) -> tuple[float, float]:
    """From the smallest to the largest, with room; never below 0, as nothing here is."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return max(0.0, low - margin), high + margin


def parallel(found: Mapping[str, Any], finished: Sequence[Mapping[str, Any]]) -> Parallel | None:
    """None without finished trials."""
    if not finished:
        return None
    names = [name for name in found["fields"] if any(name in trial["point"] for trial in finished)]
    box = Box(52, 34, 52 + AXIS * len(names), 240)
    scales = [_scale([trial["point"].get(name) for trial in finished], box) for name in names]
    accuracy = [100 * trial["accuracy"] for trial in finished]
    hits = charts.linear(*_around(accuracy), box.bottom, box.top)
    axes = [Axis(box.left + AXIS * at, name, scales[at][1]) for at, name in enumerate(names)]
    axes.append(Axis(box.right, "accuracy, %", tuple(Tick(hits(at), f"{at:g}") for at in ticks(*_around(accuracy)))))
    shade = charts.linear(min(accuracy), max(accuracy), 0, 1)

    def line(trial: Mapping[str, Any]) -> Line:
        percent = 100 * trial["accuracy"]
        heights = [scale(trial["point"].get(name)) for name, (scale, _) in zip(names, scales, strict=True)]
        path = _path(zip([axis.x for axis in axes], [*heights, hits(percent)], strict=True))
        level = charts.level_of(shade(percent)) or 0
        return Line(path, level, trial["number"] == found["best"], f"trial {trial['number']}: {percent:.1f} %")

    lines = sorted(map(line, finished), key=lambda one: (one.best, one.level))
    return Parallel(box.right + 44, box, tuple(axes), tuple(lines))


def _scale(values: Sequence[Any], box: Box) -> tuple[Callable[[Any], float], tuple[Tick, ...]]:
    """Where a field's values are on its axis, and the axis's ticks: evenly spaced if few or no numbers, else to scale.

    None stands for a trial in which the field does not apply.
    """
    given = [one for one in values if one is not None]
    distinct = {value(one): one for one in values}
    if len(distinct) > SPREAD and all(isinstance(one, int | float) for one in given):
        return _to_scale(given, box, len(given) < len(values))
    order = sorted(distinct, key=lambda text: (distinct[text] is not None, _rank(distinct[text]), text))
    step = box.height / max(1, len(order) - 1)
    places = {text: box.bottom - step * at for at, text in enumerate(order)}
    named = tuple(Tick(places[text], NONE if distinct[text] is None else text[:14]) for text in order)
    return (lambda one: places[value(one)]), named


def _to_scale(numbers: Sequence[float], box: Box, gaps: bool) -> tuple[Callable[[Any], float], tuple[Tick, ...]]:
    """From the smallest number to the largest, logarithmic where that is tenfold; with room below for ``gaps``."""
    low, high = min(numbers), max(numbers)
    log = low > 0 and high >= 10 * low
    bottom = box.bottom - 30 if gaps else box.bottom
    line = charts.linear(math.log(low), math.log(high), bottom, box.top) if log else None
    plain = charts.linear(low, high, bottom, box.top)

    def scale(one: Any) -> float:
        if one is None:
            return box.bottom
        return line(math.log(one)) if line is not None else plain(one)

    middle = math.sqrt(low * high) if log else (low + high) / 2
    named = [Tick(scale(at), f"{at:.3g}") for at in (low, middle, high)]
    return scale, tuple([*named, Tick(box.bottom, NONE)] if gaps else named)


def _rank(one: Any) -> float:
    return float(one) if isinstance(one, int | float) else 0.0
