"""A JSON Lines file (``.jsonl`` or ``.jsonl.gz``), local or in an object store, with the user's own columns."""

from __future__ import annotations

from bridge_ray.config import Corpus
from bridge_ray.corpus.examples import Example
from bridge_ray.corpus.sources import columns, files


def read(corpus: Corpus, seed: int) -> list[Example]:
    """The file's rows in order; the seed plays no part. Raises UserError."""
    assert corpus.path is not None, "a config with this source has a path"
    return columns.examples(files.json_lines(corpus.path), corpus)
