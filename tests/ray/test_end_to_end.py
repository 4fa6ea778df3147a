"""The whole pipeline from the command line: real Ray Data, vLLM, Ray Train, DeepSpeed and HTTP, on a tiny model."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from bridge_ray import storage
from bridge_ray.pipeline import NAMES
from tests.conftest import billed, bridge_ray, read, tiny

SYSTEMS = {"guess", "student_base", "direct", "direct_labels", "bridge", "ta_base", "ta"}
STAGES = [name for name in NAMES if name not in ("train_labels", "report")]  # no system asks for the student of labels
BY_ENTROPY = "evaluate.by_entropy=true"
Finished = tuple[Path, subprocess.CompletedProcess[str], int]


def asked(root: Path, model: str, teacher: str, *overrides: str) -> list[str]:
    return tiny(root, model, teacher, BY_ENTROPY, *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: str, teacher_url: str) -> Finished:
    """A finished run's storage, what the command printed, and what the teacher billed for it."""
    root = tmp_path_factory.mktemp("storage")
    before = billed(teacher_url)
    done = bridge_ray(*asked(root, tiny_model, teacher_url))
    assert done.returncode == 0, done.stderr[-3000:]
    return root, done, billed(teacher_url) - before


def test_a_run_leaves_its_files_and_says_where(finished: Finished) -> None:
    root, done, _ = finished
    home = root / "runs" / "tiny"
    assert {path.name for path in home.iterdir()} == {
        "config.yaml",
        "manifest.json",
        "metrics.json",
        "report.html",
        "model_card.md",
        "logs",
    }
    assert f"{home}/report.html" in done.stdout
    assert all(name in done.stderr for name in STAGES) and "train_labels" not in done.stderr
    assert "vllm" not in done.stderr.lower(), "chatter belongs into the logs"


def test_the_metrics_account_for_every_row_and_query(finished: Finished) -> None:
    root, _, bill = finished
    metrics = read(root / "runs" / "tiny" / "metrics.json")
    rows, teacher = metrics["rows"], metrics["teacher"]
    assert rows["corpus"] == 48 == sum(count for name, count in rows.items() if name != "corpus")
    assert rows["errored"] == 0
    assert teacher["budget_queries"] == 12
    assert teacher["queries"] == teacher["bought"] == bill <= 12
    assert teacher["hits"] == teacher["eval_queries"] == 0
    assert teacher["spent_usd"] > 0
    assert set(metrics["systems"]) == SYSTEMS
    for system in metrics["systems"].values():
        low, high = system["interval"]
        assert 0 <= low <= system["accuracy"] <= high <= 1
        for kind in ("domain", "answer_type", "entropy"):
            assert system["n"] == 12 == sum(group["n"] for group in system[f"by_{kind}"].values())
        assert list(system["by_entropy"]) == [str(tenth) for tenth in range(10)]
    assert [0 <= entropy <= 1 for entropy in metrics["deciles"].values()] == [True] * 10
    assert set(metrics["comparisons"]) == {f"bridge-{system}" for system in metrics["systems"] if system != "bridge"}
    assert list(metrics["stages"]) == STAGES


def test_the_student_leaves_as_a_plain_transformers_directory_with_its_card(finished: Finished, tmp_path: Path) -> None:
    from transformers import pipeline

    bridge_ray("export", "tiny", str(tmp_path / "student"), "--storage", str(finished[0]))
    files = {path.name: path for path in (tmp_path / "student").iterdir()}
    assert {path.suffix for path in files.values()} <= {".json", ".safetensors", ".jinja", ".md"}
    assert "## Scores" in files["README.md"].read_text() and "## Lineage" in files["README.md"].read_text()
    [reply] = pipeline("text-generation", model=str(tmp_path / "student"))("Is it?", max_new_tokens=2)
    assert reply["generated_text"].startswith("Is it?")


def test_every_system_took_the_same_updates(finished: Finished) -> None:
    updates = {
        manifest["stage"]: manifest["metrics"]["updates"]
        for stage in ("train_student", "train_direct", "train_direct_labels")
        for manifest in [read(next((finished[0] / "stages" / stage).glob("*/manifest.json")))]
    }
    assert updates == {"train_student": 12, "train_direct": 12, "train_direct_labels": 12}


def test_no_key_is_left_anywhere(finished: Finished) -> None:
    """Neither in what a run leaves (manifests, ledger, logs, models) nor in what Ray has logged of it."""
    ray_logs = Path(tempfile.gettempdir()) / "ray" / "session_latest" / "logs"
    files = [path for place in (finished[0], ray_logs) for path in place.rglob("*") if path.is_file()]
    assert any(path.name == "driver.log" for path in files) and any(path.name == "raylet.out" for path in files)
    for path in files:
        if path.suffix != ".safetensors":
            assert b"sk-test-secret" not in path.read_bytes(), path


