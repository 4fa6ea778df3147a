"""Submit a run to a cluster's job server, or find the attempt that is under way, and follow it.

A job's id is ``<run>-<attempt>``: the job server takes an id once, even of a job that has finished. Storage is what
attempts have in common, so the next one goes on where the last one was when it ended or died.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge_ray import config
from bridge_ray.config import Config
from bridge_ray.errors import UserError
from bridge_ray.job import INTERRUPTED, TERMINATED, check_shared, everywhere

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

STOP_WAIT_S = 120  # between SIGTERM and SIGKILL: the teacher's answers on their way are waited for
RACES = 5  # others that may take the next id before us
PATIENCE = 10  # looks at a job server that does not answer, RETRY_S seconds apart
RETRY_S = 3.0

Write = Callable[[str], object]


@dataclass(frozen=True)
class Order:
    """A run to be submitted. ``command`` works in a copy of ``folder``, or of ``file`` alone, or with neither."""

    run: str
    command: Sequence[str]
    digest: str  # of all that the command depends on
    folder: Path | None = None
    file: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None  # for the person who submits it


@dataclass(frozen=True)
class Attempt:
    """A job, and whether it was under way already."""

    id: str
    found: bool


def order(
    recipe: str,
    settings: Config,
    options: Sequence[str],
    working_dir: str | None = None,
    metadata: Sequence[str] = (),
) -> Order:
    """The order for ``bridge-ray run RECIPE OPTIONS`` on a cluster that has this package.

    ``metadata`` are KEY=VALUE. Raises UserError when the config names something that only this machine can see.
    """
    folder = None if working_dir is None else Path(working_dir).expanduser().resolve()
    if folder is not None and not folder.is_dir():
        raise UserError(f"--working-dir {working_dir}: no such folder")
    _check_reach(settings, folder)
    shipped = recipe in config.recipes()
    name = recipe if shipped else _inside(Path(recipe).resolve(), folder)
    command = ["bridge-ray", "run", name, "--name", settings.name, *options]
    text = json.dumps([settings.model_dump(mode="json"), [one for one in options if one != "--fresh"]])
    return Order(
        run=settings.name,
        command=command,
        digest=hashlib.sha256(text.encode()).hexdigest()[:16],
        folder=folder,
        file=None if shipped or folder is not None else Path(recipe).resolve(),
        metadata=dict(_pair(one) for one in metadata),
        note=_key_note(settings),
    )


def _key_note(settings: Config) -> str | None:
    if settings.teacher.standin is not None or settings.teacher.key_file is not None:
        return None
    return (
        "no key goes along, as all who can see a job can read its environment: set teacher.key_file to a path on the "
        "cluster, or OPENAI_API_KEY on its head, e.g. from a Kubernetes secret"
    )


def _inside(recipe: Path, folder: Path | None) -> str:
    """The recipe's path in the copy that the job works in."""
    if folder is None:
        return recipe.name
    if not recipe.is_relative_to(folder):
        raise UserError(f"{recipe}: not in --working-dir {folder}; put it there, or leave --working-dir out")
    return str(recipe.relative_to(folder))


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UserError(f"--metadata {text}: expected KEY=VALUE")
    return key, value


def _check_reach(settings: Config, folder: Path | None) -> None:
    """Every path must mean the same on the cluster: a URL, an absolute path there, or a file that goes along."""
    check_shared(settings)
    for name, value in _read(settings):
        if everywhere(value) or (folder is not None and (folder / value).exists()):
            continue
        raise UserError(
            f"{name}: {value} is relative; give a path that all nodes of the cluster share, a URL, or put it in "
            "--working-dir"
        )


def _read(settings: Config) -> Iterator[tuple[str, str]]:
    """Fields with the path of something that is read, as far as they have one."""
    teacher = settings.teacher
    files = {
        "corpus.path": settings.corpus.path,
        "teacher.key_file": teacher.key_file,
        "teacher.standin.file": teacher.standin and teacher.standin.file,
    }
    yield from ((name, value) for name, value in files.items() if value)
    models = {
        "ta.model": settings.ta.model,
        "embed.model": settings.embed.model,
        "student.init": settings.student.source,
    }
    yield from ((name, value) for name, value in models.items() if value.startswith((".", "~")) or Path(value).is_dir())


