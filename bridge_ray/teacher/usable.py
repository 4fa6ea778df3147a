"""Whether a paid completion can be used, judged by how it ended and by its words; its answer is not looked at."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

LETTERS = 20  # fewer show neither an echo nor a language: many a question contains "yes"
FOREIGN = 0.05  # a script that takes a smaller share of the question's letters is not the question's
EAST_ASIAN = {"HIRAGANA": "CJK", "KATAKANA": "CJK"}  # Japanese mixes the three


def unusable(text: str, finish_reason: str, refused: bool, question: str) -> str | None:
    """Why a completion cannot be used; None when it can. ``question`` is the last message that it replies to."""
    if refused:
        return "refusal"
    if finish_reason == "content_filter":
        return "content filter"
    if finish_reason == "length":
        return "cut off at teacher.max_tokens"
    if not text.strip():
        return "empty reply"
    if _echoes(text, question):
        return "echo of the question"
    return "wrong language" if _in_another_script(text, question) else None


def _echoes(text: str, question: str) -> bool:
    """Whether a completion only repeats the question, or a part of it that is long enough not to be an answer."""
    words, asked = _normalised(text), _normalised(question)
    return words == asked or (words in asked and sum(map(str.isalpha, words)) >= LETTERS)


def _normalised(text: str) -> str:
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def _in_another_script(text: str, question: str) -> bool:
    """Whether a completion's most frequent script is neither the question's nor frequent in it.

    A question may hold a second script, such as the English hint after a Chinese one, so a share of it will do.
    """
    scripts, asked = _scripts(text), _scripts(question)
    if scripts.total() < LETTERS or not asked:
        return False
    script = scripts.most_common(1)[0][0]
    return asked[script] < FOREIGN * asked.total()


def _scripts(text: str) -> Counter[str]:
    """The letters' scripts, by the first word of their names in Unicode."""
    names = (unicodedata.name(letter, "") for letter in unicodedata.normalize("NFKC", text) if letter.isalpha())
    return Counter(EAST_ASIAN.get(script, script) for script in (re.split("[ -]", name)[0] for name in names))
