"""The loss of a causal language model on the completions alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class CompletionLoss(torch.nn.Module):
    """A causal language model with the summed cross-entropy of its completion tokens as output.

    The model makes logits of completion positions only: with a small model and a large vocabulary they are a good part
    of the work. It makes them itself, as some scale or cap them. Causal attention never looks at the padding on the
    right, so no mask is needed.
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
        # A row's first token is never a completion token, so no prediction reaches into the next row.
        target = completion[:, 1:]
        kept = torch.nn.functional.pad(target, (0, 1))  # the position before each target: False at the end
        given = {"input_ids": ids, "position_ids": positions, "use_cache": False, **packing}
        logits = causal(**given, logits_to_keep=kept).logits
        return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][target], reduction="sum")
