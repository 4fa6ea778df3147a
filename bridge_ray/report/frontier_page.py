"""The page of a frontier: accuracy against queries, dollars and local hours, and where to stop. As self-contained as
a run's page; what it says is what frontier.json holds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import yaml

from bridge_ray.report import charts
from bridge_ray.report.charts import Box, Tick
from bridge_ray.report.summary import WITHOUT_TA, count, interval, money, percent, told_apart
from bridge_ray.report.templates import environment

CORE = ("bridge", "direct_labels", "direct")  # drawn as lines over their budgets
TABLES_ONLY = (
    "guess",
    "student_base",
    "ta_base",
    "ta",
    "teacher",
)  # no trained student: they would only stretch the charts
FLAT = ("guess", "labels", "teacher")  # of those that spend nothing, the ones that are drawn: across the chart
KINDS = ("by_domain", "by_answer_type")
NAMES_LEFT = 152  # units that the longest system's name takes

Line = Mapping[str, Any]  # of frontier.json's intervals


@dataclass(frozen=True)
class Mark:
    """One line's accuracy with its interval; ``best``: in the Pareto set."""

    x: float
    y: float
    low: float
    high: float
    best: bool
    title: str


@dataclass(frozen=True)
class Curve:
    """A system over its budgets; ``path`` and ``band`` are empty where there is one point."""

    system: str
    path: str
    band: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Plot:
    box: Box
    curves: tuple[Curve, ...]
    others: tuple[Mark, ...]
    flat: tuple[Tick, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Axis:
    """What accuracy is drawn against."""

    spent: str
    title: str
    label: str
    show: Callable[[float], str]


def _hours(value: float) -> str:
    return f"{value:g} h"


def _dollars(value: float) -> str:
    return f"${value:g}"


AXES = (
    Axis("queries", "Accuracy against queries", "queries of the teacher", count),
    Axis("usd", "Accuracy against dollars", "dollars for the teacher's answers", _dollars),
    Axis("local_hours", "Accuracy against local hours", "hours of local compute", _hours),
)


def render(found: Mapping[str, Any]) -> str:
    """The page as HTML, of what frontier.json holds."""
    lines: Sequence[Line] = found["intervals"]
    size = max((line["rows"] for line in lines), default=0)
    whole = [line for line in lines if line["rows"] == size]
    reference = found["grid"]["reference"]
    at_reference = sorted(
        (line for line in whole if line["budget"] in (0.0, reference)), key=lambda line: -line["accuracy"]
    )
    compared = [one for one in found["comparisons"] if one["one"]["budget"] == reference]
    parts = _parts([c for c in found["cells"] if c["rows"] == size and c["budget"] in (0.0, reference)])
    return (
        environment()
        .get_template("frontier.html.j2")
        .render(
            found=found,
            size=size,
            sizes=sorted({line["rows"] for line in lines}),
            plots={axis: drawn for axis in AXES if (drawn := plot(whole, axis, found["pareto"][axis.spent]))},
            core=[line for line in whole if line["system"] in CORE],
            smaller=[line for line in lines if line["rows"] != size],
            at_reference=at_reference,
            parts=parts,
            groups=list(dict.fromkeys(key for part in parts.values() for key in part["groups"])),
            fewest=min((line["seeds"] for line in lines), default=0),
            bars=charts.bars(
                [(line["system"], line["accuracy"], tuple(line["interval"])) for line in at_reference], NAMES_LEFT
            ),
            against={(one["other"]["system"], one["other"]["budget"]): one for one in compared},
            comparisons=found["comparisons"],
            formats=sorted({one for cell in found["cells"] for one in cell.get("precision", ())}),
            best={(one["system"], one["budget"]) for one in found["pareto"]["queries"]},
            config=yaml.safe_dump(found["config"], sort_keys=False, allow_unicode=True),
            command=command(found),
            headline=headline(found),
            meanings=found["systems"],
            standin=(found["config"]["teacher"] or {}).get("standin") is not None,
            WIDTH=charts.WIDTH,
        )
    )


def _parts(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By system, the share of replies without an answer, and (kind, name) -> accuracy and n of the domains and then of
    the kinds of answer; all seeds together."""
    found: dict[str, dict[str, Any]] = {}
    for system in dict.fromkeys(cell["system"] for cell in cells):
        own = [cell for cell in cells if cell["system"] == system]
        groups: defaultdict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
        for kind, cell in product(KINDS, own):
            for name, one in cell[kind].items():
                groups[kind, name].append(one)
        pooled = {key: {"accuracy": _mean(some, "accuracy"), "n": _n(some)} for key, some in groups.items()}
        found[system] = {"unparsable": _mean(own, "unparsable"), "groups": pooled}
    return found


def _mean(some: Sequence[Mapping[str, Any]], name: str) -> float:
    """Over the questions of all of them."""
    return float(sum(one[name] * one["n"] for one in some) / _n(some))


def _n(some: Sequence[Mapping[str, Any]]) -> int:
    return sum(one["n"] for one in some)


def headline(found: Mapping[str, Any]) -> str:
    """What bridge does at the reference budget, and whether it is told apart there from its rivals; empty where it was
    not measured."""
    reference = found["grid"]["reference"]
    lines = [line for line in found["intervals"] if (line["system"], line["budget"]) == ("bridge", reference)]
    if not lines:
        return ""
    line = max(lines, key=lambda one: one["rows"])
    first = (
        f"At {reference * 100:g} %, bridge answers {percent(line['accuracy'])} of the {found['split']} questions "
        f"correctly (95 % interval {interval(line['interval'])})."
    )
    compared = {
        one["other"]["system"]: one
        for one in found["comparisons"]
        if one["one"]["budget"] == reference and one["other"]["budget"] in (0.0, reference)
    }
    told = [told_apart({**compared[name], "mcnemar": None}, "bridge", name) for name in WITHOUT_TA if name in compared]
    return " ".join([first, *told])


def command(found: Mapping[str, Any]) -> str:
    """How the frontier is made again."""
    grid = found["grid"]
    numbers = {name: ",".join(f"{value:g}" for value in grid[name]) for name in ("budgets", "corpora", "lengths")}
    options = [f"--budgets {numbers['budgets']}", f"--seeds {len(grid['seeds'])}", f"--reference {grid['reference']:g}"]
    options += [f"--{name} {numbers[name]}" for name in ("corpora", "lengths") if numbers[name] != "1"]
    options += [f"--systems {','.join(grid['systems'])}", *(["--dev"] if found["split"] == "dev" else [])]
    return " ".join(["bridge-ray frontier RECIPE", *options])


def plot(lines: Sequence[Line], axis: Axis, best: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Accuracy over a logarithmic axis of what was spent; None where nothing was."""
    spending = [line for line in lines if (line[axis.spent] or 0) > 0 and line["system"] not in TABLES_ONLY]
    flat = [line for line in lines if line not in spending and line["system"] in FLAT]
    if not spending:
        return None
    box = Box(40, 26, charts.WIDTH - 12, 230)
    values = [line[axis.spent] for line in spending]
    left, right = min(values) / 1.25, max(values) * 1.25
    bounds = [bound for line in spending for bound in line["interval"]] + [line["accuracy"] for line in flat]
    y_ticks = charts.ticks(min(bounds) * 100, max(bounds) * 100)
    low, high = min(*bounds, y_ticks[0] / 100), max(*bounds, y_ticks[-1] / 100)
    x = charts.linear(math.log(left), math.log(right), box.left, box.right)
    y = charts.linear(low, high, box.bottom, box.top)
    chosen = {(one["system"], one["budget"]) for one in best}

    def mark(line: Line) -> Mark:
        return Mark(
            x(math.log(line[axis.spent])),
            y(line["accuracy"]),
            y(line["interval"][0]),
            y(line["interval"][1]),
            (line["system"], line["budget"]) in chosen,
            f"{_named(line)}: {percent(line['accuracy'])} ({interval(line['interval'])})",
        )

    def curve(system: str) -> Curve:
        marks = tuple(
            mark(line) for line in sorted(spending, key=lambda one: one["budget"]) if line["system"] == system
        )
        if len(marks) < 2:
            return Curve(system, "", "", marks)
        path = "M" + "L".join(f"{one.x:.1f} {one.y:.1f}" for one in marks)
        edge = [f"{one.x:.1f} {one.high:.1f}" for one in marks] + [f"{one.x:.1f} {one.low:.1f}" for one in marks[::-1]]
        return Curve(system, path, "M" + "L".join(edge) + "Z", marks)

    return Plot(
        box,
        tuple(drawn for system in reversed(CORE) if (drawn := curve(system)).marks),
        tuple(mark(line) for line in spending if line["system"] not in CORE),
        tuple(Tick(y(line["accuracy"]), line["system"]) for line in flat),
        tuple(Tick(x(math.log(value)), axis.show(value)) for value in decades(left, right)),
        tuple(Tick(y(value / 100), f"{value:g}") for value in y_ticks),
    )


def _named(line: Line) -> str:
    bought = f" at {line['budget'] * 100:g} %" if line["budget"] else ""
    return f"{line['system']}{bought}, {count(line['queries'])} queries, {money(line['usd'])}"


def decades(low: float, high: float) -> list[float]:
    """Round values on a logarithmic axis: powers of ten, with their doubles and fives where few would be left."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = range(first, last + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [float(f"{factor}e{power}") for power in powers for factor in factors]
        found = [value for value in found if low <= value <= high]
        if len(found) >= 3:
            break
    return found
