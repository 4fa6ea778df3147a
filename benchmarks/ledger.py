"""Claim: the ledger is never what a purchase waits for.

pairs_per_s_local, pairs_per_s_s3: reserve/settle pairs per second that one process writes, durably, with group commit,
to a local disk and to an S3 server over real HTTP (moto's, which answers some 70 requests a second itself).
rate_utilisation: the share of an allowed request rate that a walk uses, ledger, claims and answers included, of a
stand-in teacher that takes 100 ms for an answer and allows 600 requests a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from bridge_ray import config
from bridge_ray.objects import Store, open_store
from bridge_ray.teacher import standin
from bridge_ray.teacher.asks import asks
from bridge_ray.teacher.buy import Settings, buy
from bridge_ray.teacher.client import Client
from bridge_ray.teacher.ledger import Account, Cap

IN_FLIGHT = 512  # pairs at once
RPM, LATENCY = 600, 0.1
PRICE = config.Price(input=1.0, output=10.0)


async def pairs_per_second(store: Store, name: str, pairs: int) -> float:
    account = await Account(store, name, Cap(pairs, pairs * 0.01), buyer="b", run="benchmark", model="m").open()
    numbers = iter(range(pairs))

    async def writer() -> None:
        for number in numbers:
            query = await account.reserve(f"{number:064x}", 0.01)
            assert query is not None
            await account.settle(query, 0.005, 100, 50)

    start = time.perf_counter()
    await asyncio.gather(*[writer() for _ in range(IN_FLIGHT)])
    return pairs / (time.perf_counter() - start)


async def utilisation(base_url: str, store: Store, name: str, queries: int) -> float:
    """Share of the allowed rate; the first query leaves at once, so ``queries`` of them take one interval less."""
    ranking = [_question(number, name) for number in range(queries)]
    account = Account(store, name, Cap(queries), buyer="b", run="benchmark", model="m")
    teacher = config.Teacher(model="m", max_tokens=64, price=PRICE)
    settings = Settings(partial(asks, provider="standin:benchmark", teacher=teacher), PRICE, concurrency=16)
    start = time.perf_counter()
    async with Client(base_url, "none", "m", max_tokens=64, rpm=RPM) as client:
        bought = await buy(ranking, client, store, account, queries, settings, lambda counters: None)
    seconds = time.perf_counter() - start - LATENCY
    assert bought.bought == queries, bought.bought
    return (queries - 1) / seconds / (RPM / 60)


def _question(number: int, name: str) -> dict[str, Any]:
    text = f"What is {number} plus {number} in {name}?"
    return {"id": number, "question": text, "context": "", "options": [], "answer": None, "answer_type": "number"}


@contextmanager
def s3_store() -> Iterator[str]:
    """A bucket of a moto server in this machine's loopback; yields its URL."""
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
    }
    try:
        boto3.client("s3", region_name="us-east-1", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).create_bucket(
            Bucket="bench"
        )
        yield "s3://bench/teacher"
    finally:
        server.stop()


def measure(quick: bool) -> dict[str, list[float]]:
    local, remote, queries, repeats = (4_000, 400, 60, 3) if quick else (50_000, 4_000, 300, 3)
    found: dict[str, list[float]] = {"pairs_per_s_local": [], "pairs_per_s_s3": [], "rate_utilisation": []}
    with tempfile.TemporaryDirectory() as folder, s3_store() as url:
        for repeat in range(repeats):
            found["pairs_per_s_local"].append(
                asyncio.run(pairs_per_second(open_store(folder), f"r{repeat}", local)),
            )
            found["pairs_per_s_s3"].append(asyncio.run(pairs_per_second(open_store(url), f"r{repeat}", remote)))
        with standin.running("expert", latency=LATENCY, rpm=RPM) as base_url:
            for repeat in range(repeats):
                found["rate_utilisation"].append(
                    asyncio.run(utilisation(base_url, open_store(folder), f"u{repeat}", queries))
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="a minute")
    options = parser.parse_args()
    found = measure(options.quick)
    result = {
        "ratios": {name: round(statistics.median(values), 3) for name, values in found.items()},
        "values": {name: [round(value, 3) for value in values] for name, values in found.items()},
        "machine": {"cpus": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"},
        "versions": {name: version(name) for name in ("bridge-ray", "obstore", "openai", "moto")}
        | {"python": sys.version.split()[0]},
        "quick": options.quick,
    }
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result["ratios"].items():
            print(f"{name:<20} {value}")


if __name__ == "__main__":
    main()
