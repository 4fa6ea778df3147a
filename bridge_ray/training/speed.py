"""What share of a GPU's arithmetic a training uses (MFU, as in Chowdhery et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

# Dense bf16 operations per second, as their makers state them; the first name that a device's holds is its own.
PEAKS = {
    **{"B200": 2.25e15, "H200": 9.89e14, "H100 PCIe": 7.56e14, "H100 NVL": 8.35e14, "H100": 9.89e14},
    **{"A100": 3.12e14, "L40S": 3.62e14, "A10G": 7.0e13, "A10": 1.25e14},
}


@dataclass(frozen=True)
class Operations:
    """Of forward and backward, in all layers for every token, and in the output layer for those of completions: only
    of them logits are made."""

    per_token: float
    per_completion: float

    def of(self, tokens: float, completions: float) -> float:
        return self.per_token * tokens + self.per_completion * completions


def peak(device: torch.device, precision: str) -> float | None:
    """bf16 operations per second of which the device is capable; None where that is not known, or it computes fp32."""
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((operations for part, operations in PEAKS.items() if part in name), None)


def operations(model: Any) -> Operations:
    """2 per weight forward and 2 back, and 2 more per weight that is trained; attention is left out.

    A weight is counted once, however often it is used. The input embedding multiplies nothing.
    """
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    layers = sum(_operations(weight) for weight in model.parameters() if weight is not inputs and weight is not outputs)
    return Operations(layers, _operations(outputs))


def _operations(weight: Any) -> float:
    size = getattr(weight, "ds_numel", weight.numel())  # in ZeRO-3 a rank holds only a part
    return (6.0 if weight.requires_grad else 4.0) * size