def send(wanted: Order, address: str | None, watch: bool) -> int:
    """Submit, say what comes next, and ``watch`` the job to its end if asked to; the process's exit code."""
    hush()
    client = connect(address)
    attempt = submit(client, wanted)
    server = client.get_address()
    if wanted.note is not None and not attempt.found:
        print(f"note: {wanted.note}", file=sys.stderr)
    print(f"{attempt.id}: {'under way' if attempt.found else 'submitted'} at {server}", file=sys.stderr)
    if not watch:
        for what in ("status", "logs --follow", "stop"):
            print(f"  ray job {what} {attempt.id} --address {server}", file=sys.stderr)
        return 0
    try:
        return follow(client, attempt.id, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(f"\n{attempt.id} goes on; it ends with: ray job stop {attempt.id} --address {server}", file=sys.stderr)
        return INTERRUPTED


def hush() -> None:
    """Keep Ray's client from telling how it packs and uploads; for a process that does nothing else."""
    logging.disable(logging.INFO)


def connect(address: str | None) -> JobSubmissionClient:
    """The job server's client. Without an address, RAY_API_SERVER_ADDRESS or RAY_ADDRESS names it, as for Ray itself.

    A token is taken from where Ray keeps it. Raises UserError where nobody answers or the token is refused.
    """
    from ray.job_submission import JobSubmissionClient

    if address is not None:
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # else the variables would override the argument
    headers = os.environ.get("RAY_JOB_HEADERS")
    with _answering(address):
        return JobSubmissionClient(address, headers=json.loads(headers) if headers else None)


@contextmanager
def _answering(address: str | None) -> Iterator[None]:
    """Turn what the job server says, or that it says nothing, into one line."""
    import requests
    from ray.exceptions import AuthenticationError

    place = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "job server"
    try:
        yield
    except AuthenticationError as error:
        said = error.message.splitlines()[0]
        raise UserError(
            f"{place}: {said}; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
        ) from error
    except (ConnectionError, requests.RequestException) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{place}: {said} Give --address http://HEAD:8265 of a cluster that is up") from error
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{place}: {' '.join(str(error).split())[:500]}") from error


def submit(client: JobSubmissionClient, wanted: Order) -> Attempt:
    """The attempt under way if there is one, else the next.

    Raises UserError where the one under way has another config: two at once would work against each other.
    """
    for _ in range(RACES):
        with _answering(client.get_address()):
            attempts = _attempts(client.list_jobs(), wanted.run)
        live = [job for job in attempts.values() if not job.status.is_terminal()]
        if live:
            return _same(live[-1], wanted)
        job = f"{wanted.run}-{max(attempts, default=0) + 1}"
        if _submit(client, job, wanted):
            return Attempt(job, found=False)
    raise UserError(f"{client.get_address()}: others keep submitting run {wanted.run}; try again")


def _attempts(jobs: Sequence[JobDetails], run: str) -> dict[int, JobDetails]:
    """Number -> job, in order."""
    ids = [(re.fullmatch(re.escape(run) + r"-(\d+)", job.submission_id or ""), job) for job in jobs]
    return dict(sorted((int(found[1]), job) for found, job in ids if found))


def _same(job: JobDetails, wanted: Order) -> Attempt:
    digest = (job.metadata or {}).get("digest", wanted.digest)
    if digest != wanted.digest:
        raise UserError(
            f"job {job.submission_id} is under way with another config; stop it first "
            f"(ray job stop {job.submission_id}), or give this run a --name"
        )
    return Attempt(job.submission_id, found=True)


def _submit(client: JobSubmissionClient, job: str, wanted: Order) -> bool:
    """Whether the job was taken; not if the id is used by now."""
    with _package(wanted) as folder, _answering(client.get_address()):
        environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}}
        if folder is not None:
            environment["working_dir"] = str(folder)
        try:
            client.submit_job(
                entrypoint=shlex.join(wanted.command),
                submission_id=job,
                runtime_env=environment,  # readable by all who can see the job: nothing of our environment goes along
                metadata={**wanted.metadata, "run": wanted.run, "digest": wanted.digest},
            )
        except RuntimeError as error:
            if "already exists" in str(error):
                return False
            raise
    return True


@contextmanager
def _package(wanted: Order) -> Iterator[Path | None]:
    """The folder to upload."""
    if wanted.file is None:
        yield wanted.folder
        return
    with tempfile.TemporaryDirectory(prefix="bridge-ray-") as folder:
        shutil.copy(wanted.file, folder)
        yield Path(folder)


def follow(client: JobSubmissionClient, job: str, write: Write) -> int:
    """Pass the job's output on until it ends; its exit code, as this process's.

    Raises UserError when the job server is lost, which does not end the job.
    """
    passed = misses = 0
    while misses < PATIENCE:
        passed = asyncio.run(_tail(client, job, passed, write))
        details = _look(client, job)
        if details is not None and details.status.is_terminal():
            return exit_code(details, write)
        misses = misses + 1 if details is None else 0
        time.sleep(RETRY_S)
    raise UserError(f"{client.get_address()}: lost sight of job {job}, which goes on; the same command follows it")


async def _tail(client: JobSubmissionClient, job: str, passed: int, write: Write) -> int:
    """Pass output on, less the first characters, which have been; how many have been by the end."""
    import aiohttp

    seen = 0
    try:
        async for text in client.tail_job_logs(job):
            new = text[max(0, passed - seen) :]
            seen += len(text)
            if new:
                write(new)
    except (RuntimeError, OSError, aiohttp.ClientError):  # the connection's end, which is not the job's
        pass
    return max(passed, seen)


def _look(client: JobSubmissionClient, job: str) -> JobDetails | None:
    try:
        with _answering(client.get_address()):
            return client.get_job_info(job)
    except UserError:
        return None


def exit_code(details: JobDetails, write: Write) -> int:
    """What the job's driver ended with, in a shell's terms; a job that never had one says why."""
    from ray.job_submission import JobStatus

    code: int | None = details.driver_exit_code
    write(f"job {details.submission_id}: {details.status}\n")
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return TERMINATED
    if code is None:
        write(f"{details.message}\n")
        return 1
    return 128 - code if code < 0 else code
