"""bridge-ray submit: what goes to the cluster and what must not, which attempt it is, and how following one ends.

The job server is a stand-in that speaks the part of Ray's REST API that matters; tests/ray has the real one.
"""

from __future__ import annotations

import asyncio
import io
import json
import shlex
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from bridge_ray import config, submit
from bridge_ray.errors import UserError
from tests.conftest import CLI, KEYED

LOCAL = {"storage": "/mnt/shared", "teacher": {"standin": {}, "model": "x", "price": {"input": 1, "output": 1}}}
PACKAGED = "demo"


@dataclass
class Server:
    """Ray's job server, as far as it goes: an id is taken once; a job ends when the test says so."""

    url: str = ""
    token: str | None = None
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    output: list[str] = field(default_factory=list)  # of every job
    packages: dict[str, bytes] = field(default_factory=dict)
    breaks: int = 0  # times that following the output breaks off after the first part
    taken: set[str] = field(default_factory=set)  # ids used by others between a look and a submission
    ends: dict[str, Any] = field(default_factory=lambda: {"status": "SUCCEEDED", "driver_exit_code": 0})

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._authenticated])
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/jobs/", self._list)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/{id}", self._one)
        app.router.add_get("/api/jobs/{id}/logs/tail", self._tail)
        app.router.add_get("/api/packages/{protocol}/{name}", self._has_package)
        app.router.add_put("/api/packages/{protocol}/{name}", self._put_package)
        return app

    @web.middleware
    async def _authenticated(self, request: web.Request, handler: Any) -> web.StreamResponse:
        told = request.headers.get("Authorization")
        if self.token is not None and told != f"Bearer {self.token}":
            said = "Missing authentication token" if told is None else "Invalid authentication token"
            return web.Response(status=401 if told is None else 403, text=f"Unauthorized: {said}")
        return await handler(request)

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "s"})

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response(list(self.jobs.values()))

    async def _one(self, request: web.Request) -> web.Response:
        return web.json_response(self.jobs[request.match_info["id"]])

    async def _submit(self, request: web.Request) -> web.Response:
        asked = await request.json()
        job = asked["submission_id"]
        if job in self.taken and job not in self.jobs:
            self.add(job, "RUNNING")
        if job in self.jobs:
            return web.Response(status=500, text=f"ValueError: Job with submission_id {job} already exists.")
        self.add(job, "RUNNING", **asked)
        return web.json_response({"job_id": job, "submission_id": job})

    def add(self, job: str, status: str, **fields: Any) -> None:
        wanted = ("entrypoint", "metadata", "runtime_env")
        given = {"entrypoint": "true"} | {name: fields[name] for name in wanted if name in fields}
        self.jobs[job] = {"type": "SUBMISSION", "submission_id": job, "status": status, **given}

    async def _has_package(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

    async def _put_package(self, request: web.Request) -> web.Response:
        self.packages[request.match_info["name"]] = await request.read()
        return web.Response()

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for text in self.output[: 1 if self.breaks else None]:
            await socket.send_str(text)
        if self.breaks:
            self.breaks -= 1
            request.transport.abort()  # type: ignore[union-attr]
            return socket
        self.jobs[request.match_info["id"]] |= self.ends
        await socket.close()
        return socket


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(submit, "RETRY_S", 0.01)
    for name in ("RAY_ADDRESS", "RAY_JOB_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")  # --address goes before it
    made, loop, ready = Server(), asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        runner = web.AppRunner(made.app())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await stop.wait()
        await runner.cleanup()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    yield made
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)


def order(recipe: str = PACKAGED, *options: str, fields: dict[str, Any] | None = None, **rest: Any) -> submit.Order:
    settings = config.validate(LOCAL | {"name": "mine"} | (fields or {}), "test")
    return submit.order(recipe, settings, options, **rest)


def mine(folder: Path, **fields: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(LOCAL | fields))
    return path


# --- what is sent


