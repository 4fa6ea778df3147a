"""Models in and out of training: plain transformers directories, safetensors only, and LoRA adapters."""

from __future__ import annotations

import heapq
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from bridge_ray import storage
from bridge_ray.answers import prompts
from bridge_ray.config import Lora
from bridge_ray.inference import models, numerics


def load(directory: str, lora: Lora | None, attention: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """The causal language model of a directory, with fresh LoRA layers on every linear layer if asked for.

    ``attention`` names an implementation that transformers knows; without, it is the fastest of the model's own.
    """
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, use_safetensors=True, attn_implementation=attention
    )
    if lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, settings)


def prune_layers(directory: str, keep: int, questions: Sequence[Sequence[prompts.Message]], out: str) -> dict[str, Any]:
    """Write the model with the ``keep`` layers it can least do without; returns them and the parameter count.

    Raises ValueError when the model has fewer layers.
    """
    kind = torch.bfloat16 if numerics.fast_bf16(gpus=0) else torch.float32
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=kind, use_safetensors=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    layers = list(model.get_decoder().layers)
    if keep > len(layers):
        raise ValueError(f"student.init.keep {keep} exceeds the {len(layers)} layers of {directory}")
    by_layer = _by_layer(model.config, len(layers))
    ids = [prompts.prompt_ids(tokenizer, question) for question in questions]
    chosen = choose_layers(
        len(layers), keep, lambda remaining: _loss(_with_layers(model, layers, by_layer, remaining), ids)
    )
    _save(_with_layers(model, layers, by_layer, chosen).to(torch.bfloat16), directory, out)
    return {"layers": chosen, "parameters": int(model.num_parameters())}


def choose_layers(layers: int, keep: int, loss: Callable[[list[int]], float]) -> list[int]:
    """Drop layers one at a time, the next being the one whose loss without it is lowest, until ``keep`` are left.

    A loss measured with more layers in place bounds the present one from below in practice, so only the candidates
    at the front of the queue are measured again (as in lazy greedy). The first layer reads the embeddings and stays.
    """
    chosen = list(range(layers))
    if keep == layers:
        return chosen
    queue = [(loss(_without(chosen, layer)), layer) for layer in chosen[1:]]
    heapq.heapify(queue)
    while len(chosen) > keep:
        _, layer = heapq.heappop(queue)
        now = loss(_without(chosen, layer))
        if queue and now > queue[0][0]:
            heapq.heappush(queue, (now, layer))
        else:
            chosen = _without(chosen, layer)
    return chosen


def _without(chosen: list[int], layer: int) -> list[int]:
    return [other for other in chosen if other != layer]


def _by_layer(config: Any, layers: int) -> dict[str, list[Any]]:
    """The fields of a model's config that say something of every layer: their types, or which of them rotate."""
    lists = {name: list(value) for name, value in config.to_dict().items() if isinstance(value, list | tuple)}
    others = ("architectures", "_token_id")  # may be as long by chance
    return {name: value for name, value in lists.items() if len(value) == layers and not name.endswith(others)}


def _with_layers(
    model: Any, layers: Sequence[torch.nn.Module], by_layer: Mapping[str, list[Any]], chosen: Sequence[int]
) -> Any:
    """The model, in place, with only the chosen ones of its layers, and of what its config says of each."""
    decoder = model.get_decoder()
    decoder.layers = torch.nn.ModuleList([layers[i] for i in chosen])
    for number, layer in enumerate(decoder.layers):
        layer.self_attn.layer_idx = number
    model.config.num_hidden_layers = len(chosen)
    for name, values in by_layer.items():
        setattr(model.config, name, [values[i] for i in chosen])
    return model


@torch.inference_mode()
def _loss(model: Any, texts: Sequence[Sequence[int]]) -> float:
    """Mean negative log-likelihood of the texts' tokens, nats. Causal attention needs no mask for right padding."""
    lengths = torch.tensor([len(text) for text in texts])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
    target = torch.arange(1, ids.shape[1]) < lengths[:, None]
    kept = torch.nn.functional.pad(target, (0, 1))
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits
    return float(torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][target]))


