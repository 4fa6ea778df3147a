"""Which questions each seed of a frontier was asked: several seeds may have been asked the same ones.

A cell's predictions do not say: their ids count the rows of their own seed.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bridge_ray import storage
from bridge_ray.errors import UserError
from bridge_ray.statistics import Questions

FILE = "questions.parquet"


def of(corpus: pa.Table, split: str) -> NDArray[np.uint64]:
    """The questions of the corpus's split: hashes of what is asked. All sizes of a corpus have the same ones, and a
    file's splits for two seeds have some of them in common."""
    rows = corpus.filter(pc.equal(corpus["split"], split)).select(["question", "context", "options"]).to_pylist()
    digests = [hashlib.sha256(json.dumps(row).encode()).digest() for row in rows]
    return np.array([int.from_bytes(digest[:8]) for digest in digests], dtype=np.uint64)


def write(home: str, questions: Questions) -> None:
    """Keep them in the frontier's folder."""
    seeds = np.repeat(list(questions), [len(asked) for asked in questions.values()])
    asked = np.concatenate([np.empty(0, np.uint64), *questions.values()])
    storage.replace_table(storage.join(home, FILE), pa.table({"seed": seeds.astype(np.int64), "question": asked}))


def read(home: str) -> Questions:
    """Those of the frontier in that folder. Raises UserError where it has not kept any."""
    file = storage.join(home, FILE)
    if not storage.exists(file):
        raise UserError(f"{file}: is not there; give the frontier's command again, which writes it from what is kept")
    table = storage.read_table(file)
    seeds, asked = (table[name].to_numpy() for name in ("seed", "question"))
    return {int(seed): asked[seeds == seed] for seed in np.unique(seeds)}
