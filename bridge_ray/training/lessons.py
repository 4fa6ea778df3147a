"""What a model is taught: one lesson per row, as Parquet. A lesson is a question and what to reply; lessons of a kind
are a pool, which a phase of the curriculum draws from."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LESSON = pa.schema(
    [
        ("id", pa.int64()),
        ("question", pa.string()),
        ("context", pa.string()),
        ("options", pa.list_(pa.string())),
        ("pool", pa.string()),  # answer | rationale: the form of the reply; with _bought: of the bought rows alone
        ("rationale", pa.string()),  # null in the pools of answers
        ("label", pa.string()),
        ("difficulty", pa.float64()),
    ]
)


def answers(corpus: pa.Table, difficulty: pa.Table) -> pa.Table:
    """Instruction -> answer, for every labelled row of the corpus."""
    labelled = corpus.filter(pc.is_valid(corpus["answer"]))
    nothing = pa.nulls(labelled.num_rows, pa.string())
    return _lessons(labelled, "answer", nothing, labelled["answer"], difficulty)


def rationales(corpus: pa.Table, written: pa.Table, difficulty: pa.Table) -> pa.Table:
    """Instruction -> rationale -> answer, for every row with a rationale that was written for it.

    ``written`` holds records.RATIONALE rows that may be learnt from; those without a rationale are left out. Large
    tables are filtered only: to sort or to take joins all texts of a column, and fails where they come to more than
    2 GiB. The corpus is in order of id, and so is *amplify*'s output.
    """
    written = written.filter(pc.is_valid(written["rationale"]))
    if not _ascending(written["id"]):
        written = written.sort_by("id")
    rows = corpus.filter(pc.is_in(corpus["id"], written["id"].combine_chunks()))
    assert _ascending(rows["id"]) and rows.num_rows == written.num_rows
    return _lessons(rows, "rationale", written["rationale"], written["answer"], difficulty)


def _ascending(ids: pa.ChunkedArray) -> bool:
    return bool((np.diff(ids.to_numpy()) > 0).all())


def bought(lessons: pa.Table, ids: pa.ChunkedArray) -> pa.Table:
    """The lessons on the rows with those ids, as a pool of their own."""
    chosen = lessons.filter(pc.is_in(lessons["id"], ids.combine_chunks()))
    named = pc.binary_join_element_wise(chosen["pool"], "_bought", "")
    return chosen.set_column(chosen.schema.get_field_index("pool"), "pool", named)


def _lessons(
    rows: pa.Table, pool: str, rationale: pa.Array | pa.ChunkedArray, label: pa.ChunkedArray, difficulty: pa.Table
) -> pa.Table:
    columns = {name: rows[name] for name in ("id", "question", "context", "options")}
    columns |= {
        "pool": pa.array([pool] * rows.num_rows, pa.string()),
        "rationale": rationale,
        "label": label,
        "difficulty": difficulty["difficulty"].take(pc.index_in(rows["id"], difficulty["id"].combine_chunks())),
    }
    return pa.table(columns, schema=LESSON)
