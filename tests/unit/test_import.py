"""bridge-ray teacher import: rationales that a team owns become answers that teach finds, for nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from bridge_ray import cli, config, pipeline
from bridge_ray.answers import prompts
from bridge_ray.errors import UserError
from bridge_ray.objects import open_store
from bridge_ray.progress import Progress
from bridge_ray.stage import Work
from bridge_ray.teacher import answers, teach
from bridge_ray.teacher.answers import Reply, answer_key

PROVIDER = "http://127.0.0.1:9/v1"  # nobody is there: an answer that is not found cannot be bought
ROWS = [{"key": f"r{i}", "q": f"Is {i:02} odd?", "a": "yes" if i % 2 else "no"} for i in range(20)]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """``bridge-ray teacher import`` in this process, in a folder with 15 training and 5 test questions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-secret")
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe = {
        "name": "mine",
        "corpus": {
            "source": "jsonl",
            "path": "data.jsonl",
            "columns": {"id": "key", "question": "q", "answer": "a"},
            "test": 5,
        },
        "teacher": {"base_url": PROVIDER, "model": "x", "price": {"input": 1, "output": 10}, "max_tokens": 100},
    }
    Path("mine.yaml").write_text(yaml.safe_dump(recipe))

    def call(file: str, *overrides: str) -> tuple[int, str, str]:
        options = [part for override in overrides for part in ("--set", override)]
        monkeypatch.setattr("sys.argv", ["bridge-ray", "teacher", "import", file, "mine.yaml", *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


def questions(split: str) -> list[dict[str, Any]]:
    table = pipeline.draft(config.load("mine.yaml")).corpus
    return [row for row in table.to_pylist() if row["split"] == split]


def rationale(question: dict[str, Any], /, **changed: Any) -> dict[str, Any]:
    return {"question": question["question"], "rationale": "Look at it.", "answer": question["answer"]} | changed


def write(*rows: dict[str, Any]) -> str:
    Path("ours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "ours.jsonl"


def stored(question: dict[str, Any]) -> Reply | None:
    """The answer to a question's first ask, by a key that is spelled out."""
    system = f"{prompts.TEACH} {prompts.FORMS['boolean']}"
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question["question"]}]
    key = answer_key(PROVIDER, "x", messages, {"max_tokens": 100, "temperature": 0.0})
    return asyncio.run(answers.answer(open_store("storage/teacher"), key))


def told(out: str) -> dict[str, int]:
    """What the report says of the rows: words -> count."""
    lines = (line.split(maxsplit=1) for line in out.splitlines())
    return {words[1]: int(words[0]) for words in lines if words[0].isdigit()}


def test_an_imported_rationale_is_the_answer_to_the_first_ask(run: Run) -> None:
    first, second, *_ = questions("train")
    spaced = first["question"].replace(" ", "  \n ")
    code, out, _ = run(write(rationale(first, question=spaced)))
    assert code == 0
    found = stored(first)
    assert found is not None and stored(second) is None
    assert found.text == f"Look at it.\nAnswer: {first['answer']}"
    assert (found.prompt_tokens, found.completion_tokens, found.model, found.error) == (0, 0, "imported", None)
    assert told(out)["imported into storage/teacher"] == 1


def test_every_row_is_accounted_for(run: Run) -> None:
    train, test = questions("train"), questions("test")
    file = write(
        rationale(train[0]),
        rationale(train[1], answer="yes" if train[1]["answer"] == "no" else "no"),
        rationale(train[0], rationale="Another one."),
        rationale(test[0]),
        rationale(train[2], question="What is love?"),
    )
    _, out, _ = run(file)
    assert told(out) == {
        "rows read, of which": 5,
        "imported into storage/teacher": 2,
        "have an answer there already": 1,
        "are dev or test questions, left out": 1,
        "stand in several training rows, left out": 0,
        "are no question of the corpus": 1,
        "of the imported end in another answer than the corpus's: they are not learnt from, and with teacher.guided "
        "their questions are bought": 1,
    }
    assert "e.g. What is love?" in out
    assert stored(test[0]) is None
    found = stored(train[0])
    assert found is not None and found.text.startswith("Look at it."), "the file's first counts"


def test_an_answer_that_is_there_stays(run: Run) -> None:
    question = questions("train")[0]
    run(write(rationale(question)))
    _, out, _ = run(write(rationale(question, rationale="Look again.")))
    assert told(out)["imported into storage/teacher"] == 0
    assert told(out)["have an answer there already"] == 1
    found = stored(question)
    assert found is not None and found.text.startswith("Look at it.")


def test_a_question_with_several_contexts_is_left_out(run: Run) -> None:
    rows = [{"q": "How much?", "c": f"It was {number}.", "a": "yes"} for number in range(20)]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = write({"question": "How much?", "rationale": "Because.", "answer": "yes"})
    code, out, _ = run(file, "corpus.columns={question: q, answer: a, context: c}")
    assert code == 0 and told(out)["stand in several training rows, left out"] == 1
    assert not Path("storage").exists()


def test_parquet_is_read_alike(run: Run) -> None:
    question = questions("train")[0]
    pq.write_table(pa.Table.from_pylist([rationale(question, answer=question["answer"] == "yes")]), "ours.parquet")
    code, _, _ = run("ours.parquet")
    assert code == 0 and stored(question) is not None


def test_teach_finds_the_imported_answers_and_pays_nothing(run: Run, tmp_path: Path) -> None:
    ranking = questions("train")[:4]
    run(write(*map(rationale, ranking)))
    settings = config.load("mine.yaml")
    terms = teach.Terms(settings.teacher, settings.corpus, str(tmp_path / "storage/teacher"))
    quiet = Progress(Console(quiet=True))
    work = Work("teach", "mine", {}, str(tmp_path / "out"), settings.engine, settings.training, quiet, "f" * 16)
    with quiet.task("teach", 4, "queries") as task:
        bought = teach.purchase(ranking, terms, work, 4, 0.01, task)
    assert (bought.hits, bought.bought, bought.usd_total) == (4, 0, 0)
    assert [(row["rationale"], row["answer"], row["verified"], row["cost_usd"]) for row in bought.rows] == [
        ("Look at it.", question["answer"], True, 0) for question in ranking
    ]


def test_teach_says_that_the_account_has_no_room_and_not_that_the_teacher_is_wrong(run: Run, tmp_path: Path) -> None:
    """What it is asked for is neither in the store nor within the cap."""
    settings = config.load("mine.yaml", ["budget.account={name: team, max_usd: 0.000001}"])
    store, quiet = str(tmp_path / "storage/teacher"), Progress(Console(quiet=True))
    terms = teach.Terms(settings.teacher, settings.corpus, store, settings.budget.account)
    work = Work("teach", "mine", {}, str(tmp_path / "out"), settings.engine, settings.training, quiet, "f" * 16)
    with (
        quiet.task("teach", 4, "queries") as task,
        pytest.raises(UserError, match=r"^budget.account team: its cap of \$1e-06 is reached, .*; raise its cap"),
    ):
        teach.purchase(questions("train")[:4], terms, work, 4, None, task)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "ours.jsonl:2: not valid JSON"),
        ("[1]", "ours.jsonl:2: expected an object"),
        ('{"question": "q", "answer": "a"}', "ours.jsonl:2: rationale is missing or empty"),
        ('{"question": "q", "rationale": " ", "answer": "a"}', "ours.jsonl:2: rationale is missing or empty"),
        ('{"question": ["q"], "rationale": "r", "answer": "a"}', "ours.jsonl:2: question is a list"),
        (r'{"question": "q", "rationale": "r \ud800", "answer": "a"}', "ours.jsonl:2: rationale holds half of a"),
        ('{"question": "q", "rationale": "r", "answer": {}}', "ours.jsonl:2: answer is a dict"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(run: Run, tmp_path: Path, line: str, says: str) -> None:
    write(rationale(questions("train")[0]))
    with Path("ours.jsonl").open("a") as file:
        file.write(line + "\n")
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run("ours.jsonl")
    assert (code, err.count("\n")) == (2, 1), err
    assert says in err
    assert sorted(tmp_path.rglob("*")) == before, "something was written"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.jsonl", None, "none.jsonl: cannot be read as JSON Lines (FileNotFoundError)"),
        ("none.parquet", None, "none.parquet: cannot be read as Parquet (FileNotFoundError)"),
        ("empty.jsonl", b"\n", "empty.jsonl: the file has no rows"),
        ("text.parquet", b"no parquet", "text.parquet: cannot be read as Parquet"),
        ("latin.jsonl", b'{"question": "\xe9"}', "latin.jsonl: cannot be read as JSON Lines (UnicodeDecodeError)"),
    ],
)
def test_a_bad_file_is_one_line(run: Run, tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    code, _, err = run(name)
    assert (code, err.count("\n")) == (2, 1), err
    assert says in err
    assert not (tmp_path / "storage").exists()