def test_the_run_repeated_does_nothing_and_buys_nothing(finished: Finished, tiny_model: str, teacher_url: str) -> None:
    root, before = finished[0], billed(teacher_url)
    started = time.monotonic()
    again = bridge_ray(*asked(root, tiny_model, teacher_url))
    assert again.returncode == 0, again.stderr
    assert time.monotonic() - started < 30
    metrics = read(root / "runs" / "tiny" / "metrics.json")
    assert all(stage["skipped"] for stage in metrics["stages"].values())
    assert (metrics["teacher"]["bought"], metrics["teacher"]["spent_usd"]) == (0, 0)
    assert billed(teacher_url) == before


def test_a_finished_run_with_another_config_is_refused_by_the_field_that_changed(
    finished: Finished, tiny_model: str, teacher_url: str
) -> None:
    changed = bridge_ray(*asked(finished[0], tiny_model, teacher_url, "amplify.samples=2"))
    assert changed.returncode == 2
    assert "amplify.samples (1 -> 2)" in changed.stderr
    assert "--fresh" in changed.stderr


def test_a_larger_budget_shares_the_scores_and_buys_the_difference(
    finished: Finished, tiny_model: str, teacher_url: str
) -> None:
    root, before = finished[0], billed(teacher_url)
    wider = asked(root, tiny_model, teacher_url, "budget.fraction=0.5")
    done = bridge_ray(*wider, "--name", "wider", "--until", "teach")
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = read(root / "runs" / "wider" / "metrics.json")
    assert metrics["stages"]["score"]["skipped"] and metrics["stages"]["embed"]["skipped"]
    assert metrics["teacher"]["hits"] == 12
    assert metrics["teacher"]["bought"] == billed(teacher_url) - before == metrics["teacher"]["queries"] - 12


def test_status_shows_the_stages(finished: Finished) -> None:
    shown = bridge_ray("status", "tiny", "--storage", str(finished[0]))
    assert shown.returncode == 0
    assert "finished" in shown.stdout and "train_student" in shown.stdout
    missing = bridge_ray("status", "other", "--storage", str(finished[0]))
    assert missing.returncode == 2 and "no such run" in missing.stderr


def test_the_page_is_made_anew_from_what_the_stages_left(finished: Finished) -> None:
    home = finished[0] / "runs" / "tiny"
    metrics, page = read(home / "metrics.json"), (home / "report.html").read_text()
    assert "By how hard the questions are" in page and "TA, before it was taught" in page and "$" in page
    (home / "report.html").unlink()
    done = bridge_ray("report", "tiny", "--storage", str(finished[0]))
    assert done.returncode == 0, done.stderr
    assert (home / "report.html").read_text() == page and read(home / "metrics.json") == metrics


def test_scores_are_one_row_per_training_example(finished: Finished) -> None:
    [folder] = (finished[0] / "stages" / "score").glob("*")
    scores = storage.read_table(str(folder / "rows.parquet"))
    assert scores["id"].to_pylist() == list(range(48))
    assert all(len(samples) == 2 for samples in scores["samples"].to_pylist())
    assert all(0 <= entropy <= 1 for entropy in scores["entropy"].to_pylist())


def test_questions_that_do_not_fit_end_a_stage_and_a_longer_model_len_goes_on(
    tmp_path: Path, tiny_model: str, teacher_url: str
) -> None:
    """It is in no fingerprint, as what is answered does not depend on it: neither do replies that it cuts off."""
    short = bridge_ray(*asked(tmp_path, tiny_model, teacher_url, "engine.max_model_len=96"), "--until", "score")
    assert short.returncode == 2, short.stderr[-3000:]
    said = re.search(r"score: (\d+) of 48 rows failed, and score.max_error_fraction allows 0: (.*)", short.stderr)
    assert said is not None and int(said[1]) > 0, short.stderr[-3000:]
    kinds = "(the prompt fills|a reply does not end within) engine.max_model_len 96"
    assert re.fullmatch(rf"(\d+ x {kinds}(; )?)+", said[2].strip()), said[2]
    longer = bridge_ray(*asked(tmp_path, tiny_model, teacher_url), "--until", "score")
    assert longer.returncode == 0, longer.stderr[-3000:]
    [score] = (tmp_path / "stages" / "score").iterdir()
    assert read(score / "manifest.json")["metrics"]["errored"] == 0
    assert storage.read_table(str(score / "rows.parquet"), ["error"])["error"].null_count == 48
