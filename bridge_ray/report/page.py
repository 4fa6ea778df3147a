"""One self-contained HTML page about a run: inline styles and SVG, no script, no request to anywhere.

Text of the corpus is data: the template escapes all of it, and the page's own policy forbids scripts and requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge_ray.report import charts, summary
from bridge_ray.report.data import ReportData
from bridge_ray.report.templates import environment

ROUTES = {
    "teacher": "bought from the teacher",
    "ta": "written by the TA and verified",
    "ta_hinted": "written by the TA once it was shown the answer",
    "label_only": "no rationale held: only the label is used",
    "errored": "left out after an error",
}
SHOWN_GROUPS = 12  # domains in a chart
BESIDE = ("teacher", "ta", "bridge")  # whose replies stand beside one another, before all others'
PROFILED = {"bridge": "accent", "direct": "mark", "direct_labels": "hint", "ta_base": "neutral"}  # system -> colour


@dataclass(frozen=True)
class Route:
    """One row of the amplification table."""

    name: str
    meaning: str
    count: int
    share: float


@dataclass(frozen=True)
class Ratio:
    """A number that is a ratio of others, and what it is a ratio of."""

    name: str
    value: float | None
    interval: Sequence[float] | None
    meaning: str


@dataclass(frozen=True)
class Tenth:
    """A tenth of the evaluated questions by difficulty: its mean entropy, and system -> accuracy and n."""

    number: int  # 1 is the easiest
    entropy: float | None
    n: int
    cells: Mapping[str, Mapping[str, Any]]


def render(data: ReportData) -> str:
    """The page as HTML; whatever the metrics lack is left out."""
    metrics = data.metrics
    systems = summary.evaluated(metrics)
    tenths = _by_tenth(metrics, systems)
    routes = _routes(metrics)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            data=data,
            metrics=metrics,
            sentences=summary.sentences(metrics),
            systems=systems,
            meanings=summary.SYSTEMS,
            system_bars=charts.bars(
                [(name, scores["accuracy"], _interval(scores)) for name, scores in systems.items()]
            ),
            split=summary.split(metrics),
            comparisons=_tested(metrics),
            ratios=_ratios(metrics),
            domains=_domains(systems),
            tenths=tenths,
            tenths_lines=charts.profile(
                {name: [_accuracy(tenth.cells.get(name)) for tenth in tenths] for name in PROFILED if name in systems}
            ),
            colours=PROFILED,
            beside=beside,
            map=charts.scatter(data.points),
            levels=charts.LEVELS,
            entropies=charts.histogram(data.entropies),
            routes=routes,
            routes_total=sum(route.count for route in routes),
            route_segments=charts.stacked({route.name: route.count for route in routes}),
            kept_by={
                "domain": charts.bars(kept(summary.lookup(metrics, "amplified", "domains") or {})),
                "difficulty": charts.bars(kept(_tenths(metrics))),
            },
            losses={stage: drawn for stage, history in data.losses.items() if (drawn := charts.lines(history))},
            seconds_run=_seconds_run(metrics),
            standin=summary.STANDIN,
            WIDTH=charts.WIDTH,
        )
    )


def _interval(scores: Mapping[str, Any]) -> tuple[float, float] | None:
    bounds = scores.get("interval")
    return (bounds[0], bounds[1]) if bounds else None


def _tested(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The comparisons of two systems that come with a test."""
    found = metrics.get("comparisons") or {}
    return {name: one for name, one in found.items() if summary.lookup(one, "mcnemar", "p") is not None}


def _domains(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Domain -> system -> accuracy and n."""
    domains: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, scores in systems.items():
        for domain, cell in (scores.get("by_domain") or {}).items():
            domains.setdefault(domain, {})[name] = cell
    return dict(sorted(domains.items()))


def _ratios(metrics: Mapping[str, Any]) -> list[Ratio]:
    """Relative gain and gap closed, in words."""
    gap = metrics.get("gap")
    if not gap:
        return []
    if gap.get("gap_closed") is not None:
        untold = ""
    elif "teacher" in (metrics.get("systems") or {}):
        untold = " Not given: the teacher is not ahead of direct by more than 5 points."
    else:
        untold = " Not known: the teacher itself was not asked (evaluate.systems)."
    few = "" if gap.get("relative_gain") is not None else " Not given: direct has no more than 5 % right."
    meanings = {
        "relative_gain": "(bridge − direct) / direct: how many more questions bridge answers correctly than direct, "
        f"as a share of those that direct answers correctly.{few}",
        "gap_closed": "(bridge − direct) / (teacher − direct): how much of the way from direct to the teacher bridge "
        f"has come.{untold}",
    }
    return [
        Ratio(name.replace("_", " "), gap.get(name), gap.get(f"{name}_interval"), meaning)
        for name, meaning in meanings.items()
    ]


def _by_tenth(metrics: Mapping[str, Any], systems: Mapping[str, Mapping[str, Any]]) -> list[Tenth]:
    """The tenths by difficulty, where the systems' accuracies are known by it."""
    if not any(scores.get("by_entropy") for scores in systems.values()):
        return []
    entropies, found = metrics.get("deciles") or {}, []
    for tenth in map(str, range(charts.STEPS)):
        named = {name: summary.lookup(scores, "by_entropy", tenth) for name, scores in systems.items()}
        cells = {name: cell for name, cell in named.items() if cell}
        n = next((cell["n"] for cell in cells.values()), 0)
        found.append(Tenth(int(tenth) + 1, entropies.get(tenth), n, cells))
    return found


def _accuracy(cell: Mapping[str, Any] | None) -> float | None:
    return None if cell is None else cell["accuracy"]


def beside(replies: Mapping[str, Any]) -> dict[str, Any]:
    """Replies by system: the teacher's, the TA's and the student's first, as far as there are any."""
    first = [name for name in BESIDE if name in replies]
    return {name: replies[name] for name in [*first, *(name for name in replies if name not in BESIDE)]}


def _routes(metrics: Mapping[str, Any]) -> list[Route]:
    rows = summary.lookup(metrics, "rows") or {}
    counts = {name: rows.get(name) or 0 for name in ROUTES}
    total = sum(counts.values())
    return [Route(name, ROUTES[name], count, count / total) for name, count in counts.items()] if total else []


def kept(groups: Mapping[str, Mapping[str, int]]) -> list[tuple[str, float, None]]:
    """Group -> the share of its rows that the un-hinted TA explained, of those not bought; the largest groups only."""
    tried = {name: sum(rows for route, rows in routes.items() if route != "teacher") for name, routes in groups.items()}
    shown = sorted(sorted(tried, key=lambda name: -tried[name])[:SHOWN_GROUPS])
    return [(name, groups[name].get("ta", 0) / tried[name], None) for name in shown if tried[name]]


def _tenths(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, int]]:
    """Tenths of the corpus by difficulty, named by the percentiles that they span."""
    found = summary.lookup(metrics, "amplified", "difficulty") or {}
    return {f"{int(tenth) * 10:02}–{int(tenth) * 10 + 10} %": routes for tenth, routes in found.items()}


def _seconds_run(metrics: Mapping[str, Any]) -> float:
    """Seconds of the stages that the last command did itself."""
    stages = summary.lookup(metrics, "stages") or {}
    return sum(stage.get("seconds") or 0.0 for stage in stages.values() if stage and not stage.get("skipped"))
