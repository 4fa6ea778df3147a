"""Work that a driver leaves to the cluster: a head often has no CPUs to give and little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from bridge_ray.errors import UserError
from bridge_ray.inference import local_ray

T = TypeVar("T")


def call(function: Callable[..., T], *arguments: Any, cpus: float = 1) -> T:
    """Call the function in a Ray worker with that many logical CPUs, and return what it returns.

    A UserError that it raises is raised here as it was there; any other error as Ray wraps it.
    """
    import ray

    local_ray.start()
    with _plain_errors():
        return cast(T, ray.get(ray.remote(num_cpus=cpus)(function).remote(*arguments)))


def each(function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> list[T]:
    """Call the function with each of the argument lists in Ray workers; what it returned, in their order.

    As many run at once as there are cores (not logical CPUs, of which a local Ray has more), each with one; so what a
    call needs of memory is needed once per core. Errors are raised as by ``call``; calls that run then go on until they
    or the driver end: to cancel one that is just ending would kill the driver (Ray's issue 54846).
    """
    import ray

    local_ray.start()
    remote = ray.remote(num_cpus=1)(function)
    results: dict[int, T] = {}
    running: dict[Any, int] = {}
    with _plain_errors():
        for number, arguments in enumerate(calls):
            running[remote.remote(*arguments)] = number
            while len(running) >= _cores() or (number == len(calls) - 1 and running):
                [done], _ = ray.wait(list(running), num_returns=1)
                results[running.pop(done)] = ray.get(done)
    return [results[number] for number in range(len(calls))]


def _cores() -> int:
    import ray
    from loky import cpu_count

    if not local_ray.on_cluster():
        return cpu_count()
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


@contextmanager
def _plain_errors() -> Iterator[None]:
    """A UserError of a worker as it was raised there."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
