"""What stages in other processes say of their progress, on the driver's screen."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from rich.console import Console

from bridge_ray.inference import local_ray

READ_SECONDS = 0.5


class Lines:
    """Lines in the order in which they were said; an actor."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        self._lines.append(line)

    def taken(self) -> list[str]:
        """Those that nobody has taken yet."""
        taken, self._lines = self._lines, []
        return taken


@dataclass(frozen=True)
class Source:
    """One who says lines to the ``Lines`` actor; picklable. ``label`` begins each of them."""

    lines: Any
    label: str

    def console(self) -> Console:
        """A console whose lines are relayed; it is no terminal."""
        return Console(file=cast(Any, _Writer(self)), width=1_000, force_terminal=False)


class _Writer:
    """As much of a text file as a console needs."""

    def __init__(self, source: Source):
        self._source, self._begun = source, ""

    def write(self, text: str) -> int:
        *whole, self._begun = (self._begun + text).split("\n")
        for line in whole:
            if line.strip():
                self._source.lines.add.remote(f"{self._source.label}: {line.rstrip()}")
        return len(text)

    def flush(self) -> None:
        pass


@contextmanager
def relayed(screen: Console) -> Iterator[Any]:
    """In the block, lines that are added to the actor it yields are printed."""
    import ray

    lines, over = ray.remote(num_cpus=0, scheduling_strategy=local_ray.here())(Lines).remote(), threading.Event()
    thread = threading.Thread(target=_print, args=(lines, screen, over), daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        over.set()
        thread.join()
        ray.kill(lines)


def _print(lines: Any, screen: Console, over: threading.Event) -> None:
    import ray

    last = False
    while not last:
        last = over.wait(READ_SECONDS)
        try:
            said: list[str] = ray.get(lines.taken.remote(), timeout=10)
        except (ray.exceptions.RayError, TimeoutError):  # a courtesy: it must not end anything
            continue
        for line in said:
            screen.print(line, markup=False, highlight=False, soft_wrap=True)
