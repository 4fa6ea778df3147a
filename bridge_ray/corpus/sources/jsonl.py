"""A JSON Lines file (``.jsonl`` or ``.jsonl.gz``) with the user's own columns."""

from __future__ import annotations

from pathlib import Path

from bridge_ray.config import Corpus
from bridge_ray.corpus.examples import Example
from bridge_ray.corpus.sources import columns, files


def read(corpus: Corpus, seed: int) -> list[Example]:
    """The file's rows in order; the seed plays no part. Raises UserError."""
    return columns.examples(files.json_lines(Path(corpus.path or "")), corpus)
