"""Lessons (prompt and completion) to token rows in Arrow files, written by Ray Data and memory-mapped by every rank."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge_ray import storage
from bridge_ray.answers import prompts
from bridge_ray.errors import UserError
from bridge_ray.inference import local_ray, models

if TYPE_CHECKING:
    import pyarrow as pa

INSTRUCTIONS = {"answer": prompts.ANSWER, "rationale": prompts.REASON}


class Tokenise:
    """Ray Data's batch function: lessons -> one Arrow file per block and pool; returns what it wrote."""

    def __init__(self, model: str, seq_len: int, out: str):
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(models.resolve(model))  # here: it may be on no other node
        self._seq_len = seq_len
        self._out = out

    def __call__(self, lessons: pa.Table) -> pa.Table:
        import pyarrow as pa
        import pyarrow.compute as pc

        written = []
        for pool in lessons["pool"].unique().to_pylist():
            rows = [self._row(lesson) for lesson in lessons.filter(pc.equal(lessons["pool"], pool)).to_pylist()]
            place = storage.join(self._out, pool, f"{rows[0]['id']:012d}.arrow")
            _write_arrow(place, pa.Table.from_pylist(rows, schema=_schema()))
            taught = sum(len(row["input_ids"]) > row["prompt"] for row in rows)
            written.append({"pool": pool, "rows": len(rows), "cut": sum(row["cut"] for row in rows), "taught": taught})
        return pa.Table.from_pylist(written)

    def _row(self, lesson: dict[str, Any]) -> dict[str, Any]:
        instruction = INSTRUCTIONS[lesson["pool"].removesuffix("_bought")]
        prompt = prompts.prompt_ids(self._tokenizer, prompts.chat(instruction, lesson))
        special = list(self._tokenizer.added_tokens_encoder)
        text = prompts.neutralise(prompts.completion(lesson["rationale"], lesson["label"]), special)
        reply = self._tokenizer(text, add_special_tokens=False)["input_ids"] + [self._tokenizer.eos_token_id]
        ids = (prompt + reply)[: self._seq_len]
        cut = len(prompt) + len(reply) > self._seq_len
        return {
            "id": lesson["id"],
            "input_ids": ids,
            "prompt": min(len(prompt), len(ids)),
            "difficulty": lesson["difficulty"],
            "cut": cut,
        }


@dataclass(frozen=True)
class TokenRows:
    """Token rows of one pool, in order of example id; columns are views of the memory-mapped files."""

    table: pa.Table

    @cached_property
    def difficulty(self) -> np.ndarray:
        """(rows,) float64."""
        return self.table["difficulty"].to_numpy()

    def row(self, index: int) -> tuple[np.ndarray, int]:
        """Token ids (length,) int32 of a row, and the length of its prompt."""
        return self.table["input_ids"][index].values.to_numpy(), self.table["prompt"][index].as_py()


@dataclass(frozen=True)
class Tokenised:
    """Rows of each pool; how many of all were cut off at ``seq_len``, and had nothing but their prompt before it."""

    rows: dict[str, int]
    cut: int
    prompt_only: int


def tokenise(lessons: str, model: str, seq_len: int, out: str) -> Tokenised:
    """Tokenise the Parquet lessons with the model's tokenizer into Arrow files under ``out``, a folder per pool.

    Raises UserError where a pool's prompts alone fill ``seq_len``: there would be nothing to learn.
    """
    import ray

    told = storage.join(out, "tokenised.json")
    if (before := storage.read_json(told)) is not None:  # by an attempt that was interrupted
        return Tokenised(**before)
    local_ray.start()
    storage.delete(out)
    total = storage.count_rows(storage.files(lessons))
    dataset = ray.data.read_parquet(lessons, override_num_blocks=max(1, min(8, total // 2048)))
    written = dataset.map_batches(
        Tokenise,
        fn_constructor_args=(model, seq_len, out),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=2),
    ).to_pandas()
    assert written["rows"].sum() == total, f"{out}: {written['rows'].sum()} of {total} lessons tokenised"
    pools = written.groupby("pool")[["rows", "cut", "taught"]].sum()
    if not pools["taught"].all():
        pool = pools["taught"].idxmin()
        raise UserError(f"training.seq_len {seq_len}: the prompts of the {pool} lessons fill it; raise it")
    rows = {str(pool): int(count) for pool, count in pools["rows"].items()}
    made = Tokenised(rows, int(pools["cut"].sum()), int((pools["rows"] - pools["taught"]).sum()))
    storage.write_json(told, asdict(made))
    return made


def load(folder: Path) -> TokenRows:
    """Memory-map a folder's Arrow files as one table in order of id."""
    import pyarrow as pa

    tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in sorted(folder.glob("*.arrow"))]
    return TokenRows(pa.concat_tables(tables))


def _write_arrow(location: str, table: pa.Table) -> None:
    import pyarrow as pa

    fs, path = storage.filesystem(location)
    fs.create_dir(path.rpartition("/")[0], recursive=True)
    with fs.open_output_stream(path) as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.int64()),
            ("input_ids", pa.list_(pa.int32())),
            ("prompt", pa.int64()),
            ("difficulty", pa.float64()),
            ("cut", pa.bool_()),
        ]
    )
