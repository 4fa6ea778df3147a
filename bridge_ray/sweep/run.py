"""A sweep from its spec to its page: Ray Tune proposes and stops trials, the keeper has their stages made."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bridge_ray import claims, job, logs, pipeline, placement, storage
from bridge_ray.config import Config, flat
from bridge_ray.errors import Outage, UserError
from bridge_ray.inference import local_ray
from bridge_ray.progress import Progress, Task
from bridge_ray.report.summary import money, percent
from bridge_ray.stopping import Stop, handlers_kept
from bridge_ray.sweep import results, search, space
from bridge_ray.sweep import spec as specs
from bridge_ray.sweep.spec import Spec
from bridge_ray.sweep.trial import ACCURACY, SHARE, follow, told
from bridge_ray.sweep.trials import Book, Trial, open_book
from bridge_ray.teacher import provider
from bridge_ray.teacher.asks import is_free
from bridge_ray.teacher.ledger import Cap
from bridge_ray.teacher.teach import Payer

if TYPE_CHECKING:
    from bridge_ray.sweep.shared import Ended
    from bridge_ray.workshop import Room

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our records are the trials' own
    "RAY_AIR_NEW_OUTPUT": "0",
}

# Fields that change nothing of what a trial is.
INDIFFERENT = (
    *("engine", "budget.max_queries", "budget.max_usd", "teacher.base_url", "teacher.concurrency", "teacher.key_file"),
    *("teacher.rpm", "teacher.store", "teacher.timeout", "teacher.tpm"),
)


@dataclass(frozen=True)
class Sweep:
    """A prepared sweep: nothing has been written or bought yet."""

    spec: Spec
    base: Config
    home: str
    book: Book
    total: int  # trials, in the end
    warm: Sequence[Trial]  # of earlier sweeps
    draft: Callable[..., pipeline.Run] = pipeline.draft

    @property
    def left(self) -> int:
        """Trials that have not ended."""
        return self.total - len(self.book.ended())


def run(spec: str, name: str | None = None, root: str | None = None, fresh: bool = False, retry: bool = False) -> int:
    """Do what the spec says, and print what came of it; returns the process's exit code (see ``job.guarded``)."""
    settings, base = specs.load(spec, name, root)
    return job.guarded(lambda stop: _alone(lambda: prepare(settings, base, fresh, retry), fresh, stop))


def _alone(prepared: Callable[[], Sweep], fresh: bool, stop: Stop) -> None:
    """Do it as the only process at work on the sweep; while another one is, wait, and go on from what it leaves. Raises
    UserError for ``fresh``, which would take away what the other one has made."""
    sweep = prepared()
    work = storage.join(storage.root(sweep.base.storage), "work")

    def waiting(_: str | None) -> None:
        name = sweep.spec.name
        if fresh:
            raise UserError(f"--fresh: sweep {name} is at work elsewhere; stop it, or wait until it has ended")
        Console(stderr=True).print(f"sweep {name} is at work elsewhere; waiting until it has ended", soft_wrap=True)

    with claims.alone(work, f"sweep-{sweep.spec.name}", sweep.spec.name, waiting):
        left_since = open_book(sweep.home).trials != sweep.book.trials  # also by one that ended before we looked
        _run(prepared() if left_since else sweep, fresh, stop)


def prepare(spec: Spec, base: Config, fresh: bool = False, retry: bool = False) -> Sweep:
    """Check everything that a user can get wrong. Raises UserError with one line; nothing is written before.

    ``fresh`` forgets the trials, ``retry`` those that have failed.
    """
    if local_ray.submission():
        job.check_shared(base)
    space.check(spec, base)
    root = storage.root(base.storage)
    home = storage.join(root, "sweeps", spec.name)
    warm = [trial for other in spec.warm_start for trial in _earlier(spec, base, root, other)]
    book = Book(home) if fresh else open_book(home)
    if not fresh:
        _check_unchanged(spec, base, home)
    if retry:
        again = [replace(trial, state="running", reason=None) for trial in book.failed()]
        book.trials.update({trial.number: trial for trial in again})
    made = Sweep(spec, base, home, book, _total(spec), warm)
    if made.left > 0:
        _check_bounded(spec, base, made.left)
        pipeline.prepare(base, fresh=True)  # as if nothing were done: the teacher is asked whether it is there
    return made


