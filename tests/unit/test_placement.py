"""What no node of a cluster can ever hold is said at once, by the field that asks for it; what fits is let through."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge_ray import config, pipeline
from bridge_ray.config import Config, validate
from bridge_ray.errors import UserError
from bridge_ray.pipeline import NAMES
from bridge_ray.placement import ENGINES, HEAD, TRAINERS, Node, lack, lack_of_all, needs, of_node_types, selects

CPU_NODE = Node({"CPU": 8.0})
GPU_NODE = Node({"CPU": 8.0, "GPU": 2.0})


def settings(engine: dict[str, Any] | None = None, training: dict[str, Any] | None = None) -> Config:
    fields = {"name": "x", "engine": engine or {}, "training": training or {}}
    return validate(fields, "test")


def problems(made: Config, *nodes: Node, stages: tuple[str, ...] = NAMES) -> list[str]:
    return [found for need in needs(made, stages) if (found := lack(need, nodes, "the cluster")) is not None]


def test_the_stages_that_need_a_place_are_stages() -> None:
    assert {*ENGINES, *TRAINERS} <= set(NAMES)


@pytest.mark.parametrize(
    ("made", "nodes"),
    [
        (settings(), (CPU_NODE,)),
        (settings({"gpus": 1, "tensor_parallel": 2}), (CPU_NODE, GPU_NODE)),
        (settings({"gpus": 0.5, "replicas": 4}), (GPU_NODE,)),
        (settings({"gpus": 1, "replicas": 8}), (GPU_NODE,)),  # fewer engines take longer, but they run
        (settings(training={"workers": 4, "global_batch": 16, "gpus_per_worker": 1}), (GPU_NODE, GPU_NODE)),
        (settings(training={"gpus_per_worker": 1}), (CPU_NODE, Node({"CPU": 4.0, "GPU": 1.0}, None, math.inf))),
        (settings(), (Node({"CPU": 0.0}), CPU_NODE)),  # a head that runs nothing
    ],
)
def test_what_fits_is_let_through(made: Config, nodes: tuple[Node, ...]) -> None:
    assert problems(made, *nodes) == []


@pytest.mark.parametrize(
    ("made", "nodes", "says"),
    [
        (
            settings({"gpus": 1, "tensor_parallel": 4}),
            (CPU_NODE, GPU_NODE, GPU_NODE),
            "the cluster has no node with 4 GPUs for score (engine.gpus x engine.tensor_parallel); its largest has 2",
        ),
        (
            settings({"gpus": 1}),
            (CPU_NODE,),
            "the cluster has no node with 1 GPU for score (engine.gpus); its largest has 0",
        ),
        (
            settings(training={"workers": 8, "global_batch": 16, "gpus_per_worker": 1}),
            (GPU_NODE, GPU_NODE, CPU_NODE),
            "the cluster has room for 4 of the 8 workers of train_ta (training.workers, training.gpus_per_worker), "
            "each with 1 CPU, 1 GPU",
        ),
        (
            settings({"labels": {"pool": "generate"}}),
            (Node({"CPU": 8.0}, {"pool": "train"}),),
            "the cluster has no node with pool=generate for score (engine.labels)",
        ),
        (
            settings({"gpus": 2, "labels": {"pool": "generate"}}),
            (Node({"CPU": 8.0}, {"pool": "generate"}), Node({"CPU": 8.0, "GPU": 2.0}, {"pool": "train"})),
            "the cluster has no node with pool=generate with 2 GPUs for score (engine.gpus); its largest has 0",
        ),
        (
            settings(training={"labels": {"pool": "train"}}),
            (CPU_NODE,),
            "the cluster has no node with pool=train for train_ta (training.labels)",
        ),
        (
            settings({"replicas": 2}),
            (Node({"CPU": 3.0}),),
            "the cluster has 3 CPUs and score needs 4: 2 for engines (engine.replicas) and 2 to read and write",
        ),
        (
            settings({"gpus": 1}),
            (CPU_NODE, Node({"CPU": 8.0, "GPU": 8.0}, None, 0)),
            "the cluster has room for 0 of the 1 workers of score (engine.gpus), each with 1 CPU, 1 GPU",
        ),
    ],
)
def test_what_never_fits_is_said_by_its_field(made: Config, nodes: tuple[Node, ...], says: str) -> None:
    assert problems(made, *nodes) == [says]


def test_what_an_autoscaler_may_add_counts_once_though_it_is_there_already() -> None:
    """Eight workers of a GPU each, one node of four at most: the node that is up is the one that could come."""
    head, worker = Node({"CPU": 8.0, HEAD: 1.0}), Node({"CPU": 8.0, "GPU": 4.0})
    [_, training] = needs(settings(training={"workers": 8, "gpus_per_worker": 1}), NAMES)
    says = "the cluster has room for 4 of the 8 workers of train_ta"
    for there in ([head], [head, worker]):
        found = lack_of_all(training, there, [worker], "the cluster")
        assert found is not None and found.startswith(says)
    assert lack_of_all(training, [head, worker, worker], [], "the cluster") is None
    assert lack_of_all(training, [head, worker], [replace(worker, count=2)], "the cluster") is None
    on_the_head = replace(training, workers=1, resources={"CPU": 1.0})
    assert lack_of_all(on_the_head, [head], [Node({"GPU": 4.0})], "the cluster") is None


def test_only_the_stages_that_are_still_to_be_done_need_a_place() -> None:
    made = settings({"gpus": 1}, {"gpus_per_worker": 1, "workers": 8, "global_batch": 16})
    assert problems(made, CPU_NODE, stages=("corpus", "select", "teach", "student_init")) == []
    [said] = problems(made, CPU_NODE, stages=("corpus", "evaluate"))
    assert "for evaluate" in said
    [said] = problems(made, GPU_NODE, stages=("amplify", "train_student"))
    assert "2 of the 8 workers of train_student" in said


@pytest.mark.parametrize(
    ("selector", "picked"),
    [("a", ["a"]), ("!a", ["b", None]), ("in(a, b)", ["a", "b"]), ("in(a,b)", ["a", "b"]), ("!in(a, b)", [None])],
)
def test_labels_select_as_ray_selects(selector: str, picked: list[str | None]) -> None:
    values = ["a", "b", None]
    assert [value for value in values if selects({"pool": selector}, {"pool": value} if value else {})] == picked


def test_the_config_of_a_ray_up_cluster_says_what_may_come() -> None:
    workers = {"resources": {"CPU": 16, "GPU": 4, "object_store_memory": 10}, "max_workers": 3, "min_workers": 0}
    cluster = {
        "max_workers": 2,
        "head_node_type": "head",
        "available_node_types": {"head": {"resources": {"CPU": 0}}, "workers": workers | {"labels": {"pool": "x"}}},
    }
    assert of_node_types(cluster) == [Node({"CPU": 16, "GPU": 4, "object_store_memory": 10}, {"pool": "x"}, 2)]
    cluster["available_node_types"]["unknown"] = {"node_config": {}}
    assert of_node_types(cluster) is None, "Ray finds out itself what such a node has"


def test_resources_and_labels_are_no_part_of_a_stage(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump({"teacher": {"standin": {}, "price": {"input": 1, "output": 1}}})
    )

    def fingerprints(*overrides: str) -> dict[str, str]:
        made = config.load(str(tmp_path / "mine.yaml"), overrides, storage=str(tmp_path / "storage"))
        return {name: part.fingerprint for name, part in pipeline.draft(made).stages.items()}

    elsewhere = fingerprints("engine.labels.pool=x", "engine.gpus=8", "training.labels.pool=y", "training.workers=4")
    assert elsewhere == fingerprints()


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({"pool": "a b"}, "'a b' selects no label's value"),
        ({"pool": "in()"}, "'in()' selects no label's value"),
        ({"-pool": "a"}, "'-pool' is no label of a node"),
    ],
)
def test_labels_that_ray_would_refuse_are_refused_early(labels: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match="engine.labels") as refused:
        settings({"labels": labels})
    assert says in str(refused.value)


@pytest.mark.parametrize("value", ["a", "!a", "in(a, b)", "!in(a,b)", "H100", "us-west-2a"])
def test_our_label_selectors_are_rays(value: str) -> None:
    from ray._private.label_utils import validate_label_selector

    made = settings({"labels": {"ray.io/accelerator-type": value, "pool": value}})
    assert validate_label_selector(made.engine.labels) is None
