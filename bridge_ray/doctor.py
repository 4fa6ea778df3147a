"""``bridge-ray doctor``: is this machine, or every node of a cluster, ready for a run? Spends nothing.

Each finding is a line: OK, or FIX and what to do.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from bridge_ray import machine, placement, storage, submit
from bridge_ray.config import Config
from bridge_ray.corpus.load import load
from bridge_ray.errors import UserError
from bridge_ray.inference import local_ray
from bridge_ray.machine import NONCE, Finding, Wanted
from bridge_ray.placement import Node
from bridge_ray.teacher import provider

ANSWER_LIMIT_S = 180.0
SKEW_S = 5.0


def run(settings: Config | None, recipe: str | None, options: Sequence[str] = (), address: str | None = None) -> int:
    """Print what is found; 1 if there is something to do, else 0.

    ``address``: a cluster's job server, where a job then does the same, or its RAY_ADDRESS.
    """
    if address is not None:
        if address.startswith(("http://", "https://")):
            return _as_job(settings, recipe, options, address)
        if address not in ("auto", "local") and not re.fullmatch(r"[^:/\s]+:\d+", address):
            raise UserError(f"--address {address}: give http://HEAD:8265 of a job server, or HEAD:6379 of a cluster")
        os.environ["RAY_ADDRESS"] = address
    to_do = 0
    for where, findings in _groups(settings):
        print(f"{where}:", flush=True)
        for finding in findings:
            to_do += not finding.ok
            print(f"  {finding.line()}", flush=True)
    print(f"{to_do} to fix" if to_do else "all is well")
    return 1 if to_do else 0


def _as_job(settings: Config | None, recipe: str | None, options: Sequence[str], address: str) -> int:
    submit.hush()
    client = submit.connect(address)
    name = f"doctor-{uuid.uuid4().hex[:8]}"
    if settings is None or recipe is None:
        wanted = submit.Order(name, ["bridge-ray", "doctor"], digest="")
    else:
        order = submit.order(recipe, settings, options)
        wanted = replace(order, run=name, command=["bridge-ray", "doctor", order.command[2], *options])
    job = submit.submit(client, wanted).id
    return submit.follow(client, job, lambda text: print(text, end="", flush=True))


def _groups(settings: Config | None) -> Iterator[tuple[str, list[Finding]]]:
    """Place -> findings; the driver's own first."""
    if settings is not None:
        yield "the run", [_corpus(settings), _teacher(settings)]
    if local_ray.on_cluster():
        yield from _cluster(settings)
        return
    with _meeting_place(settings) as (folder, problem):
        seen = machine.look(_wanted(settings, folder))
    yield "this machine", [*seen.findings, *problem]
    if settings is not None:
        here = [Node({"CPU": local_ray.logical_cpus(), "GPU": seen.gpus})]
        yield "placement", _placement(settings, here, "the local Ray", [])


# the run


def _corpus(settings: Config) -> Finding:
    try:
        return Finding(True, "corpus", f"{len(load(settings.corpus, settings.seed)):,} examples")
    except UserError as error:
        return Finding(False, "corpus", str(error))


def _teacher(settings: Config) -> Finding:
    """The provider is asked for its list of models only, which costs nothing."""
    try:
        provider.check(settings.teacher, settings.corpus)
        name = provider.identity(settings.teacher, settings.corpus)
        return Finding(True, "teacher", f"{settings.teacher.model} at {name}")
    except UserError as error:
        return Finding(False, "teacher", str(error))


def _wanted(settings: Config | None, folder: str | None) -> Wanted:
    if settings is None:
        return Wanted()
    models = {
        "ta.model": settings.ta.model,
        "embed.model": settings.embed.model,
        "student.init": settings.student.source,
    }
    return Wanted(folder=folder, models={name: value for name, value in models.items() if value != "ta"})


