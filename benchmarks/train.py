"""Claim: training takes what its arithmetic takes, and none of it is spent on padding.

Tokens per second, padding not counted, of a student of the embedded model's shape with 12 layers (71 M parameters), on
rows of lognormal length (median 120, sigma 0.6, at most 512 tokens), 16 of them per update, in bf16 with fp32 master
weights; all in fp32 on a machine that has no instructions for bf16:
vs_torch: of a whole training (Ray Train, one worker, ZeRO 0) over those of a bare PyTorch loop on the same packed
batches; deepspeed_vs_torch is what DeepSpeed alone reaches there.
vs_deepspeed: of a whole training (Ray Train, two workers, ZeRO 1) over those of a bare loop around DeepSpeed on the
same packed batches, in two processes without Ray. Our workers on CPUs have an allocator of their own, which bare loops
have not unless they are told to: vs_deepspeed_same_allocator is the ratio to a bare loop that is told.
packed_vs_padded: of packed rows over those of rows padded to the longest of their batch, both as whole trainings;
loss_difference is the largest relative one between their losses, update by update.
resume: a worker of two is killed just before a checkpoint is due. after_kill_s is the time from the last update before
that to the first new one after it; it should be at most start_up_s (to the first update of a training that nothing
happened to, without loading Ray) and interval_s (the updates between two checkpoints) together.
The first updates are not counted.
cores: whom the machine's cores worked for meanwhile, in the median run of each of the two systems of vs_deepspeed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from loky import cpu_count
from machine.cores import Cores

from bridge_ray.config import Phase, Schedule, Training
from bridge_ray.training import allocator
from bridge_ray.training.curriculum import make_plan, resolved

MODEL = "embedded:smollm2-135m"
LAYERS, BATCH, SEQ_LEN, WARM = 12, 16, 512, 3  # WARM: updates that are not counted
SCHEDULE = Schedule(lr=1e-4)
Zero = Literal[0, 1, 2, 3]


def write_rows(folder: Path, rows: int, seed: int) -> None:
    """Token rows as the tokeniser leaves them; the prompt is the first half."""
    import pyarrow as pa

    from bridge_ray.training import tokens

    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(np.log(120), 0.6, rows), 8, SEQ_LEN).astype(int)
    made = [
        {"id": number, "input_ids": random.integers(100, 40_000, length), "prompt": length // 2}
        | {"difficulty": 0.0, "cut": False}
        for number, length in enumerate(lengths.tolist())
    ]
    tokens._write_arrow(str(folder / "rows.arrow"), pa.Table.from_pylist(made, schema=tokens._schema()))


def job(folder: Path, updates: int, workers: int, zero: Zero, packing: bool) -> Any:
    from bridge_ray.inference import numerics
    from bridge_ray.training import tokens
    from bridge_ray.training.loop import Job
    from bridge_ray.training.trackers import Tracked

    rows = {"rationale": tokens.load(folder / "tokens").table.num_rows}
    training = Training(
        workers=workers,
        zero_stage=zero,
        precision=numerics.precision("auto", 0),
        global_batch=BATCH,
        micro_batch=8 if packing else BATCH // workers,
        seq_len=SEQ_LEN,
        packing=packing,
        checkpoint_every=10**6,
    )
    plan = make_plan(resolved([Phase(target="rationale", updates=updates)], None, 1), rows, BATCH, seed=0)
    tracked = Tracked(training.trackers, "benchmark", "train", "x", {})
    folders = {"rationale": str(folder / "tokens")}
    return Job(str(folder / "model"), None, plan, folders, SCHEDULE, training, str(folder / "out"), 0, tracked)


# the systems: each prints {"tokens", "seconds", "losses"} from a process of its own


def ours(folder: Path, updates: int, workers: int, zero: Zero, packing: bool = True) -> dict[str, Any]:
    from rich.console import Console

    from bridge_ray import storage
    from bridge_ray.progress import Progress
    from bridge_ray.training.run import fit

    with tempfile.TemporaryDirectory() as out:
        made = job(folder, updates, workers, zero, packing)
        told = partial(told_of, Path(out) / "tensorboard")
        cores = Cores(partial(told, WARM), partial(told, updates))
        fit(replace(made, out=out), "train", Progress(Console(quiet=True)))
        lines = storage.read_json(storage.join(out, "losses.json"))
    counted = lines[WARM:]
    return {
        "tokens": sum(line["tokens"] for line in counted),
        "seconds": sum(line["seconds"] for line in counted),
        "losses": [line["loss"] for line in lines],
        "cores": cores.used(),
    }


def bare_deepspeed(
    folder: Path, updates: int, workers: int, zero: Zero, more: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """As many processes as workers, with ``more`` in their environment; rank 0 says what it has measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(workers), "LOCAL_RANK": "0"}
    command = [sys.executable, __file__, "--rank", str(zero), "--folder", str(folder), "--updates", str(updates)]
    warm = folder / "warm"
    warm.unlink(missing_ok=True)
    cores = Cores(warm.exists)
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True}
    ranks = [
        subprocess.Popen(command, env={**os.environ, **shared, **(more or {}), "RANK": str(rank)}, **piped)
        for rank in range(workers)
    ]
    said = [rank.communicate()[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), said
    return last_object(said[0]) | {"cores": cores.used()}


def one_rank(folder: Path, updates: int, zero: Zero) -> dict[str, Any]:
    import torch

    from bridge_ray.training import loop
    from bridge_ray.training.feed import Feed
    from bridge_ray.training.loss import CompletionLoss

    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.set_num_threads(cpu_count() // world)
    made = job(folder, updates, world, zero, packing=True)
    feed = Feed(loop._load_rows(made), made.plan, rank, world, made.training)
    engine = loop.start_engine(CompletionLoss(loop.load_model(made)), SCHEDULE, made.training, feed.one_at_most)
    tokens, losses, began = 0, [], 0.0
    for step in range(updates):
        if step == WARM:
            tokens, began = 0, time.perf_counter()
            (folder / "warm").touch()
        micros, completions = feed.update(step)
        total = 0.0
        for number, micro in enumerate(micros):
            engine.set_gradient_accumulation_boundary(number == len(micros) - 1)
            loss = engine(micro.ids, micro.completion, micro.positions, micro.segments)
            engine.backward(loss * (world / completions), scale_wrt_gas=False)
            engine.step()
            total += float(loss.detach())
            tokens += micro.tokens
        losses.append(total / completions)
    seconds = time.perf_counter() - began
    counted = torch.tensor([float(tokens), *losses], dtype=torch.float64)  # every rank has its share of each
    torch.distributed.all_reduce(counted)
    return {"tokens": float(counted[0]), "seconds": seconds, "losses": counted[1:].tolist()}


def bare_torch(folder: Path, updates: int) -> dict[str, Any]:
    """In bf16: its weights and gradients, and fp32 master weights that AdamW steps. In fp32 the weights themselves."""
    import torch

    from bridge_ray.training import loop
    from bridge_ray.training.feed import Feed
    from bridge_ray.training.loss import CompletionLoss

    torch.set_num_threads(cpu_count())
    made = job(folder, updates, 1, 0, packing=True)
    feed = Feed(loop._load_rows(made), made.plan, 0, 1, made.training)
    model = CompletionLoss(loop.load_model(made))
    weights = list(model.parameters())
    masters = weights
    if made.training.precision == "bf16":
        masters = [weight.detach().float() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=SCHEDULE.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    tokens, losses, began = 0, [], 0.0
    for step in range(updates):
        if step == WARM:
            tokens, began = 0, time.perf_counter()
        micros, completions = feed.update(step)
        total = 0.0
        for micro in micros:
            loss = model(micro.ids, micro.completion, micro.positions, micro.segments)
            (loss / completions).backward()
            total += float(loss.detach())
            tokens += micro.tokens
        if masters is not weights:
            for master, weight in zip(masters, weights, strict=True):
                assert weight.grad is not None
                master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, SCHEDULE.clip)
        optimizer.step()
        optimizer.zero_grad()
        if masters is not weights:
            with torch.no_grad():
                for master, weight in zip(masters, weights, strict=True):
                    weight.copy_(master)
        losses.append(total / completions)
    return {"tokens": tokens, "seconds": time.perf_counter() - began, "losses": losses}


def resumed(folder: Path, updates: int) -> dict[str, Any]:
    """What a killed worker costs; of ``updates``, a checkpoint is made after every third."""
    from rich.console import Console

    from bridge_ray.inference import local_ray
    from bridge_ray.progress import Progress
    from bridge_ray.training.run import fit

    local_ray.start()
    made = job(folder, updates, 2, 1, packing=True)
    made = replace(made, training=made.training.model_copy(update={"checkpoint_every": updates // 3}))
    with tempfile.TemporaryDirectory() as out:
        began = time.time()
        threading.Thread(target=kill_late, args=(Path(out) / "tensorboard", updates // 3 * 2 - 1), daemon=True).start()
        fit(replace(made, out=out), "train", Progress(Console(quiet=True)))
        before, after = (updates_at(file) for file in sorted((Path(out) / "tensorboard").iterdir()))
    last = max(before)
    assert min(after) <= last < max(after), "nothing was killed"
    per_update = (before[last] - before[1]) / (last - 1)
    return {
        "after_kill_s": after[last + 1] - before[last],
        "start_up_s": before[1] - began,
        "interval_s": per_update * (updates // 3),
        "updates_again": last - min(after) + 1,
    }


def kill_late(events: Path, update: int) -> None:
    """SIGKILL a training worker of ours when TensorBoard has been told of that update."""
    import psutil

    while not told_of(events, update):
        time.sleep(0.2)
    workers = [one for one in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(one.cmdline())]
    workers[-1].kill()


def told_of(events: Path, update: int) -> bool:
    """Whether TensorBoard knows that update."""
    return events.exists() and any(update in updates_at(file) for file in events.iterdir())


def updates_at(file: Path) -> dict[int, float]:
    """Update -> when its loss was told, of a file of TensorBoard's: length (8 bytes), checksum (4), data, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found, data = {}, file.read_bytes()
    while len(data) >= 12 and len(data) >= 16 + (size := int.from_bytes(data[:8], "little")):
        event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
        if any(value.tag == "train/loss" for value in event.summary.value):
            found[event.step] = event.wall_time
    return found


SYSTEMS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "ours_1": lambda folder, updates: ours(folder, updates, 1, 0),
    "torch": bare_torch,
    "deepspeed_1": lambda folder, updates: bare_deepspeed(folder, updates, 1, 0),
    "ours_2": lambda folder, updates: ours(folder, updates, 2, 1),
    "deepspeed_2": lambda folder, updates: bare_deepspeed(folder, updates, 2, 1),
    "deepspeed_2_allocator": lambda folder, updates: bare_deepspeed(folder, updates, 2, 1, allocator.environment()),
    "padded": lambda folder, updates: ours(folder, updates, 1, 0, packing=False),
}


OTHERS = {"resume": resumed}


# all of it


def alone(system: str, folder: Path, updates: int) -> dict[str, Any]:
    """What this file prints in a process of its own, so that every system begins with a machine to itself."""
    command = [sys.executable, __file__, "--system", system, "--folder", str(folder), "--updates", str(updates)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr[-3000:]}")
    return last_object(done.stdout)


def last_object(said: str) -> dict[str, Any]:
    """The last line that is JSON: workers write into the same stream."""
    found: dict[str, Any] = json.loads([line for line in said.splitlines() if line.startswith("{")][-1])
    return found


def measure(updates: int, repeats: int) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    from bridge_ray.inference import models
    from bridge_ray.training import export

    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SYSTEMS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "tokens", updates * BATCH, seed=0)
        with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed, which transformers imports, writes a line
            export.fresh(models.resolve(MODEL), {"num_hidden_layers": LAYERS}, str(folder / "model"))
        for repeat in range(repeats):
            for system, runs in found.items():
                runs.append(alone(system, folder, updates))
                rate = runs[-1]["tokens"] / runs[-1]["seconds"]
                print(f"{repeat + 1} of {repeats}: {system} {rate:.0f} tokens/s", file=sys.stderr, flush=True)
        resumes = [alone("resume", folder, max(6, updates // 2)) for _ in range(repeats)]
        print(f"resume {resumes}", file=sys.stderr, flush=True)
    return found, resumes


def ratios(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    pairs = {
        "vs_torch": ("ours_1", "torch"),
        "deepspeed_vs_torch": ("deepspeed_1", "torch"),
        "vs_deepspeed": ("ours_2", "deepspeed_2"),
        "vs_deepspeed_same_allocator": ("ours_2", "deepspeed_2_allocator"),
        "packed_vs_padded": ("ours_1", "padded"),
    }
    return {name: spread(found[one], found[other]) for name, (one, other) in pairs.items()}


def spread(ones: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and range of the ratios of runs that stood next to each other."""
    values = [
        one["tokens"] / one["seconds"] / (other["tokens"] / other["seconds"])
        for one, other in zip(ones, others, strict=True)
    ]
    return {"median": round(statistics.median(values), 3), "range": [round(min(values), 3), round(max(values), 3)]}


def median_cores(runs: list[dict[str, Any]]) -> dict[str, float]:
    cores: dict[str, float] = sorted(runs, key=lambda run: run["tokens"] / run["seconds"])[len(runs) // 2]["cores"]
    return cores


def differences(found: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[str, float]]:
    """Of every system's losses to those of the packed training by one worker: the largest relative one."""
    for name, runs in found.items():
        pairs = zip(runs[0]["losses"], found["ours_1"][0]["losses"], strict=True)
        yield name, round(max(abs(one - other) / other for one, other in pairs), 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="a few minutes: one repeat, fewer updates")
    parser.add_argument("--system", choices=[*SYSTEMS, *OTHERS], help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--updates", type=int, help="of each training; 23 by default")
    options = parser.parse_args()
    if options.rank is not None:
        print(json.dumps(one_rank(options.folder, options.updates, options.rank)))
        return
    if options.system:
        print(json.dumps((SYSTEMS | OTHERS)[options.system](options.folder, options.updates)))
        return
    from bridge_ray.inference import numerics

    updates, repeats = options.updates or (WARM + 5 if options.quick else WARM + 20), 1 if options.quick else 3
    found, resumes = measure(updates, repeats)
    rates = {name: [round(run["tokens"] / run["seconds"], 1) for run in runs] for name, runs in found.items()}
    result = {
        "ratios": ratios(found),
        "loss_difference": dict(differences(found)),
        "tokens_per_second": rates,
        "cores": {name: median_cores(found[name]) for name in ("ours_2", "deepspeed_2")},
        "resume": {name: round(statistics.median(run[name] for run in resumes), 2) for name in resumes[0]},
        "precision": numerics.precision("auto", 0),
        "updates": updates,
        "repeats": repeats,
        "machine": {"cores": os.cpu_count(), "system": platform.system(), "processor": platform.machine()},
        "versions": {name: version(name) for name in ("ray", "torch", "transformers", "deepspeed")},
    }
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
