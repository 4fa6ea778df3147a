"""From a model's hidden states to one vector per text. Pure functions; the engine that runs the model is elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def mean_pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the unmasked tokens, in float32: hidden (b, t, d), mask (b, t) of 0 and 1 -> (b, d).

    A text without tokens becomes zeros.
    """
    weights = mask.unsqueeze(-1).float()
    return (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
