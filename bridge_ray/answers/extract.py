"""Answers in one canonical form, and how to find one in a model's free text.

Canonical forms: choice -> the option's letter ("B"); boolean -> "yes" or "no"; number -> a plain decimal
("1200.5"); text -> casefolded words without outer punctuation and articles.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache

BOOLEANS = {"yes": "yes", "true": "yes", "y": "yes", "no": "no", "false": "no", "n": "no"}
MAX_DIGITS = 40  # beyond this a "number" is a degenerate generation, not an answer

# "Answer:" with any markdown around it, a LaTeX box, or GSM8K's hashes.
_MARKER = re.compile(
    r"(?:[*_#>]+[ \t]*)?(?<![A-Za-z])(?:the\s+)?(?:final\s+)?answer[*_ \t]*:[*_ \t]*(?:\$*\\boxed\{)?"
    r"|\$*\\boxed\{"
    r"|^[ \t]*####",
    re.IGNORECASE | re.MULTILINE,
)
_MARKUP = re.compile(r"\\[a-z]+\{|\\[()\[\]]|[{}*`]")
_NUMBER = re.compile(r"(?<![\w.])[-+−]?[$€£]?[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])[-+−]?\.\d+")
# A letter set off as one: "B)", "(B)", "option B", or a line that is "B" or begins with "B." or "B:".
_LETTER = re.compile(r"(?<!\w)([A-Z])\)|\b[Oo]ption\s+([A-Z])\b|^\s*([A-Z])(?=[.:]|\s*$)", re.MULTILINE)
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
# What punctuation may stand before: the sign of a number, which is part of it.
_SIGN = re.compile(rf"[\s{re.escape(string.punctuation)}]*?((?:[-−]|[<>≤≥]=? ?)[$€£]?\.?\d)")
_ARTICLES = re.compile(r"^(?:the|an|a)\s+")


def canonical(answer: object, answer_type: str, options: Sequence[str]) -> str:
    """The canonical form of a gold or user-given value.

    Raises ValueError, with text fit for a user, if the value has no form of this answer type.
    """
    if answer is None or isinstance(answer, list | tuple | dict | set):
        raise ValueError(f"expected one {answer_type} answer, got {answer!r}")
    value = str(answer).strip()
    if answer_type == "choice":
        return _canonical_choice(value, options)
    if answer_type == "boolean":
        return _canonical_boolean(value)
    if answer_type == "number":
        return _canonical_number(value)
    if answer_type == "text":
        return _canonical_text(value)
    raise ValueError(f"unknown answer type {answer_type!r}")


def extract(text: str, answer_type: str, options: Sequence[str]) -> str | None:
    """The canonical answer in a model's text; None when there is none to be read.

    The last line of the form "Answer: X" decides, even if its X cannot be read: what else stands in the text is
    then working, not an answer. Without such a line, a lenient reading of the whole text.
    """
    marker = _last_marker(text)
    if marker is None:
        return _from_whole(text, answer_type, options)
    lines = text[marker.end() :].strip().splitlines()
    return _from_line(_MARKUP.sub("", lines[0]).strip(" _$"), answer_type, options) if lines else None


def split_rationale(text: str) -> str:
    """The text before the answer line, stripped; all of it when there is no such line."""
    marker = _last_marker(text)
    return (text if marker is None else text[: marker.start()]).strip()


@lru_cache(maxsize=1024)  # of a reply, its answer, its rationale and whether it has another answer are all asked for
def _last_marker(text: str) -> re.Match[str] | None:
    last = None
    for last in _MARKER.finditer(text):
        pass
    return last


def _from_line(value: str, answer_type: str, options: Sequence[str]) -> str | None:
    """Read the X of "Answer: X", which may carry a unit, a full stop or a repetition of the option's text."""
    try:
        return canonical(value, answer_type, options)
    except ValueError:
        pass  # not the bare form: look inside
    if answer_type == "number":
        numbers = _NUMBER.findall(value.rpartition("=")[2])
        return _number_or_none(numbers[0]) if numbers else None
    if answer_type == "boolean":
        words = re.findall(r"\b(?:yes|no|true|false)\b", value.casefold())
        return BOOLEANS[words[0]] if words else None
    return _choice_within(value, options) if answer_type == "choice" else None


