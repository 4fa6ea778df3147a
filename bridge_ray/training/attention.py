"""Attention inside each of several sequences that stand one after another: block-diagonal, without padding.

A transformers model that is loaded with ``attn_implementation=PACKED`` takes their lengths as ``segments``. On a GPU
in half precision it is one call of the variable-length flash attention that comes with torch; elsewhere one call of
scaled_dot_product_attention for each sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from bridge_ray.training.faults import Unpackable

PACKED = "bridge_ray_packed"
INSIDE = {"full_attention", "sliding_attention"}  # layers whose tokens meet in attention alone


def register() -> None:
    """Make ``attn_implementation=PACKED`` known to transformers."""
    AttentionInterface.register(PACKED, packed_attention)


def check_packable(model: Any) -> None:
    """Raise Unpackable for a model whose tokens meet elsewhere too: rows that stand side by side would mix."""
    others = set(getattr(model.config, "layer_types", None) or ()) - INSIDE
    if others or not model._supports_attention_backend:
        what = ", ".join(sorted(others)) or type(model).__name__
        raise Unpackable(f"rows cannot be packed for {what} layers")


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Sequence[int],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Query (1, heads, tokens, size), key and value (1, key heads, tokens, size) -> (1, tokens, heads, size).

    ``segments``: the sequences' lengths, whose sum is the tokens. Causal, inside a window where the layer has one.
    """
    for option in ("softcap", "s_aux", "position_bias", "dropout"):
        if others.get(option) not in (None, 0.0):
            raise Unpackable(f"attention with {option} cannot be packed")
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _flash(query, key, value, segments, scaling, sliding_window), None
    # In fp32: on a CPU torch's backward pass takes three times as long in bf16.
    queries, keys, values = (part.float().split(list(segments), dim=2) for part in (query, key, value))
    rows = [_one(*row, scaling=scaling, window=sliding_window) for row in zip(queries, keys, values, strict=True)]
    return torch.cat(rows, dim=1).to(query.dtype), None


def _one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float | None, window: int | None
) -> torch.Tensor:
    length = query.shape[2]
    mask = None
    if window is not None and length > window:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - window)
    grouped = query.shape[1] != key.shape[1]
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2)


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Sequence[int],
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor([0, *segments]).cumsum(0, dtype=torch.int32).to(query.device, non_blocking=True)
    longest, grouped = max(segments), query.shape[1] != key.shape[1]
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    back = -1 if window is None else window - 1
    out = varlen_attn(
        query, key, value, ends, ends, longest, longest, scale=scaling, window_size=(back, 0), enable_gqa=grouped
    )
    assert isinstance(out, torch.Tensor)
    return out[None]
