"""Points of a sweep's space, and the configs that they stand for. A point names the value of every field that applies.

A point is JSON: dotted path (or the name of a bundle) -> value (or the name of one of its choices).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bridge_ray import config
from bridge_ray.config import Config
from bridge_ray.errors import UserError
from bridge_ray.sweep.spec import Bundle, Choice, Dimension, Range, Spec

Point = dict[str, Any]
Space = Mapping[str, Dimension]


def applies(part: Dimension, point: Point) -> bool:
    """Whether a dimension is one of the point's, given the values of those before it."""
    return all(name in point and point[name] in _allowed(wanted) for name, wanted in part.when.items())


def _allowed(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def draw(space: Space, suggest: Callable[[str, Dimension], Any]) -> Point:
    """A point whose values are suggested one after another."""
    point: Point = {}
    for name, part in space.items():
        if applies(part, point):
            point[name] = suggest(name, part)
    return point


def grid(space: Space) -> Iterator[Point]:
    """Every point, the last dimension's values changing fastest."""
    yield from _grid(list(space.items()), {})


def _grid(left: list[tuple[str, Dimension]], point: Point) -> Iterator[Point]:
    if not left:
        yield point
        return
    (name, part), rest = left[0], left[1:]
    if not applies(part, point):
        yield from _grid(rest, point)
        return
    for value in values(part):
        yield from _grid(rest, point | {name: value})


def values(part: Dimension) -> list[Any]:
    """All values of a dimension, of a range those a step apart."""
    if not isinstance(part, Range):
        return list(part.choices)
    step = 1 if part.step is None else part.step
    count = math.floor((part.high - part.low) / step + 1e-9)
    # Whole numbers of a step apart in floating point: 0.1 + 2 * 0.1 is not 0.3.
    return [value if part.whole else round(value, 12) for value in (part.low + step * at for at in range(count + 1))]


def label(value: Any) -> str | int | float | bool | None:
    """A choice as the search knows it: itself, or its JSON where it is a list or mapping."""
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value, sort_keys=True)


def contains(space: Space, point: Point) -> bool:
    """Whether the point could be drawn from the space."""
    seen: Point = {}
    for name, part in space.items():
        if not applies(part, seen):
            continue
        if name not in point or not _holds(part, point[name]):
            return False
        seen[name] = point[name]
    return seen.keys() == point.keys()


def _holds(part: Dimension, value: Any) -> bool:
    if not isinstance(part, Range):
        return label(value) in [label(choice) for choice in part.choices]
    return isinstance(value, int | float) and part.low <= value <= part.high


def fields(space: Space, point: Point) -> dict[str, Any]:
    """The config fields that the point sets."""
    found: dict[str, Any] = {}
    for name, value in point.items():
        part = space[name]
        found |= part.choices[value] if isinstance(part, Bundle) else {name: value}
    return found


def settings(spec: Spec, base: Config, point: Point, repeat: int, name: str) -> Config:
    """The config of one of a trial's runs, the ``repeat``-th from 0: each has a seed of its own.

    Raises UserError with one line where the point's values do not go together.
    """
    changed = {"name": name, "seed": base.seed + repeat, **fields(spec.space, point)}
    return config.changed(base, changed, f"sweep {spec.name}")


def check(spec: Spec, base: Config) -> None:
    """See that every value that a dimension can take makes a config; raises UserError for the first that does not."""
    for name, part in spec.space.items():
        context = _where(spec.space, name)
        for value in _extremes(part):
            point = {**context, name: value}
            made = config.changed(base, fields(spec.space, point), f"sweep {spec.name}: space.{name}")
            kept = ("evaluate", "name", "storage", "teacher", "seed")
            moved = [field for field in kept if getattr(made, field) != getattr(base, field)]
            if moved:
                raise UserError(f"sweep {spec.name}: space.{name}: {moved[0]} is the same for all trials; use set")
            if made.corpus.dev == 0 or made.budget.account is not None:
                raise UserError(f"sweep {spec.name}: space.{name}: corpus.dev must stay, and budget.account away")


def _extremes(part: Dimension) -> list[Any]:
    return [part.low, part.high] if isinstance(part, Range) else list(part.choices)


def _where(space: Space, name: str) -> Point:
    """Values under which the dimension applies."""
    point: Point = {}
    for other, wanted in space[name].when.items():
        point |= _where(space, other) | {other: _allowed(wanted)[0]}
    for other, value in point.items():
        part = space[other]
        if isinstance(part, Choice | Bundle) and label(value) not in [label(choice) for choice in part.choices]:
            raise UserError(f"space.{name}.when: {other} is never {value}")
    return point


def key(point: Point) -> str:
    """Equal for equal points."""
    return json.dumps(point, sort_keys=True)


def count(space: Space) -> int:
    """Points of the grid."""
    return sum(1 for _ in grid(space))
