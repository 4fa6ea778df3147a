"""An amplification whose actor and whose driver are killed; tests/chaos does the same to raylets and real engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge_ray import storage
from tests import driven
from tests.stub_engine import write_corpus

ROWS = 800


def test_a_killed_actor_and_a_killed_driver_lose_no_row_and_double_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", ROWS), tmp_path / "out"
    with driven.raylets(2, monkeypatch) as cluster:
        driver = driven.start(cluster, corpus, out, 0.4)
        driven.more(out, driver)
        victim = driven.actors()[0]
        victim.kill()
        driven.more(out, driver)
        driver.kill()
        driver.communicate()
        safe = driven.committed(out)
        driven.ended(driven.start(cluster, corpus, out, 0.0))
    assert safe >= 10, "nothing was there to go on with"
    rows = storage.read_table(str(out / "rows.parquet")).to_pylist()
    assert [row["id"] for row in rows] == list(range(ROWS))
    explained = {row["id"]: row["rationale"] for row in rows}
    # The stub engine never finds the sums that end on 9.
    sums = {n: None if n % 10 == 9 else f"{n} and {n % 97} make {n + n % 97}." for n in range(ROWS)}
    assert explained == sums
