"""What a training and a stage with engines take of the cluster: so how many it has room for at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loky import cpu_count

from bridge_ray import placement
from bridge_ray.config import Config
from bridge_ray.inference import local_ray
from bridge_ray.placement import ENGINES, TRAINERS, Need, Node


@dataclass(frozen=True)
class Capacity:
    """``training`` and ``engine`` are shares of the cluster, above 0 and at most 1: of different parts of it where they
    are ``apart``, as on nodes of their own, or where only one of them takes GPUs.

    ``scattered`` is the share that a training keeps from engines at most, however its workers are placed: Ray spreads
    them over nodes, and an engine of several GPUs needs a node's.
    """

    training: float
    engine: float
    apart: bool
    scattered: float = 0.0


def times(share: float) -> int:
    """How often there is room for a share at once."""
    return int(1 / share + 1e-9)


def of_cluster(config: Config) -> Capacity:
    """Connects to Ray. Whether there is room at all is for ``placement.check`` to say."""
    local_ray.start()
    nodes = placement.present()
    if not local_ray.on_cluster():  # it has more logical CPUs than the machine has cores
        cores = float(cpu_count())
        nodes = [replace(node, resources={**node.resources, "CPU": cores}) for node in nodes]
    now, grown = capacity(config, nodes), capacity(config, placement.growth() or [])
    return replace(
        now,
        training=min(now.training, grown.training),
        engine=min(now.engine, grown.engine),
        scattered=min(now.scattered, grown.scattered),
    )


def capacity(config: Config, nodes: Sequence[Node]) -> Capacity:
    """On these nodes. Without a GPU, an engine or a training's workers take all the cores of a node. A stage takes the
    engines that it may come to have, and the CPUs that Ray Data needs beside them."""
    training, engine = config.training, config.engine
    [learning] = placement.needs(config, TRAINERS[:1])
    [generating] = placement.needs(config, ENGINES[:1])
    generating = replace(generating, workers=engine.max_replicas or engine.replicas)
    trained = nodes if training.gpus_per_worker else _at_most(nodes, training.workers)
    asked = nodes if engine.gpus else _at_most(nodes, 1)
    share = max(placement.share(generating, asked), placement.share(_beside(generating), nodes))
    labelled = bool(training.labels and engine.labels) and training.labels != engine.labels
    apart = labelled or bool(training.gpus_per_worker) != bool(engine.gpus)
    return Capacity(placement.share(learning, trained), share, apart, 0.0 if apart else _scattered(config, nodes))


def _scattered(config: Config, nodes: Sequence[Node]) -> float:
    """As if each worker of a training were where no other one is, and kept an engine's GPUs from being together."""
    [generating] = placement.needs(config, ENGINES[:1])
    gpus = generating.resources.get("GPU", 0)
    several = sum(node.count for node in nodes if node.resources.get("GPU", 0) >= gpus) > 1
    if not 0 < config.training.gpus_per_worker < gpus or not several:
        return 0.0
    return min(1.0, config.training.workers * placement.share(replace(generating, workers=1), nodes))


def _beside(need: Need) -> Need:
    """The CPUs that a stage with engines takes in all, anywhere."""
    return replace(need, workers=need.workers + need.spare, resources={"CPU": 1.0}, labels={})


def _at_most(nodes: Sequence[Node], cores: int) -> list[Node]:
    """The nodes as if they had so many cores, or fewer."""
    return [replace(node, resources={"CPU": min(cores, node.resources.get("CPU", 0))}) for node in nodes]
