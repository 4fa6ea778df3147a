"""The loss of a causal language model on the completions alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class CompletionLoss(torch.nn.Module):
    """A causal language model with the summed cross-entropy of its completion tokens as output.

    The output layer is applied to completion positions only: with a small model and a large vocabulary it is
    a good part of the work. Causal attention never looks at the padding on the right, so no mask is needed.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(
        self,
        ids: torch.Tensor,
        completion: torch.Tensor,
        positions: torch.Tensor,
        segments: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """The tensors and segments of a ``feed.Micro`` -> scalar float32, nats."""
        causal = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        packing = {} if segments is None else {"segments": segments}
        states = causal.get_decoder()(input_ids=ids, position_ids=positions, use_cache=False, **packing)
        # A row's first token is never a completion token, so no prediction reaches into the next row.
        target = completion[:, 1:]
        logits = causal.get_output_embeddings()(states.last_hidden_state[:, :-1][target])
        return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][target], reduction="sum")
