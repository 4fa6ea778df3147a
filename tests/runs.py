"""What a run and its stages leave in a storage, small, for tests of what is made of it afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bridge_ray import config, records, storage
from bridge_ray.statistics import gap, paired, summary

STAGES = (
    "corpus",
    "score",
    "embed",
    "select",
    "teach",
    "train_ta",
    "amplify",
    "student_init",
    "train_student",
    "train_direct",
    "evaluate",
)
TRAIN = 20
ROUTES = ("teacher", "teacher", *["ta"] * 12, *["ta_hinted"] * 4, *["label_only"] * 2)
SPENT = {"budget_queries": 3, "queries": 3, "bought": 3, "hits": 0, "spent_usd": 0.012, "usd": 0.012}
Correct = Mapping[str, Sequence[int]]


def leave(
    root: Path,
    name: str,
    correct: Correct,
    *fields: str,
    questions: Sequence[str] | None = None,
    until: str = "evaluate",
    skipped: Sequence[str] = (),
) -> Path:
    """A run whose systems got these test questions right (1 of each pair of domains is law), up to a stage; its home.

    Question i is ``questions[i]``, by default "Is test i odd?". ``fields`` are config fields as ``--set`` takes them.
    """
    settings = config.load(None, fields, name=name, storage=str(root))
    done = STAGES[: STAGES.index(until) + 1]
    fingerprints = {stage: f"{name}-{stage}" for stage in STAGES}
    asked = questions or [f"Is test {i} odd?" for i in range(len(next(iter(correct.values()))))]
    metrics = _metrics(correct, asked, settings)
    for number, stage in enumerate(done, start=1):
        out = storage.join(str(root), "stages", stage, fingerprints[stage])
        for file, table in _tables(stage, correct, asked, settings.evaluate.split).items():
            storage.write_table(storage.join(out, file), table)
        if stage.startswith("train_"):
            storage.write_json(storage.join(out, "losses.json"), [{"update": 1, "loss": 2.0}, {"update": 2, "loss": 1}])
        manifest = {"metrics": metrics.get(stage, {}), "seconds": 10.0 * number}
        storage.write_json(storage.join(out, "manifest.json"), manifest)
    home = root / "runs" / name
    manifest = {
        "run": name,
        "state": "finished" if until == "evaluate" else "stopped",
        "job": {},
        "config": settings.model_dump(mode="json"),
        "fingerprints": fingerprints,
        "stages": {stage: {"skipped": stage in skipped} for stage in done},
    }
    storage.write_json(str(home / "manifest.json"), manifest)
    return home


def _example(id: int, question: str, split: str) -> dict[str, Any]:
    domain = ("law", "medicine")[id % 2]
    return {
        "id": id,
        "key": f"{split}-{id}",
        "question": question,
        "context": f"The context of {split} {id}.",
        "options": [],
        "answer": ("no", "yes")[id % 2],
        "answer_type": "boolean",
        "domain": domain,
        "split": split,
    }


def _tables(stage: str, correct: Correct, asked: Sequence[str], split: str) -> dict[str, pa.Table]:
    ids = list(range(TRAIN))
    match stage:
        case "corpus":
            train = [_example(i, f"Is training {i} odd?", "train") for i in ids]
            test = [_example(TRAIN + i, question, split) for i, question in enumerate(asked)]
            rows = {"train": train, split: test}
            return {f"{part}/rows.parquet": pa.Table.from_pylist(some, records.EXAMPLE) for part, some in rows.items()}
        case "score":
            scores = [{"id": i, "samples": [f"The untaught TA on {i}", "again"], "entropy": i / TRAIN} for i in ids]
            return {"rows.parquet/part-00000.parquet": pa.Table.from_pylist(scores, records.SCORE)}
        case "select":
            places = {"x": np.sin(ids), "y": np.cos(ids), "entropy": np.array(ids) / TRAIN}
            return {"rows.parquet": pa.table({"id": ids, **places})}
        case "teach":
            return {"rationales.parquet": pa.Table.from_pylist(_rationales(ids[:2]), records.RATIONALE)}
        case "amplify":
            return {"rows.parquet/part-00000.parquet": pa.Table.from_pylist(_rationales(ids), records.RATIONALE)}
        case "evaluate":
            predictions = [
                {
                    "id": TRAIN + i,
                    "system": system,
                    "text": f"{system} on test {i}",
                    "answer": "yes",
                    "correct": bool(hit),
                }
                for system, hits in correct.items()
                for i, hit in enumerate(hits)
            ]
            return {"predictions.parquet": pa.Table.from_pylist(predictions, records.PREDICTION)}
    return {}


def _rationales(ids: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "id": i,
            "rationale": None if ROUTES[i] == "label_only" else f"{ROUTES[i]} on {i}",
            "answer": ("no", "yes")[i % 2],
            "source": ROUTES[i],
            "verified": ROUTES[i] != "label_only",
        }
        for i in ids
    ]


def _metrics(correct: Correct, asked: Sequence[str], settings: config.Config) -> dict[str, dict[str, Any]]:
    """Those of the stages, as the stages work them out."""
    hits = {system: np.array(some, np.float64) for system, some in correct.items()}
    domains = [_example(TRAIN + i, question, "test")["domain"] for i, question in enumerate(asked)]
    both = {"bridge", "direct"} <= hits.keys()
    counts = {route: ROUTES.count(route) for route in dict.fromkeys(ROUTES)}
    return {
        "corpus": {"train": TRAIN, "dev": 0, "test": len(asked), "domains": {"law": 10, "medicine": 10}},
        "teach": SPENT | {"selection": {"chosen": 2, "rows": TRAIN}},
        "amplify": {
            "rows": {"corpus": TRAIN, **counts, "errored": 0},
            "keep": {"ta": 0.6, "by_chance": 0.2, "above_chance": 0.5},
            "tokens": 1,
            "attempts": 1,
            "domains": {},
            "difficulty": {},
            "faults": {},
        },
        "evaluate": {
            "split": settings.evaluate.split,
            "eval_queries": 0,
            "systems": {
                name: summary(some, {"domain": domains}, 200, 0) | {"unparsable": 0.0} for name, some in hits.items()
            },
            "comparisons": {"bridge-direct": paired(hits["bridge"], hits["direct"], 200, 0)} if both else {},
            "gap": gap(hits["bridge"], hits["direct"], hits.get("teacher"), 200, 0) if both else None,
        },
    }
