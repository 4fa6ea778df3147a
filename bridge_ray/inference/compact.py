"""Many small Parquet files -> few sorted ones with each id once, by Ray tasks that hold a range of ids each.

A streaming stage commits small files so that little is lost when it dies; those who read its output want few.
The driver sees file names and counts only, so it needs no more memory for 10^8 rows than for 10.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge_ray import storage

if TYPE_CHECKING:
    import pyarrow as pa

FILE_ROWS = 131_072  # ids per file
GROUP_ROWS = 16_384  # rows per row group: what a reader has to hold
LISTED = 512  # files whose footers one task reads

Counts = Counter[str]


@dataclass(frozen=True)
class Summary:
    """What is to be known of all rows together.

    ``count`` is called with some of the rows, which have got the columns that ``beside`` names of other tables with
    the same ids (location -> columns); what it returns is added up.
    """

    count: Callable[[pa.Table], Counts]
    beside: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Span:
    """A file and its lowest and highest id."""

    file: str
    low: int
    high: int


def compact(
    sources: Sequence[str], out: str, summary: Summary | None, total: int, file_rows: int = FILE_ROWS
) -> Counts:
    """Write the rows of the source folders and files to ``out``, in order of id; of rows with the same id only one, and
    none that failed if there is another. Raises RuntimeError, and writes nothing, where there are not ``total`` ids:
    another run at the same rows may have left there what is complete.

    ``out`` becomes a folder of files ``part-00000.parquet`` …, each of at most ``file_rows`` ids. Returns the summary's
    counts, the number of rows as ``rows``, and of those that failed as ``fault/REASON``.
    """
    import ray

    files = [file for source in sources for file in storage.files(source)]
    listed = [ray.remote(spans).remote(files[at : at + LISTED]) for at in range(0, len(files), LISTED)]
    found = [span for some in ray.get(listed) for span in some]
    if not found:
        _check_conserved(out, 0, total)
        return Counter(rows=0)
    low, high = min(span.low for span in found), max(span.high for span in found)
    ranges = [(start, start + file_rows) for start in range(low, high + 1, file_rows)]
    holding = [[span.file for span in found if span.low < end and span.high >= start] for start, end in ranges]
    counted = [ray.remote(distinct).remote(*part) for part in zip(holding, ranges, strict=True)]
    _check_conserved(out, sum(ray.get(counted)), total)
    parts = [
        ray.remote(merge).remote(*part, storage.join(out, f"part-{number:05d}.parquet"), summary)
        for number, part in enumerate(zip(holding, ranges, strict=True))
    ]
    return sum(ray.get(parts), Counter())


def _check_conserved(out: str, ids: int, total: int) -> None:
    if ids != total:
        raise RuntimeError(f"{out}: {ids:,} of {total:,} rows came back; run again to continue")


def distinct(files: Sequence[str], ids: tuple[int, int]) -> int:
    """How many ids the files hold from the first of two up to the second."""
    import pyarrow.compute as pc

    return pc.count_distinct(_between(files, ids, ["id"])["id"]).as_py() if files else 0


def spans(files: Sequence[str]) -> list[Span]:
    """The ids that each file holds, from its footer. Files without rows are left out."""
    import pyarrow.parquet as pq

    found = []
    for file in files:
        fs, path = storage.filesystem(file)
        footer = pq.read_metadata(path, filesystem=fs)
        column = footer.schema.to_arrow_schema().get_field_index("id")
        groups = [footer.row_group(number).column(column).statistics for number in range(footer.num_row_groups)]
        if footer.num_rows:
            found.append(Span(file, min(group.min for group in groups), max(group.max for group in groups)))
    return found


def merge(files: Sequence[str], ids: tuple[int, int], out: str, summary: Summary | None) -> Counts:
    """Write the files' rows from the first of two ids up to the second; the counts of what was written."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if not files:
        return Counter()
    narrow = _between(files, ids, None)
    rows = narrow.cast(_wide(narrow.schema))  # else to take rows fails where a column's texts come to more than 2 GiB
    if "error" in rows.column_names:
        rows = rows.take(pc.sort_indices(pc.is_valid(rows["error"])))  # a stable sort: those without an error first
    _, first = np.unique(rows["id"].to_numpy(), return_index=True)
    rows = rows.take(first)
    slices = [rows.slice(at, GROUP_ROWS).cast(narrow.schema) for at in range(0, rows.num_rows, GROUP_ROWS)]
    rows = pa.concat_tables(slices)
    storage.write_table(out, rows, GROUP_ROWS)
    counts = Counter(rows=rows.num_rows)
    if "error" in rows.column_names:
        counts.update(f"fault/{reason(error)}" for error in rows["error"].drop_null().to_pylist())
    if summary is None:
        return counts
    for location, columns in summary.beside.items():
        others = _between(storage.files(location), ids, ["id", *columns])
        others = others.take(pc.index_in(rows["id"], others["id"].combine_chunks()))
        for column in columns:
            rows = rows.append_column(column, others[column])
    return counts + summary.count(rows)


def _wide(schema: pa.Schema) -> pa.Schema:
    """The same with texts, also in lists, whose offsets do not end at 2 GiB."""
    import pyarrow as pa

    wide = {pa.string(): pa.large_string(), pa.list_(pa.string()): pa.list_(pa.large_string())}
    return pa.schema([field.with_type(wide.get(field.type, field.type)) for field in schema])


def _between(files: Sequence[str], ids: tuple[int, int], columns: list[str] | None) -> pa.Table:
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    fs, _ = storage.filesystem(files[0])
    paths = [storage.filesystem(file)[1] for file in files]
    first, end = ids
    rows = ds.dataset(paths, filesystem=fs, format="parquet")
    return rows.to_table(columns, filter=(pc.field("id") >= first) & (pc.field("id") < end))


def reason(error: str) -> str:
    """What is counted of a row's error: the part before the colon is the same for all rows of its kind."""
    return error.partition(": ")[0]
