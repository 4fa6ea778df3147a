"""A run as a job: it stops on SIGTERM with everything paid for in the store, goes on, and says who it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from rich.console import Console

from bridge_ray import config, pipeline, records, stopping, storage
from bridge_ray.errors import UserError
from bridge_ray.inference import local_ray
from bridge_ray.progress import Progress
from bridge_ray.stage import Work, perform
from bridge_ray.teacher import standin
from tests.conftest import CLI, KEYED, billed

JOBS = Path(__file__).parents[2] / "jobs"
QUIET = Progress(Console(quiet=True))
QUESTIONS = 40


@pytest.fixture
def slow_teacher() -> Iterator[str]:
    """A stand-in that outlives the runs that ask it, and takes its time."""
    with standin.running("expert", latency=0.5) as base_url:
        yield base_url


@pytest.fixture
def recipe(tmp_path: Path, slow_teacher: str) -> Path:
    """A run whose questions are scored and embedded already, so that all that is left up to *teach* needs no Ray."""
    fields: dict[str, Any] = {
        "name": "mine",
        "storage": str(tmp_path / "storage"),
        "corpus": {"source": "generated", "train": QUESTIONS, "test": 4},
        "budget": {"fraction": 1.0},
        "teacher": {"base_url": slow_teacher, "model": "x", "price": {"input": 1, "output": 1}, "concurrency": 4},
    }
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(fields))
    run = pipeline.draft(config.validate(fields, str(file)).model_copy(update={"teacher": with_key(fields, tmp_path)}))
    finish(run, "score", score)
    finish(run, "embed", embed)
    return file


def with_key(fields: dict[str, Any], folder: Path) -> config.Teacher:
    """The teacher with a key, which this process's environment lacks."""
    (folder / "key").write_text("sk-test-secret")
    return config.Teacher(**fields["teacher"], key_file=str(folder / "key"))


def finish(run: pipeline.Run, name: str, leave: Callable[[Work], None]) -> None:
    """Make a stage done, with what ``leave`` writes in place of its work."""

    def work(todo: Work) -> dict[str, Any]:
        leave(todo)
        return {}

    perform(replace(run.stages[name], run=work), run.root, "mine", run.config.engine, run.config.training, QUIET)


def score(work: Work) -> None:
    rows = [
        {"id": number, "samples": [], "answers": [], "entropy": number / QUESTIONS, "nll": 0.5, "share_correct": 0.5}
        for number in range(QUESTIONS)
    ]
    storage.write_table(storage.join(work.out, "rows.parquet"), pa.Table.from_pylist(rows, schema=records.SCORE))


def embed(work: Work) -> None:
    vectors = np.random.default_rng(0).normal(size=(QUESTIONS, 4)).astype(np.float32)
    table = pa.table({"id": range(QUESTIONS), "vector": vectors.tolist()}, schema=records.EMBEDDING)
    storage.write_table(storage.join(work.out, "rows.parquet"), table)


def start(*command: object, **environment: str) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(word) for word in command], env=KEYED | environment, **pipes)


