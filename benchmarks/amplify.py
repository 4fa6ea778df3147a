"""Claim: amplification costs what the engine costs.

Same prompts, same greedy replies of at most 96 tokens, same engine settings, the embedded model:
vs_async_llm, vs_llm_generate: tokens/s of a whole amplify stage (Ray Data, actors, Parquet, compaction), counted from
the moment its engine is loaded, over those of vLLM's AsyncLLM and LLM.generate alone.
vs_ray_data_llm: rows/s over those of the processor in ray.data.llm; both from the extra time that extra rows take, as
the processor does not say when its engine is loaded. With --quick both from all rows, their engine's start included.
verified_per_s_vs_fixed_k: verified rationales per second of adaptive stopping over those of drawing all M + 1 replies
and filtering with the same rule, on open answers and without a hint; bound is (M + 1) / E[attempts]. The embedded model
is right too seldom, untrained, to be timed by that, so the rule says yes to a third of its replies, by their hash.
engine_share: of the machine's cores, what the engine's process got while its replies were timed; "cores" lists who
got the others, which a CPU engine has to share with Ray's own processes.
overhead_ms_per_row, slope, driver_mb_growth: with an engine that answers at once, so that all there is to measure is
ours: milliseconds of one core per row at the largest size, starting Ray included, the log-log slope of time against
rows, both from the median time of each size, and the most that the driver's memory grew by.
cold_start_s: from nothing to a loaded engine, kept apart from all of the above.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine.cores import Cores
from rich.console import Console

from bridge_ray import amplify, records, storage
from bridge_ray.answers import prompts
from bridge_ray.config import Amplify, Corpus, Engine, Training
from bridge_ray.inference.engine import Sample
from bridge_ray.stage import Work

MODEL = "embedded:smollm2-135m"
TOKENS = 96
AT_ONCE, FEW_AT_ONCE = 128, 8  # sequences; --quick has rows for the fewer, so that they fill the engine several times
NAMED = ("ours", "async_llm", "llm_generate")  # those that say when their engine is loaded
UNVERIFIED = Amplify(verify="off", max_tokens=TOKENS)
ADAPTIVE = Amplify(samples=3, hint=False, checks=(), max_tokens=TOKENS)


def engine_of(at_once: int) -> Engine:
    return Engine(max_num_seqs=at_once, max_model_len=512, kv_cache_gb=2, enforce_eager=True)


# the corpus


def write_corpus(folder: Path, rows: int, open_only: bool = False) -> None:
    """Generated questions as the stage *corpus* leaves them, the same for every system."""
    import pyarrow as pa

    from bridge_ray.corpus.generated import read

    made = read(Corpus(source="generated", train=rows * (6 if open_only else 1), test=0), seed=0)
    wanted = [example for example in made if not open_only or example.answer_type in ("number", "text")][:rows]
    assert len(wanted) == rows
    columns = {name: [getattr(example, name) for example in wanted] for name in type(wanted[0]).__slots__}
    columns |= {"id": list(range(rows)), "split": ["train"] * rows}
    storage.write_table(str(folder / "train" / "rows.parquet"), pa.table(columns, schema=records.EXAMPLE))


def messages(folder: Path) -> list[list[prompts.Message]]:
    rows = storage.read_table(str(folder / "train")).to_pylist()
    return [prompts.chat(prompts.REASON, row) for row in rows]


def work_in(folder: Path, corpus: Path, engine: Engine) -> Work:
    from bridge_ray.progress import Progress

    progress = Progress(Console(quiet=True))
    return Work("amplify", "benchmark", {"corpus": str(corpus)}, str(folder), engine, Training(), progress, "x")


# the systems: each prints {"seconds", "tokens", …} from a process of its own


@dataclass(frozen=True)
class Timed:
    """Loads the engine, and leaves the moment at which that was done in a file."""

    file: str

    def __call__(self, served: Any, settings: Engine) -> Any:
        from bridge_ray.inference.generate import load_engine

        engine = load_engine(served, settings)
        Path(self.file).write_text(str(time.time()))
        return engine


class ThirdRight(amplify.AmplifyCourse):
    """A rule that a third of the replies pass, whatever they say."""

    def _right(self, row: Mapping[str, Any], reply: Sample) -> bool:
        return zlib.crc32(reply.text.encode()) % 3 == 0


@dataclass(frozen=True)
class FixedK:
    """All M + 1 replies at once, then the same rule."""

    course: amplify.AmplifyCourse

    async def __call__(self, row: Mapping[str, Any], ask: Any) -> dict[str, Any]:
        tried = amplify.Tried()
        replies = await self.course._all(row, ask, tried)
        kept = next((reply for reply in replies if self.course._right(row, reply)), None)
        return self.course._record(row, tried, kept, "ta" if kept else "label_only")

    def failed(self, row: Mapping[str, Any], reason: str) -> dict[str, Any]:
        return self.course.failed(row, reason)


def ours(corpus: Path, engine: Engine, course: Any) -> dict[str, Any]:
    from bridge_ray.inference import local_ray
    from bridge_ray.inference.generate import Served, courses

    asked = time.time()
    local_ray.start()
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        work = work_in(Path(folder) / "out", corpus, engine)
        pool = courses(work, Served(MODEL), course, records.RATIONALE, Timed(str(ready)))
        known = {str(corpus / "train"): ("domain", "answer_type", "options")}
        cores, began = Cores(ready.exists), time.time()
        found = amplify.explain(work, course_settings(course), pool, known, None)
        ended, loaded = time.time(), float(ready.read_text())
    verified = found["rows"]["ta"]
    facts = {"tokens": found["tokens"], "attempts": found["attempts"], "verified": verified}
    timed = {"seconds": ended - loaded, "cold": loaded - asked, "whole": ended - began}
    return facts | timed | {"cores": cores.used()}


def course_settings(course: Any) -> Amplify:
    settings: Amplify = getattr(course, "course", course).settings
    return settings


def async_llm(corpus: Path, settings: Engine) -> dict[str, Any]:
    from bridge_ray.inference.engine import Engine as Bare
    from bridge_ray.inference.models import resolve

    began = time.time()
    asks = messages(corpus)

    async def all_of_them(ready: Path) -> tuple[float, list[list[Sample]]]:
        engine = Bare(resolve(MODEL), None, settings, 0)
        loaded = time.time()
        ready.touch()
        replies = await asyncio.gather(*[engine.ask(ask, max_tokens=TOKENS) for ask in asks])
        return loaded, list(replies)

    with tempfile.TemporaryDirectory() as folder:
        cores = Cores((Path(folder) / "ready").exists)
        loaded, replies = asyncio.run(all_of_them(Path(folder) / "ready"))
        ended = time.time()
    tokens = sum(sample.tokens for samples in replies for sample in samples)
    timed = {"seconds": ended - loaded, "cold": loaded - began}
    return {"tokens": tokens, **timed, "cores": cores.used()}


def llm_generate(corpus: Path, settings: Engine) -> dict[str, float]:
    from transformers import AutoTokenizer

    from bridge_ray.inference import engine as ours_engine
    from bridge_ray.inference.models import resolve

    began = time.time()
    ours_engine._environment(settings)
    from vllm import LLM, SamplingParams

    model = resolve(MODEL)
    arguments = ours_engine._arguments(model, None, settings, 0)
    engine = LLM(**{name: value for name, value in arguments.items() if name != "enable_log_requests"})
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = time.time()
    ids = [{"prompt_token_ids": prompts.prompt_ids(tokenizer, ask)} for ask in messages(corpus)]
    outputs = engine.generate(ids, SamplingParams(temperature=0.0, max_tokens=TOKENS), use_tqdm=False)
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    return {"tokens": tokens, "seconds": time.time() - loaded, "cold": loaded - began}


def ray_data_llm(corpus: Path, settings: Engine) -> dict[str, float]:
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    from bridge_ray.inference import engine as ours_engine
    from bridge_ray.inference import local_ray
    from bridge_ray.inference.models import resolve

    ours_engine._environment(settings)
    local_ray.start()
    model = resolve(MODEL)
    arguments = ours_engine._arguments(model, None, settings, 0)
    arguments = {name: value for name, value in arguments.items() if name not in ("model", "enable_log_requests")}
    environment = {name: os.environ[name] for name in os.environ if name.startswith(("VLLM_", "OMP_"))}
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=model,
            engine_kwargs=arguments,
            runtime_env={"env_vars": environment},
            concurrency=1,
            batch_size=64,
            max_concurrent_batches=8,
            log_engine_metrics=False,
            placement_group_config={"bundle_per_worker": {"CPU": 1}},
        ),
        preprocess=lambda row: {
            "messages": list(row["messages"]),
            "sampling_params": {"temperature": 0.0, "max_tokens": TOKENS},
        },
        postprocess=lambda row: {"text": row["generated_text"], "tokens": row["num_generated_tokens"]},
    )
    began = time.time()
    rows = ray.data.from_items([{"messages": ask} for ask in messages(corpus)])
    with tempfile.TemporaryDirectory() as folder:
        processor(rows).write_parquet(folder)
        whole = time.time() - began
        tokens = sum(storage.read_table(folder)["tokens"].to_pylist())
    return {"tokens": tokens, "whole": whole}


SYSTEMS: dict[str, Callable[[Path, Engine], dict[str, Any]]] = {
    "ours": lambda corpus, engine: ours(corpus, engine, amplify.AmplifyCourse(UNVERIFIED, MODEL, "")),
    "async_llm": async_llm,
    "llm_generate": llm_generate,
    "ray_data_llm": ray_data_llm,
    "adaptive": lambda corpus, engine: ours(corpus, engine, ThirdRight(ADAPTIVE, MODEL, "")),
    "fixed_k": lambda corpus, engine: ours(corpus, engine, FixedK(ThirdRight(ADAPTIVE, MODEL, ""))),
}


# with an engine that answers at once


@dataclass(frozen=True)
class Instant:
    """An engine that is always right, without a model."""

    def __call__(self, served: Any, settings: Engine) -> Instant:
        return self

    async def ask(self, messages: Any, *, max_tokens: int, n: int = 1, **_: Any) -> list[Sample]:
        first, second = messages[-1]["content"].removeprefix("What is ").removesuffix("?").split(" plus ")
        answer = int(first) + int(second)
        return [Sample(f"{first} and {second} make {answer}.\nAnswer: {answer}", 12, math.nan, True)] * n

    def shutdown(self) -> None:
        pass


def write_sums(folder: Path, rows: int, at_once: int = 100_000) -> None:
    import pyarrow as pa

    for start in range(0, rows, at_once):
        ids = range(start, min(rows, start + at_once))
        columns = {
            "id": list(ids),
            "key": [str(number) for number in ids],
            "question": [f"What is {number} plus {number % 97}?" for number in ids],
            "context": [""] * len(ids),
            "options": [[]] * len(ids),
            "answer": [str(number + number % 97) for number in ids],
            "answer_type": ["number"] * len(ids),
            "domain": ["sums"] * len(ids),
            "split": ["train"] * len(ids),
        }
        table = pa.table(columns, schema=records.EXAMPLE)
        storage.write_table(str(folder / "train" / f"part-{start:09d}.parquet"), table)


def overhead(rows: int) -> dict[str, float]:
    """Seconds of a warm stage over ``rows`` rows, and megabytes that this process grew by meanwhile."""
    import psutil

    from bridge_ray.inference import local_ray
    from bridge_ray.inference.generate import Served, courses

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sums(folder / "small", 1000)
        write_sums(folder / "corpus", rows)
        local_ray.start()
        course = amplify.AmplifyCourse(Amplify(checks=()), "instant", "")

        def stage(corpus: str) -> float:
            work = work_in(folder / f"out-{corpus}", folder / corpus, Engine(replicas=os.cpu_count() or 1))
            pool = courses(work, Served("instant"), course, records.RATIONALE, Instant())
            known = {str(folder / corpus / "train"): ("domain", "answer_type", "options")}
            began = time.perf_counter()
            found = amplify.explain(work, Amplify(checks=()), pool, known, None)
            assert found["rows"]["ta"] == found["rows"]["corpus"]
            return time.perf_counter() - began

        stage("small")  # Ray's workers and this process's imports are there from here on
        process, stop = psutil.Process(), threading.Event()
        before = process.memory_info().rss
        peak = [before]

        def watch() -> None:
            while not stop.wait(0.2):
                peak[0] = max(peak[0], process.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        seconds = stage("corpus")
        stop.set()
        watcher.join()
    return {"rows": rows, "seconds": seconds, "driver_mb": (peak[0] - before) / 1e6}


# all of it


def alone(*arguments: object) -> dict[str, Any]:
    """What this file prints in a process of its own, so that every system begins with a machine to itself."""
    command = [sys.executable, __file__, *(str(word) for word in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr[-3000:]}")
    # Ray writes what its workers say into the same stream.
    found: dict[str, Any] = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    return found


def median(values: list[float]) -> float:
    return statistics.median(values)


def few(rows: int) -> int:
    """Of the shorter of two runs whose difference is taken."""
    return rows // 3


def open_rows(rows: int, quick: bool) -> int:
    return rows // 2 if quick else rows


def compare(rows: int, quick: bool, repeats: int, say: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    """What each system printed, of every repeat, under its name and corpus."""
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "all", rows)
        write_corpus(folder / "few", few(rows))
        write_corpus(folder / "open", open_rows(rows, quick), open_only=True)
        runs = [("ours", "all"), ("async_llm", "all"), ("llm_generate", "all"), ("ray_data_llm", "all")]
        runs += [] if quick else [("ray_data_llm", "few"), ("ours", "few")]
        runs += [("adaptive", "open"), ("fixed_k", "open")]
        at_once = FEW_AT_ONCE if quick else AT_ONCE
        for repeat in range(repeats):
            for system, corpus in runs:
                result = alone("--system", system, "--corpus", folder / corpus, "--at-once", at_once)
                found.setdefault(f"{system}/{corpus}", []).append(result)
                say(f"{repeat + 1} of {repeats}: {system}/{corpus} {result}")
    return found


def grow(sizes: list[int], repeats: int, say: Callable[[str], None]) -> list[list[dict[str, Any]]]:
    """What each repeat of each size printed, size by size."""
    found: list[list[dict[str, Any]]] = [[] for _ in sizes]
    for repeat in range(repeats):
        for size, runs in zip(sizes, found, strict=True):
            runs.append(alone("--overhead", size))
            say(f"{repeat + 1} of {repeats}: {runs[-1]}")
    return found


def engine_ratios(systems: dict[str, Any], rows: int, quick: bool) -> dict[str, Any]:
    def rates(name: str, what: str = "tokens") -> list[float]:
        return [run[what] / run["seconds"] for run in systems[name]]

    def rows_per_second(system: str) -> list[float]:
        if quick:
            return [rows / run["whole"] for run in systems[f"{system}/all"]]
        pairs = zip(systems[f"{system}/all"], systems[f"{system}/few"], strict=True)
        return [(rows - few(rows)) / (longer["whole"] - shorter["whole"]) for longer, shorter in pairs]

    attempts = statistics.fmean(run["attempts"] for run in systems["adaptive/open"])
    bound = (ADAPTIVE.samples + 1) / (attempts / open_rows(rows, quick))
    mine = rates("ours/all")
    return {
        "vs_async_llm": spread(mine, rates("async_llm/all")),
        "vs_llm_generate": spread(mine, rates("llm_generate/all")),
        "vs_ray_data_llm": spread(rows_per_second("ours"), rows_per_second("ray_data_llm")),
        "verified_per_s_vs_fixed_k": spread(rates("adaptive/open", "verified"), rates("fixed_k/open", "verified")),
        "adaptive_bound": round(bound, 3),
        "engine_share": {name: engine_share(systems[f"{name}/all"]) for name in ("ours", "async_llm")},
    }


def own_cost(scale: list[list[dict[str, Any]]]) -> dict[str, float]:
    rows = [runs[0]["rows"] for runs in scale]
    seconds = [median([run["seconds"] for run in runs]) for runs in scale]
    cores = os.cpu_count() or 1
    return {
        "overhead_ms_per_row": round(1000 * seconds[-1] * cores / rows[-1], 4),
        "slope": round(math.log(seconds[-1] / seconds[0]) / math.log(rows[-1] / rows[0]), 3),
        "driver_mb_growth": round(max(run["driver_mb"] for runs in scale for run in runs), 1),
    }


def engine_share(runs: list[dict[str, Any]]) -> float:
    """Of all cores, the median over the runs."""
    cores = [sum(share for name, share in run["cores"].items() if "EngineCore" in name) for run in runs]
    return round(median(cores) / (os.cpu_count() or 1), 3)


def spread(ones: list[float], others: list[float]) -> dict[str, Any]:
    """Median and range of the ratios of runs that stood next to each other."""
    values = [one / other for one, other in zip(ones, others, strict=True)]
    return {"median": round(median(values), 3), "range": [round(min(values), 3), round(max(values), 3)]}


def measure(rows: int | None, quick: bool, repeats: int, sizes: list[int]) -> dict[str, Any]:
    """All that this file prints; without ``rows`` our own cost alone."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    systems = compare(rows, quick, repeats, say) if rows else {}
    scale = grow(sizes, repeats, say)
    return {
        "ratios": (engine_ratios(systems, rows, quick) if rows else {}) | own_cost(scale),
        "cold_start_s": {name: median([run["cold"] for run in systems[f"{name}/all"]]) for name in NAMED if systems},
        "rows": rows,
        "at_once": FEW_AT_ONCE if quick else AT_ONCE,
        "repeats": repeats,
        "systems": systems,
        "scale": scale,
        "machine": {"cores": os.cpu_count(), "system": platform.system(), "processor": platform.machine()},
        "versions": {name: version(name) for name in ("ray", "torch", "transformers", "pyarrow")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--quick", action="store_true", help="one repeat, few rows: six starts of an engine take most of it"
    )
    parser.add_argument("--repeats", type=int, help="3 by default")
    parser.add_argument("--rows", type=int, help="of the runs with a model; 768 by default")
    parser.add_argument("--only", choices=("own",), help="our own cost alone, without a model")
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help=argparse.SUPPRESS)
    parser.add_argument("--overhead", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.system:
        print(json.dumps(SYSTEMS[options.system](options.corpus, engine_of(options.at_once))))
        return
    if options.overhead:
        print(json.dumps(overhead(options.overhead)))
        return
    rows, repeats, sizes = (24, 1, [10_000, 30_000]) if options.quick else (768, 3, [10_000, 100_000, 1_000_000])
    rows, repeats = options.rows or rows, options.repeats or repeats
    result = measure(None if options.only else rows, options.quick, repeats, sizes)
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
