"""A sweep of the tiny recipe, as a file, and as a user starts it.

On questions that are all answered by yes, which even the tiny model learns in some thirty updates: so trials differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from bridge_ray import storage
from bridge_ray.teacher import standin
from tests.conftest import TINY, read

TRAIN = 32
FIELDS: dict[str, Any] = {
    "score.samples": 1,
    "student.train.lr": 1.0e-2,
    "training.workers": 1,
    "training.trackers": [],
}


def questions() -> list[dict[str, str]]:
    """Rows of a corpus, and what a stand-in that has recorded their rationales knows."""
    return [
        {
            "question": f"Is {number} less than {number + 1 + number % 7}?",
            "rationale": f"{number} comes first when one counts.",
            "answer": "yes",
        }
        for number in range(TRAIN + 16)
    ]


@contextmanager
def teacher(folder: Path) -> Iterator[str]:
    """A stand-in outside of the sweep that knows the questions; its base_url."""
    lines = "".join(json.dumps(row) + "\n" for row in questions())
    (folder / "questions.jsonl").write_text(lines)
    with standin.running("recorded", str(folder / "questions.jsonl")) as base_url:
        yield base_url


def write(folder: Path, model: str, teacher: str, **spec: Any) -> list[str]:
    """The arguments of ``bridge-ray sweep`` for a spec that is written to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = {"path": str(folder / "corpus.jsonl"), "answer_type": "boolean", "train": TRAIN, "dev": 12, "test": 4}
    rows = [{"question": row["question"], "answer": row["answer"]} for row in questions()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = FIELDS | {"corpus": corpus, "ta.model": model, "teacher.base_url": teacher} | spec.pop("set", {})
    raw = {"name": "tiny", "base": str(TINY), "set": fields, "concurrency": 2, "budget": {"max_queries": 500}} | spec
    (folder / "spec.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return ["sweep", str(folder / "spec.yaml"), "--storage", str(folder / "storage")]


def home(folder: Path, name: str = "tiny") -> Path:
    return folder / "storage" / "sweeps" / name


def trials(folder: Path, name: str = "tiny") -> dict[int, dict[str, Any]]:
    """The trials of a sweep as they stand in its folder."""
    files = sorted((home(folder, name) / "trials").glob("*.json"))
    return {trial["number"]: trial for trial in map(read, files)}


def bought(folder: Path) -> int:
    """The queries of the union of what all trials' *teach* stages use: an ask that two of them use counts once.

    A row asked twice (guided) in one stage is asked the same twice in another, so it counts what it took at most.
    """
    attempts: dict[int, int] = {}
    for rows in (folder / "storage" / "stages" / "teach").glob("*/rationales.parquet"):
        for row in storage.read_table(str(rows), ["id", "attempts"]).to_pylist():
            attempts[row["id"]] = max(attempts.get(row["id"], 0), row["attempts"])
    return sum(attempts.values())
