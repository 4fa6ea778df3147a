"""Stage *amplify*: the refined TA writes a verified rationale for every row of the corpus, free of API cost.

Each row runs its own course. Open and numeric answers stop at the first reply that matches the gold answer; for
choice and boolean, where a guess matches too easily, all replies are drawn and the gold answer must be their
majority. If nothing holds, one hinted try that may not mention the hint; else the label alone is kept.

``checks`` look at the reasoning of right replies. Bought rationales are not checked again, and hinted replies are not
ranked by likelihood: they were not drawn from the prompt that they are to be learnt with.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bridge_ray import records, storage
from bridge_ray.answers import prompts
from bridge_ray.answers.arithmetic import mistakes
from bridge_ray.answers.comparisons import misjudged
from bridge_ray.answers.conclusion import without_conclusion
from bridge_ray.answers.extract import extract, split_rationale
from bridge_ray.answers.options import misnamed
from bridge_ray.answers.verify import chance, majority, matches
from bridge_ray.config import TA, Amplify
from bridge_ray.inference import models
from bridge_ray.inference.compact import Summary
from bridge_ray.inference.engine import Ask, RowFault, Sample
from bridge_ray.inference.generate import Served, courses
from bridge_ray.inference.resumable import Pool, Rest, faults, resumable_map
from bridge_ray.stage import Stage, Work

# A hinted rationale that talks about being told is no rationale.
MENTIONS_HINT = re.compile(r"\b(hint\w*|told|given answer|correct answer|was said|provided answer)\b", re.IGNORECASE)

REANSWER_TOKENS = 16  # of a re-answer, beside those of the answer itself


def stage(
    settings: Amplify, ta: TA, seed: int, corpus: Stage, select: Stage, teach: Stage, train_ta: Stage | None
) -> Stage:
    """In a run: by the TA that *train_ta* has made, or without that by the TA as it is. The teacher's rationales stay
    for the rows that were bought."""
    inputs = {"corpus": corpus, "select": select, "teach": teach}
    if train_ta is None:
        model_hash, known = models.identity(ta.model), {"ta": models.identity(ta.model)}
    else:
        model_hash, known = train_ta.fingerprint, {}
        inputs["train_ta"] = train_ta
    work = partial(run, settings=settings, ta=ta, model_hash=model_hash, seed=seed)
    return Stage("amplify", _version(settings), _identity(settings, ta, seed) | known, inputs, work)


def stage_alone(settings: Amplify, ta: TA, seed: int, corpus: Stage, merged: Stage | None) -> Stage:
    """By a TA that is there already: ``ta.model``, with ``ta.adapter`` on it or in what *merge_ta* has made of both."""
    known = {"ta": models.identity(ta.model), "adapter": ta.adapter and models.identity(ta.adapter)}
    inputs = {"corpus": corpus} | ({"merge_ta": merged} if merged else {})
    work = partial(run_alone, settings=settings, ta=ta, model_hash=":".join(filter(None, known.values())), seed=seed)
    return Stage("amplify", _version(settings), _identity(settings, ta, seed) | known, inputs, work)


def _version(settings: Amplify) -> int:
    """3: no reasoning is no longer re-answered. 4 and 5: the hint says the option, too. Without that check, and without
    a hint, nothing has changed, so stages are found again."""
    return (3 if "reanswer" in settings.checks else 2) + (2 if settings.hint and settings.verify == "gold" else 0)


def _identity(settings: Amplify, ta: TA, seed: int) -> dict[str, Any]:
    """Without ``checks`` where there are none, so that what was made before there were any keeps its fingerprint."""
    unset = {"max_error_fraction"} | (set() if settings.checks else {"checks"})
    rule = settings.model_dump(mode="json", exclude=unset)
    return {"amplify": rule, "serve": ta.serve, "seed": seed}


def run(work: Work, settings: Amplify, ta: TA, model_hash: str, seed: int) -> dict[str, Any]:
    bought = verified(storage.read_table(storage.join(work.inputs["teach"], "rationales.parquet"))).sort_by("id")
    kept = storage.join(work.out, "bought.parquet")
    storage.write_table(kept, unchecked(bought, settings))
    course = AmplifyCourse(settings, ta.model, model_hash)
    pool = courses(work, _served(work, ta, seed), course, schema(records.RATIONALE, settings))
    known = {
        storage.join(work.inputs["corpus"], "train"): ("domain", "answer_type", "options"),
        storage.join(work.inputs["select"], "rows.parquet"): ("difficulty",),
    }
    return explain(work, settings, pool, known, Rest(bought["id"].to_numpy(), kept))


def _served(work: Work, ta: TA, seed: int) -> Served:
    """The TA that *train_ta* has made, merged or beside its adapter; the untaught one where that is no input."""
    trained = work.inputs.get("train_ta")
    if trained is None:
        return Served(ta.model, seed=seed)
    if ta.serve == "adapter":
        return Served(ta.model, storage.join(trained, "adapter"), seed)
    return Served(storage.join(trained, "model"), seed=seed)


def run_alone(work: Work, settings: Amplify, ta: TA, model_hash: str, seed: int) -> dict[str, Any]:
    merged = work.inputs.get("merge_ta")
    served = Served(storage.join(merged, "model"), seed=seed) if merged else Served(ta.model, ta.adapter, seed)
    pool = courses(work, served, AmplifyCourse(settings, ta.model, model_hash), schema(records.EXPLAINED, settings))
    known = {storage.join(work.inputs["corpus"], "train"): ("domain", "answer_type", "options")}
    return explain(work, settings, pool, known, None)


def schema(base: pa.Schema, settings: Amplify) -> pa.Schema:
    """Of the stage's records: with what the checks have turned away, where there are checks."""
    return base.append(records.TURNED_AWAY) if settings.checks else base


