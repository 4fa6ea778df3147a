"""The training loop on real Ray Train workers and DeepSpeed: same result on any number of workers, exact resume."""

from __future__ import annotations

import math
import os
import random
import shutil
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from rich.console import Console

from bridge_ray import storage
from bridge_ray.config import Lora, Phase, Schedule, Training
from bridge_ray.errors import UserError
from bridge_ray.inference import local_ray, numerics
from bridge_ray.progress import Progress
from bridge_ray.training import lessons, loop, tokens
from bridge_ray.training.curriculum import make_plan, resolved
from bridge_ray.training.loop import Job
from bridge_ray.training.run import fit
from bridge_ray.training.trackers import Tracked

ROWS = 32
PHASES = (Phase(target="answer", epochs=2), Phase(target="rationale", epochs=4, replay=0.25, order="easy_to_hard"))
UPDATES = 8 + 16


@pytest.fixture(scope="module")
def token_folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> dict[str, str]:
    local_ray.start()
    root = tmp_path_factory.mktemp("lessons")
    pools = ("answer", "rationale")
    rows = [row for pool in pools for row in lesson_rows(pool)]
    storage.write_table(str(root / "lessons.parquet"), pa.Table.from_pylist(rows, schema=lessons.LESSON))
    written = tokens.tokenise(str(root / "lessons.parquet"), tiny_model, 128, str(root / "tokens"))
    assert written == tokens.Tokenised(dict.fromkeys(pools, ROWS), 0, 0)
    with pytest.raises(UserError, match="training.seq_len 16: the prompts of the .* lessons fill it; raise it"):
        tokens.tokenise(str(root / "lessons.parquet"), tiny_model, 16, str(root / "short"))
    return {pool: str(root / "tokens" / pool) for pool in pools}


def lesson_rows(pool: str) -> list[dict[str, Any]]:
    draw = random.Random(0)
    rows = []
    for number in range(ROWS):
        a, b = draw.randint(1, 9), draw.randint(1, 9)
        rationale = f"{a} and {b} make {a + b}." if pool == "rationale" else None
        rows.append(
            {"id": number, "question": f"{a} + {b}?", "context": "", "options": [], "pool": pool}
            | {"rationale": rationale, "label": str(a + b), "difficulty": draw.random()}
        )
    return rows


def job(
    out: Path, model: str, folders: dict[str, str], lora: Lora | None = None, lr: float = 3e-3, **training: Any
) -> Job:
    plan = make_plan(resolved(PHASES, None, 4), dict.fromkeys(folders, ROWS), 8, seed=0)
    settings = Training(**{"global_batch": 8, "micro_batch": 1, "seq_len": 128, "checkpoint_every": 5, **training})
    tracked = Tracked(settings.trackers, "run", "stage", "x", {})
    return Job(model, lora, plan, folders, Schedule(lr=lr), settings, str(out), 0, tracked)


def train(made: Job) -> list[dict[str, float]]:
    fit(made, "test", Progress(Console(quiet=True)))
    return history(made)


def together(jobs: list[Job]) -> None:
    """Several trainings in the same workers, which take most of the time to start."""
    from ray.train import ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    def one_by_one(counter: Any) -> None:
        for each in jobs:
            loop.train(each, counter)

    scaling = ScalingConfig(num_workers=jobs[0].training.workers, resources_per_worker={"CPU": 1})
    with Progress(Console(quiet=True)).counted("test", 1, "updates") as counter:
        TorchTrainer(
            partial(one_by_one, counter), torch_config=TorchConfig(backend="gloo"), scaling_config=scaling
        ).fit()


def history(made: Job) -> list[dict[str, float]]:
    return storage.read_json(storage.join(made.out, "losses.json"))


def losses(lines: list[dict[str, float]]) -> list[float]:
    return [line["loss"] for line in lines]


def weights(made: Job) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: weight.float() for name, weight in load_file(f"{made.out}/model/model.safetensors").items()}