def copy(directory: str, out: str) -> dict[str, Any]:
    """Write the model unchanged; returns its parameter count."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, use_safetensors=True)
    _save(model, directory, out)
    return {"parameters": int(model.num_parameters())}


def fresh(directory: str, changes: Mapping[str, Any], out: str) -> dict[str, Any]:
    """Write a model with random weights: a directory's config with changes; returns its parameter count.

    Raises UserError for a change that names no field of the config.
    """
    models.check_changes(directory, changes, "student.init.changes")
    settings = AutoConfig.from_pretrained(directory)
    for name, value in changes.items():
        setattr(settings, name, value)
    if "num_hidden_layers" in changes and getattr(settings, "layer_types", None) and "layer_types" not in changes:
        settings.layer_types = (settings.layer_types * changes["num_hidden_layers"])[: changes["num_hidden_layers"]]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    _save(model, directory, out)
    return {"parameters": int(model.num_parameters())}


def write(
    model: Any,
    weights: Mapping[str, torch.Tensor],
    lora: Lora | None,
    base: str,
    losses: Sequence[Mapping[str, float]],
    out: str,
) -> None:
    """Export a trained model under ``out``: ``model/`` (merged, if LoRA), ``adapter/`` (if LoRA), and then
    ``losses.json``, which says that the training has ended."""
    _write_models(model, weights, lora, base, out)
    storage.write_json(storage.join(out, "losses.json"), list(losses))


def _write_models(model: Any, weights: Mapping[str, torch.Tensor], lora: Lora | None, base: str, out: str) -> None:
    if lora is None:
        _save(filled(base, weights), base, storage.join(out, "model"))
        return
    _write_adapter(model, weights, storage.join(out, "adapter"))
    merged = load(base, lora)
    _fill(merged, {name: weight for name, weight in weights.items() if "lora_" in name})
    _save(merged.merge_and_unload().to(torch.bfloat16), base, storage.join(out, "model"))


def merge(base: str, adapter: str, out: str) -> dict[str, Any]:
    """Write the model with a LoRA adapter's weights added to its own; returns its parameter count."""
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
    merged = PeftModel.from_pretrained(model, adapter, use_safetensors=True).merge_and_unload()
    _save(merged.to(torch.bfloat16), base, out)
    return {"parameters": int(merged.num_parameters())}


def filled(base: str, weights: Mapping[str, torch.Tensor]) -> Any:
    """The causal language model of a directory, in bf16, with these weights in place of its own."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, use_safetensors=True)
    _fill(model, weights)
    return model


def _fill(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Put weights into the model; every trained one must find its place and shape."""
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    for name, weight in weights.items():
        assert shapes.get(name) == tuple(weight.shape), f"{name}: {tuple(weight.shape)} for {shapes.get(name)}"
    model.load_state_dict(dict(weights), strict=False)


def _write_adapter(model: Any, weights: Mapping[str, torch.Tensor], out: str) -> None:
    """The LoRA adapter as safetensors; empty tensors (ZeRO-3, peft #1443) are caught here."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    adapter = get_peft_model_state_dict(model, state_dict=dict(weights))
    assert adapter and all(weight.numel() for weight in adapter.values()), "the adapter has empty tensors"
    with tempfile.TemporaryDirectory() as folder:
        tensors = {name: weight.detach().cpu().contiguous().to(torch.bfloat16) for name, weight in adapter.items()}
        save_file(tensors, Path(folder) / "adapter_model.safetensors", metadata={"format": "pt"})
        settings = model.peft_config["default"].to_dict()
        settings = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
        (Path(folder) / "adapter_config.json").write_text(json.dumps(settings, indent=2, default=str))
        storage.upload(Path(folder), out)


def _save(model: Any, tokenizer: str, out: str) -> None:
    """A plain transformers directory with the tokenizer and chat template of ``tokenizer``."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, safe_serialization=True)
        AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
        storage.upload(Path(folder), out)
