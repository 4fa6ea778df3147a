"""READ FIRST. The whole of BRIDGE, in the order in which the data flows, and how a run of it is made.

Phase 1, apprenticeship: the local TA scores and embeds the corpus (no API call), a budgeted few percent are selected,
bought from the teacher, and taught to the TA. Phase 2, tutoring: the refined TA explains the whole corpus for free,
and the tiny student learns from that, instruction tuning first. Then all systems are compared.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bridge_ray import amplify, evaluate, placement, storage
from bridge_ray.answers import prompts
from bridge_ray.config import Config, FromConfig, PruneLayers, dump, flat
from bridge_ray.corpus import stage as corpus_stage
from bridge_ray.corpus.load import load
from bridge_ray.corpus.splits import split
from bridge_ray.errors import UserError
from bridge_ray.inference import models
from bridge_ray.objects import open_store
from bridge_ray.progress import Progress
from bridge_ray.report.write import write_metrics, write_report
from bridge_ray.selection import embed, score, select
from bridge_ray.stage import Done, Stage, discard, done, perform
from bridge_ray.teacher import answers, provider, teach
from bridge_ray.teacher.asks import asks, price_of
from bridge_ray.teacher.client import api_key
from bridge_ray.teacher.ledger import Cap, balance, left
from bridge_ray.teacher.prices import worst_cost
from bridge_ray.training import student, teacher_assistant, trackers

NAMES = (
    "corpus",
    "score",
    "embed",
    "select",
    "teach",
    "train_ta",
    "amplify",
    "student_init",
    "train_student",
    "train_labels",
    "train_direct",
    "train_direct_labels",
    "evaluate",
    "report",
)


def stages(config: Config, table: pa.Table, payer: teach.Payer | None = None) -> dict[str, Stage]:
    """The pipeline as inert values, in order. ``table`` holds the corpus (records.EXAMPLE), already read."""
    ta, seed = config.ta.model, config.seed
    rows = pc.sum(pc.equal(table["split"], "train")).as_py()
    store = storage.locate(config.teacher_store)
    terms = teach.Terms(config.teacher, config.corpus, store, config.budget.account, payer)

    corpus = corpus_stage.stage(config.corpus, table)
    scores = score.stage(config.score, ta, seed, corpus)
    vectors = embed.stage(config.embed, ta, corpus)
    ranking = select.stage(config.select, config.score, config.budget, rows, seed, corpus, scores, vectors)
    bought = teach.stage(terms, config.budget, rows, corpus, ranking, vectors)
    refined = teacher_assistant.stage(config.ta, config.training, seed, corpus, ranking, bought)
    explaining = refined if config.ta.taught else None
    explained = amplify.stage(config.amplify, config.ta, seed, corpus, ranking, bought, explaining)
    init = student.init_stage(config.student, ta, corpus)
    shared = (config.student, config.training, seed, corpus, ranking, init)
    bridge = student.bridge_stage(config.amplify.verify == "off", *shared, explained)
    labels = student.labels_stage(*shared)
    direct = student.direct_stage(False, *shared, bought)
    direct_labels = student.direct_stage(True, *shared, bought)
    trained = {part.name: part for part in (refined, init, bridge, labels, direct, direct_labels)}
    compared = evaluate.stage(config.evaluate, config.score, config.student.reasons, terms, ta, seed, corpus, trained)
    first = (corpus, scores, vectors, ranking, bought)
    taught = (refined,) if config.ta.taught or refined in compared.inputs.values() else ()
    return {part.name: part for part in (*first, *taught, explained, *_needed(trained, compared), compared)}


def _needed(trained: Mapping[str, Stage], compared: Stage) -> list[Stage]:
    """The student's stages that the config's systems ask for; bridge, what the run is for, is always one."""
    wanted = {part.name for part in compared.inputs.values()} | {"student_init", "train_student"}
    return [part for name, part in trained.items() if name in wanted and name != "train_ta"]


@dataclass(frozen=True)
class Run:
    """A prepared run: nothing has been written or bought yet, and all that could be checked has been."""

    config: Config
    corpus: pa.Table  # records.EXAMPLE, all splits; None where it is read piece by piece
    stages: Mapping[str, Stage]
    root: str  # storage
    job: Mapping[str, str] = field(default_factory=dict)  # metadata of the Ray job that executes it

    @property
    def home(self) -> str:
        """Where the run's own files are."""
        return storage.join(self.root, "runs", self.config.name)


