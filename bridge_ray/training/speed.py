"""What share of a GPU's arithmetic a training uses (MFU, as in Chowdhery et al. 2022)."""

from __future__ import annotations

from typing import Any

import torch

# Dense bf16 operations per second, as their makers state them.
PEAKS = {"B200": 2.25e15, "H200": 9.89e14, "H100": 9.89e14, "A100": 3.12e14, "L40S": 3.62e14, "A10": 1.25e14}


def peak(device: torch.device) -> float | None:
    """Operations per second of which the device is capable; None where that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((operations for part, operations in PEAKS.items() if part in name), None)


def operations_per_token(model: Any) -> float:
    """Of forward and backward: 2 per weight each, and 2 more per weight that is trained; attention is left out.

    A weight is counted once, however often it is used, and an input embedding that no output layer shares is none.
    """
    weights = trained = 0
    for parameter in model.parameters():
        size = getattr(parameter, "ds_numel", parameter.numel())  # in ZeRO-3 a rank holds only a part
        weights += size
        trained += size if parameter.requires_grad else 0
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if inputs is not outputs:
        weights -= getattr(inputs, "ds_numel", inputs.numel())
    return 4.0 * weights + 2.0 * trained
