"""``bridge-ray amplify``: a corpus of the user's own and a TA that is there already, on the real engine."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from bridge_ray import alone, config, storage
from bridge_ray.progress import Progress
from bridge_ray.stage import perform
from tests.conftest import bridge_ray, read

Done = subprocess.CompletedProcess[str]
ENGINE = ("max_num_seqs=32", "max_model_len=256", "kv_cache_gb=1", "enforce_eager=true")
ROWS = 70


@pytest.fixture(scope="module")
def adapter(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA adapter of the tiny model, as peft saves it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    settings = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), settings).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two files with the user's own columns. Row 5 has no question, the label of row 40 is no number, and row 41 is
    longer than the engine takes."""
    questions = [f"What is {number} plus 1?" for number in range(ROWS)]
    questions[5], questions[41] = " ", "and " * 500
    answers = [str(number + 1) for number in range(ROWS)]
    answers[40] = "many"
    table = pa.table({"prompt": questions, "label": answers, "name": [f"n{number}" for number in range(ROWS)]})
    folder = tmp_path / "corpus"
    folder.mkdir()
    pq.write_table(table.slice(0, 45), folder / "a.parquet", row_group_size=20)
    pq.write_table(table.slice(45), folder / "b.parquet")
    return folder


def amplify(tmp_path: Path, corpus: Path, tiny_model: str, *fields: str) -> Done:
    told = [
        f"ta.model={tiny_model}",
        f"corpus.path={corpus}",
        "corpus.columns={id: name, question: prompt, answer: label}",
    ]
    told += ["corpus.answer_type=number", "amplify.max_tokens=8", *(f"engine.{field}" for field in ENGINE), *fields]
    return bridge_ray("amplify", *(word for field in told for word in ("--set", field)), "--storage", str(tmp_path))


def test_a_corpus_is_explained_without_the_pipeline(
    tmp_path: Path, corpus: Path, tiny_model: str, adapter: str
) -> None:
    fields = (f"ta.adapter={adapter}", "amplify.max_error_fraction=0.05", "amplify.samples=1")
    done = amplify(tmp_path, corpus, tiny_model, *fields)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in (tmp_path / "stages").iterdir()) == ["amplify", "corpus", "merge_ta"]
    metrics = read(tmp_path / "runs" / "amplify" / "metrics.json")
    assert metrics["rows"]["corpus"] == ROWS and metrics["rows"]["errored"] == 3
    assert {reason.partition(" ")[0] for reason in metrics["amplified"]["faults"]} == {"the"}
    [out] = tmp_path.glob("stages/amplify/*/rows.parquet")
    assert str(out) in done.stdout.replace("\n", "")
    rows = storage.read_table(str(out)).to_pylist()
    assert [row["key"] for row in rows] == [f"n{number}" for number in range(ROWS)]
    failed = {row["key"]: row["error"] for row in rows if row["error"]}
    assert failed["n5"] == "the question is empty"
    assert "'many'" in failed["n40"] and "max_model_len 256" in failed["n41"] and len(failed) == 3
    assert {row["model_hash"].count("sha256:") for row in rows} == {2}

    again = amplify(tmp_path, corpus, tiny_model, *fields)
    assert again.returncode == 0 and again.stderr.count("done before") == 3

    shutil.copytree(corpus, tmp_path / "moved")
    moved = amplify(tmp_path, tmp_path / "moved", tiny_model, *fields, "ta.serve=adapter")
    assert moved.returncode == 2 and "ta.serve (merged -> adapter)" in moved.stderr


def test_rows_without_labels_must_be_asked_for(tmp_path: Path, tiny_model: str) -> None:
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"question": f"Is {n} even?"}) + "\n" for n in range(20)))
    plain = ["corpus.columns={}", "corpus.answer_type=boolean"]
    refused = amplify(tmp_path, tmp_path / "c.jsonl", tiny_model, *plain)
    assert refused.returncode == 2 and "c.jsonl: no row has an answer to verify with" in refused.stderr
    corpus = {"path": str(tmp_path / "c.jsonl"), "answer_type": "boolean", "train": 15}
    raw = {"name": "a", "storage": str(tmp_path), "corpus": corpus, "amplify": {"verify": "self_consistency"}}
    settings = config.validate(raw | {"ta": {"model": tiny_model}}, "test")
    run = alone.prepare(settings, fresh=False)
    quiet = Progress(Console(quiet=True))
    done = perform(run.stages["corpus"], run.root, "a", settings.engine, settings.training, quiet)
    assert storage.read_table(f"{done.location}/train")["key"].to_pylist() == [str(n) for n in range(1, 16)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["corpus.path=nowhere.parquet"], "nowhere.parquet: no such file"),
        (
            ["corpus.columns={question: prompt}"],
            "corpus: no row has an answer to verify with; set corpus.columns.answer",
        ),
        (["corpus.columns={question: nothing}"], "no row has column 'nothing'; fix corpus.columns.question"),
        (["ta.adapter=nowhere"], "ta.adapter: nowhere has no adapter_config.json"),
        (["engine.max_replicas=0"], "engine.max_replicas"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, corpus: Path, tiny_model: str, fields: list[str], message: str) -> None:
    done = amplify(tmp_path, corpus, tiny_model, *fields)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert not (tmp_path / "stages").exists()