def prepare(config: Config, until: str | None = None, fresh: bool = False) -> Run:
    """Read and check everything that a user can get wrong, and that the teacher can be reached.

    Raises UserError with one line; until this returns, nothing is written and nothing bought.
    """
    run = draft(config, until, fresh)
    if fresh or done(run.stages["evaluate"], run.root) is None:
        check_models(config)
    if _will_teach(run, until, fresh):
        _check_account(run)
        provider.check(config.teacher, config.corpus)
    return run


def draft(config: Config, until: str | None = None, fresh: bool = False, payer: teach.Payer | None = None) -> Run:
    """As ``prepare``, without asking the teacher's provider anything; ``payer`` pays in place of the run."""
    if until is not None and until not in NAMES:
        raise UserError(f"--until {until}: no such stage; stages: {', '.join(NAMES)}")
    run = read(config, payer)
    if not fresh:
        check_unchanged(run)
    if _will_teach(run, until, fresh):
        check_terms(run)
    return run


def read(config: Config, payer: teach.Payer | None = None) -> Run:
    """Check the models, read and check the corpus. Raises UserError."""
    models.check(config.ta.model, "ta.model")
    if config.ta.adapter is not None:
        raise UserError("ta.adapter: a run trains its own adapter; leave it out, or use it with bridge-ray amplify")
    source = student.source_model(config.student, config.ta.model)
    models.check(source, "student.init")
    if isinstance(config.student.init, PruneLayers):
        models.check_layers(source, config.student.init.keep, "student.init.keep")
    trackers.check(config.training.trackers)
    if isinstance(config.student.init, FromConfig):
        models.check_changes(source, config.student.init.changes, "student.init.changes")
    if config.embed.model != "ta":
        models.check(config.embed.model, "embed.model")
    table = split(load(config.corpus, config.seed), config.corpus, config.seed)
    _check_answers(config, table)
    return Run(config, table, stages(config, table, payer), storage.root(config.storage))


def check_models(config: Config) -> None:
    """Raise UserError for a model that is not where it should be, or has too few layers: some of them are fetched when
    the teacher has been paid and the corpus explained."""
    source = student.source_model(config.student, config.ta.model)
    models.reached(config.ta.model, "ta.model")
    shape = models.reached(source, "student.init")
    if shape is not None and isinstance(config.student.init, PruneLayers):
        models.check_layers(source, config.student.init.keep, "student.init.keep", shape)
    if config.embed.model != "ta":
        models.reached(config.embed.model, "embed.model")


def check_terms(run: Run) -> None:
    """Raise UserError where the teacher has no price, its key file no key, or the cap could buy nothing.

    A plan may be made before anybody has a key: who buys has ``provider.check`` ask for one.
    """
    price_of(run.config.teacher)
    if run.config.teacher.key_file is not None:
        api_key(run.config.teacher)
    _check_cap(run)


def _will_teach(run: Run, until: str | None, fresh: bool) -> bool:
    return _reaches(until, "teach") and (fresh or done(run.stages["teach"], run.root) is None)


def _reaches(until: str | None, name: str) -> bool:
    return until is None or NAMES.index(until) >= NAMES.index(name)


def _check_answers(config: Config, table: pa.Table) -> None:
    """Rows that a stage compares with gold must be there, and have an answer."""
    if config.evaluate.split == "dev" and not pc.any(pc.equal(table["split"], "dev")).as_py():
        raise UserError("evaluate.split dev: there are no dev rows; set corpus.dev")
    missing = table.filter(pc.is_null(table["answer"]))
    if config.amplify.verify != "gold":
        missing = missing.filter(pc.not_equal(missing["split"], "train"))
    if missing.num_rows:
        source, train = config.corpus.path or config.corpus.source, table.filter(pc.equal(table["split"], "train"))
        if train["answer"].null_count == train.num_rows:
            raise UserError(f"{source}: no training row has an answer; set amplify.verify=self_consistency")
        raise UserError(f"{source}: row with id {missing['key'][0].as_py()} has no answer; label it or remove it")


def _check_cap(run: Run) -> None:
    """A cap in US dollars under which not even the cheapest question fits would buy nothing."""
    cap, teacher = run.config.budget.max_usd, run.config.teacher
    if cap is not None and cap < (cheapest := _cheapest(run)):
        raise UserError(
            f"budget.max_usd {cap:g}: one request of {teacher.model} can cost {_dollars(cheapest)}, so nothing could "
            "be bought; raise it, or lower teacher.max_tokens"
        )


