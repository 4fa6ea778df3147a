"""A real cluster of processes on this machine, with token authentication: jobs are submitted, killed and continued.

A head that runs nothing (no CPUs) and two raylets with four logical CPUs each. All of them are children of the tests
and end with them.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from bridge_ray import storage
from bridge_ray.teacher import standin
from tests.chaos.test_kill import committed
from tests.conftest import CLI, KEYED, TINY, billed, bridge_ray, read, tiny

REPOSITORY = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
TOKEN = "a-token-of-the-tests-0123456789abcdef"
SLOW = ("corpus.train=192", "score.max_tokens=96", "score.samples=4", "engine.max_num_seqs=16")

Done = subprocess.CompletedProcess[str]


def free_port() -> int:
    """One that nobody takes before it is used: the system itself hands out only those above 32768."""
    while True:
        port = random.randrange(10_000, 20_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("", port))
            return port


@dataclass
class Cluster:
    """Its processes by name, and the environment of somebody who may use it."""

    folder: Path
    gcs: int = field(default_factory=free_port)
    dashboard: int = field(default_factory=free_port)
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of a Ray that these tests run in, no proxy and no key, and our commands on the path."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "OPENAI_"))}
        return kept | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_worker_niceness": "0",
            "PATH": f"{RAY.parent}{os.pathsep}{kept.get('PATH', '')}",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def start_head(self) -> None:
        (self.folder / "token").write_text(TOKEN)
        ports = {"port": self.gcs, "dashboard-port": self.dashboard, "ray-client-server-port": free_port()}
        ports |= {"dashboard-agent-listen-port": free_port()}
        more = ["--head", "--num-cpus=0", "--disable-usage-stats"]
        self._start("head", *more, *(f"--{name}={port}" for name, port in ports.items()))
        self._until(lambda: len(self.alive()) == 1)

    def add(self, name: str, cpus: int, **labels: str) -> None:
        """Start a raylet and wait until it is a node of the cluster."""
        listed = ",".join(f"{key}={value}" for key, value in {"raylet": name, **labels}.items())
        more = [f"--address=127.0.0.1:{self.gcs}", f"--num-cpus={cpus}", f"--labels={listed}"]
        before = self.alive()
        self._start(name, *more, f"--dashboard-agent-listen-port={free_port()}")
        # By identity, not number: a node that was taken away may still be among those before.
        self._until(lambda: bool(self.alive() - before))

    def _start(self, name: str, *arguments: str) -> None:
        # Nodes of one machine need folders and ports of their own: see cluster/local.sh.
        first = 20000 + 1000 * next(self.numbers)
        fixed = ["--block", "--node-ip-address=127.0.0.1", "--object-store-memory=200000000"]
        fixed += [
            "--temp-dir",
            str(self.folder / name),
            f"--min-worker-port={first}",
            f"--max-worker-port={first + 999}",
        ]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.nodes[name] = subprocess.Popen(
                [RAY, "start", *fixed, *arguments],
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self.folder,
                start_new_session=True,
            )

    def alive(self) -> set[str]:
        """Ids of the nodes that the head knows to be alive."""
        found = self._get("/nodes?view=summary")
        raylets = [node["raylet"] for node in found["data"]["summary"]] if found else []
        return {raylet["nodeId"] for raylet in raylets if raylet.get("state") == "ALIVE"}

    def _get(self, path: str) -> Any:
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {TOKEN}"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=10) as reply:
                return json.load(reply)
        except OSError:
            return None

    def _until(self, reached: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))
            ended = [name for name, process in self.nodes.items() if process.poll() is not None]
            assert not ended and time.monotonic() < deadline, f"ended: {ended}\n{logs}"
            time.sleep(0.5)

    def remove(self, name: str) -> None:
        """End a node's processes, by their numbers, and take them off the list."""
        top = self.nodes.pop(name)
        below = psutil.Process(top.pid).children(recursive=True) if top.poll() is None else []
        top.terminate()
        try:
            top.wait(20)
        except subprocess.TimeoutExpired:
            top.kill()
            top.wait()
        _, left = psutil.wait_procs(below, timeout=10)
        for process in left:
            process.kill()

    # jobs

    def call(self, *command: object, timeout: float = 900, **environment: str) -> Done:
        """A command of somebody who uses the cluster, with a key in the environment that must stay there."""
        key = {"OPENAI_API_KEY": "sk-test-secret"}
        return subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment | key | environment,
            check=False,
        )

    def ray_submit(self, job: str, script: str, *arguments: str, wait: bool = True, **environment: str) -> Done:
        """As a person would, from the repository."""
        options = ["--address", self.address, "--submission-id", job, "--working-dir", str(REPOSITORY)]
        # The second is one that we set for workers: the user's goes first.
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": "60", "TOKENIZERS_PARALLELISM": "true"}
        stop = ["--runtime-env-json", json.dumps({"env_vars": variables})]
        waits = [] if wait else ["--no-wait"]
        command = ["--", "python", f"jobs/{script}.py", *arguments]
        return self.call(RAY, "job", "submit", *options, *stop, *waits, *command, **environment)

    def job(self, job: str) -> dict[str, Any]:
        return dict(self._get(f"/api/jobs/{job}"))

    def status(self, job: str) -> str:
        return str(self.job(job)["status"])

    def ended(self, job: str, seconds: float = 600) -> str:
        deadline = time.monotonic() + seconds
        while self.status(job) in ("PENDING", "RUNNING"):
            assert time.monotonic() < deadline, self.output(job)
            time.sleep(0.5)
        return self.status(job)

    def output(self, job: str) -> str:
        return str(self._get(f"/api/jobs/{job}/logs")["logs"])[-5000:]

    def processes(self) -> list[psutil.Process]:
        tops = [psutil.Process(top.pid) for top in self.nodes.values() if top.poll() is None]
        return [process for top in tops for process in top.children(recursive=True)]

    def driver(self, script: str) -> psutil.Process:
        """The process of a job's script, below the head. Not the shell that Ray starts it with."""
        found = []
        for process in self.processes():
            try:
                line = process.cmdline()
            except psutil.NoSuchProcess:
                continue
            if f"jobs/{script}.py" in line and "python" in Path(line[0]).name:
                found.append(process)
        assert len(found) == 1, found
        return found[0]

    def workers(self, title: str) -> list[psutil.Process]:
        """Ray's workers of that title; a worker's parent is its node's raylet."""
        found = []
        for process in self.processes():
            try:
                if title in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="br-"))  # short: Ray's sockets lie below it
    made = Cluster(folder)
    try:
        made.start_head()
        made.add("a", 4, pool="generate")
        made.add("b", 4, pool="generate")
        yield made
    finally:
        for name in reversed(list(made.nodes)):
            made.remove(name)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def also(cluster: Cluster, *names: str, cpus: int, **labels: str) -> Iterator[None]:
    """More raylets for the length of the block."""
    try:
        for name in names:
            cluster.add(name, cpus, **labels)
        yield
    finally:
        for name in names:
            if name in cluster.nodes:
                cluster.remove(name)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storage that all nodes share, with a key's file beside it."""
    root = tmp_path_factory.mktemp("shared")
    (root / "key").write_text("sk-test-secret")
    return root


