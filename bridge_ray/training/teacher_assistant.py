"""Stage *train_ta*: the TA learns from the bought rationales, with LoRA."""

from __future__ import annotations

from functools import partial
from typing import Any

from bridge_ray import storage
from bridge_ray.amplify import verified
from bridge_ray.config import TA, Phase, Training
from bridge_ray.errors import TooFew
from bridge_ray.inference import models
from bridge_ray.stage import Stage, Work
from bridge_ray.training import lessons
from bridge_ray.training.curriculum import resolved, updates_per_epoch
from bridge_ray.training.teach_model import identity, teach_model


def stage(ta: TA, training: Training, seed: int, corpus: Stage, select: Stage, teach: Stage) -> Stage:
    parts = {
        "ta": models.identity(ta.model),
        "lora": ta.lora.model_dump(mode="json"),
        "train": ta.train.model_dump(mode="json"),
        "training": identity(training),
        "seed": seed,
    }
    inputs = {"corpus": corpus, "select": select, "teach": teach}
    return Stage("train_ta", 3, parts, inputs, partial(run, ta=ta, seed=seed))


def run(work: Work, ta: TA, seed: int) -> dict[str, Any]:
    """Raises TooFew where no bought rationale could be verified."""
    corpus = storage.read_table(storage.join(work.inputs["corpus"], "train"))
    difficulty = storage.read_table(storage.join(work.inputs["select"], "rows.parquet"))
    path = storage.join(work.inputs["teach"], "rationales.parquet")
    bought = verified(written := storage.read_table(path))
    if bought.num_rows == 0:
        raise TooFew(
            f"train_ta: none of the {written.num_rows} bought rationales could be verified, so there is nothing to "
            f"learn from ({path} has them); raise the budget, or take another teacher.model"
        )
    rows = {"rationale": lessons.rationales(corpus, bought, difficulty)}
    epoch = updates_per_epoch(bought.num_rows, work.training.global_batch)
    phases = resolved([Phase(target="rationale", epochs=ta.train.epochs, updates=ta.train.updates)], None, epoch)
    return teach_model(work, ta.model, ta.lora, rows, phases, ta.train, seed)
