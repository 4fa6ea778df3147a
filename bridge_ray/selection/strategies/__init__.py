"""One small file and one line here per strategy; the names are those of ``select.strategy``."""

from bridge_ray.selection.problem import Strategy
from bridge_ray.selection.strategies import bridge, coverage, entropy, kcenter, kmeans, random

STRATEGIES: dict[str, Strategy] = {
    "bridge": bridge.rank,
    "random": random.rank,
    "entropy": entropy.rank,
    "coverage": coverage.rank,
    "kcenter": kcenter.rank,
    "kmeans": kmeans.rank,
}

# What a corpus in partitions needs to know. Any other strategy ranks each partition, merged by falling gain or place.
BLIND = ("random", "entropy")  # look at no vector, so they rank the whole corpus at once
ON_GRAPH = ("bridge", "coverage")  # rank a known graph, so their second round sees the neighbours across borders
