"""Claim: a check of the reasoning turns away rationales that are wrong, and few that are right.

A TA (``--model``; as it comes, the embedded one; in earnest what a run's *train_ta* has made) writes ``--samples`` + 1
rationales and a hinted one for generated questions, and each rule of ``RULES`` chooses from the same ones. Per rule,
over all rows and by type of answer: the rows that it keeps a rationale for, and which share of those is the expert's
word for word ("expert") and which is certainly wrong ("wrong"); what is neither is right in other words, or wrong
unseen. Beside it the rationales that the answer alone would keep and the rule does not ("turned_away"), judged alike.
"hinted" is the rows that the default rule keeps a hinted rationale for, which "default" says nothing of.

Certainly wrong: the rationale has a number that neither the question nor any of the expert's rationales has, or lacks
one that all of the expert's have and the question has not. That sees wrong and missing sums. It cannot see the right
numbers used wrongly, wrong comparisons ("12 is less than 10"), or wrong facts in words. A TA that was taught in the
expert's words, as a run's is, seldom finds right ones of its own.
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
from bridge_ray.answers import prompts
from bridge_ray.answers.extract import split_rationale
from bridge_ray.config import TEXT_CHECKS, Amplify, Check, Corpus, Engine
from bridge_ray.corpus.generated import read, solve
from bridge_ray.inference.engine import Ask, Sample

NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
ENGINE = Engine(max_num_seqs=128, max_model_len=512, kv_cache_gb=2, enforce_eager=True)
ANSWER, HINTED = "answer", "hinted"  # by the answer alone; and the route of what only the hint has brought
RULES: dict[str, dict[str, Any]] = {
    ANSWER: {"checks": ()},
    **{check: {"checks": (check,)} for check in get_args(Check)},
    "default": {"checks": TEXT_CHECKS},
    HINTED: {"checks": TEXT_CHECKS, "hint": True},
}


@dataclass(frozen=True)
class Judged:
    """A row: what each rule keeps of its replies, and what that is: expert, wrong or other. Without rules that keep
    nothing."""

    answer_type: str
    kept: Mapping[str, str]  # rule -> rationale
    verdicts: Mapping[str, str]  # rule -> verdict


def rows(number: int, templates: int | None, seed: int) -> list[dict[str, Any]]:
    corpus = Corpus(source="generated", templates=templates, train=number, test=0)
    return [fields(example) for example in read(corpus, seed)]


def fields(example: Any) -> dict[str, Any]:
    return {name: getattr(example, name) for name in type(example).__slots__}


def numbers(text: str) -> set[str]:
    return {found.replace(",", "") for found in NUMBER.findall(text)}


def words(text: str) -> str:
    return " ".join(text.split())


def oracle(row: Mapping[str, Any]) -> Callable[[str], str]:
    """The verdict on a rationale of the row."""
    question = row["question"] + "".join(f"\n{chr(65 + i)}) {option}" for i, option in enumerate(row["options"]))
    solution = solve(question)
    assert solution is not None
    experts = {words(style) for style in solution.rationales}
    styles = [numbers(style) for style in solution.rationales]
    steps = {str(step) for step in range(1, 10)}  # "Step 1", or a count
    known = set.union(numbers(question), *styles) | steps
    needed = set.intersection(*styles) - numbers(question)

    def verdict(rationale: str) -> str:
        if words(rationale) in experts:
            return "expert"
        return "wrong" if numbers(rationale) - known or not needed <= numbers(rationale) else "other"

    return verdict


class Replay:
    """An engine for one row that gives the replies that were drawn, and passes re-answers on to the real one."""

    def __init__(self, row: Mapping[str, Any], plain: Sequence[Sample], hinted: Sample, ask: Ask):
        self._hint, self._plain, self._hinted, self._ask = prompts.hinted(row), list(plain), hinted, ask

    async def __call__(self, messages: Sequence[dict[str, str]], **options: Any) -> list[Sample]:
        if messages[-1]["role"] == "assistant":
            return await self._ask(messages, **options)
        if list(messages) == self._hint:
            return [self._hinted]
        drawn = options.get("n", 1)
        taken, self._plain = self._plain[:drawn], self._plain[drawn:]
        return taken


async def judge(row: Mapping[str, Any], settings: Amplify, ask: Ask) -> Judged:
    drawing = AmplifyCourse(settings.model_copy(update={"checks": ("likeliest",)}), "ta", "")
    plain = await drawing._all(row, ask, Tried())
    hinted = (await ask(prompts.hinted(row), max_tokens=settings.max_tokens))[0]
    kept = {}
    for name, fields in RULES.items():
        course = AmplifyCourse(settings.model_copy(update=fields), "ta", "")
        record = await course(row, Replay(row, plain, hinted, ask))
        wanted = "ta_hinted" if name == HINTED else "ta"
        if record["source"] == wanted:
            kept[name] = split_rationale(record["rationale"])
    verdict = oracle(row)
    return Judged(row["answer_type"], kept, {name: verdict(rationale) for name, rationale in kept.items()})


def summary(judged: Sequence[Judged]) -> dict[str, Any]:
    return {name: rule(judged, name) | {"by_answer_type": by_type(judged, name)} for name in RULES}


def by_type(judged: Sequence[Judged], name: str) -> dict[str, Any]:
    kinds = sorted({one.answer_type for one in judged})
    return {kind: rule([one for one in judged if one.answer_type == kind], name) for kind in kinds}


def rule(judged: Sequence[Judged], name: str) -> dict[str, Any]:
    kept = [one.verdicts[name] for one in judged if name in one.kept]
    found = {"rows": len(judged), "kept": len(kept)} | shares(kept)
    if name in (ANSWER, HINTED):
        return found
    lost = [one.verdicts[ANSWER] for one in judged if ANSWER in one.kept and one.kept[ANSWER] != one.kept.get(name)]
    return found | {"turned_away": {"rationales": len(lost)} | shares(lost)}


def shares(verdicts: Sequence[str]) -> dict[str, float | None]:
    said = ("expert", "wrong")
    return {name: round(verdicts.count(name) / len(verdicts), 4) if verdicts else None for name in said}


async def measure(model: str, asked: Sequence[Mapping[str, Any]], settings: Amplify, seed: int) -> dict[str, Any]:
    from bridge_ray.inference.generate import Served, load_engine

    engine = load_engine(Served(model, seed=seed), ENGINE)
    began = time.monotonic()
    try:
        judged = await asyncio.gather(*[judge(row, settings, engine.ask) for row in asked])
    finally:
        engine.shutdown()
    return {"rules": summary(judged), "seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2-135m", help="a model that *train_ta* has left, or any")
    parser.add_argument("--rows", type=int, default=540)
    parser.add_argument("--templates", type=int, help="of each domain, as in the corpus that the TA was taught with")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="on one line")
    options = parser.parse_args()
    settings = Amplify(samples=options.samples, max_tokens=96, hint=False, checks=())
    asked = rows(options.rows, options.templates, options.seed)
    found = {"model": options.model, "seed": options.seed, "machine": platform.machine()}
    found |= {"rows": len(asked), "samples": options.samples, "templates": options.templates}
    found |= asyncio.run(measure(options.model, asked, settings, options.seed))
    print(json.dumps(found, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
