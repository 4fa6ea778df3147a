"""The page of a forecast, from its forecast.json: fitted curves over the measured sizes, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge_ray.report import charts
from bridge_ray.report.charts import Box, Scale, Tick
from bridge_ray.report.templates import environment

Found = Mapping[str, Any]
BOX = Box(40, 26, charts.WIDTH - 12, 230)


@dataclass(frozen=True)
class Dot:
    """One measured size with its interval; ``whole``: on the largest corpus, of which the curve is."""

    x: float
    y: float
    low: float
    high: float
    whole: bool
    title: str


@dataclass(frozen=True)
class Drawn:
    """A system's curve as far as it was measured, its continuation, and its band."""

    name: str
    measured: str
    beyond: str
    band: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Chart:
    box: Box
    curves: tuple[Drawn, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    target: float  # y of what BRIDGE does
    reached: float | None  # x of B*


def render(found: Found) -> str:
    """The page as HTML."""
    rivals = {name: chart(found, name) for name in found["rivals"]}
    return environment().get_template("forecast.html.j2").render(found=found, charts=rivals, WIDTH=charts.WIDTH)


def chart(found: Found, rival: str) -> Chart:
    """bridge against one rival, accuracy over queries on a logarithmic axis."""
    names = [name for name in (rival, "bridge") if name in found["systems"]]
    points = [point for name in names for point in found["systems"][name]["curve"]]
    sizes = [size for name in names for size in found["systems"][name]["sizes"]]
    x = _logarithmic([point["queries"] for point in points])
    shares = [point["accuracy"] for point in points] + [bound for size in sizes for bound in size["interval"]]
    low, high = _rounded(min(shares), max(shares))
    y = charts.linear(low, high, BOX.bottom, BOX.top)
    one = found["rivals"][rival]
    star = one["queries"]["value"] if one["trusted"] else None
    seen = star is not None and points[0]["queries"] <= star <= max(point["queries"] for point in points)
    rows = found["at"]["rows"]
    return Chart(
        BOX,
        tuple(_drawn(name, found["systems"][name], rows, x, y) for name in names),
        tuple(Tick(x(value), f"{value:,g}") for value in _round_queries(points)),
        tuple(Tick(y(share), f"{share * 100:g}") for share in charts.ticks(low, high)),
        y(found["at"]["accuracy"]["value"]),
        x(star) if star is not None and seen else None,
    )


def _drawn(name: str, system: Found, rows: int, x: Scale, y: Scale) -> Drawn:
    points, last = system["curve"], max(size["queries"] for size in system["sizes"])
    inside = [point for point in points if point["queries"] <= last]
    outside = points[len(inside) - 1 :]
    band = [(p["queries"], p["high"]) for p in points] + [(p["queries"], p["low"]) for p in reversed(points)]
    dots = tuple(
        Dot(
            x(size["queries"]),
            y(size["accuracy"]),
            y(size["interval"][0]),
            y(size["interval"][1]),
            size["rows"] == rows,
            f"{name}, {size['queries']:,.0f} queries, {size['rows']:,} rows: {size['accuracy'] * 100:.1f} %",
        )
        for size in system["sizes"]
    )
    lines = [_path([(p["queries"], p["accuracy"]) for p in part], x, y) for part in (inside, outside)]
    return Drawn(name, lines[0], lines[1], _path(band, x, y) + "Z", dots)


def _path(points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> str:
    """Kept inside the plot area: a band of few sizes may leave it."""
    return "M" + "L".join(f"{x(a):.1f} {min(BOX.bottom, max(BOX.top, y(b))):.1f}" for a, b in points)


def _logarithmic(queries: Sequence[float]) -> Scale:
    low, high = math.log(min(queries)), math.log(max(queries))
    scale = charts.linear(low - 0.02 * (high - low), high, BOX.left, BOX.right)
    return lambda value: scale(math.log(value))


def _rounded(low: float, high: float) -> tuple[float, float]:
    """A little more than the range, in steps of 5 points, within 0..1."""
    return max(0.0, math.floor(low * 20) / 20), min(1.0, math.ceil(high * 20) / 20)


def _round_queries(points: Sequence[Found]) -> list[float]:
    """1, 3, 10, 30 ... within the curves; every second one where that would be crowded."""
    low, high = (pick(point["queries"] for point in points) for pick in (min, max))
    steps = [step * 10**power for power in range(10) for step in (1, 3)]
    inside = [step for step in steps if low <= step <= high]
    return inside if len(inside) <= 7 else [step for step in inside if str(step)[0] == "1"]
