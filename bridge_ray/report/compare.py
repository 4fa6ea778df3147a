"""Two runs of one storage side by side: what was set differently, what each system scores, and what it took.

Where both answered the same questions, a system's two accuracies are compared question by question, which tells much
smaller differences apart than two intervals do. What differs between trainings with other seeds is in no interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bridge_ray import storage
from bridge_ray.config import flat
from bridge_ray.errors import UserError
from bridge_ray.report import summary
from bridge_ray.report.remake import Left, left, page_of_many
from bridge_ray.report.templates import duration
from bridge_ray.report.write import metrics_of
from bridge_ray.statistics import Correct, bootstrap, paired, unpaired

CONTENT = ("question", "context", "options", "answer", "answer_type")  # what makes two rows the same question
WIDEST = 40  # characters of a config value in the table


@dataclass(frozen=True)
class Side:
    """One of the two runs; ``questions`` and ``correct`` are in the same order, and empty without an evaluation."""

    name: str
    run: Left
    metrics: Mapping[str, Any]
    questions: Sequence[Hashable]
    correct: Mapping[str, Correct]


def compare(root: str, one: str, other: str) -> dict[str, Any]:
    """What differs between two runs, JSON-able; every difference is the second run minus the first.

    Where the one was asked all that the other was, and more, accuracies and differences are of what both were asked.
    ``systems`` holds those that either run has evaluated: both accuracies (None where there is none), and their
    difference where both have one. Raises UserError for what is no run, and for runs that report on different splits.
    """
    if one == other:
        raise UserError(f"compare {one} {other}: name two different runs")
    sides = [_side(root, name) for name in (one, other)]
    splits = [side.metrics["split"] for side in sides]
    if None not in splits and splits[0] != splits[1]:
        raise UserError(
            f"{one} was evaluated on the {splits[0]} split and {other} on {splits[1]}, which are not comparable; "
            "give one of them the other's evaluate.split, under a new --name"
        )
    common = Counter(sides[0].questions) & Counter(sides[1].questions)
    shared, fewer = common.total(), min(len(side.questions) for side in sides)
    places = _places(sides) if shared == fewer > 0 else None
    return {
        "runs": [_about(side) for side in sides],
        "config": _changed(*(flat(side.run.config.model_dump(mode="json", exclude={"name"})) for side in sides)),
        "questions": {"in_common": shared, "paired": places is not None},
        "systems": {name: _system(name, sides, places) for name in _evaluated(sides)},
    }


def _side(root: str, name: str) -> Side:
    if page := page_of_many(root, name):
        raise UserError(f"{name} is no single run; look at {page}")
    run = left(root, name)
    metrics = metrics_of(run.config, run.finished)
    if "evaluate" not in run.finished:
        return Side(name, run, metrics, [], {})
    location = storage.join(run.finished["corpus"].location, metrics["split"])
    rows = storage.read_table(location, ["id", *CONTENT]).sort_by("id").to_pylist()
    predictions = storage.read_table(
        storage.join(run.finished["evaluate"].location, "predictions.parquet"), ["id", "system", "correct"]
    ).sort_by("id")
    systems = np.array(predictions["system"].to_pylist())
    hits = predictions["correct"].to_numpy(zero_copy_only=False).astype(np.float64)
    return Side(name, run, metrics, _numbered(rows), {system: hits[systems == system] for system in np.unique(systems)})


def _numbered(rows: Sequence[Mapping[str, Any]]) -> list[Hashable]:
    """What each row asks, and how many before it ask the same."""
    seen: Counter[str] = Counter()
    found: list[Hashable] = []
    for row in rows:
        content = repr([row[field] for field in CONTENT])
        found.append((content, seen[content]))
        seen[content] += 1
    return found


def _places(sides: Sequence[Side]) -> list[tuple[int, int]]:
    """Where each question that both have answered stands, in the one and in the other."""
    second = {question: place for place, question in enumerate(sides[1].questions)}
    return [(place, second[question]) for place, question in enumerate(sides[0].questions) if question in second]


def _about(side: Side) -> dict[str, Any]:
    teacher, stages = side.metrics["teacher"] or {}, side.metrics["stages"]
    return {
        "run": side.name,
        "state": side.run.state,
        "seed": side.metrics["seed"],
        "split": side.metrics["split"],
        "questions": len(side.questions),
        "queries": teacher.get("queries"),
        "usd": teacher.get("usd"),
        "hours": round(sum(stage["seconds"] for stage in stages.values()) / 3600, 4),
    }


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    fields = [*before, *(field for field in after if field not in before)]
    return {field: [before.get(field), after.get(field)] for field in fields if before.get(field) != after.get(field)}


def _evaluated(sides: Sequence[Side]) -> list[str]:
    return list(summary.evaluated({"systems": {**sides[0].metrics["systems"], **sides[1].metrics["systems"]}}))


def _system(name: str, sides: Sequence[Side], places: Sequence[tuple[int, int]] | None) -> dict[str, Any]:
    places_of = [None, None] if places is None else [[place[turn] for place in places] for turn in (0, 1)]
    scores = [_score(name, *one) for one in zip(sides, places_of, strict=True)]
    return {"scores": scores, "difference": None if None in scores else _difference(name, sides, places)}


def _score(name: str, side: Side, places: Sequence[int] | None) -> dict[str, Any] | None:
    """Of the questions at those places, all of them where None; ``unparsable`` is of all."""
    score = side.metrics["systems"].get(name)
    if score is None:
        return None
    kept = {key: score[key] for key in ("accuracy", "interval", "n", "unparsable")}
    if places is None or len(places) == score["n"]:
        return kept
    correct = side.correct[name][places]
    interval = bootstrap(correct, side.run.config.evaluate.resamples, seed=0)
    return kept | {"accuracy": round(float(correct.mean()), 4), "interval": interval, "n": len(correct)}


def _difference(name: str, sides: Sequence[Side], places: Sequence[tuple[int, int]] | None) -> dict[str, Any]:
    resamples = sides[0].run.config.evaluate.resamples
    first, second = (side.correct[name] for side in sides)
    if places is None:
        return unpaired(second, first, resamples, seed=0) | {"mcnemar": None}
    here, there = (np.array(column) for column in zip(*places, strict=True))
    return paired(second[there], first[here], resamples, seed=0)


def show(found: Mapping[str, Any], out: Console) -> None:
    """Print a comparison: config, systems, what it took, and in a sentence what may be said of bridge."""
    one, other = (run["run"] for run in found["runs"])
    out.print(_config_table(found, one, other))
    out.print(_systems_table(found, one, other))
    out.print(_cost_table(found))
    for sentence in _sentences(found, one, other):
        out.print(sentence, highlight=False)


def _config_table(found: Mapping[str, Any], one: str, other: str) -> Table:
    title = "What was set differently" if found["config"] else "Nothing was set differently"
    table = Table("field", one, other, title=title, title_justify="left")
    for field, values in found["config"].items():
        table.add_row(field, *(_short(value) for value in values))
    return table


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"


def _systems_table(found: Mapping[str, Any], one: str, other: str) -> Table:
    table = Table(title="Accuracy, with 95 % intervals", title_justify="left")
    table.add_column("system", no_wrap=True)
    for heading in (one, other, f"{other} − {one}, points", "McNemar p"):
        table.add_column(heading, justify="right")
    for name, system in found["systems"].items():
        table.add_row(name, *map(_score_cell, system["scores"]), *_difference_cells(system["difference"]))
    return table


def _score_cell(score: Mapping[str, Any] | None) -> str:
    return "–" if score is None else f"{summary.percent(score['accuracy'])}\n{summary.interval(score['interval'])}"


def _difference_cells(difference: Mapping[str, Any] | None) -> tuple[str, str]:
    if difference is None:
        return "–", "–"
    low, high = (summary.points(bound, sign=True) for bound in difference["interval"])
    p = summary.lookup(difference, "mcnemar", "p")
    measured = f"{summary.points(difference['difference'], sign=True)}\n{low} to {high}"
    return measured, "–" if p is None else summary.probability(p)


def _cost_table(found: Mapping[str, Any]) -> Table:
    table = Table(
        "run", "state", "queries", "dollars", "time of all stages", title="What it took", title_justify="left"
    )
    for run in found["runs"]:
        took = (summary.count(run["queries"]), summary.money(run["usd"]), duration(run["hours"] * 3600))
        table.add_row(run["run"], run["state"], *took)
    return table


def _sentences(found: Mapping[str, Any], one: str, other: str) -> list[str]:
    first, second = (run["questions"] for run in found["runs"])
    shared = found["questions"]["in_common"]
    said = [f"{name} has not been evaluated." for name, n in ((one, first), (other, second)) if not n]
    if said:
        return said
    if found["questions"]["paired"]:
        of = "" if first == second else f" of {summary.count(max(first, second))}; all of this is of those"
        said.append(f"Both answered the same {summary.count(shared)} questions{of}: compared question by question.")
    else:
        said.append(
            f"They cannot be paired: {summary.count(shared)} of {summary.count(first)} and {summary.count(second)} "
            "questions are the same. The differences are of two separate groups of questions."
        )
    bridge = summary.lookup(found["systems"], "bridge", "difference")
    if bridge:
        said.append(summary.told_apart(bridge, f"bridge of {other}", f"bridge of {one}"))
    return [*said, "The intervals are over questions; training again with another seed is in none of them."]
