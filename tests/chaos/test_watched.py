"""Trainings that are watched: asked in their middle, they come out the same, or end from within without a leak."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from ray.util import placement_group_table

from bridge_ray import storage
from bridge_ray.stage import Watch
from bridge_ray.training.loop import Job
from bridge_ray.training.run import Halted
from tests.ray import test_training as trainings

token_folders = trainings.token_folders  # the fixture


def watched(made: Job, until: float = 1.0) -> Job:
    """The training, asked at a half and three quarters of its updates; what it answered is in ``heard`` beside it."""
    rows = [row | {"answer": row["label"], "answer_type": "number"} for row in trainings.lesson_rows("answer")[:5]]
    storage.write_table(storage.join(made.out, "dev", "rows.parquet"), pa.Table.from_pylist(rows))
    watch = Watch((0.5, 0.75), 4, 6, partial(note, f"{made.out}/heard", until))
    return replace(made, watch=watch, questions=storage.join(made.out, "dev"))


def note(file: str, until: float, share: float, accuracy: float) -> bool:
    with Path(file).open("a") as lines:
        lines.write(f"{share} {accuracy}\n")
    return share < until


def heard(made: Job) -> list[list[float]]:
    return [[float(word) for word in line.split()] for line in Path(made.out, "heard").read_text().splitlines()]


@pytest.mark.parametrize("stage", [2, 3])
def test_watching_a_training_changes_nothing(
    tmp_path: Path, tiny_model: str, token_folders: dict[str, str], stage: int
) -> None:
    """To the last bit: the same workers, the same updates."""
    plain, made = (
        trainings.job(tmp_path / name, tiny_model, token_folders, workers=2, zero_stage=stage, precision="fp32")
        for name in ("plain", "watched")
    )
    made = watched(made)
    assert trainings.losses(trainings.train(made)) == trainings.losses(trainings.train(plain))
    expected = trainings.weights(plain)
    assert all(bool((weight == expected[name]).all()) for name, weight in trainings.weights(made).items())
    assert [share for share, _ in heard(made)] == [0.5, 0.75]
    assert all(accuracy in (0, 0.25, 0.5, 0.75, 1) for _, accuracy in heard(made)), "of four questions"


def test_a_training_that_may_not_go_on_ends_from_within(
    tmp_path: Path, tiny_model: str, token_folders: dict[str, str]
) -> None:
    """Without a model, and what Ray Train has reserved is free again: ray #54305 would keep it."""
    made = watched(trainings.job(tmp_path, tiny_model, token_folders, workers=2, zero_stage=2), until=0.5)
    with pytest.raises(Halted, match="test: ended after 50% of its updates"):
        trainings.train(made)
    assert [share for share, _ in heard(made)] == [0.5]
    assert not (tmp_path / "model").exists() and not (tmp_path / "state").exists()
    assert all(group["state"] == "REMOVED" for group in placement_group_table().values())
