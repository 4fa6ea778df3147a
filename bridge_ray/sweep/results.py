"""What came of a sweep: sweep.json, its page, and the best point as a recipe."""

from __future__ import annotations

import asyncio
import shlex
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from bridge_ray import config, storage
from bridge_ray.config import Config
from bridge_ray.objects import open_store
from bridge_ray.report import sweep_page
from bridge_ray.report.summary import money, percent
from bridge_ray.sweep import space
from bridge_ray.sweep.search import frozen_trial, study
from bridge_ray.sweep.spec import Spec
from bridge_ray.sweep.trials import Trial
from bridge_ray.teacher.statement import Statement, Total, statement

LEAST_TRIALS = 4  # finished ones, before the importance of fields is guessed at
TOP = 0.25  # the share of the trials that importance is about getting into
SHOWN = 10  # trials in the terminal's table
FIGURES = ("accuracy", "queries", "usd", "local_hours")


def publish(spec: Spec, base: Config, home: str, trials: Sequence[Trial], state: str) -> dict[str, Any]:
    """Write sweep.json, sweep.html and, once a trial has finished, best.yaml; returns what sweep.json holds."""
    found = summary(spec, trials, state, paid(spec, base))
    storage.write_json(storage.join(home, "sweep.json"), found)
    page = sweep_page.render(found, storage.join(home, "best.yaml"))
    storage.write_bytes(storage.join(home, "sweep.html"), page.encode())
    if found["best"] is not None:
        chosen = next(trial for trial in trials if trial.number == found["best"])
        storage.write_bytes(storage.join(home, "best.yaml"), recipe(spec, base, chosen, home).encode())
    return found


def paid(spec: Spec, base: Config) -> Statement:
    """What the sweep has really paid, from the ledger."""
    return asyncio.run(statement(open_store(base.teacher_store), spec.account))


def summary(spec: Spec, trials: Sequence[Trial], state: str, bill: Statement) -> dict[str, Any]:
    """What sweep.json holds; pure. ``added`` to a trial is what it really paid: nothing, where others had before."""
    finished = [trial for trial in trials if trial.state == "finished"]
    ordered = sorted(trials, key=lambda trial: trial.number)
    top = best(finished)
    names = spec.objectives if len(spec.objectives) > 1 else ("accuracy", "usd")
    return {
        "sweep": spec.name,
        "state": state,
        "split": "dev",
        "search": spec.search,
        "objectives": list(spec.objectives),
        "seeds": spec.seeds,
        "asha": spec.asha and spec.asha.model_dump(),
        "fields": list(spec.space),
        "budget": spec.budget.model_dump(),
        "bill": _money(bill.total) | {"open_usd": bill.total.open_usd},
        "trials": [_plain(spec, trial, bill.by_run.get(run_name(spec, trial), Total())) for trial in ordered],
        "best": top and top.number,
        "front": {"objectives": list(names), "trials": [trial.number for trial in front(finished, names)]},
        "importance": importance(spec, trials),
    }


def run_name(spec: Spec, trial: Trial) -> str:
    """How the trial's stages and queries are named."""
    return f"{spec.name}-{trial.run}"


def _plain(spec: Spec, trial: Trial, added: Total) -> dict[str, Any]:
    figures = {name: getattr(trial, name) if trial.state == "finished" else None for name in FIGURES}
    sets = space.fields(spec.space, trial.point)
    return asdict(trial) | figures | {"fields": sets, "added": _money(added)}


def _money(total: Total) -> dict[str, Any]:
    return {"queries": total.queries, "usd": round(total.settled_usd, 6)}


def best(finished: Sequence[Trial]) -> Trial | None:
    """The most accurate on dev; of equals the cheapest, then the quickest, then the first."""
    order = [(-trial.accuracy, trial.usd, trial.local_hours, trial.number) for trial in finished]
    return finished[order.index(min(order))] if finished else None


def front(finished: Sequence[Trial], names: Sequence[str]) -> list[Trial]:
    """The trials that no other beats: at least as good in all of the objectives and better in one. By number."""

    def losses(trial: Trial) -> list[float]:
        return [-trial.accuracy if name == "accuracy" else getattr(trial, name) for name in names]

    def beats(one: list[float], other: list[float]) -> bool:
        return all(a <= b for a, b in zip(one, other, strict=True)) and one != other

    points = [losses(trial) for trial in finished]
    kept = [trial for trial, own in zip(finished, points, strict=True) if not any(beats(one, own) for one in points)]
    return sorted(kept, key=lambda trial: trial.number)


