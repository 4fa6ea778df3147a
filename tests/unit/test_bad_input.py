"""Bad input: one clear line, exit code 2, nothing written, nothing bought."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from bridge_ray import cli, job, storage
from bridge_ray.errors import Outage

ROWS = [{"key": f"r{i}", "q": f"Is {i} even?", "a": "no" if i % 2 else "yes"} for i in range(40)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a corpus and a recipe whose teacher is our stand-in."""
    monkeypatch.chdir(tmp_path)
    write(ROWS)
    recipe = {
        "name": "mine",
        "corpus": {
            "source": "jsonl",
            "path": "data.jsonl",
            "columns": {"id": "key", "question": "q", "answer": "a"},
            "test": 10,
        },
        "teacher": {"model": "x", "price": {"input": 1, "output": 1}, "standin": {"answers": "expert"}},
    }
    Path("mine.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def write(rows: list[dict[str, object]]) -> None:
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["bridge-ray", "run", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), capsys.readouterr().err


def fields(*overrides: str) -> list[str]:
    return ["mine.yaml", *[part for override in overrides for part in ("--set", override)]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (fields("corpus.path=nowhere.jsonl"), "nowhere.jsonl"),
        (fields("corpus.columns.question=text"), "text"),
        (fields("budgit=1"), "budgit: unknown field"),
        (fields("budget.fraction=0"), "budget.fraction"),
        (fields("budget.fraction=-1"), "budget.fraction"),
        (fields("budget.fraction=2"), "budget.fraction"),
        (fields("corpus.test=0"), "test split"),
        (fields("corpus.test=400"), "data.jsonl"),
        (fields("corpus.columns.answer=null"), "data.jsonl: no training row has an answer; set amplify.verify=self"),
        (fields("ta.model=./no-model"), "ta.model: no model directory ./no-model"),
        (fields("student.init=./no-model"), "student.init: no model directory ./no-model"),
        (fields("student.init.keep=31"), "student.init.keep: 31 layers cannot be kept of the 30"),
        (fields("student.init={config_of: ta, changes: {layers: 3}}"), "has no field 'layers'"),
        (fields("training.deepspeed={train_batch_size: 8}"), "train_batch_size is set by training.global_batch"),
        (fields("training.deepspeed={zero_optimization: {stage: 3}}"), "stage is set by training.zero_stage"),
        (fields("storage=data.jsonl"), "storage data.jsonl: is a file; give a folder"),
        (fields("storage=foo://bar"), "foo:// is no storage; give a path or one of s3"),
        (fields("teacher.store=foo://bar"), "foo://bar: foo:// is no storage"),
        (fields("evaluate.split=dev"), "evaluate.split dev: there are no dev rows; set corpus.dev"),
        (fields("budget.account.name=../x", "budget.account.max_usd=1"), "account name"),
        (fields("budget.account.name=team"), "a shared account needs at least one of"),
        (fields("teacher.standin=null", "teacher.base_url=http://127.0.0.1:9/v1"), "unreachable"),
        (fields("teacher.price=null"), "teacher.price"),
        (fields("teacher.standin={answers: recorded, file: none.jsonl}"), "none.jsonl"),
        ([*fields(), "--until", "scoring"], "--until scoring: no such stage"),
        ([*fields(), "--name", "a/b"], "'a/b'"),
        ([*fields(), "--name", ".."], "'..'"),
        (["nothing.yaml"], "nothing.yaml: no such recipe or file"),
    ],
)
def test_a_mistake_in_the_config(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-secret")
    before = sorted(path.name for path in folder.iterdir())
    code, printed = run(capsys, monkeypatch, *arguments)
    assert (code, printed.count("\n")) == (2, 1), printed
    assert says in printed
    assert "sk-test-secret" not in printed
    assert sorted(path.name for path in folder.iterdir()) == before, "something was written"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"key": "r3", "q": "Is 7 even?", "a": "no"}, "r3"),
        ({"key": "new", "q": "", "a": "no"}, "question"),
        ({"key": "new", "q": "Is 7 even?", "a": None}, "row with id new has no answer"),
    ],
)
def test_a_mistake_in_a_row(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    row: dict[str, object],
    says: str,
) -> None:
    write([*ROWS, row])
    code, printed = run(capsys, monkeypatch, *fields())
    assert (code, printed.count("\n")) == (2, 1), printed
    assert says in printed and "data.jsonl" in printed
    assert not (folder / "storage").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["amplify"], "amplify: no corpus is given; set corpus.path to yours, or name a recipe"),
        (["amplify", "ta.model=x"], "amplify: no corpus is given"),
        (
            ["doctor", "--storage", "s3://b/p"],
            "doctor: --set and --storage change what a recipe needs; name the recipe",
        ),
    ],
)
def test_a_command_that_would_look_at_something_else(
    arguments: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the generated corpus instead of the user's, or at this machine alone."""
    before = sorted(folder.iterdir())
    with pytest.raises(SystemExit) as ended:
        cli.main(*arguments)
    assert (ended.value.code, sorted(folder.iterdir())) == (2, before)
    assert capsys.readouterr().err.startswith(f"bridge-ray: {says}")


def test_a_model_that_is_not_where_it_should_be_is_missed_before_anything_is_made(
    s3: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student's is fetched when the teacher has been paid and the corpus explained. The hub is away."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = sorted(folder.iterdir())
    for arguments, says in (
        ([f"student.init={s3}/nobody"], f"student.init: {s3}/nobody has no config.json"),
        (["student.init=org/no-such-model"], "student.init: org/no-such-model: OSError: "),
        (
            [f"student.init={{prune_layers_of: {s3}/shallow, keep: 5}}"],
            "student.init.keep: 5 layers cannot be kept of the 4",
        ),
    ):
        storage.write_json(f"{s3}/shallow/config.json", {"num_hidden_layers": 4})
        code, error = run(capsys, monkeypatch, *fields(*arguments))
        assert code == 2 and error.startswith(f"bridge-ray: {says}") and error.count("\n") == 1
        assert sorted(folder.iterdir()) == before


def test_somebody_who_was_not_there_is_no_mistake_of_the_user_s(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who tries again by the exit code tries this again."""

    def away(*_: object) -> int:
        raise Outage("teacher.model x: HTTP 503; run again to go on")

    monkeypatch.setattr(job, "run", away)
    assert run(capsys, monkeypatch, *fields()) == (1, "bridge-ray: teacher.model x: HTTP 503; run again to go on\n")


def test_no_key_for_a_hosted_teacher(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    code, printed = run(capsys, monkeypatch, *fields("teacher.standin=null"))
    assert code == 2 and "OPENAI_API_KEY" in printed
    assert not (folder / "storage").exists()
