"""Stage *embed*: where each question lies in the semantic space of the TA, or of a sentence-embedding model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from bridge_ray import records, storage
from bridge_ray.answers import prompts
from bridge_ray.config import Embed
from bridge_ray.inference import models, numerics
from bridge_ray.inference.resumable import Pool, resumable_map
from bridge_ray.progress import heed
from bridge_ray.stage import Stage, Work

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 16  # questions that go through the model together
MAX_TOKENS = 512  # of a question; the rest of a longer one is not looked at


def stage(settings: Embed, ta: str, corpus: Stage) -> Stage:
    model = ta if settings.model == "ta" else settings.model
    identity = {"model": models.identity(model)}
    return Stage("embed", 1, identity, {"corpus": corpus}, partial(run, model=model))


def run(work: Work, model: str) -> dict[str, Any]:
    source = storage.join(work.inputs["corpus"], "train")
    pool = Pool(Embedder, (model, work.engine.gpus > 0), rows_at_once=2 * BATCH)
    rows, counts = resumable_map(work, "embed", source, pool)
    return {"rows": counts["rows"], "dimensions": len(storage.head(rows, 1)["vector"][0])}


class Embedder:
    """A transformers model in a Ray actor; mean-pooled last hidden states of a block of questions."""

    def __init__(self, model: str, gpu: bool, _skip: Any, totals: Any):
        import torch
        from loky import cpu_count
        from transformers import AutoModel, AutoTokenizer

        directory = models.resolve(model)
        self._totals, self._begun = totals, False
        self._device = "cuda" if gpu else "cpu"
        torch.set_num_threads(cpu_count())  # Ray would allow one
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        kind = torch.bfloat16 if numerics.fast_bf16(gpu) else torch.float32
        loaded = AutoModel.from_pretrained(directory, dtype=kind, use_safetensors=True)
        self._model = loaded.to(self._device).eval()

    def __call__(self, block: pa.Table) -> pa.Table:
        import pyarrow as pa

        self._begin()
        rows = block.to_pylist()
        vectors = [vector for at in range(0, len(rows), BATCH) for vector in self._embed(rows[at : at + BATCH])]
        self._totals.finished.remote({})
        return pa.table({"id": block["id"], "vector": vectors}, schema=records.EMBEDDING)

    def _begin(self) -> None:
        """Raises MustEnd where too many have begun and died before."""
        import ray

        if not self._begun:
            self._begun = True
            heed(ray.get(self._totals.begun.remote()))

    def _embed(self, rows: list[dict[str, Any]]) -> list[list[float]]:
        import torch

        from bridge_ray.selection.embedding import mean_pool

        texts = [prompts.question(row) for row in rows]
        batch = self._tokenizer(
            texts, return_tensors="pt", padding=True, truncation=True, max_length=MAX_TOKENS, padding_side="right"
        ).to(self._device)
        with torch.inference_mode():
            hidden = self._model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            vectors = mean_pool(hidden.last_hidden_state.float(), batch["attention_mask"])
        self._totals.add.remote({"rows": len(texts)})
        found: list[list[float]] = vectors.cpu().numpy().tolist()
        return found
