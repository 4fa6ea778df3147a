"""The allocator that processes on CPUs are started with."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bridge_ray.training import allocator

MAPPED = "print('jemalloc' in open('/proc/self/maps').read())"


def test_a_process_that_is_started_with_it_uses_jemalloc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    told = {**os.environ, **allocator.environment()}
    done = subprocess.run([sys.executable, "-c", MAPPED], env=told, capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("True", "")


def test_what_the_user_has_preloaded_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "libtcmalloc_minimal.so.4")
    assert allocator.environment() == {}
