"""How sure a frontier is: intervals, comparisons, the Pareto sets, and where to stop. Numbers in, numbers out.

A *line* is a system at a budget and a number of training rows, measured with one or several seeds. Its accuracy is the
mean over its seeds. Intervals are 95 % percentile intervals of a bootstrap over seeds and questions; between two lines,
the same seeds and questions for both, of the seeds that both have. A question that several seeds were asked is one
question, however many answers there are: what is hard for one seed is hard for another. With one seed, intervals are
over questions alone, and do not cover training again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge_ray.frontier.systems import SYSTEMS
from bridge_ray.report.summary import WITHOUT_TA, points
from bridge_ray.statistics import NARROW, Correct, Questions, mcnemar, places_in_common

Answers = Mapping[tuple[str, float, int, int], Correct]  # (system, budget, rows, seed) -> 0 or 1 per question
Series = Mapping[int, Correct]  # seed -> the same
Cells = Sequence[Mapping[str, Any]]  # of frontier.json

SPENT = ("queries", "usd", "local_hours")
WORTH = 0.02  # a gain from which on more queries are worth paying for
SEEDS = 3  # to recommend: two say next to nothing about how far trainings spread
SEED = 0  # of the bootstrap
BLOCK = 256  # draws that are held in memory at once
BY_TEST = (
    " It was chosen by the test questions that are reported, so it may look better on them than it is; --dev asks "
    "others."
)


@dataclass(frozen=True)
class Bootstrap:
    """How often accuracies are drawn again, and over what."""

    resamples: int
    questions: Questions


@dataclass(frozen=True)
class Line:
    """A system at one budget and size. ``spent`` are means over its seeds, None where one is not known."""

    system: str
    budget: float
    rows: int
    answers: Series
    spent: Mapping[str, float | None]

    @property
    def accuracy(self) -> float:
        return float(np.mean([correct.mean() for correct in self.answers.values()]))

    @property
    def name(self) -> dict[str, Any]:
        return {"system": self.system, "budget": self.budget}


def summarise(cells: Cells, answers: Answers, reference: float, bootstrap: Bootstrap, split: str) -> dict[str, Any]:
    """The intervals, comparisons, gains, Pareto sets and recommendation of frontier.json.

    ``reference`` is the budget at which systems are compared, ``split`` the one that was asked. The largest number of
    rows counts in all but the intervals.
    """
    found = lines(cells, answers)
    size = max((line.rows for line in found), default=0)
    whole = [line for line in found if line.rows == size]
    return {
        "intervals": [_measured(line, bootstrap) for line in found],
        "comparisons": [compare(one, other, bootstrap) for one, other in pairs(whole, reference)],
        "gains": gains(whole, reference, bootstrap),
        "pareto": {spent: [line.name for line in pareto(whole, spent)] for spent in SPENT},
        "recommendation": recommend(whole, bootstrap, split),
    }


def lines(cells: Cells, answers: Answers) -> list[Line]:
    """The cells' lines, in the order of systems, then rows, then budgets."""
    grouped: defaultdict[tuple[str, int, float], list[Mapping[str, Any]]] = defaultdict(list)
    for cell in cells:
        grouped[cell["system"], cell["rows"], cell["budget"]].append(cell)
    order = list(SYSTEMS)
    return [
        Line(
            system,
            budget,
            rows,
            {cell["seed"]: answers[system, budget, rows, cell["seed"]] for cell in grouped[system, rows, budget]},
            {spent: _mean([cell[spent] for cell in grouped[system, rows, budget]]) for spent in SPENT},
        )
        for system, rows, budget in sorted(grouped, key=lambda key: (order.index(key[0]), -key[1], key[2]))
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _measured(line: Line, bootstrap: Bootstrap) -> dict[str, Any]:
    [means] = resampled([line.answers], bootstrap)
    return {
        **line.name,
        "rows": line.rows,
        "accuracy": round(line.accuracy, 4),
        "interval": _interval(means),
        "n": sum(map(len, line.answers.values())),
        "seeds": len(line.answers),
        **{spent: None if value is None else round(value, 6) for spent, value in line.spent.items()},
    }


def resampled(series: Sequence[Series], bootstrap: Bootstrap) -> NDArray[np.float64]:
    """Accuracies of several systems in each draw of the bootstrap: (systems, resamples).

    A draw takes as many seeds as there are, with replacement, and gives each of their questions a random weight (a
    Bayesian bootstrap; Rubin 1981). A question that several seeds were asked has one weight for all of them (which errs
    on the wide side; Owen 2007), one that a single seed was asked has a new one each time that the seed is taken. All
    systems are measured on the same draws.
    """
    seeds = sorted(series[0])
    assert seeds and all(sorted(one) == seeds for one in series), "the systems have not the same seeds"
    values = [np.stack([one[seed] for one in series]).astype(np.float32) for seed in seeds]
    common_to = places_in_common([bootstrap.questions[seed] for seed in seeds])
    generator = np.random.default_rng(SEED)
    total = np.zeros((len(series), bootstrap.resamples))
    for start in range(0, bootstrap.resamples, BLOCK):
        drawn = generator.integers(len(seeds), size=(min(BLOCK, bootstrap.resamples - start), len(seeds)))
        common = generator.standard_exponential((len(drawn), 1 + max(map(np.max, common_to))), np.float32)
        for slot, number in product(range(len(seeds)), repeat=2):
            taken = np.flatnonzero(drawn[:, slot] == number)
            weights = generator.standard_exponential((len(taken), values[number].shape[1]), np.float32)
            those = np.flatnonzero(common_to[number] >= 0)
            weights[:, those] = common[np.ix_(taken, common_to[number][those])]
            total[:, start + taken] += np.einsum("sq,dq->sd", values[number], weights) / weights.sum(axis=1)
    return total / len(seeds)


def _interval(values: NDArray[np.float64], candidates: int = 1) -> list[float]:
    """95 %, also of the best of several ``candidates`` by the very values that are looked at (Bonferroni)."""
    low, high = np.quantile(values, [0.025 / candidates, 1 - 0.025 / candidates])
    return [round(float(low), 4), round(float(high), 4)]


def pairs(whole: Sequence[Line], reference: float) -> list[tuple[Line, Line]]:
    """Which lines are compared: bridge with every other system at the same budget, and at the reference budget also
    with those that have none and with direct where it has bought the most."""
    found = {(line.system, line.budget): line for line in whole}
    compared = []
    for (system, budget), other in found.items():
        bridge = found.get(("bridge", budget or reference))
        if bridge is not None and system != "bridge":
            compared.append((bridge, other))
    bridge = found.get(("bridge", reference))
    most = max((line for line in whole if line.system == "direct"), key=lambda line: line.budget, default=None)
    if bridge is not None and most is not None and most.budget > reference:
        compared.append((bridge, most))
    return [pair for pair in compared if shared(pair)]


def shared(some: Sequence[Line]) -> list[int]:
    """The seeds that all of these lines have."""
    return sorted(set.intersection(*(set(line.answers) for line in some)))


def _on(line: Line, seeds: Sequence[int]) -> Series:
    return {seed: line.answers[seed] for seed in seeds}


def compare(one: Line, other: Line, bootstrap: Bootstrap, candidates: int = 1) -> dict[str, Any]:
    """The difference of two lines on the seeds and questions that both have, with its interval; and McNemar's test on
    all of these questions together, which takes them for independent. One of the lines may be the best of several
    ``candidates``."""
    seeds = shared([one, other])
    mine, theirs = _on(one, seeds), _on(other, seeds)
    ours, rivals = resampled([mine, theirs], bootstrap)
    pooled = [np.concatenate([answers[seed] for seed in seeds]) for answers in (mine, theirs)]
    difference = np.mean([mine[seed].mean() - theirs[seed].mean() for seed in seeds])
    return {
        "one": one.name,
        "other": other.name,
        "rows": one.rows,
        "seeds": len(seeds),
        "n": len(pooled[0]),
        "difference": round(float(difference), 4),
        "interval": _interval(ours - rivals, candidates),
        "mcnemar": mcnemar(*pooled),
    }


def gains(whole: Sequence[Line], reference: float, bootstrap: Bootstrap) -> dict[str, Any] | None:
    """What BRIDGE brings at the reference budget; None without bridge and direct there.

    ``relative_gain`` is (bridge - direct) / direct, on the seeds that both have; ``gap_closed`` is
    (bridge - direct) / (teacher - direct), on those that all three have, None where there are none. Either is None
    where its denominator is not more than 0.05. Intervals are of the draws in which they can be computed.
    """
    found = {line.system: line for line in whole if line.budget in (0.0, reference)}
    if not {"bridge", "direct"} <= found.keys() or not shared([found["bridge"], found["direct"]]):
        return None
    both = [found["bridge"], found["direct"]]
    gain = _ratio("relative_gain", both, lambda bridge, direct: (bridge - direct, direct), bootstrap)
    three = [*both, found["teacher"]] if "teacher" in found else []
    closed = _ratio("gap_closed", three, lambda bridge, direct, teacher: (bridge - direct, teacher - direct), bootstrap)
    return {"budget": reference, **gain, **closed}


def _ratio(
    name: str, some: Sequence[Line], parts: Callable[..., tuple[Any, Any]], bootstrap: Bootstrap
) -> dict[str, Any]:
    """A ratio of accuracies on the seeds that some lines share: ``parts`` gives its numerator and its denominator."""
    seeds = shared(some) if some else []
    nothing = {name: None, f"{name}_interval": None, f"{name}_seeds": len(seeds)}
    if not seeds:
        return nothing
    series = [_on(line, seeds) for line in some]
    top, bottom = parts(*(float(np.mean([correct.mean() for correct in one.values()])) for one in series))
    if bottom <= NARROW:
        return nothing
    tops, bottoms = parts(*resampled(series, bootstrap))
    usable = bottoms > NARROW
    interval = _interval(tops[usable] / bottoms[usable])
    return {name: round(top / bottom, 4), f"{name}_interval": interval, f"{name}_seeds": len(seeds)}


def pareto(whole: Sequence[Line], spent: str) -> list[Line]:
    """The students that no other student beats: none is at least as accurate for at most as much, and better in one.

    Of those with the most seeds: one seed's questions may be easier than another's, or its training luckier.
    """
    students = [line for line in whole if SYSTEMS[line.system].student]
    most = max((len(line.answers) for line in students), default=0)
    known = [(line, cost) for line in students if len(line.answers) == most and (cost := line.spent[spent]) is not None]
    return [
        line
        for line, cost in known
        if not any(
            other.accuracy >= line.accuracy and less <= cost and (other.accuracy, -less) != (line.accuracy, -cost)
            for other, less in known
        )
    ]


def recommend(whole: Sequence[Line], bootstrap: Bootstrap, split: str) -> dict[str, Any]:
    """Where to stop: at the cheapest budget of bridge that the best of the larger ones is not ahead of by 2 points or
    more, by the difference's 95 % interval; and whether another student does better for no more queries.

    Each budget is compared with the best of the larger ones, the smallest first. Where the difference's interval ends
    below 2 points, it is enough. Where the interval lies above 0, it is worse, and the next one is looked at. Else the
    interval includes both nothing and a gain worth paying for, and decides nothing.

    ``verdict``: ``stop`` at ``budget``; ``go on``, where every smaller budget is worse and ``budget`` is the largest;
    ``unknown``, with the first ``budget`` that nothing was decided about, None where there is too little to compare; or
    ``another``, where the best of ``WITHOUT_TA`` for no more queries is ahead of bridge at ``budget`` by an interval
    above 0. ``rival`` is that comparison, None where there is none. ``steps`` has what each budget was compared with.
    As the best of several was chosen by the same answers, its interval is as wide as so many comparisons ask for.
    ``whole`` are the lines of one corpus, ``split`` is the one whose questions were asked.
    """
    usable = sorted((line for line in whole if line.system == "bridge"), key=lambda line: line.budget)
    seeds = len(shared(usable)) if usable else 0
    if len(usable) < 2:
        return _unknown(f"bridge was measured at {len(usable)} of the two budgets that a comparison needs")
    if seeds < SEEDS:
        return _unknown(f"its budgets have {seeds} of the {SEEDS} seeds that say how far trainings spread")
    steps = [_step(line, usable[number + 1 :], bootstrap) for number, line in enumerate(usable[:-1])]
    verdict, line, reason = _verdict(usable, steps, split)
    rival = _rival(line, whole, bootstrap)
    if rival is not None and rival["interval"][1] < 0:
        verdict, reason = "another", _another_reason(line, rival)
    elif rival is not None:
        reason += _beside_reason(rival)
    return {
        "verdict": verdict,
        "budget": line.budget,
        "accuracy": round(line.accuracy, 4),
        "reason": reason + (BY_TEST if split == "test" else ""),
        "steps": steps,
        "rival": rival,
    }


def _verdict(usable: Sequence[Line], steps: Sequence[Mapping[str, Any]], split: str) -> tuple[str, Line, str]:
    """Of bridge's lines, from the smallest budget on: the verdict, the line that it is about, and why."""
    for line, step in zip(usable, steps, strict=False):
        low, high = step["interval"]
        if high < WORTH:
            return "stop", line, _stop_reason(line, step)
        if low <= 0:
            return "unknown", line, _undecided_reason(line, step, split)
    return "go on", usable[-1], _go_on_reason(usable, steps[-1])


def _unknown(reason: str) -> dict[str, Any]:
    return {"verdict": "unknown", "budget": None, "reason": f"Unknown: {reason}.", "steps": [], "rival": None}


def _rival(line: Line, whole: Sequence[Line], bootstrap: Bootstrap) -> dict[str, Any] | None:
    """bridge's line against the best of the students that take no more queries, on the seeds that both have."""
    most = line.spent["queries"] or 0
    others = [
        other
        for other in whole
        if other.system in WITHOUT_TA and (other.spent["queries"] or 0) <= most and len(shared([line, other])) >= SEEDS
    ]
    if not others:
        return None
    best = max(others, key=lambda other: (other.accuracy, -other.budget))
    return compare(line, best, bootstrap, len(others)) | {"accuracy": round(best.accuracy, 4)}


def _another_reason(line: Line, rival: Mapping[str, Any]) -> str:
    name = _rival_name(rival)
    return (
        f"Take {name}: it answers {rival['accuracy'] * 100:.1f} %, bridge at {share(line.budget)} "
        f"{line.accuracy * 100:.1f} %, for no fewer queries; {_ahead(rival)}."
    )


def _beside_reason(rival: Mapping[str, Any]) -> str:
    told = "It is ahead of" if rival["interval"][0] > 0 else "It is not told apart from"
    return f" {told} {_rival_name(rival)}, the best of the others for no more queries: {_ahead(rival)}."


def _rival_name(rival: Mapping[str, Any]) -> str:
    other = rival["other"]
    return other["system"] + (f" at {share(other['budget'])}" if other["budget"] else ", which buys nothing")


def _ahead(rival: Mapping[str, Any]) -> str:
    low, high = (points(bound, sign=True) for bound in rival["interval"])
    return f"bridge's difference is {points(rival['difference'], sign=True)} points (95 % interval {low} to {high})"


def _step(line: Line, larger: Sequence[Line], bootstrap: Bootstrap) -> dict[str, Any]:
    """The best of the larger budgets against a budget."""
    best = max(larger, key=lambda other: (other.accuracy, -other.budget))
    found = compare(best, line, bootstrap, len(larger))
    queries = (best.spent["queries"] or 0) - (line.spent["queries"] or 0)
    kept = ("difference", "interval", "seeds", "n")
    return {"budget": line.budget, "best": best.budget, "queries": queries} | {key: found[key] for key in kept}


def _stop_reason(line: Line, step: Mapping[str, Any]) -> str:
    high = step["interval"][1]
    brings = "more queries did not bring more"
    if high > 0:
        brings = f"{step['queries']:,.0f} more queries bring at most {points(high)} points"
    return f"Stop at {share(line.budget)}: bridge answers {line.accuracy * 100:.1f} % there. {_best(step)}: {brings}."


def _undecided_reason(line: Line, step: Mapping[str, Any], split: str) -> str:
    return (
        f"Unknown: {share(line.budget)} is the cheapest budget that cannot be told apart from a larger one; bridge "
        f"answers {line.accuracy * 100:.1f} % there. {_best(step)}: that may be nothing, or a gain worth paying for "
        f"({WORTH * 100:g} points or more). More seeds or more questions (corpus.{split}) would tell."
    )


def _best(step: Mapping[str, Any]) -> str:
    return f"{share(step['best'])}, the best of the larger budgets, {_measured_step(step)}"


def _measured_step(step: Mapping[str, Any]) -> str:
    low, high = (points(bound, sign=True) for bound in step["interval"])
    size = f"{step['seeds']} seeds, {step['n']:,} answers"
    return f"came to {points(step['difference'], sign=True)} points (95 % interval {low} to {high}; {size})"


def _go_on_reason(usable: Sequence[Line], last: Mapping[str, Any]) -> str:
    largest = usable[-1]
    beyond = "there is no more to buy" if largest.budget >= 1 else "what more would bring was not tried"
    return (
        f"No smaller budget is enough: each is worse than a larger one. {share(largest.budget)}, the largest, where "
        f"bridge answers {largest.accuracy * 100:.1f} %, came to {points(last['difference'], sign=True)} points over "
        f"{share(last['budget'])} (95 % interval {points(last['interval'][0], sign=True)} to "
        f"{points(last['interval'][1], sign=True)}; {last['seeds']} seeds, {last['n']:,} answers); {beyond}."
    )


def share(budget: float) -> str:
    """A budget as '5 %'."""
    return f"{budget * 100:g} %"
