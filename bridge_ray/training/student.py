"""Stages *student_init* and *train_student*, *train_labels*, *train_direct*, *train_direct_labels*: one student, four
lessons.

All systems start from the same weights and take the same number of updates at the same rates. They differ in what
they are taught: ``bridge`` sees the whole corpus explained, ``labels`` every gold label, ``direct`` the bought
rationales alone, and ``direct_labels``, the fair rival, the bought rationales and every gold label.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bridge_ray import storage
from bridge_ray.amplify import verified
from bridge_ray.answers import prompts
from bridge_ray.config import FromConfig, Phase, PruneLayers, Student, Training
from bridge_ray.inference import models
from bridge_ray.stage import Stage, Work
from bridge_ray.training import lessons
from bridge_ray.training.curriculum import resolved, updates_per_epoch
from bridge_ray.training.teach_model import identity, teach_model

PRUNING_QUESTIONS = 2  # 2, 4 and 6 choose the same layers; the time grows with them


def init_stage(student: Student, ta: str, corpus: Stage) -> Stage:
    """The student before training, as a plain transformers directory.

    Layers are pruned one at a time: the next to go is the one without which the model still predicts a few of the
    corpus's questions best. With 12 of SmolLM2-135M's 30 layers left, the loss of the demo's rationales before any
    training is 5.2 nats per token this way, against 12.8 with evenly spaced layers.
    """
    source = source_model(student, ta)
    keep = student.init.keep if isinstance(student.init, PruneLayers) else None
    changes = student.init.changes if isinstance(student.init, FromConfig) else None
    parts = {"source": models.identity(source), "keep": keep} | ({} if changes is None else {"fresh": changes})
    work = partial(run_init, source=source, keep=keep, changes=changes)
    return Stage("student_init", 1, parts, {"corpus": corpus}, work)


def source_model(student: Student, ta: str) -> str:
    """The model reference that the student is made from."""
    return ta if student.source == "ta" else student.source


def run_init(work: Work, source: str, keep: int | None, changes: Mapping[str, Any] | None) -> dict[str, Any]:
    from bridge_ray.training import export

    out, directory = storage.join(work.out, "model"), models.resolve(source)
    if changes is not None:
        return export.fresh(directory, changes, out)
    if keep is None:
        return export.copy(directory, out)
    rows = _corpus(work).slice(0, PRUNING_QUESTIONS).to_pylist()
    return export.prune_layers(directory, keep, [prompts.chat(prompts.REASON, row) for row in rows], out)


def bridge_stage(
    unverified: bool,
    student: Student,
    training: Training,
    seed: int,
    corpus: Stage,
    select: Stage,
    init: Stage,
    amplify: Stage,
) -> Stage:
    """``unverified``: amplify's rationales were not checked (``verify: off``), and are learnt from all the same."""
    inputs = {"corpus": corpus, "select": select, "init": init, "amplify": amplify}
    work = partial(run_bridge, student=student, unverified=unverified, seed=seed)
    return Stage("train_student", _version(student, 3), _identity(student, training, seed), inputs, work)


def run_bridge(work: Work, student: Student, unverified: bool, seed: int) -> dict[str, Any]:
    corpus, difficulty = _corpus(work), _difficulty(work)
    written = storage.read_table(storage.join(work.inputs["amplify"], "rows.parquet"))
    answered = corpus.set_column(corpus.schema.get_field_index("answer"), "answer", labels(corpus, written))
    rows = {
        "answer": lessons.answers(answered, difficulty),
        "rationale": lessons.rationales(corpus, written if unverified else verified(written), difficulty),
    }
    ids = written.filter(pc.equal(written["source"], "teacher"))["id"]
    rows |= {f"{pool}_bought": lessons.bought(table, ids) for pool, table in rows.items()}
    return _train(work, rows, corpus.num_rows, student, seed)


