"""Stage *corpus* of a corpus that is too large to be read in one piece: Parquet in, examples out, piece by piece.

Nothing is split off for tests, and a row that cannot be read does not end the job: its reason stays with it in a
column ``fault``, and becomes its error when it is its turn. Keys are not looked at: a row is known by its place.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from bridge_ray import records, storage
from bridge_ray.config import Corpus
from bridge_ray.corpus.sources.columns import Census, census, example_of, fields_of, infer, mapping
from bridge_ray.errors import UserError
from bridge_ray.inference import local_ray
from bridge_ray.stage import Stage, Work

if TYPE_CHECKING:
    from pyarrow import RecordBatch

READABLE = records.EXAMPLE.append(pa.field("fault", pa.string()))  # why the row cannot be explained; else null
PIECE_ROWS = 65_536  # of a file that is written
HASHED = 1 << 24  # bytes read at once


@dataclass(frozen=True)
class Piece:
    """Row groups of one file: ``rows`` of them are wanted, and the first is row ``first`` of the corpus."""

    file: str
    groups: tuple[int, ...]
    first: int
    rows: int


def pieces(corpus: Corpus) -> list[Piece]:
    """The corpus's row groups in order of file name, bundled; the first ``corpus.train`` rows if it is set.

    Raises UserError where there is no Parquet or no column for the question.
    """
    import pyarrow.parquet as pq

    assert corpus.path is not None, "a config with this source has a path"
    found: list[Piece] = []
    first, left = 0, corpus.train
    for file in _files(corpus.path):
        fs, path = storage.filesystem(file)
        try:
            footer = pq.read_metadata(path, filesystem=fs)
        except pa.ArrowInvalid as error:
            raise UserError(f"{file}: cannot be read as Parquet: {' '.join(str(error).split())}") from error
        mapping(corpus, footer.schema.to_arrow_schema().names)
        for groups, rows in _bundled([footer.row_group(number).num_rows for number in range(footer.num_row_groups)]):
            wanted = rows if left is None else min(rows, left)
            if wanted:
                found.append(Piece(file, groups, first, wanted))
            first, left = first + wanted, None if left is None else left - wanted
    if not found:
        raise UserError(f"{corpus.path}: there are no rows")
    return found


def _files(path: str) -> list[str]:
    location = storage.locate(path)
    try:
        files = storage.files(location)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}; set corpus.path") from error
    if not files:
        raise UserError(f"{path}: no such file, or a folder without .parquet files; set corpus.path")
    return files


def _bundled(sizes: Sequence[int]) -> Iterator[tuple[tuple[int, ...], int]]:
    """Neighbouring row groups together, up to the size of a piece, and how many rows they have."""
    groups: list[int] = []
    for number, size in enumerate(sizes):
        if groups and sum(sizes[group] for group in groups) + size > PIECE_ROWS:
            yield tuple(groups), sum(sizes[group] for group in groups)
            groups = []
        groups.append(number)
    if groups:
        yield tuple(groups), sum(sizes[group] for group in groups)


def columns_of(piece: Piece, corpus: Corpus) -> Mapping[str, str]:
    """Our fields -> the columns of the piece's file."""
    import pyarrow.parquet as pq

    fs, path = storage.filesystem(piece.file)
    return mapping(corpus, pq.read_schema(path, filesystem=fs).names)


def stage(corpus: Corpus, found: Sequence[Piece]) -> Stage:
    """Of the corpus's pieces. Reads all of their bytes once, for the stage's identity, on the cluster."""
    import ray

    local_ray.start()
    hashes = ray.get([ray.remote(content_hash).remote(file) for file in dict.fromkeys(piece.file for piece in found)])
    identity = {
        "content": hashlib.sha256("".join(hashes).encode()).hexdigest()[:16],
        "columns": dict(corpus.columns),
        "answer_type": corpus.answer_type,
        "rows": sum(piece.rows for piece in found),
    }
    return Stage("corpus", 1, identity, {}, partial(run, corpus=corpus, pieces=found))