def _check_bounded(spec: Spec, base: Config, left: int) -> None:
    """Raise UserError where money would be spent without a bound: the base's budget bounds each trial alone."""
    if not is_free(base.teacher) and spec.budget.max_queries is None and spec.budget.max_usd is None:
        raise UserError(
            f"budget: each of {left} trials may ask {base.teacher.model}, and nothing bounds what they pay together "
            "(budget in the base bounds each trial alone); set budget.max_usd in the sweep's spec"
        )


def _total(spec: Spec) -> int:
    if spec.search != "grid":
        assert spec.trials is not None, "the spec has seen to that"
        return spec.trials
    return min(space.count(spec.space), spec.trials or space.count(spec.space))


def _earlier(spec: Spec, base: Config, root: str, name: str) -> list[Trial]:
    """The finished trials of an earlier sweep, which must have been of the same base but for what either varies.

    A trial whose bundle stands for other fields here than there is left out.
    """
    home = storage.join(root, "sweeps", name)
    book, before = open_book(home), storage.read_json(storage.join(home, "spec.json"))
    if before is None or not book.finished():
        raise UserError(f"warm_start: no finished trial of a sweep {name} in {root}/sweeps")
    theirs = specs.validate(before["spec"], f"{home}/spec.json")
    varied = tuple(path for one in (spec, theirs) for key, part in one.space.items() for path in specs.paths(key, part))
    free = tuple(f"{path}." for path in (*varied, *INDIFFERENT))
    old, new = flat(before["base"]), flat(_record(spec, base)["base"])
    for field in sorted(old | new):
        if old.get(field) != new.get(field) and not f"{field}.".startswith(free):
            raise UserError(
                f"warm_start: sweep {name} had {field} {old.get(field)}, this one has {new.get(field)}: what its "
                "trials have reached says nothing here"
            )
    return [trial for trial in book.finished() if space.same_meaning(trial.point, spec.space, theirs.space)]


def _check_unchanged(spec: Spec, base: Config, home: str) -> None:
    """A sweep that goes on must be the one that was begun, but for what may change."""
    before = storage.read_json(storage.join(home, "spec.json"))
    if before is None or not open_book(home).trials:
        return
    now = _record(spec, base)
    for part in ("spec", "base"):
        old, new = flat(before[part]), flat(now[part])
        for field in sorted(old | new):
            if old.get(field) != new.get(field) and not (part == "spec" and field.split(".")[0] in specs.MAY_CHANGE):
                raise UserError(
                    f"sweep {spec.name} has begun and {part}.{field} has changed ({old.get(field)} -> "
                    f"{new.get(field)}); give the new sweep a --name (it shares all that is unchanged), or --fresh"
                )


def _record(spec: Spec, base: Config) -> dict[str, Any]:
    return {"spec": spec.model_dump(mode="json"), "base": base.model_dump(mode="json", exclude={"storage", "name"})}


def _run(sweep: Sweep, fresh: bool, stop: Stop) -> None:
    spec, screen = sweep.spec, Console(stderr=True)
    if sweep.left > 0:
        placement.check(sweep.base, [*placement.ENGINES, *placement.TRAINERS], screen.print)
    if fresh:
        storage.delete(sweep.home)
    folder = job.log_folder(sweep.home)
    screen.print(f"sweep {spec.name}: {sweep.home}, logs in {folder}", soft_wrap=True)
    unasked = None
    if sweep.left > 0:
        for line in space.early_rungs(spec, sweep.base):
            screen.print(line, markup=False, highlight=False, soft_wrap=True)
        storage.write_json(storage.join(sweep.home, "spec.json"), _record(spec, sweep.base))
        try:
            with logs.captured(folder) as console:
                unasked = execute(sweep, Progress(console), stop)
        except KeyboardInterrupt:
            results.publish(spec, sweep.base, sweep.home, list(sweep.book.trials.values()), "stopped")
            raise
    state = "finished" if unasked is None else unasked.state
    found = results.publish(spec, sweep.base, sweep.home, list(sweep.book.trials.values()), state)
    out = Console()
    results.show(found, sweep.home, out)
    _raise_for(sweep, unasked)
    if failed := sweep.book.failed():
        out.print(f"{len(failed)} trials failed; {_mend(failed)}", highlight=False, markup=False, soft_wrap=True)
    if (command := results.next_command(found, spec, sweep.home)) is not None:
        out.print(f"next: {command}", highlight=False, markup=False, soft_wrap=True)


