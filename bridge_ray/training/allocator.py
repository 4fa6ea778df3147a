"""The memory allocator of training workers on CPUs.

glibc maps every large tensor anew, faults it in page by page and gives it back at once: up to a third of a worker's
time. jemalloc, which Ray brings along, keeps what was freed for ten seconds. (Keeping all in glibc's own heap is no way
out: with tensors of every size it grows without end.)
"""

from __future__ import annotations

import os
from pathlib import Path


def environment() -> dict[str, str]:
    """What makes a process that is started with it use jemalloc; nothing where the user has preloaded something."""
    import ray

    library = Path(ray.__file__).parent / "core" / "libjemalloc.so"
    if os.environ.get("LD_PRELOAD") or not library.exists():
        return {}
    # Else large tensors are given back at once, and those of a thread that does no more are kept for ever.
    return {"LD_PRELOAD": str(library), "MALLOC_CONF": "oversize_threshold:0,background_thread:true"}