def arguments(root: Path, model: str, teacher: str, *overrides: str, name: str = "tiny") -> list[str]:
    """Those of ``bridge-ray run`` for the tiny recipe, as the cluster needs them: the key in a file."""
    key = f"teacher.key_file={root / 'key'}"
    return [*tiny(root / "storage", model, teacher, key, *overrides)[1:], "--name", name]


@pytest.fixture(scope="module")
def distilled(cluster: Cluster, shared: Path, tiny_model: str, teacher_url: str) -> tuple[Done, int]:
    """The whole of the tiny recipe as a job: what was printed, and what the teacher billed."""
    before = billed(teacher_url)
    done = cluster.ray_submit("tiny-1", "distill", *arguments(shared, tiny_model, teacher_url))
    return done, billed(teacher_url) - before


def test_doctor_finds_every_node_ready(cluster: Cluster, shared: Path, tiny_model: str, teacher_url: str) -> None:
    before = billed(teacher_url)
    told = [f"ta.model={tiny_model}", f"teacher.base_url={teacher_url}", f"teacher.key_file={shared / 'key'}"]
    sets = [word for one in told for word in ("--set", one)]
    where = ["--storage", shared / "storage", "--address", cluster.address]
    done = cluster.call(CLI, "doctor", TINY, *where, *sets)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nnode ") == 3 and "head, 0 CPUs" in done.stdout
    assert done.stdout.count("OK   storage: ") == done.stdout.count("OK   clock: ") == 3
    assert "FIX" not in done.stdout and "all is well" in done.stdout
    assert billed(teacher_url) == before
    done = cluster.call(CLI, "doctor", TINY, *where, *sets, "--set", "engine.gpus=64")
    assert done.returncode == 1, done.stdout
    assert "FIX  score: the cluster has no node with 64 GPUs" in done.stdout