def _placement(settings: Config, nodes: Sequence[Node], cluster: str, grows: Sequence[Node] | None) -> list[Finding]:
    """``grows``: what an autoscaler may bring; None where that is not known."""
    findings = []
    for need in placement.needs(settings, [*placement.ENGINES, *placement.TRAINERS]):
        problem = placement.lack_of_all(need, nodes, grows, cluster)
        each = ", ".join(f"{amount:g} {name}" for name, amount in need.resources.items())
        fits = f"{need.workers} x {each}" + (f" on {dict(need.labels)}" if need.labels else "")
        if problem is not None and grows is None:
            findings.append(Finding(True, need.stage, f"{problem}; fine if the autoscaler brings what it needs"))
        else:
            findings.append(Finding(problem is None, need.stage, problem or f"there is room for {fits}"))
    return findings


@contextmanager
def _meeting_place(settings: Config | None) -> Iterator[tuple[str | None, list[Finding]]]:
    """A folder in storage with an object that every node must see, for the length of the block; or why not."""
    if settings is None:
        yield None, []
        return
    folder = storage.join(storage.locate(settings.storage), f"doctor-{uuid.uuid4().hex[:8]}")
    try:
        storage.write_bytes(storage.join(folder, NONCE), b"from bridge-ray doctor")
    except UserError as error:
        yield None, [Finding(False, "storage", str(error))]
        return
    try:
        yield folder, []
    finally:
        storage.delete(folder)


# a cluster


def _cluster(settings: Config | None) -> Iterator[tuple[str, list[Finding]]]:
    """Look at every node in a task of its own."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    local_ray.start()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    gpus = {node["NodeID"]: node["Resources"].get("GPU", 0) > 0 for node in nodes}
    with _meeting_place(settings) as (folder, problem):
        if problem:
            yield "the driver", problem
        wanted = replace(_wanted(settings, folder), versions=machine.versions())
        tasks = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": there, "max_retries": 0}
            look = ray.remote(machine.look).options(**options)
            clock = ray.remote(machine.clock).options(**options)
            tasks[node["NodeID"]] = (look.remote(replace(wanted, gpus=gpus[node["NodeID"]])), clock)
        deadline = time.monotonic() + ANSWER_LIMIT_S
        for node in nodes:
            look, clock = tasks[node["NodeID"]]
            yield _named(node), _seen(look, clock, deadline)
    if settings is not None:
        yield "placement", _placement(settings, placement.present(), "the cluster", placement.growth())


def _named(node: Mapping[str, Any]) -> str:
    head = ", head" if placement.HEAD in node["Resources"] else ""
    resources = ", ".join(f"{node['Resources'].get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
    labels = {key: value for key, value in (node.get("Labels") or {}).items() if not key.startswith("ray.io/")}
    return f"node {node['NodeManagerAddress']}{head}, {resources}{f', {labels}' if labels else ''}"


def _seen(look: Any, clock: Any, deadline: float) -> list[Finding]:
    import ray

    try:
        seen = ray.get(look, timeout=max(1.0, deadline - time.monotonic()))
        return [*seen.findings, _skew(clock)]
    except ray.exceptions.GetTimeoutError:
        return [Finding(False, "node", f"did not answer in {ANSWER_LIMIT_S:g} s; see its raylet's log, or remove it")]
    except ray.exceptions.RayError as error:
        said = str(error).strip().splitlines()[-1][:300]
        return [Finding(False, "node", f"could not be looked at: {said}; is bridge_ray installed there?")]


def _skew(clock: Any) -> Finding:
    """The least that the node's clock must be off, whatever the answer's way took."""
    import ray

    asked = time.time()
    there: float = ray.get(clock.remote(), timeout=30)
    answered = time.time()
    off = max(asked - there, there - answered, 0.0)
    if off > SKEW_S:
        return Finding(False, "clock", f"is {off:.0f} s off the driver's; keep it with NTP: signed requests may fail")
    return Finding(True, "clock", f"agrees with the driver's to {max(off, answered - asked):.1f} s")
