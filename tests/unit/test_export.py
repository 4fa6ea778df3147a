"""Which layers a pruned student keeps, and what a fresh one has."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_ray.errors import UserError
from bridge_ray.inference import models
from bridge_ray.training import export
from bridge_ray.training.export import choose_layers


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.integers(1, 12))
def test_the_layers_that_matter_most_stay(worth: list[float], keep: int) -> None:
    """Where every layer is worth a fixed amount, the best choice is known: the first, and then the worthiest."""
    keep = min(keep, len(worth))
    chosen = choose_layers(len(worth), keep, lambda left: sum(worth) - sum(worth[layer] for layer in left))
    assert chosen == sorted(chosen) and chosen[0] == 0 and len(chosen) == keep
    best = worth[0] + sum(sorted(worth[1:], reverse=True)[: keep - 1])
    assert abs(sum(worth[layer] for layer in chosen) - best) < 1e-9


def test_a_layer_is_measured_again_when_others_have_gone() -> None:
    """Layers 1 and 2 do the same: either may go at no cost, but not both; 3 is worth a little."""

    def loss(left: list[int]) -> float:
        return (0.0 if {1, 2} & set(left) else 5.0) + (0.0 if 3 in left else 1.0)

    assert choose_layers(4, 3, loss) in ([0, 1, 3], [0, 2, 3])
    assert 3 not in choose_layers(4, 2, loss)


def test_a_student_from_a_config_has_its_shape_and_no_weights_of_it(tiny_model: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoTokenizer

    made = export.fresh(tiny_model, {"num_hidden_layers": 1, "intermediate_size": 96}, str(tmp_path / "model"))
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert (config.num_hidden_layers, config.intermediate_size, config.hidden_size) == (1, 96, 64)
    before, after = (load_file(f"{folder}/model.safetensors") for folder in (tiny_model, tmp_path / "model"))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert after[name].shape == before[name].shape and not after[name].equal(before[name])
    assert made["parameters"] == sum(weight.numel() for weight in after.values())
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template


def test_a_change_that_the_config_does_not_know_is_refused(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="student.init.changes: the config of .* has no field 'layers'"):
        export.fresh(tiny_model, {"layers": 1}, str(tmp_path / "model"))
    with pytest.raises(UserError, match="student.init.changes: the config of .* has no field 'layers'"):
        models.check_changes(tiny_model, {"layers": 1}, "student.init.changes")


def test_a_pruned_model_keeps_what_its_config_says_of_every_layer(tiny_model: str, tmp_path: Path) -> None:
    """SmolLM3 says in a list which layers rotate; a layer that goes takes its entry along."""
    from transformers import AutoConfig, AutoTokenizer, SmolLM3Config, SmolLM3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    rotate = [1, 1, 0, 1, 0]
    config = SmolLM3Config(vocab_size=len(tokenizer), num_hidden_layers=5, no_rope_layers=rotate, **sizes, **special)
    SmolLM3ForCausalLM(config).save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    question = [{"role": "user", "content": "How many?"}]
    made = export.prune_layers(str(tmp_path / "whole"), 3, [question], str(tmp_path / "pruned"))
    pruned = AutoConfig.from_pretrained(tmp_path / "pruned")
    assert pruned.no_rope_layers == [rotate[layer] for layer in made["layers"]]
    assert len(pruned.layer_types) == 3 and pruned.eos_token_id == 1