def _from_whole(text: str, answer_type: str, options: Sequence[str]) -> str | None:
    if answer_type == "number":
        numbers = _NUMBER.findall(text)
        return _number_or_none(numbers[-1]) if numbers else None
    if answer_type == "boolean":
        words: set[str] = set(re.findall(r"\b(?:yes|no)\b", text.casefold()))
        return words.pop() if len(words) == 1 else None
    return _choice_within(text, options) if answer_type == "choice" else None


def _choice_within(text: str, options: Sequence[str]) -> str | None:
    """The one letter that is set off as a letter, else the one option whose text occurs."""
    set_off = letters_in(text, options)
    if len(set_off) == 1:
        return set_off.pop()
    found = set() if set_off else texts_in(text, options)
    named = [option for option in options if option.strip().casefold() in found]
    return letters(options)[options.index(named[0])] if len(named) == 1 else None


def letters_in(text: str, options: Sequence[str]) -> set[str]:
    """The letters of options that are set off as letters, such as "B)" or "option B"."""
    return {"".join(groups) for groups in _LETTER.findall(text)} & set(letters(options))


def texts_in(text: str, options: Sequence[str]) -> set[str]:
    """The options whose text occurs, casefolded."""
    texts = sorted((option.strip() for option in options if option.strip()), key=len, reverse=True)
    if not texts:
        return set()
    # Longest first, so that "no increase" does not also count as "increase".
    pattern = rf"(?<![\w.])(?:{'|'.join(map(re.escape, texts))})(?!\w|\.\d)"
    return {occurrence.casefold() for occurrence in re.findall(pattern, text, re.IGNORECASE)}


def letters(options: Sequence[str]) -> str:
    """Of the options, in order."""
    return string.ascii_uppercase[: len(options)]


def _canonical_choice(value: str, options: Sequence[str]) -> str:
    letter = value.strip("(). ").upper()
    if len(letter) == 1 and letter in letters(options):
        return letter
    for spelt in (str.strip, str.casefold, _fold):  # options may differ in case or in a sign alone: the closest first
        same = [place for place, option in enumerate(options) if spelt(option) == spelt(value) != ""]
        if len(same) == 1:
            return letters(options)[same[0]]
    raise ValueError(f"{value!r} is neither the letter nor the text of one of the {len(options)} options")


def _canonical_boolean(value: str) -> str:
    word = value.casefold().strip(string.punctuation + " ")
    if word not in BOOLEANS:
        raise ValueError(f"{value!r} is not yes, no, true or false")
    return BOOLEANS[word]


def _canonical_number(value: str) -> str:
    plain = re.sub(r"[$€£%]", "", value.replace("−", "-")).strip()
    try:
        # A comma counts as a separator only between thousands: "3,5" may mean 3.5.
        number = Decimal(plain.replace(",", "") if _GROUPED.fullmatch(plain) else plain)
    except InvalidOperation:
        raise ValueError(f"{value!r} is not a number") from None
    if not number.is_finite() or abs(number.adjusted()) > MAX_DIGITS:
        raise ValueError(f"{value!r} is not a finite number of at most {MAX_DIGITS} digits")
    digits = f"{number:f}"
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if number == 0 else digits.removeprefix("+")


def _number_or_none(value: str) -> str | None:
    try:
        return _canonical_number(value)
    except ValueError:
        return None


def _canonical_text(value: str) -> str:
    text = _ARTICLES.sub("", _fold(value)).strip()
    if not text:
        raise ValueError("the answer is empty")
    return text


def _fold(value: str) -> str:
    """Casefolded words without outer punctuation, but for a number's sign: -5 is not 5."""
    words = " ".join(value.casefold().split()).rstrip(string.punctuation + " ")
    sign = _SIGN.match(words)
    return words[sign.start(1) :].replace("−", "-") if sign else words.lstrip(string.punctuation + " ")
