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
ABANDONED = 24 * 3600.0  # seconds after which what a killed process was writing or removing is nobody's
SPARE = 0.05  # share of the disk that is left free, where removing copies can bring that about


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
    from filelock import FileLock

    with FileLock(folder / "room.lock"):
        for path in folder.glob("tmp*"):
            if time.time() - path.stat().st_mtime > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
        copies = [path for path in (lock.with_suffix("") for lock in folder.glob("*.lock")) if path.is_dir()]
        old = sorted((path for path in copies if not _in_use(path)), key=lambda path: path.stat().st_mtime)
        disk, sizes = shutil.disk_usage(folder), {path: storage.size(str(path)) for path in old}
        spare = int(SPARE * disk.total)
        wanted = size + (spare if disk.free + sum(sizes.values()) >= size + spare else 0)
        free = disk.free
        for path in old:
            if free >= wanted:
                return
            free += sizes[path] if _removed(path) else 0


def _in_use(copy: Path) -> bool:
    return time.time() - copy.stat().st_mtime < IN_USE


def _removed(copy: Path) -> bool:
    """Remove a copy unless somebody is being given it. At no moment is half of it where the whole was."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(f"{copy}.lock", timeout=0):
            if _in_use(copy):
                return False
            copy.rename(gone := Path(tempfile.mkdtemp(dir=copy.parent)) / "files")
    except (Timeout, OSError):
        return False
    shutil.rmtree(gone.parent, ignore_errors=True)
    return True


def cache() -> Path:
    """The user's cache folder for what can be made or fetched again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bridge_ray"