def test_a_job_gives_what_a_local_run_gives(
    cluster: Cluster,
    shared: Path,
    distilled: tuple[Done, int],
    tmp_path: Path,
    tiny_model: str,
    teacher_url: str,
) -> None:
    """In what does not depend on sampling: identities, ids, counts, updates."""
    done, bill = distilled
    assert done.returncode == 0, done.stdout[-5000:]
    assert cluster.status("tiny-1") == "SUCCEEDED"
    (tmp_path / "key").write_text("sk-test-secret")
    alone = bridge_ray("run", *arguments(tmp_path, tiny_model, teacher_url))
    assert alone.returncode == 0, alone.stderr[-3000:]
    ours, theirs = shared / "storage", tmp_path / "storage"
    runs = [root / "runs" / "tiny" for root in (ours, theirs)]
    one, other = (read(run / "manifest.json") for run in runs)
    assert one["fingerprints"] == other["fingerprints"]
    assert (one["state"], one["job"]["job_submission_id"], other["job"]) == ("finished", "tiny-1", {})
    one, other = (read(run / "metrics.json") for run in runs)
    assert list(one["stages"]) == list(other["stages"]) and set(one["systems"]) == set(other["systems"])
    assert one["rows"]["corpus"] == other["rows"]["corpus"] == 48
    assert one["teacher"]["queries"] == one["teacher"]["bought"] == bill <= one["teacher"]["budget_queries"] == 12
    for stage in ("score", "embed", "amplify"):
        ids = [sorted(storage.read_table(str(table_of(root, stage)))["id"].to_pylist()) for root in (ours, theirs)]
        assert ids[0] == ids[1] == list(range(48))
    for stage in ("train_student", "train_direct"):
        updates = [read(manifest(root, stage))["metrics"]["updates"] for root in (ours, theirs)]
        assert updates[0] == updates[1]
    assert (runs[0] / "report.html").is_file()


def table_of(root: Path, stage: str) -> Path:
    [found] = root.glob(f"stages/{stage}/*/rows.parquet")
    return found


def manifest(root: Path, stage: str) -> Path:
    [found] = root.glob(f"stages/{stage}/*/manifest.json")
    return found


def test_a_job_prints_its_stages_and_never_a_key(cluster: Cluster, shared: Path, distilled: tuple[Done, int]) -> None:
    done, _ = distilled
    assert "job tiny-1: " in done.stdout and "train_student" in done.stdout
    assert "sk-test-secret" not in done.stdout + done.stderr + json.dumps(cluster.job("tiny-1"))
    for path in (shared / "storage").rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert b"sk-test-secret" not in path.read_bytes(), path


