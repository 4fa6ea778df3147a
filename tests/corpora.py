"""What the stages before *select* leave behind, for tests that select from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bridge_ray import config, storage
from bridge_ray.selection.large import run as large
from bridge_ray.selection.large.run import Inputs


def left(
    location: Path | str, vectors: Any, entropy: Any, order: Any = None, files: int = 3, nll: Any = None
) -> Inputs:
    """The corpus, scores and embeddings at a location; rows stand in ``order`` in ``files`` files of embeddings."""
    root, rows = str(location), len(vectors)
    ids = np.arange(rows) if order is None else np.asarray(order)
    kinds = np.array(["law", "medicine"])[np.arange(rows) % 2]
    text = pa.array(["number"] * rows)
    storage.write_table(
        f"{root}/corpus/train/rows.parquet", pa.table({"id": np.arange(rows), "answer_type": text, "domain": kinds})
    )
    values = {"entropy": np.asarray(entropy, float), "nll": np.zeros(rows) if nll is None else np.asarray(nll, float)}
    share = pa.nulls(rows, pa.float64())
    storage.write_table(
        f"{root}/score/rows.parquet", pa.table({"id": np.arange(rows), **values, "share_correct": share})
    )
    for number, some in enumerate(np.array_split(ids, files)):
        column = pa.array([np.asarray(vectors[row], np.float32) for row in some], pa.list_(pa.float32()))
        storage.write_table(
            f"{root}/embed/rows.parquet/part-{number}.parquet", pa.table({"id": some, "vector": column}), 100
        )
    return Inputs(f"{root}/corpus", f"{root}/embed", f"{root}/score")


def selected(
    inputs: Inputs,
    out: Path | str,
    rows: int,
    count: int,
    cells: int = 8,
    bought: int = 0,
    seed: int = 0,
    **settings: Any,
) -> tuple[pa.Table, dict[str, Any], list[str]]:
    """The ranking, the metrics and the cautions of a selection in partitions."""
    metrics, cautions = large.run(
        inputs,
        str(out),
        config.Select(**settings),
        config.Score(),
        rows,
        count,
        bought or count,
        seed,
        lambda step: None,
        cells,
    )
    return storage.read_table(f"{out}/selection.parquet"), metrics, cautions
