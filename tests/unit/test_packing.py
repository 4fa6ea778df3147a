"""Rows without padding: which go through the model together, and that none sees another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridge_ray.training import attention, export, loop
from bridge_ray.training.feed import packed, padded
from bridge_ray.training.loss import CompletionLoss
from bridge_ray.training.packing import pack


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 4), st.integers(50, 200))
def test_every_row_is_in_one_micro_batch_and_none_is_too_long(lengths: list[int], ranks: int, capacity: int) -> None:
    lengths = lengths * ranks  # a multiple of the ranks
    parts = pack(lengths, ranks, capacity)
    assert sorted(index for rank in parts for part in rank for index in part) == list(range(len(lengths)))
    assert len(parts) == ranks and len({len(rank) for rank in parts}) == 1, "ranks wait for one another"
    assert all(0 < sum(lengths[index] for index in part) <= capacity for rank in parts for part in rank)


def test_ranks_get_about_the_same_work() -> None:
    """9 + 1 + 1 and 8 + 2 + 1 of 22 tokens: longest first into the emptiest, by hand."""
    lengths = [1, 9, 2, 8, 1, 1]
    assert [sum(lengths[index] for part in rank for index in part) for rank in pack(lengths, 2, 64)] == [11, 11]


def test_there_are_as_few_micro_batches_as_fit() -> None:
    assert [len(rank) for rank in pack([10] * 8, 2, 40)] == [1, 1]
    assert [len(rank) for rank in pack([10] * 8, 2, 39)] == [2, 2]


@pytest.fixture(scope="module")
def models(tiny_model: str) -> tuple[Any, Any]:
    """The same model twice: for packed rows, and for padded ones."""
    attention.register()
    of_packed, of_padded = (CompletionLoss(export.load(tiny_model, None, kind)) for kind in (attention.PACKED, "sdpa"))
    return of_packed, of_padded


def rows(count: int, seed: int = 0) -> list[tuple[np.ndarray, int]]:
    random = np.random.default_rng(seed)
    lengths = random.integers(4, 60, count)
    return [(random.integers(5, 200, length, dtype=np.int32), int(random.integers(1, length))) for length in lengths]


def losses(model: Any, micro: Any) -> torch.Tensor:
    return model(micro.ids, micro.completion, micro.positions, micro.segments)


def loss_of(model: Any, micro: Any) -> float:
    return float(losses(model, micro).detach())


def test_rows_lose_the_same_packed_padded_and_alone(models: tuple[Any, Any]) -> None:
    of_packed, of_padded = models
    some = rows(9)
    alone = [loss_of(of_padded, padded([row])) for row in some]
    assert loss_of(of_packed, packed(some)) == pytest.approx(sum(alone), rel=1e-5)
    assert loss_of(of_padded, padded(some)) == pytest.approx(sum(alone), rel=1e-5)
    for number in range(len(some)):  # each for itself: errors of several might cancel out
        only = [(ids, prompt if index == number else len(ids)) for index, (ids, prompt) in enumerate(some)]
        assert loss_of(of_packed, packed(only)) == pytest.approx(alone[number], rel=1e-4), number


def test_what_is_learnt_is_the_same_packed_and_padded(models: tuple[Any, Any]) -> None:
    some, gradients = rows(5, seed=1), []
    for model, micro in zip(models, (packed(some), padded(some)), strict=True):
        model.zero_grad()
        losses(model, micro).backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-3, atol=1e-4), name


def test_a_window_looks_back_as_far_as_it_says_inside_each_row() -> None:
    """Against a mask over everything, made by hand."""
    torch.manual_seed(0)
    segments, window = (7, 3, 12), 4
    query = torch.randn(1, 4, sum(segments), 8)
    key, value = torch.randn(1, 2, sum(segments), 8), torch.randn(1, 2, sum(segments), 8)
    found, _ = attention.packed_attention(
        torch.nn.Identity(), query, key, value, None, segments=segments, sliding_window=window
    )
    row = torch.repeat_interleave(torch.arange(3), torch.tensor(segments))
    at = torch.arange(sum(segments))
    seen = (row[:, None] == row) & (at[:, None] >= at) & (at[:, None] - at < window)
    keys, values = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
    scores = (query @ keys.transpose(2, 3) / 8**0.5).masked_fill(~seen, -torch.inf)
    assert torch.allclose(found, (scores.softmax(-1) @ values).transpose(1, 2), atol=1e-5)


def test_attention_that_cannot_be_packed_is_refused() -> None:
    some = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="softcap cannot be packed"):
        attention.packed_attention(torch.nn.Identity(), some, some, some, None, segments=(2,), softcap=30.0)


def test_a_model_whose_attention_cannot_be_packed_is_trained_padded(tmp_path: Path) -> None:
    """Gemma 2 caps its scores, which scaled_dot_product_attention cannot; a row's loss is its own all the same."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    kinds = {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 200, "attn_logit_softcapping": 0.1}
    Gemma2ForCausalLM(Gemma2Config(**sizes, **kinds, initializer_range=0.5)).save_pretrained(tmp_path)
    model = CompletionLoss(export.load(str(tmp_path), None).eval())
    some = rows(3)
    assert loss_of(model, padded(some)) == pytest.approx(sum(loss_of(model, padded([row])) for row in some), rel=1e-4)


def test_recomputed_layers_are_run_again_for_their_gradients(tiny_model: str) -> None:
    """Each of two layers once on the way forth and once on the way back, where activations were not kept."""
    model = export.load(tiny_model, None)
    loop._recompute(model)
    runs = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda *_: runs.append(1))
    losses(CompletionLoss(model), padded(rows(2))).backward()
    assert len(runs) == 4


def test_the_loss_is_of_the_models_own_logits() -> None:
    """Granite divides its logits before they are compared: 8 here."""
    from transformers import GraniteConfig, GraniteForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = GraniteForCausalLM(GraniteConfig(vocab_size=200, logits_scaling=8.0, initializer_range=0.5, **sizes))
    micro = padded(rows(3))
    logits = model(input_ids=micro.ids).logits[:, :-1][micro.completion[:, 1:]]
    expected = torch.nn.functional.cross_entropy(logits, micro.ids[:, 1:][micro.completion[:, 1:]], reduction="sum")
    assert loss_of(CompletionLoss(model), micro) == pytest.approx(float(expected.detach()), rel=1e-4)
