"""Intermediate files: Arrow IPC, so that a partition's rows are read alone, and mapped into memory where local."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bridge_ray import storage


def write(location: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write one file of record batches, making its folder."""
    fs, path = storage.filesystem(location)
    fs.create_dir(path.rpartition("/")[0], recursive=True)
    with fs.open_output_stream(path) as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def write_columns(location: str, **columns: Any) -> None:
    """Write one file of one batch; columns are arrays, matrices (see ``vectors``) or Arrow arrays."""
    table = batch(**columns)
    write(location, [table], table.schema)


def batch(**columns: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({name: _column(values) for name, values in columns.items()})


def _column(values: Any) -> pa.Array:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])
    return values if isinstance(values, pa.Array) else pa.array(values)


def reader(location: str) -> Any:
    """An open file: ``get_batch(number)`` reads that batch and no other; a local one is mapped, not copied."""
    if "://" not in location:
        return pa.ipc.open_file(pa.memory_map(location))
    fs, path = storage.filesystem(location)
    return pa.ipc.open_file(fs.open_input_file(path))


def read(location: str) -> pa.RecordBatch:
    """A file of one batch."""
    return reader(location).get_batch(0)


def matrix(column: pa.FixedSizeListArray) -> NDArray[np.float32]:
    """The rows (n, d) of a column of vectors, without a copy."""
    flat: NDArray[np.float32] = column.flatten().to_numpy()
    return flat.reshape(-1, column.type.list_size)


def folder(location: str) -> list[str]:
    """The files of a folder, sorted."""
    return storage.files(location, ".arrow")
