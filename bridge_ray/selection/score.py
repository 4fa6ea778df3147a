"""Stage *score*: the untuned TA answers every question K times; how much its answers disagree is the difficulty.

The gold answer is never in a prompt; it is only compared with afterwards, locally and free of charge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bridge_ray import records, storage
from bridge_ray.answers import prompts
from bridge_ray.answers.extract import extract
from bridge_ray.answers.verify import matches
from bridge_ray.config import Score
from bridge_ray.inference import models
from bridge_ray.inference.engine import Ask, Sample
from bridge_ray.inference.generate import Served, courses
from bridge_ray.inference.resumable import faults, resumable_map
from bridge_ray.selection.entropy import classes, entropy
from bridge_ray.stage import Stage, Work


def stage(settings: Score, ta: str, seed: int, corpus: Stage) -> Stage:
    identity = {
        "score": settings.model_dump(mode="json", exclude={"difficulty", "max_error_fraction"}),
        "ta": models.identity(ta),
        "seed": seed,
    }
    course = ScoreCourse(settings.samples, settings.temperature, settings.max_tokens)
    work = partial(run, course=course, served=Served(ta, seed=seed), max_error_fraction=settings.max_error_fraction)
    return Stage("score", 1, identity, {"corpus": corpus}, work)


def run(work: Work, course: ScoreCourse, served: Served, max_error_fraction: float) -> dict[str, Any]:
    source = storage.join(work.inputs["corpus"], "train")
    pool = courses(work, served, course, records.SCORE)
    rows, counts = resumable_map(work, "score", source, pool, max_error_fraction=max_error_fraction)
    table = storage.read_table(rows, ["tokens", "entropy", "share_correct", "answers", "error"])
    return {
        "rows": table.num_rows,
        "errored": len(table["error"].drop_null()),
        "faults": faults(counts),
        "tokens": int(np.nansum(table["tokens"].to_numpy(zero_copy_only=False))),
        "mean_entropy": _mean(table["entropy"]),
        "share_correct": _mean(table["share_correct"]),
        "unparsable": _mean_unparsable(table["answers"].to_pylist()),
    }


@dataclass(frozen=True)
class ScoreCourse:
    """K answers in one request, and what they say about the question."""

    samples: int
    temperature: float
    max_tokens: int

    async def __call__(self, row: Mapping[str, Any], ask: Ask) -> dict[str, Any]:
        replies = await ask(
            prompts.chat(prompts.REASON, row),
            n=self.samples,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            likelihood=True,
        )
        answers = [extract(reply.text, row["answer_type"], row["options"]) for reply in replies]
        distinct = classes(row["answer_type"], len(row["options"]), self.samples)
        return {
            "samples": [reply.text for reply in replies],
            "answers": answers,
            "entropy": entropy(answers, distinct),
            "nll": mean_nll(replies),
            "share_correct": _share_correct(answers, row),
            "tokens": sum(reply.tokens for reply in replies),
            "error": None,
        }

    def failed(self, row: Mapping[str, Any], reason: str) -> dict[str, Any]:
        return {"samples": [], "answers": [], "entropy": None, "nll": None, "share_correct": None, "error": reason}


def mean_nll(replies: list[Sample]) -> float | None:
    """Mean negative log-likelihood of all sampled tokens, nats; None when there are none."""
    pairs = [(reply.nll * reply.tokens, reply.tokens) for reply in replies if not math.isnan(reply.nll)]
    tokens = sum(count for _, count in pairs)
    return sum(total for total, _ in pairs) / tokens if tokens else None


def _share_correct(answers: list[str | None], row: Mapping[str, Any]) -> float | None:
    if row["answer"] is None:
        return None
    return sum(matches(answer, row["answer"], row["answer_type"]) for answer in answers) / len(answers)


def _mean(column: Any) -> float | None:
    values = column.drop_null().to_numpy()
    return round(float(values.mean()), 4) if len(values) else None


def _mean_unparsable(answers: list[list[str | None]]) -> float | None:
    flat = [answer is None for row in answers for answer in row]
    return round(sum(flat) / len(flat), 4) if flat else None
