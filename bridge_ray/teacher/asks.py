"""The asks that a config makes of a question: their words, the keys of their answers, and the most they can cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge_ray.answers import prompts
from bridge_ray.config import Price, Teacher
from bridge_ray.teacher.answers import Ask, Messages, answer_key
from bridge_ray.teacher.client import parameters
from bridge_ray.teacher.prices import price, worst_cost

Question = Mapping[str, Any]  # a row of records.EXAMPLE


def asks(question: Question, provider: str, teacher: Teacher) -> list[Ask]:
    """The first ask, and the guided one if it may come to that. ``provider`` names who answers, in keys.

    Raises UserError for a model without a price.
    """
    messages: list[Messages] = [prompts.teacher(question)]
    if teacher.guided and question["answer"] is not None:
        messages.append(prompts.teacher_guided(question, question["answer"]))
    listed = price_of(teacher)
    return [Ask(key(one, provider, teacher), one, worst_cost(listed, one, teacher.max_tokens)) for one in messages]


def key(messages: Messages, provider: str, teacher: Teacher) -> str:
    """The name of the answer in the store."""
    sampling = parameters(teacher.model, teacher.max_tokens, teacher.temperature)
    return answer_key(provider, teacher.model, messages, sampling)


def price_of(teacher: Teacher) -> Price:
    """What the configured model costs in the configured mode. Raises UserError for a model without a price."""
    return price(teacher.model, teacher.price, batch=teacher.mode == "batch")


def is_free(teacher: Teacher) -> bool:
    """Whether nothing is paid for what the teacher answers. Raises UserError for a model without a price."""
    listed = price_of(teacher)
    return teacher.standin is not None or listed.input == listed.output == 0
