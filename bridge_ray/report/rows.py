"""The questions that the page shows, with what each model has written for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as ds

from bridge_ray import storage
from bridge_ray.answers import prompts
from bridge_ray.records import ROUTES
from bridge_ray.report.data import Replies, SampleRow, TestRow
from bridge_ray.report.summary import RIVALS
from bridge_ray.stage import Done

SHOWN_SAMPLES = 4  # of each route
SHOWN_REPLIES = 12  # of each group in which somebody was wrong
SHOWN_RIGHT = 4  # of the group in which nobody was


def samples(finished: Mapping[str, Done]) -> list[SampleRow]:
    """The first rows of every route; before there are routes, the first that were bought and verified."""
    explained, bought = _of(finished, "amplify", "rows.parquet"), _of(finished, "teach", "rationales.parquet")
    if explained is not None:
        chosen = list(chain.from_iterable(_first(explained, pc.field("source") == route) for route in ROUTES))
    elif bought is not None:
        chosen = _first(bought, pc.field("verified"))
    else:
        return []
    ids = [row["id"] for row in chosen]
    questions = _by_id(storage.join(finished["corpus"].location, "train"), ids)
    scores = _of(finished, "score", "rows.parquet")
    before = {} if scores is None else _by_id(scores, ids, ["samples"])
    return [_sample(row, questions[row["id"]], before.get(row["id"])) for row in chosen]


def _sample(row: Mapping[str, Any], question: Mapping[str, Any], score: Mapping[str, Any] | None) -> SampleRow:
    said = None if score is None else next(iter(score["samples"] or ()), None)
    return SampleRow(
        question["question"], row["answer"], row["source"], row["rationale"], prompts.question(question), said
    )


def replies(finished: Mapping[str, Done]) -> list[Replies]:
    """Questions of the evaluated split with every system's reply, by whether bridge and its rival were right."""
    if "evaluate" not in finished:
        return []
    evaluated = finished["evaluate"]
    questions = storage.read_table(storage.join(finished["corpus"].location, evaluated.metrics["split"])).to_pylist()
    predictions = storage.read_table(storage.join(evaluated.location, "predictions.parquet")).to_pylist()
    said: dict[int, dict[str, tuple[str, bool]]] = defaultdict(dict)
    for row in predictions:
        said[row["id"]][row["system"]] = (row["text"] or row["error"] or "", row["correct"])
    return grouped([_test(row, said[row["id"]]) for row in questions], list(evaluated.metrics["systems"]))


def _test(row: Mapping[str, Any], said: Mapping[str, tuple[str, bool]]) -> TestRow:
    return TestRow(row["question"], row["answer"], said, row["domain"], prompts.question(row))


def grouped(rows: Sequence[TestRow], systems: Iterable[str]) -> list[Replies]:
    """Rows by whether bridge and its first rival were right, those in which only one of them was first."""
    rival = next((name for name in RIVALS if name in systems), None)
    if "bridge" not in systems:
        return [Replies("questions", len(rows), evenly(rows, SHOWN_REPLIES))]
    kinds: dict[str, tuple[bool, ...]]
    if rival is None:
        kinds = {"bridge is wrong": (False,), "bridge is right": (True,)}
    else:
        kinds = {
            f"{rival} is right and bridge is wrong": (False, True),
            f"bridge is right and {rival} is wrong": (True, False),
            f"bridge and {rival} are both wrong": (False, False),
            f"bridge and {rival} are both right": (True, True),
        }
    compared = [name for name in ("bridge", rival) if name is not None]
    found = {title: [row for row in rows if _right(row, compared) == right] for title, right in kinds.items()}
    return [
        Replies(title, len(some), evenly(some, SHOWN_RIGHT if all(kinds[title]) else SHOWN_REPLIES))
        for title, some in found.items()
        if some
    ]


def _right(row: TestRow, systems: Sequence[str]) -> tuple[bool, ...]:
    return tuple(row.replies[name][1] for name in systems)


def evenly(rows: Sequence[TestRow], most: int) -> list[TestRow]:
    """At most ``most`` rows, as many of one domain as of another while there are any, in their order."""
    domains: dict[str, list[TestRow]] = defaultdict(list)
    for row in rows:
        domains[row.domain].append(row)
    turns = zip_longest(*(domains[name] for name in sorted(domains)))
    return [row for turn in turns for row in turn if row is not None][:most]


def _of(finished: Mapping[str, Done], stage: str, file: str) -> str | None:
    return storage.join(finished[stage].location, file) if stage in finished else None


def _first(location: str, kept: pc.Expression) -> list[dict[str, Any]]:
    """The first rows of a kind. Reads no more than it must."""
    columns = ["id", "rationale", "answer", "source"]
    return list(_dataset(location).scanner(columns=columns, filter=kept).head(SHOWN_SAMPLES).to_pylist())


def _by_id(location: str, ids: Sequence[int], columns: Sequence[str] | None = None) -> dict[int, dict[str, Any]]:
    """Id -> row, of these ids."""
    wanted = None if columns is None else ["id", *columns]
    found = _dataset(location).to_table(columns=wanted, filter=pc.field("id").isin(list(ids)))
    return {row["id"]: row for row in found.to_pylist()}


def _dataset(location: str) -> ds.Dataset:
    fs, path = storage.filesystem(location)
    return ds.dataset(path, filesystem=fs, format="parquet")
