"""Copies of an object store's models and token rows on this disk: loaded once together, and again when changed.

They lie in the user's cache. What was used longest ago makes room for what is needed now: a sweep's hundredth student
would else find the disk full.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from bridge_ray import storage

IN_USE = 3600.0  # seconds: who was given a copy has loaded it by then, or has its files open
SPARE = 0.05  # share of the disk that a copy leaves free, where removing others can bring that about


def localise(location: str) -> str:
    """A local folder with a location's files: the location itself, or a copy of the object store's."""
    if "://" not in location:
        return location
    from filelock import FileLock

    folder = cache() / "copies" / hashlib.sha256(f"{location}#{storage.listed(location)}".encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _make_room(folder.parent, storage.size(location))
            # Removed where the copy fails: what does not fit would else fill the disk for all that follow.
            with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
                storage.download(location, Path(temporary) / "files")
                (Path(temporary) / "files").rename(folder)
        os.utime(folder)
    return str(folder)


def _make_room(folder: Path, size: int) -> None:
    """Remove the copies that were used longest ago until there is room for so many bytes; none that may be in use."""
    from filelock import FileLock, Timeout

    with FileLock(folder / "room.lock"):
        copies = [path for path in (lock.with_suffix("") for lock in folder.glob("*.lock")) if path.is_dir()]
        for copy in sorted(copies, key=lambda copy: copy.stat().st_mtime):
            disk = shutil.disk_usage(folder)
            if disk.free - size >= SPARE * disk.total:
                return
            try:
                with FileLock(f"{copy}.lock", timeout=0):  # else a process is being given it
                    if time.time() - copy.stat().st_mtime > IN_USE:
                        shutil.rmtree(copy)
            except Timeout:
                continue


def cache() -> Path:
    """The user's cache folder for what can be made or fetched again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bridge_ray"
