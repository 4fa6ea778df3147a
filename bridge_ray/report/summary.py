"""What a run came to, in one sentence and one table: what the terminal prints and the page begins with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table

SYSTEMS = {  # in the order people read them
    "guess": "no model: the commonest training answer of the question's kind",
    "student_base": "the student before training",
    "labels": "student taught by all labels and no rationale",
    "direct": "student taught by the bought rationales alone",
    "direct_labels": "student taught by the bought rationales and all labels",
    "bridge": "student taught by the TA's rationales for the whole corpus",
    "ta_base": "the teacher assistant (TA) before training",
    "ta": "the teacher assistant taught by the bought rationales",
    "teacher": "the teacher itself",
}
RIVALS = ("direct", "direct_labels")
WITHOUT_TA = ("labels", *RIVALS)  # what one would do without a TA
UNDECIDED = "no difference can be told apart at this size"
LEAST_P = 0.001
STANDIN = "A stand-in teacher answered: the dollars are what the asks would have cost at the configured price."


def headline(metrics: Mapping[str, Any]) -> str:
    """What was gained and what it cost, in plain words; claims a difference only where its interval excludes 0."""
    return " ".join(sentences(metrics))


def sentences(metrics: Mapping[str, Any]) -> list[str]:
    """The headline's sentences: accuracies, comparisons, spending."""
    parts = [_accuracies(metrics), *(verdict(metrics, rival) for rival in RIVALS), _spending(metrics)]
    return [part for part in parts if part]


def table(metrics: Mapping[str, Any]) -> Table:
    """The systems for the terminal."""
    title = f"{split(metrics).capitalize()} accuracy of {lookup(metrics, 'run') or 'the run'}"
    drawn = Table(title=title, title_justify="left")
    drawn.add_column("system", no_wrap=True)
    drawn.add_column("accuracy", justify="right", no_wrap=True)
    drawn.add_column("95 % interval", justify="right", no_wrap=True)
    drawn.add_column("n", justify="right", no_wrap=True)
    drawn.add_column("what it is", style="dim")
    for name, scores in evaluated(metrics).items():
        style = "bold" if name == "bridge" else None
        cells = (percent(scores["accuracy"]), interval(scores.get("interval")), count(scores.get("n")))
        drawn.add_row(name, *cells, SYSTEMS.get(name, ""), style=style)
    return drawn


def evaluated(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """System -> its scores, of those that have an accuracy, in reading order."""
    found = lookup(metrics, "systems") or {}
    names = [*(name for name in SYSTEMS if name in found), *(name for name in found if name not in SYSTEMS)]
    return {name: found[name] for name in names if lookup(found, name, "accuracy") is not None}


def verdict(metrics: Mapping[str, Any], rival: str) -> str:
    """bridge against a rival in a sentence, empty where they were not compared."""
    return told_apart(lookup(metrics, "comparisons", f"bridge-{rival}"), "bridge", rival)


def told_apart(compared: Mapping[str, Any] | None, one: str, other: str) -> str:
    """What a difference with its interval allows to say of the first of two systems, empty where there is none."""
    difference, bounds = lookup(compared, "difference"), lookup(compared, "interval")
    if difference is None or not bounds:
        return ""
    low, high = bounds
    p = lookup(compared, "mcnemar", "p")
    measured = f"{points(abs(difference))} points"
    if low > 0:
        return f"{one} is better than {other} by {measured} (95 % interval {points(low)} to {points(high)}{_p(p)})."
    if high < 0:
        return f"{one} is worse than {other} by {measured} (95 % interval {points(-high)} to {points(-low)}{_p(p)})."
    signed = f"{points(low, sign=True)} to {points(high, sign=True)}"
    return f"Between {one} and {other} ({points(difference, sign=True)} points, 95 % interval {signed}) {UNDECIDED}."


def split(metrics: Mapping[str, Any]) -> str:
    """Whose questions were asked: test, or dev."""
    return lookup(metrics, "split") or "test"


def lookup(metrics: Any, *path: str) -> Any:
    """The value under nested keys, None where any of them is missing or None."""
    for key in path:
        metrics = metrics.get(key) if isinstance(metrics, Mapping) else None
    return metrics


def percent(value: Any, digits: int = 1) -> str:
    """A share as '74.0 %'."""
    return f"{value * 100:.{digits}f} %" if _number(value) else "–"


def interval(bounds: Any) -> str:
    """Two shares as '69.0 to 79.0 %'."""
    return f"{bounds[0] * 100:.1f} to {percent(bounds[1])}" if bounds else "–"


def points(value: float, sign: bool = False) -> str:
    """A difference of shares in percentage points, with a true minus sign."""
    return f"{value * 100:{'+' if sign else ''}.1f}".replace("-", "−")


def count(value: Any) -> str:
    """A whole number with thousands apart."""
    return f"{value:,.0f}" if _number(value) else "–"


def money(value: Any) -> str:
    """Dollars: cents, and two significant digits below one cent."""
    if not _number(value):
        return "–"
    digits = 2 if value >= 0.01 or value <= 0 else 1 - math.floor(math.log10(value))
    return f"${value:,.{digits}f}"


def share(part: float, whole: float) -> str:
    """Part of a whole as '10 %', with the digit that a small share needs."""
    value = part / whole * 100
    return f"{value:.0f} %" if value >= 10 or value == round(value) else f"{value:.1f} %"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _p(value: float | None) -> str:
    """McNemar's p, as it stands behind an interval."""
    if value is None:
        return ""
    return f"; McNemar p {'' if value < LEAST_P else '= '}{probability(value)}"


def probability(p: float) -> str:
    """A p value with three digits: no test says 0."""
    return f"< {LEAST_P:g}" if p < LEAST_P else f"{p:.3f}"


def _accuracies(metrics: Mapping[str, Any]) -> str:
    scores = evaluated(metrics)
    if "bridge" not in scores:
        return "The bridge student has not been evaluated in this run."
    questions = count(scores["bridge"].get("n"))
    bridge = percent(scores["bridge"]["accuracy"])
    bounds = scores["bridge"].get("interval")
    parts = [
        f"On {questions} {split(metrics)} questions the bridge student answers {bridge} correctly"
        + (f" (95 % interval {interval(bounds)})" if bounds else "")
    ]
    if "direct" in scores:
        parts.append(f"direct, taught by the bought rationales alone, {_accuracy(scores['direct'])}")
    if "direct_labels" in scores:
        parts.append(f"direct_labels, taught by them and all labels, {_accuracy(scores['direct_labels'])}")
    return "; ".join(parts) + "."


def _accuracy(scores: Mapping[str, Any]) -> str:
    bounds = scores.get("interval")
    return percent(scores["accuracy"]) + (f" ({interval(bounds)})" if bounds else "")


def _spending(metrics: Mapping[str, Any]) -> str:
    queries, usd = lookup(metrics, "teacher", "queries"), lookup(metrics, "teacher", "usd")
    rows, chosen = lookup(metrics, "corpus", "train"), lookup(metrics, "selection", "chosen")
    if queries is None:
        return ""
    cost = f" for {money(usd)}" if usd is not None else ""
    if rows and chosen is not None:
        asked = f"{count(chosen)} of {count(rows)} training questions ({share(chosen, rows)})"
        sentence = f"{asked} were bought{cost}, in {count(queries)} teacher queries."
    else:
        sentence = f"{count(queries)} teacher queries were bought{cost}."
    return f"{sentence} {STANDIN}" if lookup(metrics, "teacher", "standin") else sentence