def _check_account(run: Run) -> None:
    """Raise UserError where a shared account is used up and no first answer that is wanted lies in the store: what the
    stages before *teach* take would be for nothing."""
    shared, teacher = run.config.budget.account, run.config.teacher
    place = storage.locate(run.config.teacher_store)
    if shared is None or not storage.exists(place):
        return
    store, cheapest = open_store(place), _cheapest(run)
    room = left(Cap(shared.max_queries, shared.max_usd), asyncio.run(balance(store, shared.name)))
    if room.queries != 0 and (room.usd is None or room.usd >= cheapest):
        return
    name, known = provider.identity(teacher, run.config.corpus), frozenset(asyncio.run(answers.keys(store)))
    if not any(asks(row, name, teacher)[0].key in known for row in _training(run)):
        has = "no query" if room.queries == 0 else f"${room.usd:.6f}"
        raise UserError(
            f"budget.account {shared.name}: {has} of its cap is left, one request of {teacher.model} can cost "
            f"{_dollars(cheapest)}, and no answer in {run.config.teacher_store} is of use; raise its cap, or take "
            "another account"
        )


def _cheapest(run: Run) -> float:
    """Dollars that the cheapest first question may cost."""
    teacher = run.config.teacher
    listed = price_of(teacher)
    return min(worst_cost(listed, prompts.teacher(row), teacher.max_tokens) for row in _training(run))


def _training(run: Run) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = run.corpus.filter(pc.equal(run.corpus["split"], "train")).to_pylist()
    return rows


def _dollars(amount: float) -> str:
    """Rounded up: so much is enough."""
    return f"${math.ceil(amount * 1e6) / 1e6:.6f}"


def check_unchanged(run: Run) -> None:
    """Raise UserError for a finished run whose config has changed: it is a record, and is not overwritten."""
    manifest = storage.read_json(storage.join(run.home, "manifest.json"))
    if manifest is None or manifest["state"] != "finished":
        return
    now = {name: part.fingerprint for name, part in run.stages.items()}
    if manifest["fingerprints"] == now:
        return
    before, after = flat(manifest["config"]), flat(run.config.model_dump(mode="json"))
    changed = [key for key in sorted(before | after) if before.get(key) != after.get(key)]
    shown = ", ".join(f"{key} ({before.get(key)} -> {after.get(key)})" for key in changed[:3]) or "the corpus's content"
    raise UserError(
        f"run {run.config.name} is finished and its config has changed: {shown}; "
        "give the new run a --name (it shares what is unchanged), or --fresh to replace this one"
    )


def execute(
    run: Run,
    progress: Progress,
    until: str | None = None,
    fresh: bool = False,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Perform the stages in order, skipping what is done; returns the run's metrics.

    The run's manifest is brought up to date after every stage. ``fresh`` forgets what this run's stages have made,
    but never what was paid for. ``check`` is called before every stage; what it raises ends the run. Raises UserError,
    before anything is written, where the cluster has no place for a stage.
    """
    wanted = [part for name, part in run.stages.items() if _reaches(until, name)]
    finished = perform_all(run, wanted, progress, fresh, check)
    metrics = write_metrics(run.config, finished, run.home)
    if _reaches(until, "report"):
        write_report(run.config, finished, metrics, run.home)
    record(run, finished, "finished" if _reaches(until, "report") else "stopped")
    return metrics


def perform_all(
    run: Run, wanted: Sequence[Stage], progress: Progress, fresh: bool, check: Callable[[], None]
) -> dict[str, Done]:
    """The wanted stages, done, under the run's manifest; see ``execute``."""
    placement.check(
        run.config,
        [part.name for part in wanted if fresh or done(part, run.root) is None],
        lambda warning: progress.console.print(warning, soft_wrap=True),
    )
    if fresh:
        for part in wanted:
            discard(part, run.root, run.config.name, progress)
    storage.write_bytes(storage.join(run.home, "config.yaml"), dump(run.config).encode())
    finished: dict[str, Done] = {}
    try:
        for part in wanted:
            check()
            record(run, finished, "running")
            engine, training = run.config.engine, run.config.training
            finished[part.name] = perform(part, run.root, run.config.name, engine, training, progress)
            _say(progress, finished[part.name])
    except BaseException as error:
        record(run, finished, "failed" if isinstance(error, Exception) else "stopped")
        raise
    return finished


def _say(progress: Progress, part: Done) -> None:
    progress.console.print(f"{part.name:<20} {'done before' if part.skipped else f'{part.seconds:.1f} s'}")


def record(run: Run, finished: Mapping[str, Done], state: str) -> None:
    """Bring the run's manifest up to date."""
    manifest = {
        "run": run.config.name,
        "state": state,
        "job": dict(run.job),
        "config": run.config.model_dump(mode="json"),
        "fingerprints": {name: part.fingerprint for name, part in run.stages.items()},
        "stages": {
            name: {"fingerprint": part.fingerprint, "location": part.location, "skipped": part.skipped}
            for name, part in finished.items()
        },
    }
    storage.write_json(storage.join(run.home, "manifest.json"), manifest)