def labels(corpus: pa.Table, written: pa.Table) -> pa.ChunkedArray:
    """The gold answer, or where a corpus has none the one that the TA's replies agreed on: a string per row."""
    position = pc.index_in(corpus["id"], written["id"].combine_chunks())
    return pc.coalesce(corpus["answer"], written["answer"].take(position))


def labels_stage(student: Student, training: Training, seed: int, corpus: Stage, select: Stage, init: Stage) -> Stage:
    """Answers alone, which need no teacher; *select* says how difficult they are."""
    inputs = {"corpus": corpus, "select": select, "init": init}
    work = partial(run_labels, student, seed)
    return Stage("train_labels", _version(student, 1), _identity(student, training, seed), inputs, work)


def run_labels(student: Student, seed: int, work: Work) -> dict[str, Any]:
    """Nothing is bought here, so a phase's ``source`` decides nothing."""
    corpus = _corpus(work)
    answers = lessons.answers(corpus, _difficulty(work))
    rows = {"answer": answers, "answer_bought": lessons.bought(answers, answers["id"])}
    alone = student.model_copy(update={"control": "answers_only"})
    return _train(work, rows, corpus.num_rows, alone, seed)


def direct_stage(
    labelled: bool,
    student: Student,
    training: Training,
    seed: int,
    corpus: Stage,
    select: Stage,
    init: Stage,
    teach: Stage,
) -> Stage:
    """*train_direct_labels* if ``labelled``, else *train_direct*."""
    name = "train_direct_labels" if labelled else "train_direct"
    inputs = {"corpus": corpus, "select": select, "init": init, "teach": teach}
    work = partial(run_direct, labelled=labelled, student=student, seed=seed)
    return Stage(name, _version(student, 3), _identity(student, training, seed), inputs, work)


def run_direct(work: Work, labelled: bool, student: Student, seed: int) -> dict[str, Any]:
    """Here the bought rationales are all there are, so a phase's ``source`` decides nothing about them."""
    corpus, difficulty = _corpus(work), _difficulty(work)
    bought = verified(storage.read_table(storage.join(work.inputs["teach"], "rationales.parquet")))
    known = lessons.rationales(corpus, bought, difficulty)
    rows = {"rationale": known, "rationale_bought": lessons.bought(known, bought["id"])}
    if labelled:
        rows["answer"] = lessons.answers(corpus, difficulty)
        rows["answer_bought"] = lessons.bought(rows["answer"], bought["id"])
        return _train(work, rows, corpus.num_rows, student, seed)
    alone = student.model_copy(update={"control": "reasoning_only"})
    return _train(work, rows, corpus.num_rows, alone, seed)


def _train(work: Work, rows: dict[str, pa.Table], epoch_rows: int, student: Student, seed: int) -> dict[str, Any]:
    init = storage.join(work.inputs["init"], "model")
    epoch = updates_per_epoch(epoch_rows, work.training.global_batch)
    phases = resolved(student.curriculum, student.control, epoch)
    return teach_model(work, init, None, rows, phases, student.train, seed, mixed=student.control == "joint")


def _version(student: Student, shuffled: int) -> int:
    """One more where a phase goes from easy to hard, since a short one no longer leaves out its hardest lessons.

    Elsewhere nothing has changed, so stages are found again.
    """
    return shuffled + any(phase.order == "easy_to_hard" for phase in student.curriculum)


def _identity(student: Student, training: Training, seed: int) -> dict[str, Any]:
    return {
        "train": student.train.model_dump(mode="json"),
        "curriculum": [_said(phase) for phase in student.curriculum],
        "control": student.control,
        "training": identity(training),
        "seed": seed,
    }


def _said(phase: Phase) -> dict[str, Any]:
    """A phase without the epochs that decide nothing."""
    return phase.model_dump(mode="json", exclude={"epochs"} if phase.updates else None)


def _corpus(work: Work) -> pa.Table:
    return storage.read_table(storage.join(work.inputs["corpus"], "train"))


def _difficulty(work: Work) -> pa.Table:
    return storage.read_table(storage.join(work.inputs["select"], "rows.parquet"))
