"""Chart geometry: numbers in, SVG coordinates out. Pure; the template only draws what stands here.

Every chart is ``WIDTH`` units wide, about a phone's width in pixels, so that its text stays readable when scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bridge_ray.report.data import Counts, Point

WIDTH = 340.0
LEVELS = 5  # colours of the entropy scale
STEPS = 10  # of a profile: tenths
MAX_DOTS = 10_000  # a larger map is thinned evenly: more dots than that only overlap
MAX_VERTICES = 120  # a longer line is averaged down to this many points
ROW = 28.0  # height of a horizontal bar with its gap
THICK = 14.0  # height of the bar itself

Scale = Callable[[float], float]


@dataclass(frozen=True)
class Box:
    """The plot area in SVG units; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Rect:
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layer:
    """All dots of one entropy level as one path of points; level None: not scored."""

    level: int | None
    path: str


@dataclass(frozen=True)
class Scatter:
    box: Box
    layers: tuple[Layer, ...]
    rings: tuple[tuple[float, float], ...]  # centres of the chosen rows
    drawn: int


@dataclass(frozen=True)
class Bin:
    """One histogram column: ``all`` behind, ``chosen`` in front of its lower part."""

    all: Rect
    chosen: Rect
    title: str


@dataclass(frozen=True)
class Histogram:
    box: Box
    bins: tuple[Bin, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Bar:
    name: str
    y: float  # middle of the row
    rect: Rect
    whisker: tuple[float, float] | None
    label: str


@dataclass(frozen=True)
class Bars:
    box: Box
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Segment:
    name: str
    rect: Rect


@dataclass(frozen=True)
class Lines:
    box: Box
    path: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    phases: tuple[Tick, ...]  # where a phase begins


@dataclass(frozen=True)
class Profile:
    box: Box
    paths: Mapping[str, str]  # name -> its line
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def scatter(points: Sequence[Point]) -> Scatter | None:
    """A map of the points, thinned evenly to at most ``MAX_DOTS``; None without points."""
    if not points:
        return None
    box = Box(10, 10, WIDTH - 10, 290)
    drawn = points[:: math.ceil(len(points) / MAX_DOTS)]
    x = linear(*_extent([point.x for point in drawn]), box.left, box.right)
    y = linear(*_extent([point.y for point in drawn]), box.bottom, box.top)
    layers = tuple(
        Layer(level, "".join(f"M{x(p.x):.1f} {y(p.y):.1f}h0" for p in drawn if level_of(p.entropy) == level))
        for level in (None, *range(LEVELS))
    )
    rings = tuple((round(x(p.x), 1), round(y(p.y), 1)) for p in drawn if p.chosen)
    return Scatter(box, tuple(layer for layer in layers if layer.path), rings, len(drawn))


def level_of(entropy: float | None) -> int | None:
    """Which of the ``LEVELS`` equal steps of 0..1 an entropy falls into."""
    return None if entropy is None else min(LEVELS - 1, max(0, int(entropy * LEVELS)))


def histogram(counts: Counts) -> Histogram | None:
    """Rows by entropy, a column for each step; None if no row was scored."""
    totals, chosen, count = counts.rows, counts.chosen, len(counts.rows)
    if not any(totals):
        return None
    box = Box(40, 26, WIDTH - 10, 180)
    y_ticks = ticks(0, max(totals), whole=True)
    x = linear(0, count, box.left, box.right)
    y = linear(0, max(*totals, y_ticks[-1]), box.bottom, box.top)

    def column_to(height: int, column: int) -> Rect:
        return Rect(x(column) + 1, y(height), box.width / count - 2, box.bottom - y(height))

    bins = tuple(
        Bin(
            column_to(totals[column], column),
            column_to(chosen[column], column),
            f"{column / count:g} to {(column + 1) / count:g}: {totals[column]} questions, {chosen[column]} bought",
        )
        for column in range(count)
    )
    x_ticks = tuple(Tick(x(value * count), f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1))
    return Histogram(box, bins, x_ticks, tuple(Tick(y(value), f"{value:g}") for value in y_ticks))


def stacked(counts: Mapping[str, int]) -> tuple[Segment, ...]:
    """One bar of the full width, cut in proportion to the counts; empty parts are left out."""
    total = sum(counts.values())
    segments, x = [], 0.0
    for name, count in counts.items():
        if count > 0:
            width = WIDTH * count / total
            segments.append(Segment(name, Rect(x, 0, width, 18)))
            x += width
    return tuple(segments)


def bars(rows: Sequence[tuple[str, float, tuple[float, float] | None]], names: float = 96) -> Bars | None:
    """Horizontal bars of shares (name, 0..1, interval) on an axis from 0 to 100 %; None without rows.

    ``names`` is the width that their names take.
    """
    if not rows:
        return None
    box = Box(names, 6, WIDTH - 60, 6 + ROW * len(rows))
    x = linear(0, 1, box.left, box.right)

    def bar(index: int, name: str, value: float, interval: tuple[float, float] | None) -> Bar:
        middle = box.top + ROW * (index + 0.5)
        rect = Rect(box.left, middle - THICK / 2, x(value) - box.left, THICK)
        whisker = (x(interval[0]), x(interval[1])) if interval else None
        return Bar(name, middle, rect, whisker, f"{value * 100:.1f} %")

    drawn = tuple(bar(index, *row) for index, row in enumerate(rows))
    return Bars(box, drawn, tuple(Tick(x(share / 100), str(share)) for share in (0, 25, 50, 75, 100)))


def lines(history: Sequence[Mapping[str, float]]) -> Lines | None:
    """The loss of one training stage over its updates, from 0 up; None without a finite loss."""
    rows = [row for row in history if math.isfinite(row.get("loss", math.nan))]
    if not rows:
        return None
    box = Box(40, 26, WIDTH - 12, 150)
    updates = [row.get("update", float(index + 1)) for index, row in enumerate(rows)]
    vertices = _averaged(updates, [row["loss"] for row in rows])
    y_ticks = ticks(0, max(loss for _, loss in vertices))
    last = max(updates[-1], updates[0] + 1)
    x = linear(updates[0], last, box.left, box.right)
    y = linear(0, max(y_ticks[-1], *(loss for _, loss in vertices)), box.bottom, box.top)
    path = "M" + "L".join(f"{x(update):.1f} {y(loss):.1f}" for update, loss in vertices)
    phases = [
        Tick(x(update), f"phase {now['phase'] + 1:g}")
        for update, before, now in zip(updates[1:], rows, rows[1:], strict=False)
        if now.get("phase") is not None and now.get("phase") != before.get("phase")
    ]
    x_ticks = tuple(Tick(x(value), f"{value:g}") for value in ticks(updates[0], last, whole=True))
    return Lines(box, path, x_ticks, tuple(Tick(y(value), f"{value:g}") for value in y_ticks), tuple(phases))


def profile(shares: Mapping[str, Sequence[float | None]]) -> Profile | None:
    """A line per name over ten steps, of shares from 0 to 100 %; None where there is nothing to draw."""
    box = Box(40, 26, WIDTH - 12, 180)
    x = linear(0, STEPS - 1, box.left + 10, box.right - 10)
    y = linear(0, 1, box.bottom, box.top)
    paths = {
        name: "M" + "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in enumerate(values) if value is not None)
        for name, values in shares.items()
        if any(value is not None for value in values)
    }
    if not paths:
        return None
    x_ticks = tuple(Tick(x(step), f"{step + 1}") for step in range(STEPS))
    return Profile(box, paths, x_ticks, tuple(Tick(y(share / 100), str(share)) for share in (0, 25, 50, 75, 100)))


def ticks(low: float, high: float, count: int = 4, whole: bool = False) -> tuple[float, ...]:
    """About ``count`` round values between low and high, both included if they are round."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * count >= span * 0.999)
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(index * step, 10) for index in range(first, max(first, last) + 1))


def _averaged(updates: Sequence[float], losses: Sequence[float]) -> list[tuple[float, float]]:
    """(update, loss), neighbours averaged until at most ``MAX_VERTICES`` are left."""
    size = math.ceil(len(losses) / MAX_VERTICES)
    groups = [slice(start, start + size) for start in range(0, len(losses), size)]
    return [(_mean(updates[group]), _mean(losses[group])) for group in groups]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _extent(values: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest value, with a margin that also keeps a single value off the border."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.03 or 1.0
    return low - margin, high + margin


def linear(low: float, high: float, start: float, stop: float) -> Scale:
    """The straight line that takes low to start and high to stop."""
    slope = (stop - start) / ((high - low) or 1.0)
    return lambda value: start + (value - low) * slope