def _raise_for(sweep: Sweep, unasked: Ended | None) -> None:
    """What the sweep could not do, as the one line that it ends with."""
    if unasked is not None:
        mended = "raise the sweep's budget and " if unasked.state == "capped" else ""
        kind = Outage if unasked.outage else UserError
        raise kind(
            f"sweep {sweep.spec.name}: {unasked.reason}, and {len(sweep.book.ended())} of {sweep.total} trials have "
            f"ended; {mended}run it again to go on"
        )
    failed, known = sweep.book.failed(), len(sweep.book.trials)
    if len(failed) == known:
        raise UserError(f"sweep {sweep.spec.name}: all {known} trials failed; {_mend(failed)}")


def _mend(failed: Sequence[Trial]) -> str:
    return f"the first: {failed[0].reason}; once that is mended, run it again with --retry"


def execute(sweep: Sweep, progress: Progress, stop: Stop) -> Ended | None:
    """Run the trials that are left; returns how a trial has ended for which the teacher could not be asked."""
    import ray

    from bridge_ray import workshop

    spec, base = sweep.spec, sweep.base
    room = workshop.room(base, spec.concurrency, batches=True)
    workshop.check_key(base.teacher)
    with _standin(base) as address, progress.task("sweep", sweep.total, "trials") as task:
        cap = Cap(spec.budget.max_queries, spec.budget.max_usd)
        keeper = _keeper(sweep, Payer(spec.account, cap, address), room)
        conductor = Conductor(sweep, keeper, progress, task, stop)
        interrupted = True
        try:
            interrupted = not _tune(sweep, keeper, conductor, room.training.most)
        finally:
            ray.get(keeper.close.remote(interrupted))
            ray.kill(keeper)
    if interrupted:
        raise KeyboardInterrupt
    return conductor.unasked


def _standin(base: Config) -> Any:
    """One stand-in for all trials, if the recipe asks for one; its address, else None."""
    from contextlib import nullcontext

    return provider.connected(base.teacher, base.corpus) if base.teacher.standin else nullcontext()


def _keeper(sweep: Sweep, payer: Payer, room: Room) -> Any:
    import ray

    from bridge_ray.sweep.shared import Keeper, Terms

    named = {"name": sweep.home, "namespace": "bridge-ray"}  # a claim lapses where its owner is held up for long
    made = ray.remote(num_cpus=0, scheduling_strategy=local_ray.here(), max_concurrency=10_000, **named)(Keeper)
    try:
        return made.remote(Terms(payer, sweep.spec.asha), room, sweep.draft)
    except ValueError as error:  # the name is taken
        raise UserError(f"sweep {sweep.spec.name} runs on this cluster already; wait until it has ended") from error


def _tune(sweep: Sweep, keeper: Any, conductor: Conductor, at_once: int) -> bool:
    """Let Ray Tune have the trials run; False where it was interrupted."""
    os.environ.update(TUNE_ENVIRONMENT)
    from ray import tune

    from bridge_ray.sweep.tuning import Heard, Suggestions

    # The trial itself computes nothing, and Ray Tune wants it to ask for something: a byte. A part of a CPU would be
    # missing where a training needs all of them, and each would wait for the other.
    trainable = tune.with_resources(tune.with_parameters(follow, keeper=keeper), {"memory": 1})
    with tempfile.TemporaryDirectory() as folder, handlers_kept():
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=Suggestions(conductor),
                scheduler=_scheduler(sweep),
                num_samples=sweep.left,
                max_concurrent_trials=at_once,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                verbose=0,
                callbacks=[Heard(conductor)],
                failure_config=tune.FailureConfig(max_failures=2),
            ),
        )
        tuner.fit()
    return conductor.complete


