"""The sources of a corpus: one small file and one line here each.

A reader turns the corpus config and a seed into examples. ``RECORDED`` are the sources that also come with
rationales, for a stand-in teacher: they take the corpus path.
"""

from __future__ import annotations

from collections.abc import Callable

from bridge_ray.config import Corpus
from bridge_ray.corpus import generated
from bridge_ray.corpus.examples import Example, Recorded
from bridge_ray.corpus.sources import gsm8k, jsonl, legalbench, parquet, pubmedqa

SOURCES: dict[str, Callable[[Corpus, int], list[Example]]] = {
    "generated": generated.read,
    "jsonl": jsonl.read,
    "parquet": parquet.read,
    "legalbench": legalbench.read,
    "pubmedqa": pubmedqa.read,
    "gsm8k": gsm8k.read,
}

RECORDED: dict[str, Callable[[str], list[Recorded]]] = {
    "legalbench": legalbench.recorded,
    "pubmedqa": pubmedqa.recorded,
    "gsm8k": gsm8k.recorded,
}
