"""The local time that a run's stages would take, from what earlier runs in the same storage took.

A stage's time is taken to grow in proportion to its rows, and where its config says so to samples, tokens and epochs,
for the same models. It knows nothing of hardware: the earlier run may have had more of it, or less.

Tokens are the most that a row may be answered with; those of a re-answer and of ``evaluate.by_entropy`` take as long
as others. Where *amplify* may stop at the first reply that holds, all count, unless an earlier run that did so stands
beside a planned one whose verification or checks do not let it: then what that run drew counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge_ray import storage
from bridge_ray.amplify import REANSWER_TOKENS
from bridge_ray.pipeline import Run
from bridge_ray.stage import Stage, done

MODEL_FIELDS = ("ta", "model", "source", "keep")  # of identities: what says which model a stage computes with
UNKNOWN = "unknown: no earlier run in this storage"


@dataclass(frozen=True)
class StageHours:
    """``hours`` is None where nothing is known; ``basis`` says where it comes from."""

    stage: str
    done: bool
    hours: float | None
    basis: str


@dataclass(frozen=True)
class _Record:
    """What a stage's manifest tells of it; a planned stage has taken no time yet."""

    name: str
    identity: Mapping[str, Any]
    inputs: Mapping[str, str]  # input name -> fingerprint
    metrics: Mapping[str, Any]
    seconds: float = 0.0
    created: str = ""


Records = Mapping[str, _Record]  # by fingerprint


def estimate(run: Run, past: Records | None = None) -> list[StageHours]:
    """The run's stages in order; ``past``: what ``past_stages`` found, where that is known."""
    past = past_stages(run.root) if past is None else past
    planned = {part.fingerprint: _planned(part, run) for part in run.stages.values()}
    return [_of(part, run.root, planned, past) for part in run.stages.values()]


def _of(part: Stage, root: str, planned: Records, past: Records) -> StageHours:
    if done(part, root) is not None:
        return StageHours(part.name, True, 0.0, "done")
    alike = [record for record in past.values() if record.name == part.name and _comparable(record, past)]
    models = _models(planned[part.fingerprint], planned)
    alike = [record for record in alike if _models(record, past) == models]
    if not alike:
        return StageHours(part.name, False, None, UNKNOWN)
    last = max(alike, key=lambda record: record.created)
    record = planned[part.fingerprint]
    now, then = _work(record, planned, last), _work(last, past, record)
    factor = math.prod(now.values()) / max(1, math.prod(then.values()))
    size = " × ".join(f"{amount:g} {unit}" for unit, amount in then.items())
    basis = f"an earlier run's {last.seconds:,.0f} s" + (f" for {size}" if size else "") + _assumes(record)
    return StageHours(part.name, False, last.seconds * factor / 3600, basis)


def _planned(part: Stage, run: Run) -> _Record:
    inputs = {name: upstream.fingerprint for name, upstream in part.inputs.items()}
    metrics = Counter(run.corpus["split"].to_pylist()) if part.name == "corpus" else {}
    return _Record(part.name, part.identity, inputs, metrics)


def past_stages(root: str) -> Records:
    """Every finished stage in the storage."""
    found = {}
    for name in storage.folders(storage.join(root, "stages")):
        for fingerprint in storage.folders(storage.join(root, "stages", name)):
            manifest = storage.read_json(storage.join(root, "stages", name, fingerprint, "manifest.json"))
            if manifest is not None:
                fields = ("identity", "inputs", "metrics", "seconds", "created")
                found[fingerprint] = _Record(name, *(manifest[field] for field in fields))
    return found


def _comparable(record: _Record, records: Records) -> bool:
    """Whether everything that the stage was made from is still known."""
    return all(name in records and _comparable(records[name], records) for name in record.inputs.values())


def _models(record: _Record, records: Records) -> set[tuple[str, Any]]:
    """The models that a stage and those before it compute with."""
    own = {(field, record.identity[field]) for field in MODEL_FIELDS if field in record.identity}
    return own.union(*(_models(records[name], records) for name in record.inputs.values()))


def _assumes(record: _Record) -> str:
    """What is taken for granted of a planned stage beside proportion."""
    scoring, said = record.identity.get("score"), []
    if record.name == "amplify":
        said += [] if _stops_early(record) else ["all replies of every row"]
        said += [f"one re-answer of {REANSWER_TOKENS} tokens a row"] if _reanswers(record) else []
    if record.name == "evaluate" and scoring:
        said.append(f"that scoring takes its {scoring['samples']} × {scoring['max_tokens']} tokens a row")
    return f"; assumes {' and '.join(said)}" if said else ""


def _work(record: _Record, records: Records, other: _Record) -> dict[str, float]:
    """What a stage's time is taken to grow with, by unit; ``other`` is what it is set beside."""
    identity = record.identity
    corpus = record if record.name == "corpus" else records[record.inputs["corpus"]]
    rows = corpus.metrics["train"]
    work: dict[str, float]
    match record.name:
        case "score":
            score = identity["score"]
            work = {"rows": rows, "samples": score["samples"], "tokens": score["max_tokens"]}
        case "teach":
            work = {"queries": identity["queries"]}
        case "train_ta":
            queries = records[record.inputs["teach"]].identity["queries"]
            train = identity["train"]
            work = (
                {"updates": train["updates"]}
                if train.get("updates")
                else {"queries": queries, "epochs": train["epochs"]}
            )
        case "amplify":
            work = {"rows": rows, "tokens": _amplified_tokens(record, rows, other)}
        case "student_init":
            work = {}
        case "train_student" | "train_labels" | "train_direct" | "train_direct_labels":
            batch = identity["training"]["global_batch"]
            epochs = [(phase.get("updates") or 0) * batch / rows or phase["epochs"] for phase in identity["curriculum"]]
            work = {"rows": rows, "epochs": sum(epochs)}
        case "evaluate":
            settings, scoring = identity["evaluate"], identity.get("score")
            answering = [system for system in settings["systems"] if system not in ("guess", "teacher")]
            tokens = len(answering) * settings.get("samples", 1) * settings["max_tokens"]
            if scoring:
                tokens += scoring["samples"] * scoring["max_tokens"]
            work = {"rows": corpus.metrics[settings.get("split", "test")], "tokens": tokens}
        case _:
            work = {"rows": rows}
    return work


def _amplified_tokens(record: _Record, rows: int, other: _Record) -> float:
    """The most that *amplify* asks for a row; where it stopped early and ``other`` does not, by what it drew."""
    settings = record.identity["amplify"]
    drawn = record.metrics.get("attempts")
    if drawn and _stops_early(record) and not _stops_early(other):
        return drawn / rows * settings["max_tokens"]
    replies = 1 if settings["verify"] == "off" else settings["samples"] + 1
    return replies * settings["max_tokens"] + (REANSWER_TOKENS if _reanswers(record) else 0)


def _stops_early(record: _Record) -> bool:
    """Whether *amplify* asks an open question no more once a reply holds."""
    settings = record.identity["amplify"]
    return settings["verify"] == "gold" and not {"majority", "likeliest"} & set(settings.get("checks", ()))


def _reanswers(record: _Record) -> bool:
    return "reanswer" in record.identity["amplify"].get("checks", ())
