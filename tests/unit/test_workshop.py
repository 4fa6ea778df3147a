"""Which stages a workshop lets run at once, and in which order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bridge_ray import capacity, config, workshop
from bridge_ray.capacity import Capacity
from bridge_ray.placement import Node
from bridge_ray.workshop import Room, Share, Slots

GPUS = Room(  # eight, of which a training takes two and an engine one
    Share("cluster", 1 / 4, 4), Share("cluster", 1 / 8, 8), Share("teacher", 1.0, 1), "."
)
ALONE = Room(Share("cluster", 1.0, 1), Share("cluster", 1.0, 1), Share("teacher", 1.0, 1), ".")


def order(*wanted: tuple[str, Share, int], limit: int = 100) -> list[str]:
    """What begins and ends when all of these (name, share, turn) are wanted at once, in this order, and each that has
    begun ends when nothing else can begin, the first one first: '+a', '-a'."""
    said: list[str] = []

    async def stage(slots: Slots, name: str, share: Share, turn: int, over: asyncio.Event) -> None:
        async with slots.taken(share, turn):
            said.append(f"+{name}")
            await over.wait()
            said.append(f"-{name}")

    async def all_of_them() -> None:
        slots, over = Slots(), {name: asyncio.Event() for name, _, _ in wanted}
        tasks = [asyncio.create_task(stage(slots, *one, over[one[0]])) for one in wanted]
        for _ in range(limit):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            running = [word[1:] for word in said if f"-{word[1:]}" not in said]
            if running:
                over[running[0]].set()
                await asyncio.sleep(0)
        assert all(task.done() for task in tasks)

    asyncio.run(all_of_them())
    return said


def test_on_one_machine_a_training_and_an_engine_are_never_at_work_together() -> None:
    said = order(("train", ALONE.training, 0), ("score", ALONE.engine, 1), ("other", ALONE.training, 2))
    assert said == ["+train", "-train", "+score", "-score", "+other", "-other"]


def test_who_asks_the_teacher_waits_for_nobody_but_another_one_that_does() -> None:
    said = order(("train", ALONE.training, 0), ("teach", ALONE.teacher, 1), ("again", ALONE.teacher, 2))
    assert said[:3] == ["+train", "+teach", "-train"] and said.index("+again") > said.index("-teach")


def test_eight_gpus_are_full_with_three_trainings_of_two_and_two_engines() -> None:
    wanted = [(f"t{number}", GPUS.training, number) for number in range(3)]
    wanted += [(f"e{number}", GPUS.engine, 3 + number) for number in range(3)]
    said = order(*wanted)
    assert said[:6] == ["+t0", "+t1", "+t2", "+e0", "+e1", "-t0"]


def test_the_lowest_turn_comes_first_and_what_is_smaller_does_not_overtake_it() -> None:
    """Three trainings and an engine leave one GPU, and the training whose turn it is needs two."""
    first = [(f"t{number}", GPUS.training, number) for number in range(3)]
    said = order(*first, ("e", GPUS.engine, 3), ("late", GPUS.engine, 9), ("soon", GPUS.training, 5))
    assert said[:6] == ["+t0", "+t1", "+t2", "+e", "+late", "-t0"], "it was there before"
    said = order(*first, ("e", GPUS.engine, 3), ("soon", GPUS.training, 5), ("late", GPUS.engine, 9))
    assert said[:7] == ["+t0", "+t1", "+t2", "+e", "-t0", "+soon", "+late"]


def test_an_engine_of_a_whole_node_begins_where_no_training_can_be_in_its_way() -> None:
    """Two nodes of four GPUs: Ray puts a second training of one GPU on the other node, and then no engine has four."""
    training, engine = Share("cluster", 1 / 8, 8, keeps=1 / 2), Share("cluster", 1 / 2, 2, whole=True)
    said = order(("a", training, 0), ("b", training, 1), ("e", engine, 2), ("c", training, 3))
    assert said[:5] == ["+a", "+b", "-a", "+e", "+c"], "c is beside e, which has its GPUs already"


def test_a_kind_that_has_its_most_lets_others_overtake() -> None:
    """Of trainings, one at a time was asked for."""
    one = Share("cluster", 1 / 4, 1)
    assert order(("a", one, 0), ("b", one, 1), ("e", GPUS.engine, 2))[:3] == ["+a", "+e", "-a"]


@pytest.mark.parametrize(
    ("found", "trainings", "mode", "single", "parts"),
    [
        (Capacity(1.0, 1.0, False), None, "chat", True, (1, 1, 1)),
        (Capacity(1.0, 1.0, False), 2, "chat", False, (1 / 2, 1, 1)),
        (Capacity(1.0, 1.0, True), None, "chat", False, (1, 1, 1)),
        (Capacity(1 / 4, 1 / 8, False), None, "batch", False, (1 / 4, 1 / 8, 1 / 4)),
        (Capacity(1 / 4, 1 / 8, False), 2, "chat", False, (1 / 4, 1 / 8, 1)),
    ],
)
def test_room_is_what_the_cluster_has_and_what_is_asked_for(
    found: Capacity,
    trainings: int | None,
    mode: str,
    single: bool,
    parts: tuple[float, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capacity, "of_cluster", lambda _: found)
    fields = ["teacher.standin=null", "teacher.model=gpt-4o"]
    settings = config.load("demo", [*fields, f"teacher.mode={mode}"])
    made = workshop.room(settings, trainings, batches=True)
    assert workshop.room(settings, trainings).teacher.part == 1
    assert made.single is single
    assert (made.training.part, made.engine.part, made.teacher.part) == parts


APART = {"training.labels": {"pool": "a"}, "engine.labels": {"pool": "b"}}


@pytest.mark.parametrize(
    ("fields", "nodes", "found"),
    [
        (
            {"training.workers": 3, "training.global_batch": 9},
            [Node({"CPU": 64, "GPU": 8})],
            Capacity(3 / 8, 1 / 8, False),
        ),
        ({"training.gpus_per_worker": 0}, [Node({"CPU": 64, "GPU": 8})], Capacity(1.0, 1 / 8, True)),
        ({"training.labels": {"pool": "a"}}, [Node({"CPU": 64, "GPU": 4})], Capacity(1.0, 1 / 4, False)),
        (APART, [Node({"CPU": 64, "GPU": 4}), Node({"CPU": 8, "GPU": 4}, {"pool": "b"})], Capacity(1.0, 1 / 4, True)),
        ({"engine.replicas": 4}, [Node({"CPU": 64, "GPU": 2})], Capacity(1.0, 1.0, False)),
        ({"engine.max_replicas": 4}, [Node({"CPU": 64, "GPU": 8})], Capacity(1 / 4, 1 / 2, False)),
        ({"engine.gpus": 0.25}, [Node({"CPU": 6, "GPU": 2})], Capacity(1.0, 1 / 2, False)),
    ],
)
def test_a_share_is_that_of_the_gpus_and_apart_is_what_takes_others(
    fields: dict[str, Any], nodes: list[Node], found: Capacity
) -> None:
    """Three workers of a training take three of eight GPUs, so that two trainings leave room for two engines; an engine
    takes what it may come to have, and two CPUs to read and write."""
    gpus = {"training.gpus_per_worker": 1, "training.workers": 2, "engine.gpus": 1}
    assert capacity.capacity(config.changed(config.load("demo"), gpus | fields, "demo"), nodes) == found
