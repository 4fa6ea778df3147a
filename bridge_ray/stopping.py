"""SIGTERM as a request to stop: it ends a run as Ctrl-C does, so that all that can be kept is kept.

``ray job stop`` sends it, and Kubernetes when a pod has to go; SIGKILL follows, in Ray's case after
RAY_JOB_STOP_WAIT_TIME_S seconds of the job's environment, 3 by default.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if so: the first one may have been raised where nobody heard it."""
        if self.asked:
            raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[Stop]:
    """In the block, SIGTERM does what Ctrl-C would at that moment. For the main thread.

    Whoever is at work has said what that is: by default KeyboardInterrupt is raised, asyncio cancels its main task,
    Ray Train aborts its workers. Another kind of exception would be lost: Ray prints what a handler raises while it
    waits, and goes on waiting. A second SIGTERM does nothing, so it does not disturb what the first one has begun.
    """
    stop = Stop()

    def terminate(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            return
        stop.asked = True
        handler = signal.getsignal(signal.SIGINT)
        assert callable(handler)
        handler(signal.SIGINT, frame)  # called, not signalled: SIGINT is blocked in a job's process

    # asyncio knows Ctrl-C only by Python's own handler, which a process in the background may not have.
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, terminate),
    }
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        # Asked to stop, the process is about to end, and one more SIGTERM must not change how.
        signal.signal(signal.SIGTERM, signal.SIG_IGN if stop.asked else before[signal.SIGTERM])


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put Python's handlers of SIGINT and SIGTERM back behind the block: Ray sets its own and leaves them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
