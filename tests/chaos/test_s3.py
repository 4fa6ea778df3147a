"""A whole run in an object store: a real S3 server over HTTP, its driver killed midway and started again."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from bridge_ray import storage
from bridge_ray.pipeline import NAMES
from tests.conftest import CLI, KEYED, billed, tiny


def test_a_run_in_s3_is_killed_and_finishes_when_started_again(
    s3: str, s3_server: dict[str, str], tmp_path: Path, tiny_model: str, teacher_url: str
) -> None:
    command = [str(CLI), *tiny(s3, tiny_model, teacher_url, "evaluate.systems=[bridge,ta]")]
    environment = KEYED | s3_server

    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as driver:
        deadline = time.monotonic() + 400
        while not storage.folders(f"{s3}/stages/amplify"):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        os.kill(driver.pid, 9)

    before = billed(teacher_url)
    assert storage.read_json(f"{s3}/runs/tiny/manifest.json")["state"] == "running"
    again = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert again.returncode == 0, again.stderr[-3000:]
    metrics = storage.read_json(f"{s3}/runs/tiny/metrics.json")
    stages = metrics["stages"]
    assert [name for name in NAMES if stages.get(name, {}).get("skipped")] == list(NAMES[: NAMES.index("amplify")])
    assert billed(teacher_url) == before
    assert sum(count for name, count in metrics["rows"].items() if name != "corpus") == 48
    for file in ("report.html", "model_card.md", "config.yaml"):
        assert storage.exists(f"{s3}/runs/tiny/{file}")
    assert all(b"s3-test-secret" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for file in ("config.yaml", "manifest.json"):
        assert b"s3-test-secret" not in (storage.read_bytes(f"{s3}/runs/tiny/{file}") or b"")
