"""A forecast in sentences that claim no more than its intervals and its check allow."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from bridge_ray.forecast.cells import LEAST, RIVALS, more, share_list
from bridge_ray.report import frontier_page
from bridge_ray.report.summary import count, interval, percent, points

Found = Mapping[str, Any]
DIAGNOSTIC = "A diagnostic, not a proof: it extrapolates a few measured sizes of this corpus."
MORE_SEEDS = 2  # to propose
MANY = 1000  # times the queries: beyond, only the order of magnitude would be left, and nobody buys that


def sentences(found: Found) -> list[str]:
    """What a manager reads first: what is reached, what the rivals would need for that, what doubling would bring."""
    at = found["at"]
    bounds = at["accuracy"]["interval"]
    first = (
        f"With {count(at['queries'])} queries for a corpus of {count(at['rows'])} training questions, bridge answers "
        f"{percent(at['accuracy']['value'])} of the {found['split']} questions correctly "
        f"(95 % interval {interval(bounds)})."
    )
    rivals = [reach(system, found) for system in RIVALS]
    return [first, *rivals, *_doubling(found)]


def reach(system: str, found: Found) -> str:
    """What a rival needs to reach that: "direct needs 4.1 times the queries to reach this (95 %: 2.0 to never)."."""
    if system not in found["rivals"]:
        return f"What {system} would need is unknown: it has fewer than {LEAST} budgets in this frontier."
    rival = found["rivals"][system]
    if not rival["trusted"]:
        return f"What {system} would need cannot be forecast: {_failure(found['systems'][system])}"
    ratio, (low, high) = rival["ratio"]["value"], rival["ratio"]["interval"]
    spread = f"(95 %: {times(low)} to {times(high)})"
    if ratio is None and rival["reached"] is not None:
        return (
            f"What {system} would need cannot be told: by its fit it never reaches this, and it was measured to, with "
            f"{count(rival['reached'])} queries ({times(rival['reached'] / found['at']['queries'])} times as many)."
        )
    if low is None or low > 1:
        return _needs_more(system, rival, ratio, spread, found["at"]["rows"])
    if ratio is not None and high is not None and high < 1:
        return f"{system} needs only {times(ratio)} times the queries to reach this {spread}: bridge saves none here."
    estimate = "never" if ratio is None else f"{times(ratio)} times the queries"
    return f"Whether {system} needs more queries than bridge to reach this cannot be told: {estimate} {spread}."


def _never(system: str, rival: Found, ratio: float | None) -> str:
    if ratio is None:
        return f"{system} never reaches this, by its fit and 95 % of the resampled ones."
    return (
        f"By its fit {system} needs {times(ratio)} times the queries to reach this, "
        f"but never reaches it in {percent(rival['ratio']['never'], 0)} of the resampled fits."
    )


def _needs_more(system: str, rival: Found, ratio: float | None, spread: str, rows: int) -> str:
    if rival["ratio"]["interval"][0] is None:
        return _never(system, rival, ratio)
    if ratio is None:
        return (
            f"By its fit {system} never reaches this, and at the least it needs more queries: "
            f"{times(rival['ratio']['interval'][0])} times as many or more in 97.5 % of the resampled fits, "
            f"never in {percent(rival['ratio']['never'], 0)}."
        )
    sentence = f"{system} needs {times(ratio)} times the queries to reach this {spread}."
    if rival["queries"]["value"] <= rival["measured_to"]:
        return sentence
    if rival["queries"]["value"] > rows:
        return (
            f"{system} does not reach this within this corpus: by its fit it needs {times(ratio)} times the queries "
            f"{spread}, and {count(rows)} questions are all there is to buy."
        )
    return f"{sentence} That is beyond the {count(rival['measured_to'])} queries up to which {system} was measured."


def times(value: float | None) -> str:
    """A ratio of queries; None is never."""
    if value is None:
        return "never"
    if value > MANY:
        return f"over {MANY:,}"
    return f"{value:.1f}" if value >= 0.1 else "under 0.1"


def _doubling(found: Found) -> list[str]:
    bridge = found["systems"]["bridge"]
    if not bridge["trusted"]:
        return [f"What doubling the budget or the corpus would bring cannot be forecast: {_failure(bridge)}"]
    parts = []
    if bridge["double_budget"]:
        parts.append(f"Doubling the budget would bring bridge {_gain(bridge['double_budget'])}.")
    if bridge["double_corpus"]:
        parts.append(f"Doubling the corpus at the same queries would bring it {_gain(bridge['double_corpus'])}.")
    else:
        parts.append("What doubling the corpus would bring is unknown: only one size was measured (see --corpora).")
    return parts


def _gain(gain: Found) -> str:
    low, high = gain["interval"]
    return f"{points(gain['value'])} points (95 %: {points(low)} to {points(high)})"


def _failure(system: Found) -> str:
    failed = {name: one for name, one in system["checks"].items() if not one["passed"]}
    name, one = next(iter(failed.items()))
    where = "on the largest size" if name == "ahead" else "on sizes left out one by one"
    if one["fitted"] is None:
        return "no size could be left out and predicted; finish the frontier."
    return (
        f"{where} its fit was wrong by {points(one['fitted'])} points and "
        f"carrying the last value forward by {points(one['carried'])}."
    )


def notes(found: Found) -> list[str]:
    """What the numbers rest on, where that is less than one would wish."""
    bound = found["bound"]
    told = [_bound(bound["teacher"], bound["error"], found["systems"])]
    if found["missing"]:
        told.insert(0, f"The frontier is not complete: cells that are missing: {count(found['missing'])}.")
    if found["seeds"] == 1:
        told.append("One seed: the intervals hold for other test questions, not for training again.")
    corpora = found["systems"]["bridge"]["corpora"]
    if corpora == 1:
        told.append("One size of the corpus: its part of the error cannot be told from the floor, and is in it.")
    elif corpora == 2:
        told.append("Two sizes of the corpus do not say how fast it helps: that exponent rests on its prior.")
    return told


def _bound(teacher: float | None, bound: float, systems: Found) -> str:
    if teacher is None:
        return "The teacher was not measured: the only bound of the asymptotes is an error of 0."
    if bound == teacher:
        return f"No asymptote is below the teacher's error, {percent(teacher)}."
    best = max(size["accuracy"] for system in systems.values() for size in system["sizes"])
    return (
        f"A system does better than the teacher, {percent(best)} against {percent(1 - teacher)}, so the teacher's "
        "error bounds no asymptote here: the only bound is an error of 0."
    )


def reading(found: Found) -> str:
    """How the fitted exponents relate to the bounds that argue for a teacher and for a TA."""
    systems = found["systems"]
    trusted = {system: one for system, one in systems.items() if one["trusted"]}
    listed = ", ".join(f"{system} {_exponent(one['exponent'])}" for system, one in trusted.items()) or "untrustworthy"
    low, high = found["rivals"]["direct"]["faster"]["interval"]
    verdict = "whether bridge or direct falls faster cannot be told from these sizes"
    if low > 0 and {"bridge", "direct"} <= trusted.keys():
        verdict = "bridge falls faster than direct"
    elif high < 0 and {"bridge", "direct"} <= trusted.keys():
        verdict = "direct falls faster than bridge"
    return (
        "Generalized distillation (Lopez-Paz et al. 2016, arXiv 1511.03643) argues that a student which learns from n "
        "labels alone may near its best only as |F_s|/n^(1/2), and from a good teacher as |F_s|/n^α with α between 1/2 "
        "and 1, |F_s| the capacity of the student's class; what it cannot imitate stays as approximation error. "
        "Mirzadeh et al. (2020) put a TA between and split that error into two smaller ones. If BRIDGE worked like "
        f"that, its error would fall faster or end lower. The fitted exponents in queries are {listed} (95 %): "
        f"{verdict}. Those bounds hold from above, for fixed classes and rows drawn alike; here pretrained models "
        "learn from selected rows, and a few sizes are fitted. So the exponents may be set beside the bounds and prove "
        "nothing about them. "
        f"{DIAGNOSTIC}"
    )


def _exponent(one: Found) -> str:
    low, high = one["interval"]
    return f"{one['value']:.2f} ({low:.2f} to {high:.2f})"


def following(found: Found, grid: Found, root: str) -> tuple[str, str]:
    """What would make the forecast better, and the frontier's own command for that.

    The cells that are missing, then a new budget where a fit has failed, more seeds where all hold or no budget is left
    to propose. ``grid`` is frontier.json's, ``root`` the storage as the command line has it.
    """
    budgets, seeds = grid["budgets"], grid["seeds"]
    trusted = all(one["trusted"] for one in found["systems"].values())
    asked = budgets if trusted or found["missing"] else more(budgets, 1)
    if found["missing"]:
        why = "The frontier is not complete: the same command goes on with the cells that are missing."
    elif len(asked) > len(budgets):
        why = f"A fit is not to be trusted: measuring the budget {share_list(set(asked) - set(budgets))} too may help."
    else:
        seeds = range(seeds[0], seeds[0] + len(seeds) + MORE_SEEDS)
        why = "All fits are to be trusted: more seeds narrow the intervals."
        if not trusted:
            why = "A fit is not to be trusted, and no budget is left to propose: more seeds make each size surer."
    again = frontier_page.command({"grid": {**grid, "budgets": asked, "seeds": seeds}, "split": found["split"]})
    place = [] if root == "storage" else ["--storage", root]
    return why, f"{again} {shlex.join(['--name', found['run'], *place])}"
