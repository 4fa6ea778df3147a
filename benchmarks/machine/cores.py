"""Who uses this machine's cores while something is timed."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

LOOK_SECONDS = 1.0
MOST = 12  # names that are told


class Cores:
    """The processor time of this process and of those below it, from when ``began`` says so until ``ended`` does.

    Looked up every second, because a process may be gone when what it worked for ends.
    """

    def __init__(self, began: Callable[[], bool], ended: Callable[[], bool] = lambda: False) -> None:
        self._is_begun, self._is_over, self._stop = began, ended, threading.Event()
        self._first: dict[int, float] = {}
        self._last: dict[int, tuple[str, float]] = {}
        self._from = self._to = 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._is_begun():
            if self._stop.wait(0.1):
                return
        self._from, self._first = time.time(), {pid: seconds for pid, _, seconds in _processes()}
        while not self._is_over() and not self._stop.wait(LOOK_SECONDS):
            self._to = time.time()
            self._last |= {pid: (name, seconds) for pid, name, seconds in _processes()}

    def used(self) -> dict[str, float]:
        """Name -> mean number of cores, the largest first; Ray's workers without a task are ``ray::IDLE``."""
        self._stop.set()
        self._thread.join()
        cores: defaultdict[str, float] = defaultdict(float)
        for pid, (name, seconds) in self._last.items():
            cores[name] += (seconds - self._first.get(pid, 0.0)) / (self._to - self._from)
        most = sorted(cores, key=lambda name: -cores[name])[:MOST]
        return {name: round(cores[name], 4) for name in most}


def _processes() -> list[tuple[int, str, float]]:
    import psutil

    found, here = [], psutil.Process()
    for process in [here, *here.children(recursive=True)]:
        try:
            times, words = process.cpu_times(), process.cmdline()
        except psutil.NoSuchProcess:
            continue
        name = "driver" if process.pid == here.pid else Path(words[0]).name if words else "?"
        module = next((Path(word).name for word in words[1:] if word.endswith(".py")), None)
        found.append((process.pid, module if name.startswith("python") and module else name, times.user + times.system))
    return found
