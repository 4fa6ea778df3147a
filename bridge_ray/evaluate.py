"""Stage *evaluate*: every system answers the test split under the same prompt; accuracies with intervals.

Greedily, or with ``samples`` above 1 by the majority of that many sampled answers. Whoever chooses between systems asks
for the dev split.

The systems: the student before training, taught by the labels alone, direct, direct_labels and bridge; the TA before
and after; the teacher, which is only asked when the config names it, because it costs; and a guess: the commonest
training answer of the question's kind, which is what the right form is worth without any thought.

With ``by_entropy``, the TA before training also answers every question as stage *score* asks it, by the same engine:
what each system gets right is then known for every tenth of the questions by difficulty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bridge_ray import records, storage
from bridge_ray.answers import prompts
from bridge_ray.answers.extract import extract
from bridge_ray.answers.verify import majority, matches
from bridge_ray.config import Evaluate, Score
from bridge_ray.errors import UserError
from bridge_ray.inference.engine import Ask, RowFault
from bridge_ray.inference.generate import Served, courses
from bridge_ray.inference.models import identity as model_identity
from bridge_ray.inference.resumable import faults, resumable_map
from bridge_ray.selection.entropy import tenths
from bridge_ray.selection.score import ScoreCourse
from bridge_ray.stage import Stage, Work
from bridge_ray.statistics import gap, paired, summary
from bridge_ray.teacher.buy import Purchases
from bridge_ray.teacher.teach import Terms, account_name, purchase, tally

# system -> the stage that leaves its model/
MODELS = {
    "student_base": "student_init",
    "labels": "train_labels",
    "direct": "train_direct",
    "direct_labels": "train_direct_labels",
    "bridge": "train_student",
    "ta": "train_ta",
}
UNREASONED = ("labels",)  # a student that has never seen a rationale is not asked for one
ONCE_REASONED = ("bridge", "direct_labels")  # nor are these, where the curriculum shows them none
SCORED = records.PREDICTION.append(records.HARDNESS.field("entropy")).append(records.HARDNESS.field("nll"))


def stage(
    settings: Evaluate,
    score: Score,
    reasons: bool,
    terms: Terms,
    ta: str,
    seed: int,
    corpus: Stage,
    trained: Mapping[str, Stage],
) -> Stage:
    """``trained``: stage name -> stage, of at least those that the systems need. ``score``: how ``by_entropy`` asks.
    ``reasons``: whether the curriculum shows a student any rationale."""
    inputs = {"corpus": corpus}
    inputs |= {MODELS[system]: trained[MODELS[system]] for system in settings.systems if system in MODELS}
    unsaid = {"max_error_fraction"} | (set() if settings.by_entropy else {"by_entropy"})
    parts: dict[str, Any] = {"evaluate": settings.model_dump(mode="json", exclude=unsaid), "seed": seed}
    scoring = ScoreCourse(score.samples, score.temperature, score.max_tokens) if settings.by_entropy else None
    if not reasons:
        parts["unreasoned"] = ONCE_REASONED
    if scoring is not None:
        parts["score"] = asdict(scoring)
    if "ta_base" in settings.systems:
        parts["ta"] = model_identity(ta)
    if "teacher" in settings.systems:
        teacher = terms.teacher
        parts["teacher"] = [terms.provider, teacher.model, teacher.max_tokens, teacher.temperature]
    ask_teacher = partial(_ask_teacher, terms=terms, split=settings.split)
    unreasoned = UNREASONED if reasons else (*UNREASONED, *ONCE_REASONED)
    course = AnswerCourse(settings.max_tokens, settings.samples, settings.temperature, scoring, unreasoned)
    work = partial(run, settings, course, ta, seed, ask_teacher)
    return Stage("evaluate", 2, parts, inputs, work)


def run(
    settings: Evaluate,
    course: AnswerCourse,
    ta: str,
    seed: int,
    ask_teacher: Callable[[Work], tuple[pa.Table, int]],
    work: Work,
) -> dict[str, Any]:
    test = storage.read_table(storage.join(work.inputs["corpus"], settings.split))
    local = [system for system in settings.systems if system not in ("teacher", "guess")]
    found, failed = _predict(work, test, local, ta, course, seed, settings.max_error_fraction) if local else ({}, {})
    predictions = {system: rows.select(records.PREDICTION.names) for system, rows in found.items()}
    if "guess" in settings.systems:
        train = storage.read_table(storage.join(work.inputs["corpus"], "train"), ["answer", "answer_type"])
        predictions["guess"] = guesses(train, test)
    eval_queries = 0
    if "teacher" in settings.systems:
        predictions["teacher"], eval_queries = ask_teacher(work)
    storage.write_table(storage.join(work.out, "predictions.parquet"), pa.concat_tables(predictions.values()))
    correct = {system: _correct(rows) for system, rows in predictions.items()}
    groups = {kind: test[kind].to_pylist() for kind in ("domain", "answer_type")}
    deciles: dict[str, Any] = {}
    if course.scoring is not None:
        hardness = hardness_of(test, found["ta_base"], course.scoring.samples)
        storage.write_table(storage.join(work.out, "entropy.parquet"), hardness)
        groups["entropy"] = [str(tenth) if tenth >= 0 else "unknown" for tenth in hardness["tenth"].to_pylist()]
        deciles = {"deciles": _mean_entropies(hardness)}
    return {
        "split": settings.split,
        "eval_queries": eval_queries,
        "faults": failed,
        "systems": {
            system: summary(hits, groups, settings.resamples, seed) | {"unparsable": _unparsable(predictions[system])}
            for system, hits in correct.items()
        },
        "comparisons": {
            f"bridge-{other}": paired(correct["bridge"], hits, settings.resamples, seed)
            for other, hits in correct.items()
            if "bridge" in correct and other != "bridge"
        },
        "gap": gap(correct["bridge"], correct["direct"], correct.get("teacher"), settings.resamples, seed)
        if {"bridge", "direct"} <= correct.keys()
        else None,
        **deciles,
    }


def hardness_of(test: pa.Table, answered: pa.Table, samples: int) -> pa.Table:
    """How hard the questions are for the untaught TA, records.HARDNESS, from its rows (SCORED) in the same order."""
    entropy, nll = (answered[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in ("entropy", "nll"))
    kinds = np.array(test["answer_type"].to_pylist())
    columns = [test["id"], answered["entropy"], answered["nll"], pa.array(tenths(entropy, nll, kinds, samples))]
    return pa.Table.from_arrays(columns, schema=records.HARDNESS)


def _mean_entropies(hardness: pa.Table) -> dict[str, float]:
    """Tenth -> the mean entropy of its questions."""
    found = hardness.filter(pc.greater_equal(hardness["tenth"], 0)).group_by("tenth").aggregate([("entropy", "mean")])
    return {str(row["tenth"]): round(row["entropy_mean"], 4) for row in found.sort_by("tenth").to_pylist()}


def _predict(
    work: Work,
    test: pa.Table,
    systems: Sequence[str],
    ta: str,
    course: AnswerCourse,
    seed: int,
    max_error_fraction: float,
) -> tuple[dict[str, pa.Table], dict[str, int]]:
    """Every system's predictions, one engine after another; a row is one system's answer to one question. And the
    questions that could not be asked, by reason: they count as wrong.
    """
    served = {
        system: Served(ta if system == "ta_base" else storage.join(work.inputs[MODELS[system]], "model"), seed=seed)
        for system in systems
    }
    source = storage.join(work.out, "questions.parquet")
    storage.write_table(source, _questions(test, systems))
    pool = courses(work, served, course, records.PREDICTION if course.scoring is None else SCORED)
    location, counts = resumable_map(work, "evaluate", source, pool, max_error_fraction=max_error_fraction)
    rows = storage.read_table(location)
    place = rows.schema.get_field_index("id")
    of_system = {
        system: rows.slice(number * test.num_rows, test.num_rows).set_column(place, "id", test["id"])
        for number, system in enumerate(systems)
    }
    return of_system, faults(counts)


def _questions(test: pa.Table, systems: Sequence[str]) -> pa.Table:
    """The test split once per system, with ids of its own."""
    copies = [test.append_column("system", pa.array([system] * test.num_rows)) for system in systems]
    table = pa.concat_tables(copies)
    return table.set_column(table.schema.get_field_index("id"), "id", pa.array(range(table.num_rows), pa.int64()))


@dataclass(frozen=True)
class AnswerCourse:
    """Replies under the instruction that the system was taught, "reason, then answer" but for the ``unreasoned``: one
    greedy, or several sampled ones.

    With ``scoring``, the TA before training is asked as in stage *score* besides, for the question's entropy.
    """

    max_tokens: int
    samples: int
    temperature: float
    scoring: ScoreCourse | None = None
    unreasoned: tuple[str, ...] = UNREASONED

    async def __call__(self, row: Mapping[str, Any], ask: Ask) -> dict[str, Any]:
        answered = await self._answer(row, ask)
        if self.scoring is None or row["system"] != "ta_base":
            return answered
        try:
            scored = await self.scoring(row, ask)
        except RowFault:  # the reply above counts; only the question's entropy stays unknown
            return answered
        tokens = answered["tokens"] + scored["tokens"]
        return {**answered, "entropy": scored["entropy"], "nll": scored["nll"], "tokens": tokens}

    async def _answer(self, row: Mapping[str, Any], ask: Ask) -> dict[str, Any]:
        warmth = self.temperature if self.samples > 1 else 0.0
        instruction = prompts.ANSWER if row["system"] in self.unreasoned else prompts.REASON
        messages = prompts.chat(instruction, row)
        replies = await ask(messages, max_tokens=self.max_tokens, n=self.samples, temperature=warmth)
        tokens = sum(reply.tokens for reply in replies)
        return {**prediction(row, chosen(row, [reply.text for reply in replies]), None), "tokens": tokens}

    def failed(self, row: Mapping[str, Any], reason: str) -> dict[str, Any]:
        return prediction(row, None, reason)


def chosen(row: Mapping[str, Any], texts: Sequence[str]) -> str:
    """The first reply that gives the answer of most of them; without a majority the first reply there is."""
    answers = [extract(text, row["answer_type"], row["options"]) for text in texts]
    agreed = majority(answers)
    return texts[0] if agreed is None else texts[answers.index(agreed)]


def prediction(row: Mapping[str, Any], text: str | None, error: str | None) -> dict[str, Any]:
    """A records.PREDICTION row, without its id; a row that errored counts as wrong."""
    answer = None if text is None else extract(text, row["answer_type"], row["options"])
    correct = matches(answer, row["answer"], row["answer_type"])
    return {"system": row["system"], "text": text, "answer": answer, "correct": correct, "error": error}


def guesses(train: pa.Table, asked: pa.Table) -> pa.Table:
    """Of each question the commonest answer to the training questions of its kind, records.PREDICTION; of equally
    common ones the first in the alphabet.
    """
    counts = (
        train.filter(pc.is_valid(train["answer"])).group_by(["answer_type", "answer"]).aggregate([([], "count_all")])
    )
    ranked = counts.sort_by([("count_all", "ascending"), ("answer", "descending")]).to_pylist()
    commonest = {row["answer_type"]: row["answer"] for row in ranked}
    rows = []
    for row in asked.select(["id", "answer", "answer_type"]).to_pylist():
        answer = commonest.get(row["answer_type"])
        correct = matches(answer, row["answer"], row["answer_type"])
        rows.append({"id": row["id"], "system": "guess", "answer": answer, "correct": correct})
    return pa.Table.from_pylist(rows, schema=records.PREDICTION)


def _ask_teacher(work: Work, terms: Terms, split: str) -> tuple[pa.Table, int]:
    """The teacher's answers to the split's questions, without a hint, and the queries that they took.

    Whoever pays for rationales pays for these too. Raises UserError where that has no room for all of them: of some
    questions alone, an accuracy could not be compared.
    """
    rows = storage.read_table(storage.join(work.inputs["corpus"], split)).to_pylist()
    unguided = replace(terms, teacher=terms.teacher.model_copy(update={"guided": False}))
    limit = len(rows)
    with work.progress.task("evaluate teacher", limit, "queries") as task:
        purchases = purchase(rows, unguided, work, limit, None, task)
    _check_all_asked(purchases, len(rows), terms, work, split)
    by_id = {row["id"]: row for row in purchases.rows}
    predictions = [
        {
            "id": row["id"],
            "system": "teacher",
            "text": by_id[row["id"]]["rationale"],
            "answer": by_id[row["id"]]["answer"],
            "correct": bool(by_id[row["id"]]["verified"]),
            "error": by_id[row["id"]]["error"],
        }
        for row in rows
    ]
    return pa.Table.from_pylist(predictions, schema=records.PREDICTION), tally(purchases, limit)["queries"]


def _check_all_asked(purchases: Purchases, wanted: int, terms: Terms, work: Work, split: str) -> None:
    missing = wanted - len(purchases.rows)
    if not missing:
        return
    account = terms.payer.account if terms.payer else account_name(terms.account, work.stage, work.fingerprint)
    command = f"bridge-ray ledger release {account} --store {terms.store}"
    why = f"queries whose fate was lost count as well; give them back with `{command}`"
    if purchases.unpaid:
        why = f"budget.account {account} has no more room; raise its cap"
    raise UserError(
        f"evaluate: the teacher was not asked {missing} of the {wanted} {split} questions: {why}, or leave teacher out "
        "of evaluate.systems"
    )


def _correct(rows: pa.Table) -> np.ndarray:
    return rows.sort_by("id")["correct"].to_numpy(zero_copy_only=False).astype(np.float64)


def _unparsable(rows: pa.Table) -> float:
    """Share of replies in which no answer could be found."""
    return round(rows["answer"].null_count / max(1, rows.num_rows), 4)