def explain(
    work: Work, settings: Amplify, pool: Pool, known: Mapping[str, tuple[str, ...]], rest: Rest | None
) -> dict[str, Any]:
    """A record for every row of the training split, in ``rows.parquet``; returns the stage's metrics.

    ``known`` says which columns tell the rows apart in the metrics, and where they are. Raises UserError when more
    than ``max_error_fraction`` of the rows fail, and RuntimeError when rows were lost.
    """
    source = storage.join(work.inputs["corpus"], "train")
    total = storage.count_rows(storage.files(source))
    summary = Summary(partial(count, settings=settings), known)
    most = settings.max_error_fraction
    _, counts = resumable_map(work, "amplify", source, pool, rest=rest, summary=summary, max_error_fraction=most)
    return metrics(counts, total, settings.checks) | {"faults": faults(counts)}


def verified(rationales: pa.Table) -> pa.Table:
    """The rationales that may be learnt from: those whose answer is gold, and the teacher's where there is no gold."""
    trusted = pc.and_(pc.equal(rationales["source"], "teacher"), pc.is_valid(rationales["answer"]))
    return rationales.filter(pc.coalesce(rationales["verified"], pc.fill_null(trusted, False)))


def unchecked(bought: pa.Table, settings: Amplify) -> pa.Table:
    """The bought rationales under the schema of the others: the checks have turned none away."""
    if not settings.checks:
        return bought
    return bought.append_column(records.TURNED_AWAY, pa.nulls(bought.num_rows, records.TURNED_AWAY.type))


