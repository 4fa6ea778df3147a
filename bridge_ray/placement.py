"""Whether the cluster can ever place what a run needs, asked before its first stage.

Ray lets what fits on no node wait for ever, since an autoscaler might bring one that it fits on. So a stage that asks
for more GPUs than any node has would hang, hours into a run and with the teacher paid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bridge_ray.config import Config
from bridge_ray.errors import UserError
from bridge_ray.inference import local_ray

ENGINES = ("score", "embed", "amplify", "evaluate")  # stages that run engines
TRAINERS = ("train_ta", "train_student", "train_labels", "train_direct", "train_direct_labels")
MOST_WORKERS = 10_000  # that are counted where an autoscaler sets no limit
READERS = 2  # CPUs that Ray Data needs beside its engines: with one, reading and writing wait on each other for ever
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")  # where `ray up` leaves the cluster's config, on the head
HEAD = "node:__internal_head__"  # Ray's own resource of a cluster's head
NODE_GROUP = "ray.io/node-group"  # the label that names the node type of a managed cluster's node

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Node:
    """A kind of node, of which there are or can be ``count``; ``labels`` None: not known before one is there."""

    resources: Resources
    labels: Mapping[str, str] | None = field(default_factory=dict)
    count: float = 1


@dataclass(frozen=True)
class Need:
    """``workers`` processes, each of which takes ``resources`` of one node with ``labels``.

    All ``together``, or else at least one of them. ``fields`` are the config's that ask for it; ``spare`` is the
    number of CPUs, anywhere, that must be left.
    """

    stage: str
    workers: int
    resources: Resources
    labels: Mapping[str, str]
    together: bool
    fields: str
    spare: int = 0


def check(config: Config, stages: Collection[str], warn: Callable[[str], None]) -> None:
    """Connect to Ray and see that every one of these stages that needs it can be placed.

    Raises UserError for the first that cannot be; where an autoscaler might bring a node that it fits on, ``warn``
    is called instead.
    """
    wanted = needs(config, stages)
    if not wanted:
        return
    local_ray.start()
    cluster = "the cluster" if local_ray.on_cluster() else "the local Ray"
    nodes, grows = present(), growth()
    for need in wanted:
        problem = lack_of_all(need, nodes, grows, cluster)
        if problem is None:
            continue
        if grows is not None:
            raise UserError(problem)
        warn(f"{problem}; {need.stage} will wait unless an autoscaler brings what it needs")


def needs(config: Config, stages: Iterable[str]) -> list[Need]:
    """What these stages ask of the cluster, one need per kind; stages that run in the driver ask for nothing."""
    engine, training = config.engine, config.training
    gpus = engine.gpus * engine.tensor_parallel
    names = list(stages)
    found: list[Need] = []
    if generating := [name for name in names if name in ENGINES]:
        needed = {"CPU": 1.0, "GPU": gpus}
        fields = "engine.gpus" + (" x engine.tensor_parallel" if engine.tensor_parallel > 1 else "")
        found.append(Need(generating[0], engine.replicas, _some(needed), engine.labels, False, fields, READERS))
    if learning := [name for name in names if name in TRAINERS]:
        needed = {"CPU": 1.0, "GPU": training.gpus_per_worker}
        fields = "training.workers, training.gpus_per_worker"
        found.append(Need(learning[0], training.workers, _some(needed), training.labels, True, fields))
    return sorted(found, key=lambda need: names.index(need.stage))


def _some(resources: Resources) -> Resources:
    return {name: amount for name, amount in resources.items() if amount}


def lack_of_all(need: Need, nodes: Sequence[Node], grows: Sequence[Node] | None, cluster: str) -> str | None:
    """``lack`` of the nodes that are there, or else of the head and what an autoscaler can add to it (``growth``): that
    may be there already, so nodes of both are not added up."""
    problem = lack(need, nodes, cluster)
    if problem is None or not grows:
        return problem
    return lack(need, [*(node for node in nodes if HEAD in node.resources), *grows], cluster)


def lack(need: Need, nodes: Sequence[Node], cluster: str) -> str | None:
    """What the nodes cannot give, in one line that names the field to change; None where they can."""
    fitting = [node for node in nodes if node.labels is None or selects(need.labels, node.labels)]
    if not fitting:
        asked = f"{need.fields.partition('.')[0]}.labels"
        return f"{cluster} has no node with {_labels(need.labels)} for {need.stage} ({asked})"
    of_those = f" with {_labels(need.labels)}" if need.labels else ""
    for name, amount in need.resources.items():
        largest = max(node.resources.get(name, 0) for node in fitting)
        if largest < amount:
            return (
                f"{cluster} has no node{of_those} with {_count(amount, name)} for {need.stage} ({need.fields}); "
                f"its largest has {largest:g}"
            )
    room = _total(fitting, lambda node: _fits(need.resources, node.resources))
    if room < (need.workers if need.together else 1):
        each = ", ".join(_count(amount, name) for name, amount in need.resources.items())
        return (
            f"{cluster} has room{of_those and f' on nodes{of_those}'} for {room:g} of the {need.workers} workers of "
            f"{need.stage} ({need.fields}), each with {each}"
        )
    return _crowded(need, nodes, min(room, need.workers), cluster)


def share(need: Need, nodes: Sequence[Node]) -> float:
    """What all of the need's workers take of the nodes that they fit on: 0.25 where they have room four times, 1 at
    most."""
    fitting = [node for node in nodes if node.labels is None or selects(need.labels, node.labels)]
    room = min(_total(fitting, lambda node: _fits(need.resources, node.resources)), MOST_WORKERS)
    return min(1.0, need.workers / room) if room else 1.0


def _crowded(need: Need, nodes: Sequence[Node], placed: float, cluster: str) -> str | None:
    cpus = _total(nodes, lambda node: node.resources.get("CPU", 0))
    if not need.spare or cpus >= placed + need.spare:
        return None
    return (
        f"{cluster} has {_count(cpus, 'CPU')} and {need.stage} needs {placed + need.spare:g}: "
        f"{placed:g} for engines (engine.replicas) and {need.spare} to read and write"
    )


def _total(nodes: Iterable[Node], of_one: Callable[[Node], float]) -> float:
    amounts = [(node.count, of_one(node)) for node in nodes]
    return sum(count * amount for count, amount in amounts if count and amount)  # a count may be infinite


def _fits(wanted: Resources, there: Resources) -> float:
    """How many times the resources are there, at once."""
    return min(math.floor(there.get(name, 0) / amount + 1e-9) for name, amount in wanted.items())


def _count(amount: float, name: str) -> str:
    return f"{amount:g} {name}{'' if amount == 1 else 's'}"


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


def selects(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether Ray's label selectors pick a node with these labels."""
    return all(_selects(value, labels.get(key)) for key, value in wanted.items())


