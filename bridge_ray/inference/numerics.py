"""Which number format a machine computes fastest in. Weights lie on disk in bf16 either way."""

from __future__ import annotations

from typing import Literal


def fast_bf16(gpus: float) -> bool:
    """Whether bf16 is faster than fp32: on GPUs, and on CPUs with instructions for it (AVX-512, Arm's BF16).

    Elsewhere it is emulated: with AVX2 alone, matrix products took 5 to 8 times as long as in fp32 (torch 2.13).
    """
    if gpus > 0:
        return True
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def precision(wanted: Literal["auto", "bf16", "fp32"], gpus: float) -> Literal["bf16", "fp32"]:
    """What ``auto`` comes to on this machine."""
    if wanted != "auto":
        return wanted
    return "bf16" if fast_bf16(gpus) else "fp32"