def test_our_own_command_goes_on_where_the_last_attempt_ended(
    cluster: Cluster, shared: Path, distilled: tuple[Done, int], tiny_model: str, teacher_url: str
) -> None:
    before = billed(teacher_url)
    told = [*arguments(shared, tiny_model, teacher_url), "--address", cluster.address]
    done = cluster.call(CLI, "submit", *told, "--follow")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "tiny-2: submitted" in done.stderr and "job tiny-2: SUCCEEDED" in done.stdout
    assert "train_student        done before" in done.stdout
    assert billed(teacher_url) == before
    mistaken = cluster.call(CLI, "submit", *told, "--set", "amplify.samples=2", "--follow")
    assert mistaken.returncode == 2 and "amplify.samples (1 -> 2)" in mistaken.stdout
    assert cluster.job("tiny-3")["driver_exit_code"] == 2


def test_a_wrong_token_is_refused_clearly(cluster: Cluster, tmp_path: Path, tiny_model: str, teacher_url: str) -> None:
    (tmp_path / "wrong").write_text("another-token-0123456789abcdef0123456789")
    wrong = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "wrong")}
    told = arguments(tmp_path, tiny_model, teacher_url)
    refused = cluster.ray_submit("refused-1", "distill", *told, **wrong)
    assert refused.returncode != 0 and "Invalid authentication token" in refused.stdout + refused.stderr
    refused = cluster.call(CLI, "submit", *told, "--address", cluster.address, **wrong)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert "Authentication failed" in refused.stderr and "RAY_AUTH_TOKEN_PATH" in refused.stderr


def test_what_the_cluster_cannot_hold_ends_at_once(
    cluster: Cluster, tmp_path: Path, tiny_model: str, teacher_url: str
) -> None:
    (tmp_path / "key").write_text("sk-test-secret")
    told = arguments(tmp_path, tiny_model, teacher_url, "engine.gpus=64", name="large")
    done = cluster.call(CLI, "submit", *told, "--address", cluster.address, "--follow")
    assert done.returncode == 2, done.stdout
    assert "the cluster has no node with 64 GPUs for score (engine.gpus)" in done.stdout
    assert not (tmp_path / "storage" / "stages").exists()


def test_what_the_local_ray_cannot_hold_ends_at_once(tmp_path: Path, tiny_model: str, teacher_url: str) -> None:
    done = bridge_ray(*tiny(tmp_path, tiny_model, teacher_url, "engine.gpus=64"))
    assert done.returncode == 2, done.stderr
    assert "the local Ray has no node with 64 GPUs for score (engine.gpus)" in done.stderr
    assert not (tmp_path / "stages").exists()


def checkpoints(root: Path, stage: str) -> list[Path]:
    return list(root.glob(f"storage/stages/{stage}/*/parts/checkpoint/*.parquet"))


def test_a_killed_driver_is_continued_by_the_next_attempt(
    cluster: Cluster, tmp_path: Path, tiny_model: str, teacher_url: str
) -> None:
    (tmp_path / "key").write_text("sk-test-secret")
    told = arguments(tmp_path, tiny_model, teacher_url, *SLOW, name="killed")
    assert cluster.ray_submit("killed-1", "score", *told, wait=False).returncode == 0
    wait_for(lambda: len(checkpoints(tmp_path, "score")) >= 3, cluster, "killed-1")
    cluster.driver("score").kill()
    assert cluster.ended("killed-1") == "FAILED"
    before = committed(tmp_path / "storage", "score")
    assert 0 < len(before) < 192
    used = cluster.ray_submit("killed-1", "score", *told)
    assert used.returncode != 0 and "already exists" in used.stdout + used.stderr
    done = cluster.ray_submit("killed-2", "score", *told)
    assert done.returncode == 0, done.stdout[-3000:]
    after = {row["id"]: row for row in storage.read_table(str(table_of(tmp_path / "storage", "score"))).to_pylist()}
    assert sorted(after) == list(range(192))
    assert all(after[row]["samples"] == before[row]["samples"] for row in before), "a finished row was done again"


