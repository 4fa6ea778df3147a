"""What a model is taught: one lesson per row, as Parquet. A lesson is a question, a target and what to reply."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

LESSON = pa.schema(
    [
        ("id", pa.int64()),
        ("question", pa.string()),
        ("context", pa.string()),
        ("options", pa.list_(pa.string())),
        ("target", pa.string()),  # answer | rationale: the instruction, and the form of the reply
        ("rationale", pa.string()),  # null when the target is answer
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

    ``written`` holds records.RATIONALE rows that may be learnt from; those without a rationale are left out.
    """
    written = written.filter(pc.is_valid(written["rationale"])).sort_by("id")
    rows = corpus.take(pc.index_in(written["id"], corpus["id"].combine_chunks()))
    return _lessons(rows, "rationale", written["rationale"], written["answer"], difficulty)


def _lessons(
    rows: pa.Table, target: str, rationale: pa.Array | pa.ChunkedArray, label: pa.ChunkedArray, difficulty: pa.Table
) -> pa.Table:
    columns = {name: rows[name] for name in ("id", "question", "context", "options")}
    columns |= {
        "target": pa.array([target] * rows.num_rows, pa.string()),
        "rationale": rationale,
        "label": label,
        "difficulty": difficulty["difficulty"].take(pc.index_in(rows["id"], difficulty["id"].combine_chunks())),
    }
    return pa.table(columns, schema=LESSON)
