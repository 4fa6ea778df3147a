"""Amplification around the engine, on a deterministic stub of it: a record per row, whatever happens on the way."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from bridge_ray import amplify, records, storage
from bridge_ray.config import Amplify, Engine, Training
from bridge_ray.errors import UserError
from bridge_ray.inference import local_ray
from bridge_ray.inference.compact import Summary, compact
from bridge_ray.inference.generate import Served, courses
from bridge_ray.inference.resumable import Rest
from bridge_ray.progress import Progress
from bridge_ray.stage import Work
from tests.stub_engine import Stub, write_corpus

KNOWN = ("domain", "answer_type", "options")


@pytest.fixture(scope="module", autouse=True)
def local() -> Iterator[None]:
    import ray

    local_ray.start()
    yield
    ray.shutdown()


def work_in(folder: Path, corpus: str, **engine: Any) -> Work:
    progress = Progress(Console(quiet=True))
    settings = Engine(max_num_seqs=64, **engine)
    return Work("amplify", "test", {"corpus": corpus}, str(folder / "out"), settings, Training(), progress, "x")


def explain(work: Work, settings: Amplify, stub: Stub, rest: Rest | None = None) -> dict[str, Any]:
    pool = courses(work, Served("stub"), amplify.AmplifyCourse(settings, "stub", "hash"), records.EXPLAINED, stub)
    known = {storage.join(work.inputs["corpus"], "train"): KNOWN}
    return amplify.explain(work, settings, pool, known, rest)


def table(work: Work) -> pa.Table:
    return storage.read_table(storage.join(work.out, "rows.parquet"))


def test_every_row_gets_its_route_and_the_bought_ones_keep_theirs(tmp_path: Path) -> None:
    """By the last digit: 3 takes two attempts, 7 four and the hint, 9 all five in vain, the others one."""
    work = work_in(tmp_path, write_corpus(tmp_path / "corpus", 1000))
    bought = [
        {"id": number, "key": f"row-{number}", "rationale": "Bought.", "answer": "0", "source": "teacher"}
        for number in (0, 501, 999)
    ]
    kept = str(tmp_path / "bought.parquet")
    storage.write_table(kept, pa.Table.from_pylist(bought, schema=records.EXPLAINED))
    found = explain(work, Amplify(checks=()), Stub(), Rest(np.array([0, 501, 999]), kept))
    assert found["rows"] == {"corpus": 1000, "teacher": 3, "ta": 798, "ta_hinted": 100, "label_only": 99, "errored": 0}
    assert found["attempts"] == 698 + 100 * 2 + 100 * 5 + 99 * 5 and found["tokens"] == 12 * found["attempts"]
    rows = table(work).to_pylist()
    assert [row["id"] for row in rows] == list(range(1000))
    assert [row["key"] for row in rows] == [f"row-{number}" for number in range(1000)]
    assert {row["rationale"] for row in rows if row["source"] == "teacher"} == {"Bought."}
    assert rows[13]["rationale"] == "13 and 13 make 26." and rows[13]["attempts"] == 2
    assert (rows[19]["source"], rows[19]["answer"], rows[19]["rationale"]) == ("label_only", "38", None)
    assert not Path(work.out, "parts").exists()


def test_what_the_checks_turn_away_is_counted_and_no_row_is_lost(tmp_path: Path) -> None:
    """By the last digit: 1 is right five times and re-answered wrongly each time; one such row was bought. And of row
    0, "0 and 0 make 0." says no more than the answer: from nothing, nothing is answered again."""
    work = work_in(tmp_path, write_corpus(tmp_path / "corpus", 200))
    settings = Amplify(checks=("reanswer", "arithmetic"))
    kept = str(tmp_path / "bought.parquet")
    bought = [{"id": 11, "key": "row-11", "rationale": "2 x 3 = 7.", "answer": "22", "source": "teacher"}]
    storage.write_table(kept, amplify.unchecked(pa.Table.from_pylist(bought, schema=records.EXPLAINED), settings))
    pool = courses(
        work,
        Served("stub"),
        amplify.AmplifyCourse(settings, "stub", "hash"),
        amplify.schema(records.EXPLAINED, settings),
        Stub(),
    )
    known = {storage.join(work.inputs["corpus"], "train"): KNOWN}
    found = amplify.explain(work, settings, pool, known, Rest(np.array([11]), kept))
    assert found["rows"] == {"corpus": 200, "teacher": 1, "ta": 139, "ta_hinted": 20, "label_only": 40, "errored": 0}
    assert found["checks"] == {"arithmetic": 0, "reanswer": 20 * 5}
    rows = table(work).to_pylist()
    assert [row["id"] for row in rows] == list(range(200))
    assert (rows[11]["rationale"], rows[11]["turned_away"]) == ("2 x 3 = 7.", None)
    assert (rows[0]["turned_away"], rows[0]["attempts"], rows[0]["tokens"]) == (["reanswer"] * 5, 5, 5 * 12)
    assert (rows[21]["turned_away"], rows[21]["attempts"], rows[21]["tokens"]) == (["reanswer"] * 5, 10, 5 * 12 + 5 * 2)


def test_a_corpus_that_was_bought_whole_needs_no_engine(tmp_path: Path) -> None:
    work = work_in(tmp_path, write_corpus(tmp_path / "corpus", 50))
    kept = str(tmp_path / "bought.parquet")
    bought = [{"id": number, "rationale": "Bought.", "source": "teacher"} for number in range(50)]
    storage.write_table(kept, pa.Table.from_pylist(bought, schema=records.EXPLAINED))
    (tmp_path / "seen").mkdir()
    found = explain(work, Amplify(checks=()), Stub(seen=str(tmp_path / "seen")), Rest(np.arange(50), kept))
    assert found["rows"]["teacher"] == found["rows"]["corpus"] == 50
    assert not list((tmp_path / "seen").iterdir()), "an engine was loaded for nothing"


def test_engines_are_added_while_rows_wait_and_a_line_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge_ray.progress.LINE_SECONDS", 1)
    (tmp_path / "seen").mkdir()
    console = Console(file=io.StringIO(), width=200)
    work = work_in(tmp_path, write_corpus(tmp_path / "corpus", 3000), max_replicas=3)
    found = explain(
        replace(work, progress=Progress(console)), Amplify(checks=()), Stub(seconds=0.2, seen=str(tmp_path / "seen"))
    )
    assert found["rows"]["corpus"] == 3000
    assert len(list((tmp_path / "seen").iterdir())) > 1
    lines = console.file.getvalue().splitlines()
    pattern = r"amplify: [\d,]+ of 3,000 rows  [\d.,]+ rows/s  [\d,]+ tokens/s  9\d% kept  \d+:\d\d:\d\d left"
    assert any(re.fullmatch(pattern, line) for line in lines), lines


def test_small_files_become_few_sorted_ones_with_each_id_once(tmp_path: Path) -> None:
    """The same rows twice, as after a commit that was interrupted, in files whose ids overlap."""
    for name, ids in {"one": range(0, 700, 2), "two": range(1, 700, 2), "again": range(100, 300)}.items():
        storage.write_table(
            str(tmp_path / "parts" / f"{name}.parquet"), pa.table({"id": ids, "x": [i * i for i in ids]})
        )
    storage.write_table(str(tmp_path / "corpus"), pa.table({"id": range(700), "domain": ["a", "b"] * 350}))
    summary = Summary(lambda rows: Counter(rows["domain"].to_pylist()), {str(tmp_path / "corpus"): ("domain",)})
    with pytest.raises(RuntimeError, match="700 of 701 rows came back; run again"):
        compact([str(tmp_path / "parts")], str(tmp_path / "out"), summary, 701, file_rows=300)
    assert not (tmp_path / "out").exists(), "another run's output may be there, and whole"
    counts = compact([str(tmp_path / "parts")], str(tmp_path / "out"), summary, 700, file_rows=300)
    assert counts == {"rows": 700, "a": 350, "b": 350}
    files = storage.files(str(tmp_path / "out"))
    assert [storage.count_rows([file]) for file in files] == [300, 300, 100]
    rows = storage.read_table(str(tmp_path / "out"))
    assert rows["id"].to_pylist() == list(range(700)) and rows["x"].to_pylist() == [i * i for i in range(700)]


def test_faults_stay_with_their_rows_up_to_the_limit(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", 200)
    part = Path(corpus) / "train" / "part-000000000.parquet"
    rows = pq.read_table(part).to_pylist()
    for number in (5, 50):
        rows[number]["question"] = ""
    rows[100]["fault"] = "the row cannot be read: answer 'x' is no number"
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(part)), part)
    work = work_in(tmp_path, corpus)
    with pytest.raises(UserError, match=r"amplify: . of 200 rows failed, and amplify.max_error_fraction allows 2: "):
        explain(work, Amplify(checks=()), Stub())
    found = explain(work, Amplify(checks=(), max_error_fraction=0.02), Stub())
    assert found["rows"]["errored"] == 3
    assert found["faults"] == {"the question is empty": 2, "the row cannot be read": 1}
    errors = {row["id"]: row["error"] for row in table(work).to_pylist() if row["error"]}
    assert errors == {5: "the question is empty", 50: "the question is empty", 100: rows[100]["fault"]}


def test_rows_that_failed_are_tried_again(tmp_path: Path) -> None:
    work = work_in(tmp_path, write_corpus(tmp_path / "corpus", 200))
    with pytest.raises(UserError, match=r"of 200 rows failed.*: . x out of memory"):
        explain(work, Amplify(checks=()), Stub(refused=(5, 50, 100)))
    kept = {row["id"]: row for file in storage.files(work.out) for row in committed(file)}
    found = explain(work, Amplify(checks=()), Stub())
    assert found["rows"]["errored"] == 0 and found["faults"] == {}
    rows = table(work).to_pylist()
    assert [row["id"] for row in rows] == list(range(200))
    assert kept and all(rows[number] == row for number, row in kept.items() if row["error"] is None)


def committed(file: str) -> list[dict[str, Any]]:
    return storage.read_table(file).to_pylist() if "/parts/rows/" in file else []


def test_a_job_with_too_many_faults_ends_before_it_has_tried_all(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", 4000)
    part = Path(corpus) / "train" / "part-000000000.parquet"
    rows = [row | {"question": "" if row["id"] < 200 else row["question"]} for row in pq.read_table(part).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(part)), part)
    work = work_in(tmp_path, corpus)
    with pytest.raises(UserError, match=r"the question is empty"):
        explain(work, Amplify(checks=()), Stub(seconds=0.05))
    committed = storage.count_rows(storage.files(storage.join(work.out, "parts", "checkpoint")))
    assert committed < 3000, "it went on to the end"


def test_an_engine_that_dies_again_and_again_ends_the_stage_and_what_is_done_stays(tmp_path: Path) -> None:
    """One question kills its process, as one that drives it out of memory would; the stage goes on without it."""
    corpus = write_corpus(tmp_path / "corpus", 200)
    work = work_in(tmp_path, corpus)
    with pytest.raises(UserError, match=r"amplify: 6 times an engine was begun, and none has finished a block of rows"):
        explain(work, Amplify(checks=()), Stub(fatal=(150, 0.5)))
    there = {row["id"] for file in storage.files(work.out) for row in committed(file)}
    assert len(there) > 100 and 150 not in there
    found = explain(work, Amplify(checks=()), Stub())
    assert found["rows"]["corpus"] == 200


def test_a_block_that_is_taken_up_again_counts_its_failed_rows_once(tmp_path: Path) -> None:
    """Two rows of 200 may fail, and two do; the process dies once, a second after it has told of both."""
    (tmp_path / "seen").mkdir()
    stub = Stub(seconds=0.25, refused=(2, 3), fatal=(5, 2.0), seen=str(tmp_path / "seen"), deaths=1)
    found = explain(work_in(tmp_path, write_corpus(tmp_path / "corpus", 200)), Amplify(checks=()), stub)
    assert found["rows"]["errored"] == 2
    assert len(list((tmp_path / "seen").iterdir())) == 2, "no process has died"