def count(rows: pa.Table, settings: Amplify) -> Counter[str]:
    """What is to be known of some rows, to be added up: rows by route, and those by domain and tenth of difficulty."""
    routes = pc.fill_null(rows["source"], "failed").to_pylist()
    counts = Counter(f"route/{route}" for route in routes)
    counts.update(f"domain/{domain}/{route}" for domain, route in zip(rows["domain"].to_pylist(), routes, strict=True))
    if "difficulty" in rows.column_names:
        tenths = np.minimum(9, (rows["difficulty"].to_numpy() * 10).astype(np.int64))
        counts.update(f"difficulty/{tenth}/{route}" for tenth, route in zip(tenths.tolist(), routes, strict=True))
    if settings.checks:
        counts.update(f"check/{name}" for name in pc.list_flatten(rows["turned_away"]).to_pylist())
    tried = rows.filter(pc.not_equal(pc.fill_null(rows["source"], "failed"), "teacher"))
    kinds = Counter(
        zip(tried["answer_type"].to_pylist(), pc.list_value_length(tried["options"]).to_pylist(), strict=True)
    )
    by_chance = sum(share * guess_rate(kind, options or 0, settings) for (kind, options), share in kinds.items())
    sums = {"attempts": pc.sum(tried["attempts"]).as_py() or 0, "tokens": pc.sum(tried["tokens"]).as_py() or 0}
    return counts + Counter(sums | {"by_chance": by_chance})


def metrics(counts: Counter[str], total: int, checks: Sequence[str] = ()) -> dict[str, Any]:
    """The stage's metrics from the sums of ``count`` over all rows.

    ``keep`` is the share of rows that the un-hinted TA explained, of those that were not bought, and that share with
    chance taken out: (keep - c) / (1 - c), where ``c`` is what blind guessing would keep under the same rule.
    ``checks`` (where there are any): how many right replies each turned away; likeliest those that were less likely.
    Raises RuntimeError unless the routes and the failed rows are the corpus.
    """
    routes = {route: int(counts[f"route/{route}"]) for route in records.ROUTES}
    rows = {"corpus": total, **routes, "errored": int(counts["route/failed"])}
    if sum(rows.values()) != 2 * total:
        raise RuntimeError(f"amplify: rows were lost or doubled: {rows}")
    tried = max(1, total - routes["teacher"])
    rate, c = routes["ta"] / tried, counts["by_chance"] / tried
    keep = {"ta": round(rate, 4), "by_chance": round(c, 4), "above_chance": round((rate - c) / (1 - c), 4)}
    return {
        "rows": rows,
        "tokens": int(counts["tokens"]),
        "attempts": int(counts["attempts"]),
        "keep": keep,
        "domains": _by(counts, "domain"),
        "difficulty": _by(counts, "difficulty"),
    } | ({"checks": {name: int(counts[f"check/{name}"]) for name in checks}} if checks else {})


def _by(counts: Counter[str], kind: str) -> dict[str, dict[str, int]]:
    """Group -> route -> rows, for the groups of a kind in order of name. Names may hold slashes, routes do not."""
    found: dict[str, dict[str, int]] = {}
    for key in sorted(key for key in counts if key.startswith(f"{kind}/")):
        group, _, route = key.removeprefix(f"{kind}/").rpartition("/")
        found.setdefault(group, {})[route] = int(counts[key])
    return found


def guess_rate(answer_type: str, options: int, settings: Amplify) -> float:
    """Probability that the gold answer is the majority of blind guesses, drawn alike: that of all replies more have it
    than have any other."""
    p = chance(answer_type, [""] * options)
    if p == 0.0 or settings.verify != "gold":
        return 0.0
    draws, others = settings.samples + 1, round(1 / p) - 1
    ways = sum(math.comb(draws, gold) * _spread(draws - gold, others, gold - 1) for gold in range(1, draws + 1))
    return ways / (others + 1) ** draws


@cache
def _spread(replies: int, answers: int, most: int) -> int:
    """Ways in which so many replies can have so many answers, each of them at most ``most`` times."""
    if answers == 0:
        return int(replies == 0)
    times = range(min(most, replies) + 1)
    return sum(math.comb(replies, here) * _spread(replies - here, answers - 1, most) for here in times)


