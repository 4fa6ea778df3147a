"""Stage *corpus*: the examples as Parquet, one folder per split."""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bridge_ray import storage
from bridge_ray.config import Corpus
from bridge_ray.corpus.duplicates import near_duplicates
from bridge_ray.stage import Stage, Work

SPLITS = ("train", "dev", "test")


def stage(corpus: Corpus, table: pa.Table) -> Stage:
    """The examples (records.EXAMPLE) are read before anything is written, so that a bad row costs nothing."""
    identity = {"content": content_hash(table), "near_duplicate": corpus.near_duplicate}
    return Stage("corpus", 1, identity, {}, partial(run, corpus=corpus, table=table))


def content_hash(table: pa.Table) -> str:
    """16 hex digits over the rows, wherever they came from."""
    digest = hashlib.sha256()
    for column in table.combine_chunks().columns:
        digest.update("\x1f".join(map(repr, column.to_pylist())).encode())
    return digest.hexdigest()[:16]


def run(work: Work, corpus: Corpus, table: pa.Table) -> dict[str, Any]:
    for split in SPLITS:
        part = table.filter(pc.equal(table["split"], split))
        storage.write_table(storage.join(work.out, split, "rows.parquet"), part)
    rows = Counter(table["split"].to_pylist())
    with work.progress.task("corpus", rows["train"], "rows") as task:
        pairs = near_duplicates(table, corpus.near_duplicate, task.add)
    return {
        **{split: rows[split] for split in SPLITS},
        "domains": dict(Counter(table["domain"].to_pylist())),
        "answer_types": dict(Counter(table["answer_type"].to_pylist())),
        "near_duplicates": {
            "threshold": corpus.near_duplicate,
            "test_rows": len({test for test, _, _ in pairs}),
            "pairs": [{"test": test, "train": train, "similarity": round(s, 3)} for test, train, s in pairs[:20]],
        },
    }