def content_hash(file: str) -> str:
    """SHA-256 of a file's bytes, in hex."""
    fs, path = storage.filesystem(file)
    digest = hashlib.sha256()
    with fs.open_input_stream(path) as stream:
        while data := stream.read(HASHED):
            digest.update(data)
    return digest.hexdigest()


def run(work: Work, corpus: Corpus, pieces: Sequence[Piece]) -> dict[str, Any]:
    import ray

    local_ray.start()
    kind = corpus.answer_type or _answer_type(corpus, pieces)
    write = ray.remote(write_piece)
    out = storage.join(work.out, "train")
    counts: Counter[str] = Counter()
    with work.progress.task("corpus", len(pieces), "pieces") as task:
        waiting = [write.remote(piece, corpus, kind, out) for piece in pieces]
        while waiting:
            ready, waiting = ray.wait(waiting)
            counts.update(ray.get(ready[0]))
            task.add()
    domains = {key.removeprefix("domain/"): rows for key, rows in counts.items() if key.startswith("domain/")}
    return {"train": counts["rows"], "domains": domains, "answer_types": {kind: counts["rows"]}}


def _answer_type(corpus: Corpus, pieces: Sequence[Piece]) -> str:
    """The narrowest that every answer of the corpus has, as of a corpus in one piece."""
    import ray

    return infer(sum(ray.get([ray.remote(answers).remote(piece, corpus) for piece in pieces]), census([])))


def answers(piece: Piece, corpus: Corpus) -> Census:
    """What the piece's answers are; rows that cannot be read are left out."""
    found, number = census([]), piece.first
    for batch, columns in _batches(piece, corpus, ("options", "answer")):
        rows = []
        for row in batch.to_pylist():
            number += 1
            label = f"{corpus.path} row {number}"
            with suppress(UserError):
                rows.append((label, fields_of(label, row, columns)))
        found += census(rows)
    return found


def write_piece(piece: Piece, corpus: Corpus, kind: str, out: str) -> Counter[str]:
    """Write a piece's examples (READABLE), in files of at most 65,536 rows; rows and domains, counted."""
    counts: Counter[str] = Counter()
    default = Path(corpus.path or "").name.partition(".")[0]
    first = piece.first
    for batch, columns in _batches(piece, corpus, None):
        rows = [
            _readable(number, row, columns, kind, default) for number, row in enumerate(batch.to_pylist(), start=first)
        ]
        table = pa.Table.from_pylist(rows, schema=READABLE)
        storage.write_table(storage.join(out, f"part-{first:012d}.parquet"), table)
        counts.update({"rows": len(rows)})
        counts.update(f"domain/{row['domain']}" for row in rows)
        first += len(rows)
    return counts


def _batches(
    piece: Piece, corpus: Corpus, fields: Sequence[str] | None
) -> Iterator[tuple[RecordBatch, Mapping[str, str]]]:
    """The piece's wanted rows, with the columns of these fields (all if None), and where the fields are."""
    import pyarrow.parquet as pq

    fs, path = storage.filesystem(piece.file)
    left = piece.rows
    with pq.ParquetFile(path, filesystem=fs) as file:
        columns = mapping(corpus, file.schema_arrow.names)
        wanted = {field: column for field, column in columns.items() if fields is None or field in fields}
        names = list(wanted.values())
        for batch in file.iter_batches(PIECE_ROWS, row_groups=list(piece.groups), columns=names):
            if left:
                yield batch.slice(0, left), wanted
            left -= min(left, batch.num_rows)


def _readable(
    number: int, row: Mapping[str, Any], columns: Mapping[str, str], kind: str, default: str
) -> dict[str, Any]:
    """The example of row ``number`` (from 0) of the corpus, or what is wrong with it."""
    try:
        example = example_of(
            "the row cannot be read", number + 1, fields_of("the row cannot be read", row, columns), kind, default
        )
    except UserError as error:
        key = row.get(columns.get("id", ""))
        blank: dict[str, Any] = {"context": "", "options": [], "answer": None, "answer_type": kind, "domain": default}
        known = {"id": number, "key": str(number + 1 if key is None else key), "question": "", "split": "train"}
        return blank | known | {"fault": str(error)}
    return asdict(example) | {"id": number, "split": "train", "fault": None}