def test_a_packaged_recipe_needs_no_upload(server: Server) -> None:
    wanted = order(PACKAGED, "--storage", "/mnt/shared", "--set", "budget.max_usd=2", metadata=["team=legal"])
    attempt = submit.submit(submit.connect(server.url), wanted)
    assert attempt == submit.Attempt("mine-1", found=False)
    job = server.jobs["mine-1"]
    told = ["--name", "mine", "--storage", "/mnt/shared", "--set", "budget.max_usd=2"]
    assert shlex.split(job["entrypoint"]) == ["bridge-ray", "run", PACKAGED, *told]
    assert job["metadata"] == {"team": "legal", "run": "mine", "digest": wanted.digest}
    assert job["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "120"}
    assert "working_dir" not in job["runtime_env"] and server.packages == {}


def test_a_recipe_s_file_is_uploaded_alone(server: Server, tmp_path: Path) -> None:
    path = mine(tmp_path)
    (tmp_path / "large.bin").write_bytes(b"0" * 1000)
    submit.submit(submit.connect(server.url), order(str(path)))
    [package] = server.packages.values()
    assert zipfile.ZipFile(io.BytesIO(package)).namelist() == ["mine.yaml"]
    job = server.jobs["mine-1"]
    assert shlex.split(job["entrypoint"])[:3] == ["bridge-ray", "run", "mine.yaml"]
    assert job["runtime_env"]["working_dir"].startswith("gcs://")


def test_the_repository_goes_along_without_what_is_not_its_own(tmp_path: Path) -> None:
    """As `ray job submit --working-dir .` packs it: with the package and the jobs, without environments and outputs."""
    from ray._private.runtime_env.packaging import create_package

    root = Path(__file__).parents[2]
    create_package(str(root), tmp_path / "package.zip", include_gitignore=True, excludes=[])
    names = zipfile.ZipFile(tmp_path / "package.zip").namelist()
    assert {"bridge_ray/cli.py", "bridge_ray/recipes/demo.yaml", "jobs/distill.py"} <= set(names)
    assert {name.partition("/")[0] for name in names}.isdisjoint(
        {".venv", ".git", "storage", "data", "tests", "logs", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
    )
    assert not [name for name in names if "__pycache__" in name or name.endswith(".safetensors")]
    assert (tmp_path / "package.zip").stat().st_size < 2**22


def test_a_working_directory_is_uploaded_with_what_it_holds(server: Server, tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    path = mine(tmp_path / "recipes")
    (tmp_path / "data.jsonl").write_text("{}\n")
    corpus = {"source": "jsonl", "path": "data.jsonl", "columns": {"question": "q"}}
    wanted = order(str(path), working_dir=str(tmp_path), fields={"corpus": corpus})
    submit.submit(submit.connect(server.url), wanted)
    [package] = server.packages.values()
    assert {"data.jsonl", "recipes/mine.yaml"} <= set(zipfile.ZipFile(io.BytesIO(package)).namelist())
    assert shlex.split(server.jobs["mine-1"]["entrypoint"])[2] == "recipes/mine.yaml"


def test_nothing_of_this_machine_s_environment_goes_along(server: Server, tmp_path: Path) -> None:
    """By the whole command, with a key in its environment."""
    hosted = mine(tmp_path, teacher={"model": "gpt-4o"}, corpus={"source": "generated", "train": 10})
    command = [CLI, "submit", hosted, "--address", server.url, "--until", "teach"]
    done = subprocess.run(command, capture_output=True, text=True, env=KEYED | {"NO_PROXY": "127.0.0.1"}, check=False)
    assert done.returncode == 0, done.stderr
    assert "sk-test-secret" not in json.dumps(server.jobs) + done.stdout + done.stderr
    assert all(b"sk-test-secret" not in package for package in server.packages.values())
    assert "set teacher.key_file" in done.stderr
    assert f"ray job stop mine-1 --address {server.url}" in done.stderr
    assert shlex.split(server.jobs["mine-1"]["entrypoint"])[3:] == ["--name", "mine", "--until", "teach"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"storage": "storage"}, "storage: storage would be on one node of the cluster only"),
        ({"storage": "~/storage"}, "storage: ~/storage would be on one node"),
        ({"teacher": {"store": "answers"}}, "teacher.store: answers would be on one node"),
        ({"teacher": {"key_file": "key"}}, "teacher.key_file: key is relative"),
        ({"corpus": {"source": "gsm8k", "path": "../data"}}, "corpus.path: ../data is relative"),
        ({"ta": {"model": "./model"}}, "ta.model: ./model is relative"),
        ({"student": {"init": {"prune_layers_of": "./model", "keep": 2}}}, "student.init: ./model is relative"),
    ],
)
def test_a_path_that_only_this_machine_knows_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        order(fields=fields)


