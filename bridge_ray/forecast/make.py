"""The forecast of a frontier: fits, their bootstrap, their check on unseen sizes, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge_ray.errors import UserError
from bridge_ray.forecast import check, words
from bridge_ray.forecast.cells import RIVALS, Cell, Measured, Sample, Size, budgets, resample, share_list, sizes
from bridge_ray.forecast.curve import CENTRE, FASTEST, SLOWEST, SPREAD, Curve, fit

DRAWS = 400
PAPER = 0.05  # the largest budget that the paper spends
GRID = 48  # points of a drawn curve
FITTED = ("floor", "scale", "exponent", "corpus_scale", "corpus_exponent", "best", "double_budget", "double_corpus")

Key = tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where BRIDGE is compared: its size at the budget in question, on the largest corpus."""

    size: Size

    def corpus(self, system: str) -> float:
        """What a system learns from beside what is bought: BRIDGE the explained rows, direct_labels all of them."""
        return self.size.corpus if system == "bridge" else float(self.size.rows)


@dataclass(frozen=True)
class Draw:
    """One fit of everything: of the measured cells, or of a bootstrap draw of them."""

    accuracy: float  # of BRIDGE at the place, as measured
    curves: Mapping[str, Curve]


def make(
    name: str,
    measured: Measured,
    sample: Sample,
    budget: float | None = None,
    split: str = "test",
    lines: Sequence[Mapping[str, Any]] = (),
    missing: int = 0,
    draws: int = DRAWS,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The forecast as JSON; raises UserError for a ``budget`` at which BRIDGE was not measured.

    ``sample`` is what the bootstrap draws from, ``split`` the one whose questions were asked, ``lines`` the frontier's
    intervals, which are taken for what was measured, and ``missing`` how many of its cells are not there yet; ``tick``
    is called after every one of the ``draws`` of the bootstrap. Intervals are 95 % percentiles of the draws; null in a
    number of queries or a ratio of them means never.
    """
    place = _place(measured, budget)
    fitted = _fits(measured, place, (CENTRE, CENTRE))
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        drawn.append(_fits(resample(measured, sample, generator), place, _centres(generator)))
        tick()
    numbers = _summaries(_numbers(fitted, place), [_numbers(draw, place) for draw in drawn])
    known = {(line["system"], line["rows"], line["budget"]): line["interval"] for line in lines}
    here = known.get(("bridge", place.size.rows, place.size.budget), numbers["accuracy",]["interval"])
    systems = {system: _system(system, measured, fitted, drawn, place, numbers, known) for system in measured.cells}
    rivals = {system: _rival(systems, system, numbers, place) for system in RIVALS if system in systems}
    found = {
        "run": name,
        "split": split,
        "seed": seed,
        "draws": draws,
        "seeds": len({cell.seed for cells in measured.cells.values() for cell in cells}),
        "missing": missing,
        "bound": {"error": measured.bound, "teacher": measured.error},
        "at": {
            "budget": place.size.budget,
            "rows": place.size.rows,
            "queries": place.size.queries,
            "accuracy": numbers["accuracy",] | {"interval": here},
        },
        "systems": systems,
        "rivals": rivals,
    }
    return found | {"sentences": words.sentences(found), "notes": words.notes(found), "reading": words.reading(found)}


def _place(measured: Measured, budget: float | None) -> Place:
    cells = measured.cells["bridge"]
    rows = max(cell.rows for cell in cells)
    known = budgets(cell for cell in cells if cell.rows == rows)
    if budget is not None and budget not in known:
        raise UserError(f"--budget {budget:g}: bridge was measured at {share_list(known)} of {rows:,} rows; take one")
    chosen = budget if budget is not None else max([one for one in known if one <= PAPER] or known[:1])
    return Place(_at(cells, rows, chosen))


def _at(cells: Sequence[Cell], rows: int, budget: float) -> Size:
    return next(size for size in sizes(cells) if (size.rows, size.budget) == (rows, budget))


def _fits(measured: Measured, place: Place, centres: tuple[float, float]) -> Draw:
    curves = {system: fit(cells, measured.bound, centres) for system, cells in measured.cells.items()}
    return Draw(_at(measured.cells["bridge"], place.size.rows, place.size.budget).accuracy, curves)


def _centres(generator: np.random.Generator) -> tuple[float, float]:
    """Centres of the exponents' priors, drawn from those priors."""
    queries, corpus = np.clip(CENTRE * np.exp(generator.normal(0, SPREAD, 2)), SLOWEST, FASTEST)
    return float(queries), float(corpus)


def _numbers(draw: Draw, place: Place) -> dict[Key, float]:
    """Everything about a fit that gets an interval."""
    queries = place.size.queries
    numbers: dict[Key, float] = {("accuracy",): draw.accuracy}
    for system, curve in draw.curves.items():
        corpus, rows = place.corpus(system), place.size.rows
        now = curve.error(queries, corpus)
        numbers |= {
            (system, "floor"): curve.floor,
            (system, "scale"): curve.scale,
            (system, "exponent"): curve.exponent,
            (system, "best"): 1 - curve.asymptote(corpus),
        }
        if 2 * place.size.budget <= 1:  # more than all rows cannot be bought
            numbers[system, "double_budget"] = now - curve.error(2 * queries, corpus)
        if curve.corpus_exponent is not None:
            numbers |= {
                (system, "corpus_scale"): curve.corpus_scale,
                (system, "corpus_exponent"): curve.corpus_exponent,
                (system, "double_corpus"): now - curve.error(queries, corpus * 2),
            }
        if system in RIVALS:
            needed = curve.queries_for(1 - draw.accuracy, float(rows))
            faster = draw.curves["bridge"].exponent - curve.exponent
            numbers |= {
                (system, "queries"): needed,
                (system, "ratio"): needed / queries,
                (system, "faster"): faster,
            }
    return numbers


def _summaries(values: Mapping[Key, float], draws: Sequence[Mapping[Key, float]]) -> dict[Key, dict[str, Any]]:
    return {key: _summary(value, np.array([draw[key] for draw in draws])) for key, value in values.items()}


def _summary(value: float, draws: NDArray[np.float64]) -> dict[str, Any]:
    """The value, its interval, and the share of draws that are infinite. Bounds are draws: between 3 and never lies
    nothing to interpolate."""
    low, high = np.quantile(draws, 0.025, method="lower"), np.quantile(draws, 0.975, method="higher")
    return {
        "value": _finite(value),
        "interval": [_finite(float(low)), _finite(float(high))],
        "never": float(np.isinf(draws).mean()),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _system(
    system: str,
    measured: Measured,
    fitted: Draw,
    drawn: Sequence[Draw],
    place: Place,
    numbers: Mapping[Key, dict[str, Any]],
    known: Mapping[tuple[str, int, float], Sequence[float]],
) -> dict[str, Any]:
    """``known``: (system, rows, budget) -> the interval of its accuracy, where the frontier has it."""
    cells = measured.cells[system]
    checks = {"ahead": check.ahead(cells, measured.bound), "one_by_one": check.one_by_one(cells, measured.bound)}
    return {
        "sizes": [_plain(size, known.get((system, size.rows, size.budget))) for size in sizes(cells)],
        "corpora": len({cell.rows for cell in cells}),
        **{name: numbers.get((system, name)) for name in FITTED},
        "checks": {name: _checked(one) for name, one in checks.items()},
        "trusted": all(one.passed for one in checks.values()),
        "curve": _curve(system, fitted, drawn, place, numbers, [cell.queries for cell in cells]),
    }


def _plain(size: Size, known: Sequence[float] | None) -> dict[str, Any]:
    """With its interval, where that is not ``known`` of its questions alone."""
    spread = 1.96 * math.sqrt(size.accuracy * (1 - size.accuracy) / size.n)
    interval = list(known or (max(0.0, size.accuracy - spread), min(1.0, size.accuracy + spread)))
    facts = {"rows": size.rows, "budget": size.budget, "queries": size.queries, "n": size.n}
    return facts | {"accuracy": size.accuracy, "interval": interval}


def _checked(one: check.Check) -> dict[str, Any]:
    """Mean absolute errors of both guesses, and the guesses, as accuracies."""
    guesses = [
        {
            "rows": guess.size.rows,
            "budget": guess.size.budget,
            "accuracy": guess.size.accuracy,
            "fitted": 1 - guess.fitted,
            "carried": 1 - guess.carried,
        }
        for guess in one.guesses
    ]
    return {"fitted": _finite(one.fitted), "carried": _finite(one.carried), "passed": one.passed, "guesses": guesses}


def _curve(
    system: str,
    fitted: Draw,
    drawn: Sequence[Draw],
    place: Place,
    numbers: Mapping[Key, dict[str, Any]],
    queries: Sequence[float],
) -> list[dict[str, float]]:
    """The fitted accuracy on the largest corpus with its band, from the smallest size to beyond the largest, but not to
    more queries than the corpus has questions."""
    reached = [numbers[rival, "queries"]["value"] or 0.0 for rival in RIVALS if (rival, "queries") in numbers]
    wished = max(2 * max(queries), min(1.5 * max(reached), 20 * max(queries)))
    last = max(*queries, min(wished, place.size.rows))
    corpus = place.corpus(system)

    def accuracy(draw: Draw, at: float) -> float:
        return 1 - draw.curves[system].error(at, corpus)

    points = []
    for at in np.geomspace(min(queries), last, GRID):
        low, high = np.quantile([accuracy(draw, at) for draw in drawn], [0.025, 0.975])
        points.append({"queries": float(at), "accuracy": accuracy(fitted, at), "low": float(low), "high": float(high)})
    return points


def _rival(
    systems: Mapping[str, Mapping[str, Any]], system: str, numbers: Mapping[Key, dict[str, Any]], place: Place
) -> dict[str, Any]:
    """When a rival reaches what BRIDGE was measured to do: that rests on the rival's curve alone. ``reached`` are the
    fewest queries with which it was itself measured to, None where it was not."""
    sizes = systems[system]["sizes"]
    there = [size for size in sizes if size["rows"] == place.size.rows and size["accuracy"] >= place.size.accuracy]
    found = {name: numbers[system, name] for name in ("queries", "ratio", "faster")}
    return found | {
        "measured_to": max(size["queries"] for size in sizes),
        "reached": min((size["queries"] for size in there), default=None),
        "trusted": systems[system]["trusted"],
    }
