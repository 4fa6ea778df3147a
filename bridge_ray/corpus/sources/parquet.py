"""A Parquet file, or a folder of them, with the user's own columns."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from bridge_ray.config import Corpus
from bridge_ray.corpus.examples import Example
from bridge_ray.corpus.sources import columns
from bridge_ray.errors import UserError


def read(corpus: Corpus, seed: int) -> list[Example]:
    """The file's rows in order; the seed plays no part. Raises UserError."""
    rows = _table(corpus).to_pylist()
    return columns.examples(((f"{corpus.path} row {number}", row) for number, row in enumerate(rows, start=1)), corpus)


def _table(corpus: Corpus) -> pa.Table:
    """The mapped columns only: a wide table is not read in full."""
    try:
        available = pq.ParquetDataset(corpus.path).schema.names
        return pq.read_table(corpus.path, columns=list(columns.mapping(corpus, available).values()))
    except FileNotFoundError:
        raise UserError(f"{corpus.path}: no such file; set corpus.path") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{corpus.path}: cannot be read as Parquet: {' '.join(str(error).split())}") from error
