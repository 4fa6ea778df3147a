"""What a model answers in the middle of its training, for whoever watches it (``stage.Watch``).

A copy of the model is asked, filled with the weights at hand: so neither the optimiser nor the attention nor the random
numbers of the training are touched, and it makes no difference how DeepSpeed has spread them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from bridge_ray import storage
from bridge_ray.answers import prompts
from bridge_ray.answers.extract import extract
from bridge_ray.answers.prompts import Message
from bridge_ray.answers.verify import matches
from bridge_ray.inference import models
from bridge_ray.stage import Watch
from bridge_ray.training import export

if TYPE_CHECKING:
    from bridge_ray.training.loop import Job

BATCH = 16  # questions at once


def due(watch: Watch, update: int, updates: int) -> float | None:
    """The share at which the model is asked after this update of so many, if it is; never after the last one."""
    if update >= updates:
        return None
    return next((share for share in reversed(watch.shares) if max(1, round(share * updates)) == update), None)


@torch.inference_mode()
def accuracy(watch: Watch, job: Job, weights: Mapping[str, torch.Tensor], device: torch.device) -> float:
    """Share of the watch's questions that the model with these weights answers as gold, asked greedily and, like the
    finished one, for a rationale only where it is taught some."""
    from transformers import AutoTokenizer

    rows = storage.read_table(job.questions).slice(0, watch.questions).to_pylist()
    instruction = prompts.REASON if job.plan.reasons else prompts.ANSWER
    messages = [prompts.chat(instruction, row) for row in rows]
    directory = models.resolve(job.init)
    with torch.random.fork_rng():
        model = export.filled(directory, weights).eval().to(device)
        if device.type == "cpu":  # where half precision is slow
            model = model.float()
        tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
        texts = [
            text
            for start in range(0, len(rows), BATCH)
            for text in _replies(model, tokenizer, messages[start : start + BATCH], watch.max_tokens)
        ]
    answers = [extract(text, row["answer_type"], row["options"] or ()) for row, text in zip(rows, texts, strict=True)]
    hits = [matches(answer, row["answer"], row["answer_type"]) for row, answer in zip(rows, answers, strict=True)]
    return sum(hits) / len(hits)


def _replies(model: Any, tokenizer: Any, asked: Sequence[Sequence[Message]], max_tokens: int) -> list[str]:
    ids = [prompts.prompt_ids(tokenizer, messages) for messages in asked]
    end = tokenizer.eos_token_id
    padding = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    length = max(map(len, ids))
    padded = torch.tensor([[padding] * (length - len(one)) + one for one in ids], device=model.device)
    real = torch.tensor([[0] * (length - len(one)) + [1] * len(one) for one in ids], device=model.device)
    replies = model.generate(
        input_ids=padded,
        attention_mask=real,
        max_new_tokens=max_tokens,
        do_sample=False,
        repetition_penalty=1.0,  # some models bring another along, and are evaluated without
        eos_token_id=end,
        pad_token_id=padding,
    )
    return tokenizer.batch_decode(replies[:, length:], skip_special_tokens=True)
