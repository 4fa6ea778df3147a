"""Comparisons of numbers that a text states, made again: ``12 is less than 10``, ``65, which is from 40 to 60``.

As with sums, only what can be read for certain is judged: a plain number, "is" and a relation in English (or a sign
for it), and a plain number in the same unit. Expressions, conditions, units that differ and numbers in words leave the
statement aside.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from fractions import Fraction

from bridge_ray.answers.arithmetic import Statement

CLAUSE = 300  # characters before a comparison that are looked at for a condition

_DIGITS = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"


def _amount(name: str) -> str:
    coin, percent = rf"(?P<{name}_coin>[$€£¢]?)", rf"(?:\ ?(?P<{name}_percent>%|per\ ?cent\b))?"
    return rf"{coin}(?P<{name}>{_DIGITS})(?!\d|[,.:/]\d){percent}"


_NUMBER = re.compile(r"(?<![\w.,:/^$€£¢-])[$€£¢]?\d")
_STATEMENT = re.compile(
    rf"""
    {_amount("left")} (?P<left_words>(?:\ [a-z]+){{0,2}}?)
    (?:
        (?:,\ which|[.;]\ (?:that|this|it))? \ (?:is|are|was|were)
        (?:\ (?:much|well|far|clearly|still|only|just|also|even|already|therefore|thus|then))?
        (?P<not>\ not|n't)?
        \ (?:
            (?P<range>from|between)\ {_amount("low")}(?:\ [a-z]+)??\ (?:to|and)[ ]
            | (?P<relation>(?:more|greater|higher|larger|bigger|less|fewer|lower|smaller)\ than|no\ (?:more|less)\ than
                |at\ least|at\ most|above|over|below|under) (?P<equal>\ or\ equal\ to)? \ )
        (?:(?:the|its|their|a|an)(?P<naming>(?:\ [a-z]+){{0,3}}?)\ (?:of\ )?)?
        | \ ?(?P<sign><=|>=|<|>|≤|≥)\ ?
    )
    {_amount("right")} (?:\ (?P<right_word>[a-z]+))?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SIGNS: dict[str, Callable[[Fraction, Fraction], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
    "≥": operator.ge,
    "≤": operator.le,
}
_WORDS = {"above": ">", "over": ">", "below": "<", "under": "<", "at least": ">=", "at most": "<="}
_WORDS |= {"no less than": ">=", "no more than": "<="}
_WORDS |= {f"{word} than": ">" for word in ("more", "greater", "higher", "larger", "bigger")}
_WORDS |= {f"{word} than": "<" for word in ("less", "fewer", "lower", "smaller")}
# What stands before a number that is part of an expression, a list or a range.
_PART = re.compile(
    r"""(?:[-–—+*/×÷^√(<>≤≥≈]|\b(?:x|times|plus|minus|by|to|or|per|half|twice|page
        |(?:half|third|quarter|percent|\d)\s+of)|%\s+of)\s*$""",
    re.VERBOSE | re.IGNORECASE,
)
_CONDITION = re.compile(
    r"\b(?:if|whether|unless|until|when|suppose|assum\w+|would|should|must|false|not true)\b", re.IGNORECASE
)
# What follows a number that is not the whole of what is compared with.
_GOES_ON = re.compile(
    r"""\s*(?:[-–—+*/×÷^%]
        |(?:x|times|plus|minus|of|to|per|divided|multiplied|squared|cubed|more|less|fewer)\b)""",
    re.VERBOSE | re.IGNORECASE,
)
_SHARES = {"half", "double", "sum", "product", "difference", "square", "third", "quarter"}  # the sum of 5 and 3
_SCALES = {"dozen", "hundred", "thousand", "million", "billion", "trillion", "k", "m", "bn"}
_SIGNED = set("%$€£¢")
_NO_UNIT = frozenset(  # words after a number that end what it counts
    word
    for words in (
        "so and or but which that because therefore thus then than for in as is are by on at with apart needed",
        "required allowed",
    )
    for word in words.split()
)


def misjudged(text: str) -> list[str]:
    """The comparisons in the text that do not hold as written."""
    return [statement.text for statement in comparisons(text) if not statement.holds]


def comparisons(text: str) -> list[Statement]:
    """The comparisons in the text that can be read for certain, in order."""
    return list(_read(text))


def _read(text: str) -> Iterator[Statement]:
    for number in _NUMBER.finditer(text):  # each may be the left side, also where it is another's right one
        found = _STATEMENT.match(text, number.start())
        if found and _plain(found, text) and _same_kind(found):
            yield Statement(" ".join(found[0].split()), _holds(found))


def _plain(found: re.Match[str], text: str) -> bool:
    """Whether both numbers stand for themselves, and the statement is made without a condition."""
    before = text[max(0, found.start() - CLAUSE) : found.start()]
    clause = re.split(r"[.;!?\n](?:\s|$)", before)[-1]
    listed = re.search(r"(?:^|[^\d.,])([\d.,]+)\s+and\s*$", before)
    if listed and listed[1] != found["left"]:  # 3 and 4 is less than 8; but "... = 4 and 4 is less than 8"
        return False
    if _SHARES & set((found["naming"] or "").lower().split()):
        return False
    end = max(found.end("right"), found.end("right_percent"))
    return not (_PART.search(before) or _CONDITION.search(clause) or _GOES_ON.match(text, end))


def _same_kind(found: re.Match[str]) -> bool:
    left, right = _unit(found, "left", found["left_words"]), _unit(found, "right", found["right_word"])
    if found["low"] is not None and bool(found["low_percent"]) != bool(found["right_percent"]):
        return False
    if left and right:
        return left == right
    # "4 hours is less than 5" takes the unit for granted; a sign or a scale cannot be.
    return (left + right)[:1] not in _SIGNED and left + right not in _SCALES


def _unit(found: re.Match[str], side: str, words: str | None) -> str:
    """What the number counts: a sign or the first word after it; empty if there is none."""
    if found[f"{side}_percent"]:
        return "%"
    first, coin = next(iter((words or "").lower().split()), ""), found[f"{side}_coin"]
    word = "" if first in _NO_UNIT else first.removesuffix("s")
    return coin + (word if word in _SCALES else "") if coin else word


def _holds(found: re.Match[str]) -> bool:
    left, right = _value(found["left"]), _value(found["right"])
    if found["sign"]:
        return _SIGNS[found["sign"]](left, right)
    if found["range"]:
        inside = _value(found["low"]) <= left <= right
        return inside != bool(found["not"])
    sign = _WORDS[found["relation"].lower()]
    if found["equal"] and len(sign) == 1:
        sign += "="
    return _SIGNS[sign](left, right) != bool(found["not"])


def _value(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))
