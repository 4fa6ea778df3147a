"""What well-known models cost: US dollars per million tokens, as their provider listed them on ``AS_OF``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bridge_ray.config import Price
from bridge_ray.errors import UserError

AS_OF = "2025-04-14"
BATCH_DISCOUNT = 0.5  # what OpenAI takes off for a request in a batch
PRICES = {
    "gpt-4o": Price(input=2.50, output=10.00),
    "gpt-4o-mini": Price(input=0.15, output=0.60),
    "gpt-4.1": Price(input=2.00, output=8.00),
    "gpt-4.1-mini": Price(input=0.40, output=1.60),
    "gpt-4.1-nano": Price(input=0.10, output=0.40),
}


def price(model: str, override: Price | None, batch: bool = False) -> Price:
    """The price of a model: ``override`` if given, else the table's, less the discount for a ``batch``.

    An override is taken as it stands, in a batch too: who knows a price knows their discount, and spending must not be
    underestimated. Raises UserError for a model that has neither: an unknown price is never taken for $0.
    """
    if override is not None:
        return override
    if model not in PRICES:
        known = ", ".join(PRICES)
        raise UserError(
            f"teacher.price: no price is known for model {model!r}; set teacher.price to {{input, output}} "
            f"in US dollars per million tokens (known as of {AS_OF}: {known})"
        )
    share = 1 - BATCH_DISCOUNT if batch else 1
    return Price(input=PRICES[model].input * share, output=PRICES[model].output * share)


def cost(price: Price, prompt_tokens: float, completion_tokens: float) -> float:
    """US dollars."""
    return (price.input * prompt_tokens + price.output * completion_tokens) / 1e6


def input_bound(messages: Sequence[Mapping[str, str]]) -> int:
    """Tokens that the messages cannot exceed: no tokenizer makes more tokens than bytes, and roles take a few."""
    return sum(len(message["content"].encode()) + 16 for message in messages)


def worst_cost(price: Price, messages: Sequence[Mapping[str, str]], max_tokens: int) -> float:
    """US dollars that a request cannot exceed."""
    return cost(price, input_bound(messages), max_tokens)