@dataclass(frozen=True)
class Tried:
    """What the engine has said to a row so far, re-answers too, and a check's name for each reply it turned away."""

    replies: list[Sample] = field(default_factory=list)
    turned_away: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class AmplifyCourse:
    """One row's way to a verified rationale."""

    settings: Amplify
    model: str
    model_hash: str

    async def __call__(self, row: Mapping[str, Any], ask: Ask) -> dict[str, Any]:
        self._check(row)
        if self.settings.verify == "off":
            return await self._unverified(row, ask)
        if self.settings.verify == "self_consistency":
            return await self._self_consistent(row, ask)
        tried = Tried()
        kept = await (self._until_match if self._stops_early(row) else self._from_all)(row, ask, tried)
        if kept is not None:
            return self._record(row, tried, kept, "ta")
        if self.settings.hint:
            hinted = (await self._ask(prompts.hinted(row), ask, tried))[0]
            right = self._right(row, hinted) and not MENTIONS_HINT.search(hinted.text)
            if right and await self._sound(row, hinted, ask, tried):
                return self._record(row, tried, hinted, "ta_hinted")
        return self._record(row, tried, None, "label_only")

    def _stops_early(self, row: Mapping[str, Any]) -> bool:
        """Whether the first reply that holds is enough."""
        return is_open(row) and not {"majority", "likeliest"} & set(self.settings.checks)

    def _check(self, row: Mapping[str, Any]) -> None:
        """Raise RowFault for a row that was read but cannot be explained."""
        if row.get("fault") is not None:
            raise RowFault(row["fault"])
        if not row["question"]:
            raise RowFault("the question is empty")
        if row["answer"] is None and self.settings.verify == "gold":
            raise RowFault("there is no answer to verify with; label the row or set amplify.verify=self_consistency")

    def failed(self, row: Mapping[str, Any], reason: str) -> dict[str, Any]:
        return self._record(row, Tried(), None, None) | {"answer": None, "error": reason}

    async def _until_match(self, row: Mapping[str, Any], ask: Ask, tried: Tried) -> Sample | None:
        """Greedy, then samples one by one, to the first right one that the checks let pass."""
        messages = prompts.chat(prompts.REASON, row)
        for attempt in range(self.settings.samples + 1):
            temperature = self.settings.temperature if attempt else 0.0
            reply = (await self._ask(messages, ask, tried, temperature=temperature))[0]
            if self._right(row, reply) and await self._sound(row, reply, ask, tried):
                return reply
        return None

    async def _from_all(self, row: Mapping[str, Any], ask: Ask, tried: Tried) -> Sample | None:
        """All replies; one of the right ones, if the gold answer is their majority where it has to be."""
        replies = await self._all(row, ask, tried)
        right = [reply for reply in replies if self._right(row, reply)]
        agreed = majority([answer_of(row, reply) for reply in replies])
        if not matches(agreed, row["answer"], row["answer_type"]):
            if not is_open(row):
                return None
            if "majority" in self.settings.checks:
                tried.turned_away.extend(["majority"] * len(right))
                return None
        return await self._best(row, right, ask, tried)

    async def _self_consistent(self, row: Mapping[str, Any], ask: Ask) -> dict[str, Any]:
        """Without a label: the majority's answer is taken for right; without a majority the row is not learnt from."""
        tried = Tried()
        replies = await self._all(row, ask, tried)
        agreed = majority([answer_of(row, reply) for reply in replies])
        right = [r for r in replies if agreed is not None and usable(r) and answer_of(row, r) == agreed]
        answered = {**row, "answer": agreed}
        kept = await self._best(answered, right, ask, tried)
        if kept is None:
            return self._record(row, tried, None, "label_only")
        return self._record(answered, tried, kept, "ta")

    async def _unverified(self, row: Mapping[str, Any], ask: Ask) -> dict[str, Any]:
        """The control: the greedy reply as it is, right or wrong."""
        tried = Tried()
        reply = (await self._ask(prompts.chat(prompts.REASON, row), ask, tried))[0]
        answer = answer_of(row, reply)
        if answer is None or not usable(reply):
            return self._record(row, tried, None, "label_only")
        return self._record({**row, "answer": answer}, tried, reply, "ta") | {"verified": False}

    async def _best(self, row: Mapping[str, Any], right: Sequence[Sample], ask: Ask, tried: Tried) -> Sample | None:
        """The first, or the likeliest, of the right replies that the other checks let pass."""
        ranked = "likeliest" in self.settings.checks
        for place, reply in enumerate(sorted(right, key=_nll) if ranked else right, 1):
            if await self._sound(row, reply, ask, tried):
                if ranked:
                    tried.turned_away.extend(["likeliest"] * (len(right) - place))
                return reply
        return None

    async def _sound(self, row: Mapping[str, Any], reply: Sample, ask: Ask, tried: Tried) -> bool:
        """Whether a right reply's reasoning passes the checks; what costs nothing goes first."""
        rationale = split_rationale(reply.text)
        if "arithmetic" in self.settings.checks and mistakes(rationale):
            tried.turned_away.append("arithmetic")
            return False
        if "comparisons" in self.settings.checks and misjudged(rationale):
            tried.turned_away.append("comparisons")
            return False
        if "options" in self.settings.checks and misnamed(rationale, row["options"] or ()):
            tried.turned_away.append("options")
            return False
        if "reanswer" in self.settings.checks and not await self._reanswered(row, rationale, ask, tried):
            tried.turned_away.append("reanswer")
            return False
        return True

    async def _reanswered(self, row: Mapping[str, Any], rationale: str, ask: Ask, tried: Tried) -> bool:
        """Whether the un-hinted TA comes to the answer again from the reasoning alone; from none it could but guess."""
        reasoning = without_conclusion(rationale, row["answer"], row["answer_type"], row["options"])
        if not reasoning:
            return False
        room = REANSWER_TOKENS + len(row["answer"].encode())  # a token is at least a byte
        reply = (await ask(prompts.reanswer(row, reasoning), max_tokens=room))[0]
        tried.replies.append(reply)
        answer = extract(prompts.completion(None, reply.text), row["answer_type"], row["options"])
        return matches(answer, row["answer"], row["answer_type"])

    async def _all(self, row: Mapping[str, Any], ask: Ask, tried: Tried) -> list[Sample]:
        messages = prompts.chat(prompts.REASON, row)
        likelihood = "likeliest" in self.settings.checks
        replies = await self._ask(messages, ask, tried, likelihood=likelihood)
        if self.settings.samples:
            sampled = {"temperature": self.settings.temperature, "n": self.settings.samples}
            replies = replies + await self._ask(messages, ask, tried, likelihood=likelihood, **sampled)
        return replies

    async def _ask(self, messages: Sequence[prompts.Message], ask: Ask, tried: Tried, **options: Any) -> list[Sample]:
        replies = await ask(messages, max_tokens=self.settings.max_tokens, **options)
        tried.replies.extend(replies)
        return replies

    def _right(self, row: Mapping[str, Any], reply: Sample) -> bool:
        return usable(reply) and matches(answer_of(row, reply), row["answer"], row["answer_type"])

    def _record(self, row: Mapping[str, Any], tried: Tried, kept: Sample | None, source: str | None) -> dict[str, Any]:
        record = {
            "key": row.get("key"),
            "rationale": split_rationale(kept.text) if kept else None,
            "answer": row["answer"],
            "source": source,
            "verified": kept is not None,
            "attempts": len(tried.replies),
            "tokens": sum(reply.tokens for reply in tried.replies),
            "model": self.model,
            "model_hash": self.model_hash,
            "cost_usd": 0.0,
            "error": None,
        }
        return record | ({"turned_away": tried.turned_away} if self.settings.checks else {})


def _nll(reply: Sample) -> float:
    """Mean negative log-likelihood of a reply's tokens; replies without one come last."""
    return math.inf if math.isnan(reply.nll) else reply.nll


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
