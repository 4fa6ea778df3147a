"""What an interrupted stage has left behind, in the files that Ray Data's checkpointing leaves."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from bridge_ray import storage
from bridge_ray.inference.resumable import forget_failed


def block(parts: Path, name: str, rows: dict[int, str | None], ending: str = ".parquet") -> Path:
    """A block of rows, id -> why it failed, and its checkpoint; the file of the rows."""
    storage.write_table(str(parts / "checkpoint" / f"{name}{ending}"), pa.table({"id": list(rows)}))
    errors = pa.array(rows.values(), pa.string())
    storage.write_table(
        str(file := parts / "rows" / f"{name}-0.parquet"), pa.table({"id": list(rows), "error": errors})
    )
    return file


def committed(parts: Path) -> list[int]:
    files = [file for file in storage.files(str(parts / "checkpoint")) if "pending" not in file]
    return sorted(number for file in files for number in storage.read_table(file)["id"].to_pylist())


@pytest.mark.parametrize("bytes_written", [0, 4, 300])
def test_a_file_that_was_cut_off_does_not_keep_a_stage_from_going_on(tmp_path: Path, bytes_written: int) -> None:
    """A full disk, or a killed writer, leaves part of a file behind, and its checkpoint pending."""
    block(tmp_path, "w_000000_000000", {1: None, 2: "too long"})
    cut = block(tmp_path, "w_000001_000000", {3: None, 4: None}, ".pending.parquet")
    cut.write_bytes(cut.read_bytes()[:bytes_written])
    forget_failed(str(tmp_path))
    assert committed(tmp_path) == [1]


def test_a_row_that_another_attempt_brought_is_not_made_again(tmp_path: Path) -> None:
    block(tmp_path, "first_000000", {1: None, 2: "too long", 3: "too long"})
    forget_failed(str(tmp_path))
    assert committed(tmp_path) == [1]
    block(tmp_path, "second_000000", {2: None, 3: "too long"})
    forget_failed(str(tmp_path))
    assert committed(tmp_path) == [1, 2]
