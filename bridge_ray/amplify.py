"""Stage *amplify*: the refined TA writes a verified rationale for every row of the corpus, free of API cost.

Each row runs its own course. Open and numeric answers stop at the first reply that matches the gold answer; for
choice and boolean, where a guess matches too easily, all replies are drawn and the gold answer must be their
majority. If nothing holds, one hinted try that may not mention the hint; else the label alone is kept.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bridge_ray import records, storage
from bridge_ray.answers import prompts
from bridge_ray.answers.extract import extract, split_rationale
from bridge_ray.answers.verify import chance, majority, matches
from bridge_ray.config import TA, Amplify
from bridge_ray.inference.engine import Ask, Sample
from bridge_ray.inference.generate import Served, generate
from bridge_ray.stage import Stage, Work

# A hinted rationale that talks about being told is no rationale.
MENTIONS_HINT = re.compile(r"\b(hint\w*|told|given answer|correct answer|was said|provided answer)\b", re.IGNORECASE)


def stage(settings: Amplify, ta: TA, seed: int, corpus: Stage, teach: Stage, train_ta: Stage) -> Stage:
    identity = {
        "amplify": settings.model_dump(mode="json", exclude={"max_error_fraction"}),
        "serve": ta.serve,
        "seed": seed,
    }
    inputs = {"corpus": corpus, "teach": teach, "train_ta": train_ta}
    model_hash = train_ta.fingerprint
    return Stage(
        "amplify", 1, identity, inputs, partial(run, settings=settings, ta=ta, model_hash=model_hash, seed=seed)
    )


def run(work: Work, settings: Amplify, ta: TA, model_hash: str, seed: int) -> dict[str, Any]:
    corpus = storage.read_table(storage.join(work.inputs["corpus"], "train"))
    bought = verified(storage.read_table(storage.join(work.inputs["teach"], "rationales.parquet")))
    source = storage.join(work.out, "todo.parquet")
    todo = corpus.filter(pc.invert(pc.is_in(corpus["id"], bought["id"])))
    storage.write_table(source, todo)
    course = AmplifyCourse(settings, ta.model, model_hash)
    written = generate(work, "amplify", source, _served(work, ta, seed), course, records.RATIONALE)
    rows = pa.concat_tables([bought, written]).sort_by("id")
    storage.write_table(storage.join(work.out, "rationales.parquet"), rows)
    counts = count_routes(rows, corpus.num_rows)
    if counts["errored"] > settings.max_error_fraction * corpus.num_rows:
        reasons = Counter(rows["error"].drop_null().to_pylist()).most_common(3)
        raise RuntimeError(f"amplify: {counts['errored']} of {corpus.num_rows} rows errored: {reasons}")
    return {
        "rows": counts,
        "tokens": pc.sum(written["tokens"]).as_py(),
        "attempts": pc.sum(written["attempts"]).as_py(),
        "keep": keep_rate(todo, written, settings),
    }


def verified(rationales: pa.Table) -> pa.Table:
    """The bought rationales that may be learnt from."""
    return rationales.filter(pc.fill_null(rationales["verified"], False))


def count_routes(rows: pa.Table, corpus_rows: int) -> dict[str, int]:
    """Rows by route; together they must be the corpus, each id once."""
    sources = Counter(rows["source"].to_pylist())
    counts = {"corpus": corpus_rows, **{route: sources[route] for route in records.ROUTES}, "errored": sources[None]}
    ids = len(set(rows["id"].to_pylist()))
    if not ids == rows.num_rows == corpus_rows == sum(counts.values()) - corpus_rows:
        raise RuntimeError(f"amplify: rows were lost or doubled: {counts}, {ids} distinct ids")
    return counts


def keep_rate(todo: pa.Table, written: pa.Table, settings: Amplify) -> dict[str, float]:
    """Share of rows that the un-hinted TA explained, and that share with chance taken out: (keep - c) / (1 - c).

    ``c`` is what blind guessing would keep under the same rule.
    """
    kept = sum(source == "ta" for source in written["source"].to_pylist())
    rate = kept / max(1, todo.num_rows)
    pairs = zip(todo["answer_type"].to_pylist(), todo["options"].to_pylist(), strict=True)
    c = sum(guess_rate(kind, len(options or ()), settings) for kind, options in pairs) / max(1, todo.num_rows)
    return {"ta": round(rate, 4), "by_chance": round(c, 4), "above_chance": round((rate - c) / (1 - c), 4)}


def guess_rate(answer_type: str, options: int, settings: Amplify) -> float:
    """Probability that the gold answer is the strict majority of blind guesses: exact for two classes, and for more
    the share that symmetry leaves when ties are ignored."""
    p = chance(answer_type, [""] * options)
    if p == 0.0 or settings.verify != "gold":
        return 0.0
    if p != 0.5:
        return p
    draws = settings.samples + 1
    return sum(math.comb(draws, right) for right in range(draws // 2 + 1, draws + 1)) / 2**draws


def _served(work: Work, ta: TA, seed: int) -> Served:
    trained = work.inputs["train_ta"]
    if ta.serve == "adapter":
        return Served(ta.model, storage.join(trained, "adapter"), seed)
    return Served(storage.join(trained, "model"), seed=seed)


@dataclass(frozen=True)
class AmplifyCourse:
    """One row's way to a verified rationale."""

    settings: Amplify
    model: str
    model_hash: str

    async def __call__(self, row: Mapping[str, Any], ask: Ask) -> dict[str, Any]:
        if self.settings.verify == "off":
            return await self._unverified(row, ask)
        if self.settings.verify == "self_consistency":
            return await self._self_consistent(row, ask)
        replies, kept = await (self._until_match(row, ask) if is_open(row) else self._by_majority(row, ask))
        if kept is not None:
            return self._record(row, replies, kept, "ta")
        if self.settings.hint:
            hinted = await self._ask(prompts.hinted(row), ask)
            replies = [*replies, *hinted]
            if self._right(row, hinted[0]) and not MENTIONS_HINT.search(hinted[0].text):
                return self._record(row, replies, hinted[0], "ta_hinted")
        return self._record(row, replies, None, "label_only")

    def failed(self, row: Mapping[str, Any], reason: str) -> dict[str, Any]:
        return self._record(row, [], None, None) | {"answer": None, "error": reason}

    async def _until_match(self, row: Mapping[str, Any], ask: Ask) -> tuple[list[Sample], Sample | None]:
        """Greedy, then samples one by one, to the first right one."""
        messages, replies = prompts.chat(prompts.REASON, row), []
        for attempt in range(self.settings.samples + 1):
            replies += await self._ask(messages, ask, temperature=self.settings.temperature if attempt else 0.0)
            if self._right(row, replies[-1]):
                return replies, replies[-1]
        return replies, None

    async def _by_majority(self, row: Mapping[str, Any], ask: Ask) -> tuple[list[Sample], Sample | None]:
        """All replies; the first right one if the gold answer is their majority."""
        replies = await self._all(row, ask)
        if majority([answer_of(row, reply) for reply in replies]) != row["answer"]:
            return replies, None
        return replies, next((reply for reply in replies if self._right(row, reply)), None)

    async def _self_consistent(self, row: Mapping[str, Any], ask: Ask) -> dict[str, Any]:
        """Without a label: the majority's answer is taken for right; without a majority the row is not learnt from."""
        replies = await self._all(row, ask)
        agreed = majority([answer_of(row, reply) for reply in replies])
        kept = next((r for r in replies if agreed is not None and usable(r) and answer_of(row, r) == agreed), None)
        if kept is None:
            return self._record(row, replies, None, "label_only")
        return self._record({**row, "answer": agreed}, replies, kept, "ta")

    async def _unverified(self, row: Mapping[str, Any], ask: Ask) -> dict[str, Any]:
        """The control: the greedy reply as it is, right or wrong."""
        replies = await self._ask(prompts.chat(prompts.REASON, row), ask)
        answer = answer_of(row, replies[0])
        if answer is None or not usable(replies[0]):
            return self._record(row, replies, None, "label_only")
        return self._record({**row, "answer": answer}, replies, replies[0], "ta") | {"verified": False}

    async def _all(self, row: Mapping[str, Any], ask: Ask) -> list[Sample]:
        messages = prompts.chat(prompts.REASON, row)
        replies = await self._ask(messages, ask)
        if self.settings.samples:
            replies += await self._ask(messages, ask, temperature=self.settings.temperature, n=self.settings.samples)
        return replies

    async def _ask(
        self, messages: Sequence[prompts.Message], ask: Ask, temperature: float = 0.0, n: int = 1
    ) -> list[Sample]:
        return await ask(messages, max_tokens=self.settings.max_tokens, temperature=temperature, n=n)

    def _right(self, row: Mapping[str, Any], reply: Sample) -> bool:
        return usable(reply) and matches(answer_of(row, reply), row["answer"], row["answer_type"])

    def _record(
        self, row: Mapping[str, Any], replies: Sequence[Sample], kept: Sample | None, source: str | None
    ) -> dict[str, Any]:
        return {
            "rationale": split_rationale(kept.text) if kept else None,
            "answer": row["answer"],
            "source": source,
            "verified": kept is not None,
            "attempts": len(replies),
            "tokens": sum(reply.tokens for reply in replies),
            "model": self.model,
            "model_hash": self.model_hash,
            "cost_usd": 0.0,
            "error": None,
        }


def is_open(row: Mapping[str, Any]) -> bool:
    """Whether a guess is unlikely to be right."""
    return row["answer_type"] in ("number", "text")


def usable(reply: Sample) -> bool:
    """Whether the reply came to its end and has a rationale before its one answer.

    A reply that gives two answers contradicts itself or rambles; its last line may be right by luck.
    """
    rationale = split_rationale(reply.text)
    return reply.finished and bool(rationale) and split_rationale(rationale) == rationale


def answer_of(row: Mapping[str, Any], reply: Sample) -> str | None:
    return extract(reply.text, row["answer_type"], row["options"])
