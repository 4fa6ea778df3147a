"""What share of a GPU's arithmetic a training uses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bridge_ray.config import Lora
from bridge_ray.training import export, speed

TRAINED, FROZEN = 6, 4  # operations per weight: forward and back, and for its own gradient


@pytest.mark.parametrize(
    ("name", "operations"), [("NVIDIA A10G", 7.0e13), ("NVIDIA A10", 1.25e14), ("NVIDIA H100 PCIe", 7.56e14)]
)
def test_a_device_is_known_by_its_longest_name(monkeypatch: Any, name: str, operations: float) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert speed.peak(torch.device("cuda"), "bf16") == operations
    assert speed.peak(torch.device("cuda"), "fp32") is None, "the peaks are of bf16"


@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_the_output_layer_works_for_completions_alone(tiny_model: str, lora: Lora | None) -> None:
    """Its weights are the input embedding's too, which multiplies nothing."""
    model = export.load(tiny_model, lora)
    head = model.get_output_embeddings().weight.numel()
    adapters = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" in name)
    layers = sum(weight.numel() for weight in model.parameters()) - head - adapters
    work = speed.operations(model)
    kind = TRAINED if lora is None else FROZEN
    assert work.of(10, 3) == 10 * (kind * layers + TRAINED * adapters) + 3 * kind * head
