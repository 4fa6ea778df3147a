"""How a page is made from a template: ``base.html.j2`` frames all of them, ``macros.html.j2`` draws their charts."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader

from bridge_ray.report import summary


def duration(seconds: Any) -> str:
    """Seconds as '8.1 s', '3 min 20 s' or '2 h 05 min'."""
    if not isinstance(seconds, int | float):
        return "–"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


@cache
def environment() -> Environment:
    """Templates of this package; their text is escaped, and what is missing is left out."""
    environment = Environment(
        loader=PackageLoader("bridge_ray.report", ""),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": summary.percent,
        "points": partial(summary.points, sign=True),
        "interval": summary.interval,
        "count": summary.count,
        "money": summary.money,
        "probability": summary.probability,
        "duration": duration,
    }
    return environment