def test_urls_hub_ids_and_absolute_paths_may_go(tmp_path: Path) -> None:
    fields = {
        "storage": "s3://bucket/prefix",
        "corpus": {"source": "gsm8k", "path": "/mnt/data"},
        "ta": {"model": "org/model"},
        "student": {"init": "/mnt/model"},
        "teacher": {"key_file": "/etc/key", "store": "s3://bucket/answers"},
    }
    assert order(fields=fields).note is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"working_dir": "nowhere"}, "--working-dir nowhere: no such folder"),
        ({"metadata": ["team"]}, "--metadata team: expected KEY=VALUE"),
    ],
)
def test_mistakes_in_the_options(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        order(**arguments)


def test_a_recipe_outside_the_working_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    with pytest.raises(UserError, match="mine.yaml: not in --working-dir"):
        order(str(mine(tmp_path)), working_dir=str(tmp_path / "inside"))


# --- which attempt


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({}, submit.Attempt("mine-1", found=False)),
        ({"mine-1": "FAILED"}, submit.Attempt("mine-2", found=False)),
        ({"mine-1": "STOPPED", "mine-2": "SUCCEEDED", "mine-10": "FAILED"}, submit.Attempt("mine-11", found=False)),
        ({"mine-1": "FAILED", "mine-2": "RUNNING"}, submit.Attempt("mine-2", found=True)),
        ({"mine-1": "PENDING"}, submit.Attempt("mine-1", found=True)),
        ({"mine-too-4": "RUNNING", "mine-1-2": "RUNNING", "other": "RUNNING"}, submit.Attempt("mine-1", found=False)),
    ],
)
def test_the_attempt_under_way_is_found_and_else_the_next_is_made(
    server: Server, there: dict[str, str], expected: submit.Attempt
) -> None:
    for job, status in there.items():
        server.add(job, status)
    assert submit.submit(submit.connect(server.url), order()) == expected


def test_an_id_taken_in_the_meantime_is_found_under_way(server: Server) -> None:
    server.taken = {"mine-1"}
    assert submit.submit(submit.connect(server.url), order()) == submit.Attempt("mine-1", found=True)


def test_an_attempt_under_way_with_another_config_is_not_taken_for_ours(server: Server) -> None:
    client = submit.connect(server.url)
    first = submit.submit(client, order())
    assert submit.submit(client, order()) == submit.Attempt(first.id, found=True)
    with pytest.raises(UserError, match=r"job mine-1 is under way with another config.*--name"):
        submit.submit(client, order(fields={"seed": 1}))
    with pytest.raises(UserError, match="another config"):
        submit.submit(client, order(PACKAGED, "--until", "teach"))


# --- following it


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0),
        ({"status": "FAILED", "driver_exit_code": 2}, 2),
        ({"status": "FAILED", "driver_exit_code": -9}, 137),
        ({"status": "FAILED", "message": "the runtime environment"}, 1),
        ({"status": "STOPPED"}, 143),
    ],
)
def test_following_passes_the_output_on_and_ends_with_the_job_s_exit_code(
    server: Server, ends: dict[str, Any], code: int
) -> None:
    server.output, server.ends = ["one\n", "two\n"], ends
    server.add("mine-1", "RUNNING")
    written: list[str] = []
    assert submit.follow(submit.connect(server.url), "mine-1", written.append) == code
    assert "".join(written).startswith(f"one\ntwo\njob mine-1: {ends['status']}\n")
    assert ends.get("message", "") in "".join(written)


def test_a_connection_that_breaks_is_made_again_and_nothing_is_written_twice(server: Server) -> None:
    server.output, server.breaks = ["one\n", "two\n", "three\n"], 2
    server.add("mine-1", "RUNNING")
    written: list[str] = []
    assert submit.follow(submit.connect(server.url), "mine-1", written.append) == 0
    assert "".join(written) == "one\ntwo\nthree\njob mine-1: SUCCEEDED\n"


# --- who answers


def test_nobody_there_is_one_line(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    with pytest.raises(UserError, match=r"http://127.0.0.1:9: .*Give --address") as refused:
        submit.connect("http://127.0.0.1:9")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("token", "code", "says"),
    [("right", 0, "submitted"), ("wrong", 2, "Authentication failed"), (None, 2, "Authentication required")],
)
def test_the_token_is_ray_s_own_and_a_wrong_one_is_said_in_one_line(
    server: Server, tmp_path: Path, token: str | None, code: int, says: str
) -> None:
    server.token = "right"
    environment = {name: value for name, value in KEYED.items() if not name.startswith("RAY_AUTH")}
    environment |= {"NO_PROXY": "127.0.0.1", "HOME": str(tmp_path)}  # where Ray looks for a token of its own
    if token is not None:
        (tmp_path / "token").write_text(token)
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    else:
        environment["RAY_AUTH_MODE"] = "disabled"
    command = [CLI, "submit", str(mine(tmp_path)), "--address", server.url]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert code == 0 or done.stderr.count("\n") == 1, done.stderr
    assert list(server.jobs) == (["mine-1"] if code == 0 else [])
