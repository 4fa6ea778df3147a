"""Runs whose stages only note that they were made: what a sweep does with stages, in seconds."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from bridge_ray import storage
from bridge_ray.config import Config
from bridge_ray.errors import Outage
from bridge_ray.pipeline import Run
from bridge_ray.stage import Stage, Work
from bridge_ray.teacher.teach import Payer, Unpaid
from bridge_ray.training.run import Halted


def draft(config: Config, payer: Payer) -> Run:
    """Teach costs what the budget says; the student is as good as its learning rate, and bad ones do not train."""
    cost, rate = round(100 * (config.budget.fraction or 0)), config.student.train.lr
    teach = Stage("teach", 1, {"cost": cost}, {}, partial(_teach, cost=cost, cap=payer.cap.queries))
    run = partial(_learn, rate=rate, seed=config.seed)
    learn = Stage("train_student", 1, {"rate": rate, "seed": config.seed}, {"teach": teach}, run)
    score = Stage("evaluate", 1, {}, {"student": learn}, partial(_score, rate=rate))
    stages = {part.name: part for part in (teach, learn, score)}
    return Run(config, None, stages, storage.locate(config.storage))


def made(root: Path) -> list[str]:
    """The stages that were made, one word for each time."""
    return sorted(line for file in root.glob("stages/*/*/made") for line in file.read_text().split())


def note(work: Work) -> None:
    """Leave a line that the stage was begun."""
    Path(work.out).mkdir(parents=True, exist_ok=True)
    with Path(work.out, "made").open("a") as lines:
        lines.write(f"{work.stage}\n")


def _teach(work: Work, cost: int, cap: int | None) -> dict[str, Any]:
    time.sleep(1)  # both trials come to need it
    if cap is not None and cost > cap:
        raise Unpaid(f"account x: its cap of {cap} queries is reached")
    note(work)
    if cost >= 50 and (down := Path(work.out).parents[2] / "down").exists():
        down.unlink()
        raise Outage("teacher.model stub: 503 after 10 rows; run again to go on")
    return {"queries": cost, "usd": cost / 1000}


def _learn(work: Work, rate: float, seed: int) -> dict[str, Any]:
    if rate >= 1:
        raise RuntimeError("the loss of update 1 is nan")
    if rate == 0.5 and seed == 0 and not Path(work.out, "begun").exists():
        Path(work.out).mkdir(parents=True, exist_ok=True)
        Path(work.out, "begun").touch()
        os._exit(1)  # as the kernel does when memory runs out
    for share in work.watch.shares if work.watch else ():
        assert work.watch is not None
        if not work.watch.heard(share, rate):
            raise Halted("train_student: ended")
    note(work)
    return {}


def _score(work: Work, rate: float) -> dict[str, Any]:
    note(work)
    return {"systems": {"bridge": {"accuracy": rate, "interval": [0.0, 1.0]}}}
