"""End an engine's child processes when the actor that owns them is gone, however it went.

A killed driver can leave vLLM workers behind that hold a GPU's memory. A helper process waits for the actor's end
of a pipe to close, which the kernel does even on SIGKILL, and then ends the children that were named to it.
"""

from __future__ import annotations

import subprocess
import sys

import psutil

# A process number may have been given to another process by then: the time of creation tells.
_HELPER = """
import sys, psutil
named = [line.split() for line in sys.stdin]
for pid, created in named:
    try:
        child = psutil.Process(int(pid))
        if str(child.create_time()) == created:
            child.kill()
    except psutil.NoSuchProcess:
        pass
"""


class Watchdog:
    """Start it before the engine, so that no engine process inherits the pipe; ``guard`` when the engine is up."""

    def __init__(self) -> None:
        self._helper = subprocess.Popen([sys.executable, "-c", _HELPER], stdin=subprocess.PIPE, start_new_session=True)

    def guard(self) -> None:
        """Name the processes below this one to the helper."""
        assert self._helper.stdin is not None
        children = psutil.Process().children(recursive=True)
        lines = [f"{child.pid} {child.create_time()}\n" for child in children if child.pid != self._helper.pid]
        self._helper.stdin.write("".join(lines).encode())
        self._helper.stdin.flush()
