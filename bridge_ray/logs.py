"""Ray's and vLLM's chatter goes to a file, what a person should see to the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from bridge_ray.errors import UserError


@contextmanager
def captured(folder: Path) -> Iterator[Console]:
    """Send this process's and its children's output to ``folder/driver.log``; yields a console on the real stderr.

    Works on the file descriptors, since Ray's core and the engines do not print through Python. Raises UserError where
    the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}; give a --storage that can be written") from error
    sys.stdout.flush()
    sys.stderr.flush()
    terminal, saved = os.dup(2), os.dup(1)
    log = os.open(folder / "driver.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    try:
        with os.fdopen(terminal, "w", closefd=False) as screen:
            yield Console(file=screen)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(saved, 1)
        os.dup2(terminal, 2)
        os.close(saved)
        os.close(terminal)
