"""Every prompt of the project: chat messages for the TA, the student and the teacher, and their token ids.

Corpus text is data, never control: the chat template's special tokens inside it are broken up before tokenising.
The two phases of the curriculum carry distinct instructions ("answer" / "reason, then answer").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]

ANSWER = "Reply with 'Answer: ' and the answer only."
REASON = "Reason briefly, then end with 'Answer: ' and the answer."
TEACH = (
    "You are an expert. Explain in two or three short sentences how the answer follows, "
    "then end with a line 'Answer: ' and the answer."
)
FORMS = {
    "choice": "The answer is the letter of one option.",
    "boolean": "The answer is yes or no.",
    "number": "The answer is a number.",
    "text": "The answer is a few words.",
}


def question(example: Mapping[str, Any]) -> str:
    """Context, question and lettered options as one text."""
    options = [f"{chr(65 + i)}) {option}" for i, option in enumerate(example["options"] or ())]
    return "\n".join(filter(None, [example["context"], example["question"], *options]))


def chat(instruction: str, example: Mapping[str, Any]) -> list[Message]:
    """The messages that ask for an answer in the form that ``instruction`` (ANSWER or REASON) demands."""
    return [{"role": "system", "content": instruction}, {"role": "user", "content": question(example)}]


def hinted(example: Mapping[str, Any]) -> list[Message]:
    """As ``chat(REASON)``, with the gold answer as a hint that the reply may not mention.

    Of a choice it says the option, too: told the letter alone, a small TA reasons towards another option.
    """
    gold = example["answer"]
    said = f"{gold}) {example['options'][ord(gold) - 65]}" if example["answer_type"] == "choice" else gold
    hint = f"\n(The correct answer is {said}. Reason towards it without mentioning that you were told.)"
    return [{"role": "system", "content": REASON}, {"role": "user", "content": question(example) + hint}]


def teacher(example: Mapping[str, Any]) -> list[Message]:
    """The first ask of the teacher: without the gold answer."""
    system = f"{TEACH} {FORMS[example['answer_type']]}"
    return [{"role": "system", "content": system}, {"role": "user", "content": question(example)}]


def teacher_guided(example: Mapping[str, Any], gold: str) -> list[Message]:
    """The second ask: the gold answer is a hint, and the reply must stand without it."""
    first, user = teacher(example)
    guide = f"\n\nThe correct answer is {gold}. Explain how it follows, as if you had found it yourself."
    return [first, {"role": "user", "content": user["content"] + guide}]


def reanswer(example: Mapping[str, Any], reasoning: str) -> list[Message]:
    """As ``chat(REASON)``, with the reply begun: the reasoning is there, and the answer is what is left to be said."""
    begun = completion(reasoning, "").rstrip()
    return [*chat(REASON, example), {"role": "assistant", "content": begun}]


def completion(rationale: str | None, answer: str) -> str:
    """What a model is trained to reply: the rationale, if any, and the answer line."""
    line = f"Answer: {answer}"
    return f"{rationale}\n{line}" if rationale else line


def neutralise(text: str, special: Sequence[str]) -> str:
    """Break up special tokens in corpus text so that a row cannot end its own turn."""
    for token in special:
        if token in text:
            text = text.replace(token, token[0] + " " + token[1:])
    return text


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of the messages under the model's chat template, up to where the reply begins.

    A last message of the assistant's is the beginning of that reply, tokenised as completions are in training.
    """
    special = [str(token) for token in tokenizer.added_tokens_encoder]
    safe = [message | {"content": neutralise(message["content"], special)} for message in messages]
    if safe[-1]["role"] == "assistant":
        begun = tokenizer(safe[-1]["content"], add_special_tokens=False)["input_ids"]
        return [*prompt_ids(tokenizer, messages[:-1]), *begun]
    if tokenizer.chat_template is None:
        text = "\n\n".join(message["content"] for message in safe) + "\n\n"
        return list(tokenizer(text)["input_ids"])
    return list(tokenizer.apply_chat_template(safe, add_generation_prompt=True, tokenize=True, return_dict=False))