WAYS = {
    **{f"zero {stage}": {"zero_stage": stage} for stage in (1, 2, 3)},
    "padded": {"zero_stage": 1, "packing": False, "micro_batch": 2},
    "all at once": {"zero_stage": 2, "micro_batch": 8},
    "recomputed": {"zero_stage": 2, "gradient_checkpointing": True},
    "offloaded": {"zero_stage": 2, "deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: str, token_folders: dict[str, str]) -> dict[str, Job]:
    """In fp32 by two workers in several ways, and by one; in bf16 too; and LoRA in every ZeRO stage."""
    root, lora = tmp_path_factory.mktemp("trained"), Lora(rank=4, alpha=8)

    def made(name: str, adapter: Lora | None = None, lr: float = 3e-3, **training: Any) -> Job:
        whole = {"checkpoint_every": 1000, "precision": "fp32", **training}
        return job(root / name, tiny_model, token_folders, adapter, lr, **whole)

    two = {name: made(name, workers=2, **way) for name, way in WAYS.items()}
    two |= {
        f"bf16 {stage}": made(f"bf16 {stage}", None, 1e-3, workers=2, zero_stage=stage, precision="bf16")
        for stage in (1, 2, 3)
    }
    two |= {f"lora {stage}": made(f"lora {stage}", lora, workers=2, zero_stage=stage) for stage in (1, 2, 3)}
    large = {"precision": "bf16", "gradient_checkpointing": True}  # as one would train a TA of billions of weights
    two |= {"lora large": made("lora large", lora, workers=2, zero_stage=3, **large)}
    one = {"one": made("one", workers=1, zero_stage=0, micro_batch=8)}
    one |= {"one bf16": made("one bf16", None, 1e-3, workers=1, zero_stage=0, precision="bf16")}
    together(list(two.values()))
    together(list(one.values()))
    return two | one


def test_it_learns_through_its_phases(trained: dict[str, Job]) -> None:
    lines = history(trained["one"])
    assert [line["phase"] for line in lines] == [0] * 8 + [1] * 16
    assert losses(lines)[-1] < losses(lines)[0] - 1


@pytest.mark.parametrize("way", WAYS)
def test_two_workers_give_what_one_does(trained: dict[str, Job], way: str) -> None:
    assert losses(history(trained[way])) == pytest.approx(losses(history(trained["one"])), rel=1e-3)
    assert [line["tokens"] for line in history(trained[way])] == [line["tokens"] for line in history(trained["one"])]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_in_bf16_two_workers_give_what_one_does_to_its_precision(trained: dict[str, Job], stage: int) -> None:
    """bf16 has 8 bits: a rounding is up to 2^-8 of a value. What training has moved is more than that."""
    two, one = weights(trained[f"bf16 {stage}"]), weights(trained["one bf16"])
    assert two.keys() == one.keys()
    for name, weight in one.items():
        assert float((two[name] - weight).norm() / weight.norm()) < 2**-8, name


def test_every_update_is_where_tensorboard_looks_for_it(trained: dict[str, Job]) -> None:
    [file] = (Path(trained["one"].out) / "tensorboard").iterdir()
    seen = events_of(file)
    assert list(seen["train/loss"]) == list(range(1, UPDATES + 1))
    assert list(seen["train/loss"].values()) == pytest.approx(losses(history(trained["one"])), rel=1e-6)
    assert {"train/lr", "train/phase", "train/tokens_per_second"} < seen.keys()


def events_of(file: Path) -> dict[str, dict[int, float]]:
    """Tag -> update -> value, of a file of TensorBoard's: length (8 bytes), checksum (4), data, checksum, and so on."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, dict[int, float]] = {}
    data = file.read_bytes()
    while len(data) >= 12 and len(data) >= 16 + (size := int.from_bytes(data[:8], "little")):
        event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_killed_workers_cost_the_updates_since_their_checkpoint(
    tmp_path: Path, tiny_model: str, token_folders: dict[str, str], trained: dict[str, Job]
) -> None:
    """Twice; the losses are those of a training that nothing happened to, and no start but the first begins anew."""
    killed: list[int] = []
    # The second checkpoint is made after update 6, the sixth after 18. Ray may not know of the newest one by then.
    threading.Thread(target=kill_at, args=(tmp_path, (6, 18), killed), daemon=True).start()
    fields: dict[str, Any] = {"workers": 2, "zero_stage": 2, "precision": "fp32", "checkpoint_every": 3}
    resumed = train(job(tmp_path, tiny_model, token_folders, **fields))
    assert len(killed) == 2, "the workers were not killed: the test has shown nothing"
    assert losses(resumed) == pytest.approx(losses(history(trained["zero 2"])), rel=1e-3)
    assert [line["update"] for line in resumed] == list(range(1, UPDATES + 1))
    begun = [updates_of(file)[0] for file in told_in(tmp_path)]
    assert 1 == begun[0] < begun[1] < begun[2] and {start % 3 for start in begun} == {1}, begun


def test_a_training_that_is_given_up_says_why_and_goes_on_when_it_is_run_again(
    tmp_path: Path, tiny_model: str, token_folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the precision that it was begun in, although the second machine is fast at another; and where its checkpoints
    are of another layout it says that it cannot."""
    monkeypatch.setattr(numerics, "fast_bf16", lambda gpus: False)
    fields: dict[str, Any] = {"workers": 1, "zero_stage": 0, "checkpoint_every": 3, "max_failures": 0}
    relative = os.path.relpath(tiny_model)  # means the same directory to a worker
    made = job(tmp_path / "out", relative, token_folders, **fields)
    threading.Thread(target=kill_at, args=(tmp_path / "out", (6,), killed := []), daemon=True).start()
    with pytest.raises(
        UserError, match=r"test: a worker was killed, and training.max_failures \(0\) restarts"
    ) as given_up:
        train(made)
    assert len(killed) == 1 and "lower training.micro_batch (now 1)" in str(given_up.value)
    shutil.copytree(tmp_path / "out", tmp_path / "other")

    monkeypatch.setattr(numerics, "fast_bf16", lambda gpus: True)
    state = tmp_path / "out" / "state"
    with (tmp_path / "said").open("w") as file:
        for _ in ("goes on", "has ended, and its driver was killed before it had said so"):
            assert fit(made, "test", Progress(Console(file=file, width=200))) == "fp32"
            assert not state.exists()
            (state / "left").mkdir(parents=True)  # as a driver leaves them that is killed at its end
        other = job(tmp_path / "other", tiny_model, token_folders, **fields | {"zero_stage": 1})
        assert fit(other, "test", Progress(Console(file=file, width=200))) == "fp32"
    begun = [[updates_of(file)[0] for file in told_in(Path(each.out))] for each in (made, other)]
    assert begun[0][0] == 1 < begun[0][1] and begun[1] == [1, 1], begun
    [said] = [line for line in (tmp_path / "said").read_text().splitlines() if "anew" in line]
    assert said.startswith("test: begins anew: its checkpoints are of zero0-by-1-fp32, and it is to be zero1-by-1-fp32")


def kill_at(out: Path, updates: Sequence[int], killed: list[int]) -> None:
    """SIGKILL a training worker of ours as soon as an update is told of, for each of the updates; the first of them
    once Ray knows of a checkpoint, which on a busy machine comes later."""
    for needed in updates:
        while max((update for file in told_in(out) for update in updates_of(file)), default=0) < needed:
            time.sleep(0.02)
        while not list(out.glob("state/*/checkpoints/checkpoint_manager_snapshot.json")):
            time.sleep(0.02)
        while not (workers := [one for one in psutil.Process().children(recursive=True) if is_worker(one)]):
            time.sleep(0.02)
        killed.append(workers[0].pid)
        workers[0].kill()


def told_in(out: Path) -> list[Path]:
    """TensorBoard's files, one for every start; they grow whenever a checkpoint has been made."""
    return sorted((out / "tensorboard").glob("*"))


def updates_of(file: Path) -> list[int]:
    return list(events_of(file).get("train/loss", {}))


def is_worker(process: psutil.Process) -> bool:
    try:
        return "ray::RayTrainWorker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def test_a_loss_that_is_no_number_ends_the_training_and_says_what_to_change(
    tmp_path: Path, tiny_model: str, token_folders: dict[str, str]
) -> None:
    """Because a weight is none to begin with."""
    from transformers import AutoModelForCausalLM

    broken = AutoModelForCausalLM.from_pretrained(tiny_model)
    broken.model.norm.weight.data[0] = math.nan
    shutil.copytree(tiny_model, tmp_path / "broken")
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(UserError, match=r"test: the loss of update 1 is nan: lower the lr of its train field"):
        train(job(tmp_path / "out", str(tmp_path / "broken"), token_folders, workers=1, zero_stage=0))
    assert not (tmp_path / "out" / "model").exists()


def test_lora_in_bf16_recomputed_and_sharded_learns_as_in_fp32(trained: dict[str, Job]) -> None:
    assert losses(history(trained["lora large"])) == pytest.approx(losses(history(trained["lora 3"])), rel=0.02)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_lora_adapter_is_whole_whatever_the_zero_stage(trained: dict[str, Job], tiny_model: str, stage: int) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    out = Path(trained[f"lora {stage}"].out)
    adapter = load_file(out / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == 2 * 7 * 2  # A and B of seven linear layers in two blocks
    assert all(weight.numel() for weight in adapter.values())
    assert any(weight.abs().sum() > 0 for name, weight in adapter.items() if "lora_B" in name)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    merged = AutoModelForCausalLM.from_pretrained(out / "model")
    by_peft = PeftModel.from_pretrained(base, str(out / "adapter")).merge_and_unload()
    wanted = by_peft.state_dict()
    for name, weight in merged.state_dict().items():
        assert float((weight.float() - wanted[name].float()).abs().max()) < 0.02, name
