"""Claim: a check of the reasoning turns away rationales that are wrong, and few that are right.

A TA (``--model``; as it comes, the embedded one; in earnest what a run's *train_ta* has made) writes ``--samples`` + 1
rationales for generated questions. Per check: of the rationales that answer-only verification keeps, the share that the
check turns away ("turned_away"), and of those the share that is wrong ("wrong_of_turned"), beside the share of all kept
that is wrong ("wrong") and of those that the check leaves ("wrong_of_left"). For likeliest, "turned away" are the kept
rationales for which it takes another; "wrong_of_left" is of what it takes.

Wrong, here: the rationale has a number that neither the question nor any of the expert's rationales has, or lacks one
that all of the expert's have and the question has not. That sees wrong and missing sums. It cannot see the right
numbers used wrongly, wrong comparisons ("12 is less than 10"), or wrong facts in words, so it calls too few wrong; and
of what comparisons turns away, "wrong_of_turned" says next to nothing. It calls a rationale wrong that is right by
another way than any of the expert's. Questions whose expert needs no number are judged by foreign numbers only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from bridge_ray.amplify import AmplifyCourse, Tried
from bridge_ray.answers.extract import split_rationale
from bridge_ray.config import Amplify, Check, Corpus, Engine
from bridge_ray.corpus.generated import read, solve
from bridge_ray.inference.engine import Ask, Sample

NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
ENGINE = Engine(max_num_seqs=128, max_model_len=512, kv_cache_gb=2, enforce_eager=True)


@dataclass(frozen=True)
class Judged:
    """A row: whether the rationale that is kept of its replies is wrong; None where none is kept."""

    plain: bool | None  # by the answer only
    checked: Mapping[str, bool | None]  # with each check; it may keep a later reply than the first right one
    same: Mapping[str, bool]  # whether the check keeps the same rationale


def rows(number: int, seed: int) -> list[dict[str, Any]]:
    return [fields(example) for example in read(Corpus(source="generated", train=number, test=0), seed)]


def fields(example: Any) -> dict[str, Any]:
    return {name: getattr(example, name) for name in type(example).__slots__}


def numbers(text: str) -> set[str]:
    return {found.replace(",", "") for found in NUMBER.findall(text)}


def oracle(row: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether a rationale of the row is wrong."""
    question = row["question"] + "".join(f"\n{chr(65 + i)}) {option}" for i, option in enumerate(row["options"]))
    solution = solve(question)
    assert solution is not None
    styles = [numbers(style) for style in solution.rationales]
    steps = {str(step) for step in range(1, 10)}  # "Step 1", or a count
    known = set.union(numbers(question), *styles) | steps
    needed = set.intersection(*styles) - numbers(question)
    return lambda rationale: bool(numbers(rationale) - known) or not needed <= numbers(rationale)


class Replay:
    """An engine for one row that gives the replies that were drawn, and passes re-answers on to the real one."""

    def __init__(self, replies: Sequence[Sample], ask: Ask):
        self._replies, self._ask = list(replies), ask

    async def __call__(self, messages: Sequence[dict[str, str]], **options: Any) -> list[Sample]:
        if messages[-1]["role"] == "assistant":
            return await self._ask(messages, **options)
        drawn = options.get("n", 1)
        taken, self._replies = self._replies[:drawn], self._replies[drawn:]
        return taken


async def judge(row: Mapping[str, Any], settings: Amplify, ask: Ask) -> Judged:
    wrong = oracle(row)
    drawing = AmplifyCourse(settings.model_copy(update={"checks": ("likeliest",)}), "ta", "")
    replies = await drawing._all(row, ask, Tried())
    plain = await kept(row, settings, replies, ask)
    by_check = {
        check: await kept(row, settings.model_copy(update={"checks": (check,)}), replies, ask)
        for check in get_args(Check)
    }
    return Judged(
        None if plain is None else wrong(plain),
        {check: None if rationale is None else wrong(rationale) for check, rationale in by_check.items()},
        {check: rationale == plain for check, rationale in by_check.items()},
    )


async def kept(row: Mapping[str, Any], settings: Amplify, replies: Sequence[Sample], ask: Ask) -> str | None:
    """The rationale that is kept of the replies under the settings, without a hint."""
    record = await AmplifyCourse(settings, "ta", "")(row, Replay(replies, ask))
    rationale: str | None = record["rationale"]
    return None if rationale is None else split_rationale(rationale)


def summary(judged: Sequence[Judged]) -> dict[str, Any]:
    plain = [one for one in judged if one.plain is not None]
    found: dict[str, Any] = {"rows": len(judged), "kept": len(plain), "wrong": share(one.plain for one in plain)}
    for check in get_args(Check):
        turned = [one for one in plain if not one.same[check]]
        left = [one.checked[check] for one in plain if one.checked[check] is not None]
        found[check] = {
            "turned_away": round(len(turned) / len(plain), 4) if plain else None,
            "wrong_of_turned": share(one.plain for one in turned),
            "kept": len(left),
            "wrong_of_left": share(left),
        }
    return found


def share(values: Any) -> float | None:
    found = list(values)
    return round(sum(map(bool, found)) / len(found), 4) if found else None


async def measure(model: str, number: int, settings: Amplify, seed: int) -> dict[str, Any]:
    from bridge_ray.inference.generate import Served, load_engine

    engine = load_engine(Served(model, seed=seed), ENGINE)
    began = time.monotonic()
    try:
        judged = await asyncio.gather(*[judge(row, settings, engine.ask) for row in rows(number, seed)])
    finally:
        engine.shutdown()
    return summary(judged) | {"seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2-135m", help="a model that *train_ta* has left, or any")
    parser.add_argument("--rows", type=int, default=540)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="on one line")
    options = parser.parse_args()
    settings = Amplify(samples=options.samples, max_tokens=96, hint=False, checks=())
    found = {"model": options.model, "seed": options.seed, "machine": platform.machine()}
    found |= asyncio.run(measure(options.model, options.rows, settings, options.seed))
    print(json.dumps(found, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
