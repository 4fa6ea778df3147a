"""How many trainings and how many stages with engines the cluster has room for at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loky import cpu_count

from bridge_ray import placement
from bridge_ray.config import Config
from bridge_ray.inference import local_ray
from bridge_ray.placement import ENGINES, TRAINERS, Node


@dataclass(frozen=True)
class Capacity:
    trainings: int
    engines: int


def of_cluster(config: Config) -> Capacity:
    """Connects to Ray. At least one of each: whether there is room at all is for ``placement.check`` to say."""
    local_ray.start()
    nodes = placement.present()
    if not local_ray.on_cluster():  # it has more logical CPUs than the machine has cores
        cores = float(cpu_count())
        nodes = [replace(node, resources={**node.resources, "CPU": cores}) for node in nodes]
    now, grown = capacity(config, nodes), capacity(config, placement.growth() or [])
    return Capacity(max(1, now.trainings, grown.trainings), max(1, now.engines, grown.engines))


def capacity(config: Config, nodes: Sequence[Node]) -> Capacity:
    """What has room on these nodes. Without a GPU, an engine or a training's workers take all the cores of a node."""
    [training] = placement.needs(config, TRAINERS[:1])
    [engine] = placement.needs(config, ENGINES[:1])
    trained = nodes if config.training.gpus_per_worker else _at_most(nodes, config.training.workers)
    asked = nodes if config.engine.gpus else _at_most(nodes, 1)
    return Capacity(placement.times(training, trained), placement.times(engine, asked))


def _at_most(nodes: Sequence[Node], cores: int) -> list[Node]:
    """The nodes as if they had so many cores, or fewer."""
    return [replace(node, resources={"CPU": min(cores, node.resources.get("CPU", 0))}) for node in nodes]
