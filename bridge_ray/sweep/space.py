"""Points of a sweep's space, and the configs that they stand for. A point names the value of every field that applies.

A point is JSON: dotted path (or the name of a bundle) -> value (or the name of one of its choices).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bridge_ray import config
from bridge_ray.config import Config
from bridge_ray.errors import UserError
from bridge_ray.sweep.spec import Bundle, Dimension, Range, Spec
from bridge_ray.training.curriculum import resolved, updates_per_epoch

Point = dict[str, Any]
KEPT = (
    *("corpus.", "evaluate.", "teacher.", "engine.", "name", "storage", "seed", "budget.account"),
    *("training.workers", "training.gpus_per_worker", "training.labels"),
)
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


def finite(space: Space) -> bool:
    """Whether the space has a grid: every range is of whole numbers, or has a step."""
    return all(not isinstance(part, Range) or part.whole or part.step is not None for part in space.values())


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
    if isinstance(value, bool) or not isinstance(value, int if part.whole else int | float):
        return False
    steps = 0.0 if part.step is None else (value - part.low) / part.step
    return part.low <= value <= part.high and abs(steps - round(steps)) < 1e-9


def fields(space: Space, point: Point) -> dict[str, Any]:
    """The config fields that the point sets."""
    found: dict[str, Any] = {}
    for name, value in point.items():
        part = space[name]
        found |= part.choices[value] if isinstance(part, Bundle) else {name: value}
    return found


def same_meaning(point: Point, ours: Space, theirs: Space) -> bool:
    """Whether the choices that the point names stand for the same fields in both spaces."""
    bundles = [name for name in point if isinstance(ours.get(name), Bundle) or isinstance(theirs[name], Bundle)]
    named = [{name: point[name]} for name in bundles]
    return set(bundles) <= ours.keys() and all(fields(ours, one) == fields(theirs, one) for one in named)


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
            if moved := _moved(made, base):
                raise UserError(f"sweep {spec.name}: space.{name}: {moved} is the same for all trials; use set")
            _check_train(made, base, f"sweep {spec.name}: space.{name}")
        _check_whole(spec, base, name, part, context)


def _moved(made: Config, base: Config) -> str | None:
    """A field that differs and may not: trials are compared on the same questions, and placed by the base's needs."""
    old, new = config.flat(base.model_dump(mode="json")), config.flat(made.model_dump(mode="json"))
    differ = sorted(field for field in old | new if old.get(field) != new.get(field))
    return next((field for field in differ if field.startswith(KEPT) and field != "corpus.train"), None)


def _check_train(made: Config, base: Config, where: str) -> None:
    """Another number of generated examples is another shuffle of them, so another dev split, but for ``made`` ones."""
    if made.corpus.train != base.corpus.train and base.corpus.source == "generated" and base.corpus.made is None:
        raise UserError(f"{where}: a generated corpus keeps its dev split only where corpus.made is set; use set")


def _check_whole(spec: Spec, base: Config, name: str, part: Dimension, context: Point) -> None:
    """``low: 0, high: 1`` of a field that takes fractions would be tried at 0 and 1 alone."""
    if not isinstance(part, Range) or not part.whole or part.high - part.low > 1:
        return
    try:
        config.changed(base, fields(spec.space, {**context, name: (part.low + part.high) / 2}), "")
    except UserError:
        return
    raise UserError(
        f"sweep {spec.name}: space.{name}: whole numbers from {part.low} to {part.high} are two values; write "
        f"{{low: {part.low}.0, high: {part.high}.0}} for all between, or choices"
    )


def early_rungs(spec: Spec, base: Config) -> Iterator[str]:
    """A line for every choice by which ASHA's first rung lies where nothing but answers has been taught: the model is
    asked for rationales there, and who is taught them sooner looks better than he ends."""
    if spec.asha is None:
        return
    for name, part in spec.space.items():
        for value in _extremes(part):
            made = config.changed(base, fields(spec.space, {**_where(spec.space, name), name: value}), spec.name)
            share = _answers_first(made)
            if spec.asha.first <= share < 1:
                yield (
                    f"warning: asha.first {spec.asha.first:g}: with {name} {value} a student has been taught only "
                    f"answers by then, and is asked for rationales; raise it above {share:.2g}"
                )


def _answers_first(made: Config) -> float:
    """The share of the student's updates before the first that teaches rationales."""
    epoch = updates_per_epoch(made.corpus.train or 10_000, made.training.global_batch)
    phases = resolved(made.student.curriculum, made.student.control, epoch)
    before = itertools.takewhile(lambda phase: phase.target == "answer", phases)
    return sum(phase.updates or 0 for phase in before) / sum(phase.updates or 0 for phase in phases)


def _extremes(part: Dimension) -> list[Any]:
    """Values that stand for all: a range's ends, and one that is not whole where the range has such."""
    if not isinstance(part, Range):
        return list(part.choices)
    return [part.low, part.high] if part.whole else [part.low, part.high, *_between(part)]


def _between(part: Range) -> list[float]:
    """A value of the range that is neither end, if there is one: of a field of whole numbers it is none."""
    if part.step is None:
        return [part.low + (part.high - part.low) / math.pi]
    return values(part)[1:-1][:1]


def _where(space: Space, name: str) -> Point:
    """Values under which the dimension applies."""
    point: Point = {}
    for other, wanted in space[name].when.items():
        for value in _allowed(wanted):
            if not _drawn(space[other], value):
                raise UserError(f"space.{name}.when: {other} is never {value}")
        point |= _where(space, other) | {other: _allowed(wanted)[0]}
    return point


def _drawn(part: Dimension, value: Any) -> bool:
    """Whether the dimension takes the value now and then; a range without steps takes none of its values twice."""
    return _holds(part, value) and not (isinstance(part, Range) and part.step is None and not part.whole)


def key(point: Point) -> str:
    """Equal for equal points."""
    return json.dumps(point, sort_keys=True)


def count(space: Space) -> int:
    """Points of the grid."""
    return sum(1 for _ in grid(space))