def _selects(selector: str, value: str | None) -> bool:
    plain = selector.removeprefix("!")
    values = plain[3:-1].split(",") if plain.startswith("in(") else [plain]
    return (value in {one.strip() for one in values}) != selector.startswith("!")


def present() -> list[Node]:
    """The nodes that are there now."""
    import ray

    return [Node(node["Resources"], node.get("Labels") or {}) for node in ray.nodes() if node["Alive"]]


def growth() -> list[Node] | None:
    """The nodes that an autoscaler can add; none for a fixed cluster, None where that cannot be known.

    On a managed platform Ray itself knows, and of a cluster started by ``ray up`` the head does, where a job's driver
    is. A Kubernetes operator's limits are with the operator. Nodes that were added already are among them.
    """
    import ray

    known = ray._private.state.state.get_cluster_config()
    if known and known.node_group_configs:
        return [Node(dict(group.resources), None, _most(group.max_count)) for group in known.node_group_configs]
    bootstrap = BOOTSTRAP.expanduser()
    if bootstrap.is_file():
        return of_node_types(yaml.safe_load(bootstrap.read_text(encoding="utf-8")))
    managed = any(NODE_GROUP in (node.get("Labels") or {}) for node in ray.nodes() if node["Alive"])
    return None if managed else []


def of_node_types(cluster: Mapping[str, Any]) -> list[Node] | None:
    """The nodes that the config of a ``ray up`` cluster allows, its head aside; None where it leaves resources out."""
    most = cluster.get("max_workers", math.inf)
    types = cluster.get("available_node_types") or {}
    kinds = [kind for name, kind in types.items() if name != cluster.get("head_node_type")]
    if not all(kind.get("resources") for kind in kinds):
        return None
    return [
        Node(_plain(kind["resources"]), kind.get("labels") or {}, min(most, kind.get("max_workers", most)))
        for kind in kinds
    ]


def _plain(resources: Mapping[str, Any]) -> Resources:
    return {name: float(amount) for name, amount in resources.items() if isinstance(amount, int | float)}


def _most(count: int) -> float:
    return math.inf if count == -1 else count
