"""Which layers a pruned student keeps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

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