def _scheduler(sweep: Sweep) -> Any:
    """ASHA, which is told again what it had heard before an interruption; or none."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    asha = sweep.spec.asha
    if asha is None:
        return FIFOScheduler()
    scheduler = ASHAScheduler(
        SHARE, ACCURACY, "max", max_t=100, grace_period=100 * asha.first, reduction_factor=asha.reduction
    )
    for trial in sweep.book.ended():
        past = SimpleNamespace(trial_id=f"before-{trial.number}")
        scheduler.on_trial_add(None, past)
        for share, accuracy in trial.rungs:
            scheduler.on_trial_result(None, past, {SHARE: told(share), ACCURACY: accuracy})
        scheduler.on_trial_remove(None, past)
    return scheduler


class Conductor:
    """The driver's side: which trial comes next, and what is written down when one has ended."""

    def __init__(self, sweep: Sweep, keeper: Any, progress: Progress, task: Task, stop: Stop):
        self._sweep, self._keeper, self._progress, self._task, self._stop = sweep, keeper, progress, task, stop
        self._search = search.make(sweep.spec, [*sweep.warm, *sweep.book.ended()])
        self._again = [trial for trial in sweep.book.trials.values() if trial.state == "running"]
        self._began = time.monotonic()
        self._since: dict[int, float] = {}
        self._before = len(sweep.book.ended())
        self._out: set[int] = set()  # trials that Ray Tune has and is not done with
        self._exhausted = False  # no point is left
        self.unasked: Ended | None = None  # of the first trial for which the teacher could not be asked
        task.set(self._before, "")

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray Tune pickles what it is given, for a restore of its own; ours begins from the trials' records.
        return type(None), ()

    @property
    def complete(self) -> bool:
        """Whether all has been done that can be."""
        return not self._out and (self.unasked is not None or self._exhausted or self._sweep.left <= 0)

    def next(self) -> dict[str, Any] | None:
        """The config of Ray Tune's next trial, whose walk has begun; None where there is none."""
        import ray

        while (trial := self._next()) is not None:
            self._since[trial.number] = time.monotonic()
            self._sweep.book.write(trial)
            try:
                runs = self._runs(trial)
            except UserError as error:  # values that do not go together
                self._write(replace(trial, state="failed", reason=str(error)))
                continue
            ray.get(self._keeper.start.remote(trial.number, runs, trial.rungs))
            self._out.add(trial.number)
            return {"number": trial.number}
        return None

    def _next(self) -> Trial | None:
        book, spec = self._sweep.book, self._sweep.spec
        if self.unasked is not None or self._stop.asked:
            return None
        if self._again:
            trial = self._again.pop(0)
            self._search.take(trial)
            return trial
        if len(book.trials) >= self._sweep.total:
            return None
        point = self._search.ask(list(book.trials.values()))
        if point is None:
            self._exhausted = True
            self._say(f"every point of {spec.name}'s space has been tried")
            return None
        return Trial(max(book.trials, default=0) + 1, point)

    def _runs(self, trial: Trial) -> list[Config]:
        spec, base = self._sweep.spec, self._sweep.base
        name = results.run_name(spec, trial)
        return [space.settings(spec, base, trial.point, repeat, name) for repeat in range(spec.seeds)]

    def heard(self, number: int, rung: tuple[float, float]) -> None:
        """Ray Tune has heard of a rung: an interrupted trial is judged by it again when it goes on."""
        trial = self._sweep.book.trials[number]
        if rung not in trial.rungs:
            self._sweep.book.write(replace(trial, rungs=(*trial.rungs, rung)))

    def over(self, number: int, broken: str | None = None) -> None:
        """Ray Tune is done with a trial: it has ended, was stopped by the scheduler, or its process is ``broken``."""
        import ray

        ended, rungs = ray.get(self._keeper.stop.remote(number))
        self._out.discard(number)
        if ended is not None and ended.state in ("capped", "unanswered"):
            self.unasked = self.unasked or ended
            return
        trial = replace(self._sweep.book.trials[number], rungs=tuple(rungs))
        if ended is not None:
            assert ended.state in ("finished", "stopped", "failed")
            trial = replace(trial, state=ended.state, repeats=ended.repeats, reason=ended.reason)
        elif broken is not None:
            trial = replace(trial, state="failed", reason=broken)
        else:
            trial = replace(trial, state="stopped")
        self._write(replace(trial, seconds=round(time.monotonic() - self._since[number], 1)))

    def _write(self, trial: Trial) -> None:
        sweep = self._sweep
        sweep.book.write(trial)
        self._search.tell(trial)
        results.publish(sweep.spec, sweep.base, sweep.home, list(sweep.book.trials.values()), "running")
        done = len(sweep.book.ended())
        self._task.set(done, "")
        each = (time.monotonic() - self._began) / (done - self._before)
        left = timedelta(seconds=round(each * (sweep.total - done)))
        self._say(f"trial {trial.number}: {_said(trial)}  ({done} of {sweep.total}, {left} left)")

    def _say(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _said(trial: Trial) -> str:
    """How the trial has ended."""
    if trial.state == "finished":
        return f"{percent(trial.accuracy)} on dev, {trial.queries:g} queries, {money(trial.usd)}"
    if trial.state == "stopped":
        share, accuracy = trial.rungs[-1]
        return f"stopped after {share:.0%} of its updates with {percent(accuracy)} on dev"
    return f"failed: {trial.reason}"