def wait_for(reached: Callable[[], bool], cluster: Cluster, job: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert cluster.status(job) in ("PENDING", "RUNNING"), cluster.output(job)
        assert time.monotonic() < deadline, cluster.output(job)
        time.sleep(0.2)


def test_a_stopped_job_has_settled_its_ledger(cluster: Cluster, tmp_path: Path, tiny_model: str) -> None:
    (tmp_path / "key").write_text("sk-test-secret")
    fields = ("corpus.train=120", "budget.fraction=1.0", "score.samples=1", "score.max_tokens=1")
    with standin.running("expert", latency=1.0) as slow:
        told = arguments(tmp_path, tiny_model, slow, *fields, name="stopped")
        assert cluster.ray_submit("stopped-1", "distill", *told, "--until", "teach", wait=False).returncode == 0
        answers = tmp_path / "storage" / "teacher" / "answers"
        wait_for(lambda: len(list(answers.rglob("*.json"))) >= 5, cluster, "stopped-1")
        stopped = cluster.call(RAY, "job", "stop", "stopped-1", "--address", cluster.address)
        assert stopped.returncode == 0, stopped.stdout
        assert cluster.ended("stopped-1") == "STOPPED"
        assert "stopped; what was made and paid for is kept" in cluster.output("stopped-1")
        shown = cluster.call(CLI, "ledger", "--store", tmp_path / "storage" / "teacher", "--json")
        [account] = json.loads(shown.stdout)
        bill = billed(slow)
        assert (account["total"]["open"], account["total"]["settled"]) == (0, bill) and 5 <= bill < 120
        told = [*told, "--until", "teach", "--address", cluster.address, "--follow"]
        done = cluster.call(CLI, "submit", *told)
        assert done.returncode == 0, done.stdout[-3000:]
        assert "stopped-2: submitted" in done.stderr
        teacher = read(tmp_path / "storage" / "runs" / "stopped" / "metrics.json")["teacher"]
        assert teacher["bought"] == billed(slow) - bill and teacher["queries"] == billed(slow)


def test_training_on_two_nodes_gives_what_one_gives(
    cluster: Cluster, tmp_path: Path, tiny_model: str, teacher_url: str
) -> None:
    """Two nodes with one CPU each, so one worker each; from the same lessons, in fp32, as bf16 rounds."""
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "key").write_text("sk-test-secret")
    exact = ("training.precision=fp32", "training.zero_stage=2")
    told = [*arguments(tmp_path / "one", tiny_model, teacher_url, *exact), "--until"]
    assert bridge_ray("run", *told, "teach").returncode == 0
    shutil.copytree(tmp_path / "one" / "storage", tmp_path / "two" / "storage")
    alone = bridge_ray("run", *told, "train_ta")
    assert alone.returncode == 0, alone.stderr[-3000:]

    with also(cluster, "t1", "t2", cpus=1, pool="train"):
        told = arguments(tmp_path / "two", tiny_model, teacher_url, *exact, "training.labels.pool=train", name="spread")
        job = cluster.ray_submit("spread-1", "distill", *told, "--until", "train_ta", wait=False)
        assert job.returncode == 0, job.stdout
        raylets: set[int] = set()

        def seen() -> bool:
            raylets.update(parents(cluster.workers("ray::RayTrainWorker")))
            return cluster.status("spread-1") == "SUCCEEDED"

        wait_for_end(seen, cluster, "spread-1")
    assert len(raylets) == 2, "both workers were on one node: the test has shown nothing"
    losses = [
        [line["loss"] for line in read(next(tmp_path.glob(f"{place}/storage/stages/train_ta/*/losses.json")))]
        for place in ("one", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def wait_for_end(seen: Callable[[], bool], cluster: Cluster, job: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert cluster.status(job) in ("PENDING", "RUNNING", "SUCCEEDED"), cluster.output(job)
        assert time.monotonic() < deadline, cluster.output(job)
        time.sleep(0.1)


def parents(processes: list[psutil.Process]) -> set[int]:
    found = set()
    for process in processes:
        try:
            found.add(process.ppid())
        except psutil.NoSuchProcess:
            continue
    return found


def test_engines_run_where_their_label_says_and_survive_the_loss_of_their_node(
    cluster: Cluster, tmp_path: Path, tiny_model: str, teacher_url: str
) -> None:
    """The raylet below which the engine works is killed in the middle; another node with the label takes over."""
    (tmp_path / "key").write_text("sk-test-secret")
    with also(cluster, "e1", "e2", cpus=2, pool="engines"):
        told = arguments(tmp_path, tiny_model, teacher_url, *SLOW, "engine.labels.pool=engines", name="lost")
        assert cluster.ray_submit("lost-1", "score", *told, wait=False).returncode == 0
        wait_for(lambda: len(checkpoints(tmp_path, "score")) >= 3, cluster, "lost-1")
        [raylet] = parents(cluster.workers("ray::MapWorker(MapBatches(CourseActor))"))
        [home] = [name for name in ("e1", "e2") if raylet in below(cluster.nodes[name].pid)]
        os.kill(raylet, signal.SIGKILL)
        assert cluster.ended("lost-1") == "SUCCEEDED", cluster.output("lost-1")
        assert cluster.nodes[home].wait(60) != 0
        cluster.nodes.pop(home)
    rows = storage.read_table(str(table_of(tmp_path / "storage", "score")))
    assert rows["id"].to_pylist() == list(range(192)) and rows["error"].null_count == 192


def below(pid: int) -> set[int]:
    return {process.pid for process in psutil.Process(pid).children(recursive=True)}


def test_nothing_of_the_callers_environment_went_along(cluster: Cluster) -> None:
    """Whatever the tests before have submitted, each with a key in the environment."""
    assert "sk-test-secret" in KEYED.values()
    assert "sk-test-secret" not in json.dumps(cluster._get("/api/jobs/"))


SPREAD = """
import os, sys, ray
ray.init()
look = ray.remote(scheduling_strategy="SPREAD")(lambda: (ray.get_runtime_context().get_node_id(), os.getcwd()))
assert len({node for node, _ in ray.get([look.remote() for _ in range(8)])}) == 2, "all tasks ran on one node"
print("still in", os.getcwd(), "by", sys.prefix)
"""


def test_the_cluster_on_one_machine_takes_jobs_and_ends_as_it_was(tmp_path: Path) -> None:
    """A job's working directory must stay when another node unpacks its own: a driver without one dies in MKL."""
    folder, home = Path(tempfile.mkdtemp(prefix="br-")), tmp_path / "home"
    port, dashboard = free_port(), free_port()
    script = [REPOSITORY / "cluster" / "local.sh"]
    token = {"HOME": str(home), "RAY_AUTH_TOKEN_PATH": str(home / "token"), "RAY_AUTH_MODE": "token"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | token

    def call(*command: object) -> Done:
        words = [str(word) for word in command]
        return subprocess.run(words, capture_output=True, text=True, timeout=300, env=kept, check=False)

    ports = ["--port", port, "--dashboard-port", dashboard, "--folder", folder]
    try:
        up = call(*script, "up", "--workers", 1, "--cpus", 4, *ports)
        assert up.returncode == 0 and "2 nodes of 4 logical CPUs" in up.stdout, up.stdout + up.stderr
        pids = [int(path.read_text().split()[0]) for path in folder.glob("*.pid")]
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "spread.py").write_text(SPREAD)
        where = ["--address", f"http://127.0.0.1:{dashboard}", "--working-dir", tmp_path / "work"]
        done = call(RAY, "job", "submit", *where, "--", "python", "spread.py")
        assert done.returncode == 0 and f"by {sys.prefix}" in done.stdout, done.stdout[-3000:]
    finally:
        down = call(*script, "down", "--folder", folder)
        shutil.rmtree(folder, ignore_errors=True)
    assert down.stdout.count("ended ") == len(pids) == 2 and not any(lives(pid) for pid in pids)


def lives(pid: int) -> bool:
    """Not gone, nor a zombie that nobody has asked after."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