def importance(spec: Spec, trials: Sequence[Trial]) -> dict[str, Any] | None:
    """How much each field has to do with whether a trial is among the most accurate: shares that add up to 1.

    PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255), as Optuna has it. A trial that ASHA has stopped counts below all
    that have finished: without it, a field whose bad values are stopped early would seem to decide nothing. None with
    too few finished trials, or where all did equally well.
    """
    finished = [trial for trial in trials if trial.state == "finished"]
    if len(finished) < LEAST_TRIALS or len({trial.accuracy for trial in finished}) == 1:
        return None
    import optuna

    known = study(spec)
    below = [min(trial.accuracy for trial in finished) - 1] * len(spec.objectives)
    for trial in trials:
        if (frozen := frozen_trial(spec, trial, below)) is not None:
            known.add_trial(frozen)
    place = spec.objectives.index("accuracy")
    with warnings.catch_warnings(action="ignore"):  # it says what ``target`` means, each time
        shares = optuna.importance.get_param_importances(
            known,
            evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=TOP),
            target=lambda trial: -trial.values[place],
        )
    return {"trials": len(known.trials), "top": TOP, "shares": {name: shares.get(name, 0.0) for name in spec.space}}


def recipe(spec: Spec, base: Config, chosen: Trial, home: str) -> str:
    """The trial as a complete recipe: `bridge-ray run` of it finds every stage done and gives the trial's score."""
    settings = space.settings(spec, base, chosen.point, 0, f"{spec.name}-best")
    settings = settings.model_copy(update={"storage": storage.locate(base.storage)})
    first = chosen.repeats[0]
    lines = [
        f"The best of {spec.name} on dev: trial {chosen.number}, {percent(chosen.accuracy)}"
        + (f", the mean of {len(chosen.repeats)} seeds" if len(chosen.repeats) > 1 else ""),
        f"As it stands it answers the dev split with seed {first.seed}, which gives {percent(first.accuracy)} again "
        "and makes nothing anew.",
        "Dev has chosen it, so dev flatters it. On the test split, against the other systems:",
        f"  {test_command(spec, home)}",
    ]
    return "".join(f"# {line}\n" for line in lines) + config.dump(settings)


def test_command(spec: Spec, home: str) -> str:
    """The command that reports the best trial on the test split."""
    systems = "evaluate.systems=[guess, student_base, direct, direct_labels, bridge, ta]"
    words = ["--name", f"{spec.name}-test", "--set", "evaluate.split=test", "--set", systems]
    return shlex.join(["bridge-ray", "run", storage.join(home, "best.yaml"), *words])


def show(found: dict[str, Any], home: str, out: Console) -> None:
    """The best trials, what they cost, and where the page is."""
    done = [trial for trial in found["trials"] if trial["state"] == "finished"]
    counts = {state: sum(trial["state"] == state for trial in found["trials"]) for state in ("stopped", "failed")}
    table = Table(title=f"sweep {found['sweep']}: {len(done)} finished trials on dev", title_justify="left")
    for heading in ("trial", "accuracy", "queries", "dollars", "local hours"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("fields")
    for trial in sorted(done, key=lambda one: (-one["accuracy"], one["usd"], one["number"]))[:SHOWN]:
        point = ", ".join(f"{name}={value}" for name, value in trial["point"].items())
        figures = f"{trial['queries']:g}", money(trial["usd"]), f"{trial['local_hours']:.2f}"
        table.add_row(str(trial["number"]), percent(trial["accuracy"]), *figures, point)
    out.print(table)
    ended = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    bill = found["bill"]
    out.print(f"{ended + '; ' if ended else ''}really paid: {bill['queries']} queries, {money(bill['usd'])}")
    out.print(f"page: {home}/sweep.html", soft_wrap=True)


def next_command(found: dict[str, Any], spec: Spec, home: str) -> str | None:
    return None if found["best"] is None else test_command(spec, home)