def distil(recipe: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    return start(sys.executable, JOBS / "distill.py", recipe, "--until", "teach", *options, **environment)


def until(reached: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Wait for something that a process does."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def answers(recipe: Path) -> list[Path]:
    return list((recipe.parent / "storage" / "teacher" / "answers").rglob("*.json"))


def account(recipe: Path) -> dict[str, Any]:
    command = [CLI, "ledger", "--store", str(recipe.parent / "storage" / "teacher"), "--json"]
    [found] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found["total"]


def state(recipe: Path) -> str:
    manifest = json.loads((recipe.parent / "storage" / "runs" / "mine" / "manifest.json").read_text())
    return str(manifest["state"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_purchase_settles_its_ledger_and_goes_on(
    recipe: Path, slow_teacher: str, number: signal.Signals, code: int
) -> None:
    process = distil(recipe)
    until(lambda: len(answers(recipe)) >= 5, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "stopped;" in said and "Traceback" not in said
    bill = billed(slow_teacher)
    total = account(recipe)
    assert (total["open"], total["settled"]) == (0, bill), "an answer on its way was lost"
    assert 5 <= len(answers(recipe)) == bill < QUESTIONS
    assert state(recipe) == "stopped"

    process = distil(recipe)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    total = account(recipe)
    assert (total["open"], total["settled"]) == (0, billed(slow_teacher))
    assert billed(slow_teacher) == QUESTIONS, "the expert is right the first time, so each is asked once"


def test_a_second_sigterm_does_not_disturb_the_first(recipe: Path, slow_teacher: str) -> None:
    process = distil(recipe)
    until(lambda: len(answers(recipe)) >= 5, process)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert account(recipe)["open"] == 0
    assert len(answers(recipe)) == billed(slow_teacher)


def test_sigterm_while_the_corpus_is_read_stops_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.jsonl")  # opening it waits for a writer that does not come
    corpus = {"source": "jsonl", "path": str(tmp_path / "data.jsonl"), "columns": {"question": "q"}, "test": 1}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"corpus": corpus}))
    process = start(CLI, "run", tmp_path / "mine.yaml", "--storage", tmp_path / "storage")
    fifo = os.fspath(tmp_path / "data.jsonl")

    def reading() -> bool:
        """A writer that does not wait is let in once somebody reads."""
        try:
            writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False
        held.append(writer)
        return True

    held: list[int] = []
    until(reading, process)
    time.sleep(0.5)  # from opening to reading: a signal between the two would be noticed after the reading only
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    os.close(held[0])
    assert process.returncode == 143, said
    assert "Traceback" not in said
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize("name", ["distill", "score", "amplify", "train", "evaluate", "frontier"])
def test_every_script_takes_the_arguments_of_the_command_line(tmp_path: Path, name: str) -> None:
    process = start(sys.executable, JOBS / f"{name}.py", tmp_path / "missing.yaml", "--set", "budget.fraction=0.03")
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.count("\n")) == (2, 1)
    assert "missing.yaml: no such recipe or file" in said
    assert name not in STAGES or f'"--until", "{STAGES[name]}"' in (JOBS / f"{name}.py").read_text()


STAGES = {"score": "score", "train": "train_direct_labels", "evaluate": "evaluate"}


def test_the_scripts_stages_are_there_and_documented() -> None:
    assert set(STAGES.values()) <= set(pipeline.NAMES)
    readme = (JOBS / "README.md").read_text()
    assert all(f"jobs/{path.name}" in readme for path in JOBS.glob("*.py"))


def test_a_job_says_who_it_is_and_keeps_it_in_the_manifest(recipe: Path, tmp_path: Path) -> None:
    """What Ray's job server puts into its driver's environment; its runtime environment may hold anything."""
    metadata = {"job_submission_id": "mine-3", "job_name": "mine-3", "team": "legal"}
    environment = {"env_vars": {"HIDDEN": "sk-in-the-environment"}}
    told = json.dumps({"runtime_env": environment, "metadata": metadata})
    process = distil(recipe, "--until", "corpus", RAY_JOB_CONFIG_JSON_ENV_VAR=told)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert said.splitlines()[0].startswith("job mine-3: ") and '"team": "legal"' in said.splitlines()[0]
    manifest = tmp_path / "storage" / "runs" / "mine" / "manifest.json"
    assert json.loads(manifest.read_text())["job"] == metadata
    assert "sk-in-the-environment" not in said + manifest.read_text()


def test_a_job_whose_storage_would_not_last_is_refused(recipe: Path) -> None:
    process = distil(recipe, "--storage", "storage", RAY_JOB_CONFIG_JSON_ENV_VAR=json.dumps({"metadata": {"a": "b"}}))
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said.count("\n")) == (2, 1)
    assert "storage: storage would be on one node of the cluster only" in said


@pytest.mark.parametrize(("error", "expected"), [(KeyboardInterrupt, "stopped"), (OSError, "failed")])
def test_a_run_that_ends_early_says_how_in_its_manifest(
    recipe: Path, error: type[BaseException], expected: str
) -> None:
    """``check`` is asked before every stage, so a stop that nobody heard is heard there."""

    def check() -> None:
        raise error

    run = pipeline.draft(config.load(str(recipe), [f"teacher.key_file={recipe.parent / 'key'}"]))
    with pytest.raises(error):
        pipeline.execute(run, QUIET, "teach", check=check)
    assert state(recipe) == expected


def test_an_address_that_takes_jobs_is_no_cluster_to_connect_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert local_ray.on_cluster()
    with pytest.raises(UserError, match="use bridge-ray submit"):
        local_ray.start()
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert not local_ray.on_cluster()


def test_no_job_no_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(local_ray.JOB_CONFIG, raising=False)
    assert local_ray.submission() == {}


# --- signals


@pytest.fixture
def own_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigterm_does_what_ctrl_c_would_and_is_heard_once(own_handlers: None) -> None:
    with stopping.stoppable() as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)  # not raised again
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            stop.check()


def test_sigterm_reaches_whoever_has_taken_ctrl_c_even_where_it_is_blocked(own_handlers: None) -> None:
    """Ray blocks SIGINT in the processes that it starts, and Ray Train takes its handler."""
    heard: list[int] = []
    with stopping.stoppable():
        signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert heard == [signal.SIGINT]


def test_handlers_are_put_back() -> None:
    names = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(name) for name in names]
    with stopping.stoppable() as stop:
        ours = [signal.getsignal(name) for name in names]
        with stopping.handlers_kept():
            for name in names:
                signal.signal(name, lambda number, frame: None)
        assert [signal.getsignal(name) for name in names] == ours
        stop.check()
    assert [signal.getsignal(name) for name in names] == before
