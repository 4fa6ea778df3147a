"""A sweep of the tiny recipe, as a file, and as a user starts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from bridge_ray import storage
from tests.conftest import TINY, read

FIELDS: dict[str, Any] = {
    "corpus": {"source": "generated", "train": 32, "dev": 12, "test": 4},
    "score.samples": 1,
    "student.train.lr": 1.0e-2,
    "training.workers": 1,
    "training.trackers": [],
}


def write(folder: Path, model: str, teacher: str, **spec: Any) -> list[str]:
    """The arguments of ``bridge-ray sweep`` for a spec that is written to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = FIELDS | {"ta.model": model, "teacher.base_url": teacher} | spec.pop("set", {})
    raw = {"name": "tiny", "base": str(TINY), "set": fields, "concurrency": 2} | spec
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
