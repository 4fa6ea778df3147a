"""Arithmetic that a text states, recomputed: ``3 * 150 = 450``, ``3 times 150 is 450``, ``20% of 50 is 10``.

Only what can be read for certain is judged: an expression of numbers, with units and currency between them, before an
equals sign or a word for it. A variable, a function, a missing operand, a comparison or a number in words leaves the
statement aside, and so do units of one kind or a dozen among its terms where it does not hold as written: a right
rationale is seldom called wrong; that a wrong one is found is not promised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 20  # of a number that is read
MAX_TOKENS = 80  # on each side of an equals sign

_NOTE = re.compile(r"<<([^<>\n]*)>>")  # GSM8K's calculator notes; what they state stands before them in words, too
_TOKEN = re.compile(
    r"""
      (?P<stop>(?!,\ which\ (?:is|are|equals|makes|gives|leaves)\b)[;,:.!?](?=\s|$|["')])
        |\n(?:\s*[-*•](?=\s))?|["“”]
        |\b(?:because|so|since|therefore|thus|hence|but|if|when|while)\b)
    | (?P<odd>\d+(?:[:.]\d+){2,}|\d+:\d+|\b0\d+|\d(?:st|nd|rd|th)\b|\^|\*\*|[√∛∑∏|⌊⌈])
    | (?P<fraction>\b(?:half|(?:a|one)\ (?:third|fourth|quarter|fifth|tenth))(?=\ of\b))
    | (?P<number>(?:(?P<whole>\d+)\ (?P<top>\d+)/(?P<bottom>[1-9]\d*)
        |(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+))(?:\ ?(?P<percent>%|per\ ?cent\b))?)
    | (?P<times>[*×·∙]|[xX](?=[\s\d($.])|\btimes\b|\bmultiplied\ by\b)
    | (?P<over>[/÷]|\bdivided\ by\b)
    | (?P<plus>\+|\bplus\b)
    | (?P<minus>[-–—−]|\bminus\b)
    | (?P<of>\bof\b)
    | (?P<equals>[=≈]+|(?:,\ )?(?:\bwhich\ )?\b(?:is\ equal\ to|equals|comes\ to|makes|gives|leaves|is|are)\b)
    | (?P<open>[(\[])
    | (?P<close>[)\]])
    | (?P<word>[^\W\d_](?:[^\W\d_]|['’.](?=[^\W\d_]))*)
    | (?P<currency>[$€£¢])
    """,
    re.VERBOSE | re.IGNORECASE,
)
_GROUPED = re.compile(r"\d,\d")
_FRACTIONS = {"half": 2, "third": 3, "fourth": 4, "quarter": 4, "fifth": 5, "tenth": 10}
_ROUGHLY = {"about", "approximately", "around", "roughly", "only", "just", "exactly", "a", "total", "of"}
# Words before an expression or inside its units that have a share in its value.
_DECIDING = frozenset(
    word
    for words in (
        "than by from half twice double triple thrice quadruple less more fewer third thirds fourth fourths quarter",
        "quarters fifth fifths tenth tenths average mean difference product remainder ratio squared cubed square cube",
        "root sqrt log ln power two three four five six seven eight nine ten eleven twelve twenty",
    )
    for word in words.split()
)
_COMPARING = {"more", "less", "fewer", "greater", "higher", "lower", "larger", "smaller", "older", "younger", "than"}
# Words, as ``_names`` gives them, by what one side may count where the other does not: 5 x 20 cents = $1.
_SCALES = {"pair": 2, "dozen": 12, "hundred": 100, "thousand": 10**3}
_SCALES |= {"million": 10**6, "mn": 10**6, "mln": 10**6, "billion": 10**9, "bn": 10**9, "trillion": 10**12}
_SCALES |= dict.fromkeys(("cent", "¢", "pennie", "penny", "pence", "nickel", "dime", "quarter"), 100)
# Of two units of one kind in a statement, one may have been turned into the other: 3 hours = 3 x 60 minutes.
_UNITS = [
    set(units.split())
    for units in (
        "$ € £ dollar buck euro cent ¢ pennie penny pence nickel dime quarter",
        "second sec minute min hour hr day week month year decade century centurie",
        "inch inche foot feet yard mile",
        "pound lb ounce oz ton",
        "quart pint cup gallon ounce tablespoon teaspoon",
        "g kg gram mg kilogram ton",
        "ml milliliter millilitre liter litre l",
        "km m meter metre cm mm centimeter centimetre kilometer kilometre millimeter millimetre",
    )
]


@dataclass(frozen=True)
class Statement:
    """An equation as it stands in the text, and whether it holds as written."""

    text: str
    holds: bool


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    start: int
    end: int
    value: Fraction = Fraction(0)
    decimals: int = 0
    percent: bool = False


@dataclass(frozen=True)
class Value:
    """What an expression comes to; ``decimals``: the most digits after a point in it; ``end``: the token after it."""

    number: Fraction
    decimals: int
    percent: bool
    operators: int
    end: int


class Unreadable(Exception):
    """The tokens are no expression of numbers."""


def mistakes(text: str) -> list[str]:
    """The equations in the text that do not hold as written; rounding as written is allowed."""
    return [statement.text for statement in statements(text) if not statement.holds]


def statements(text: str) -> list[Statement]:
    """The equations in the text that can be read for certain, in order."""
    noted = [found for note in _NOTE.findall(text) for found in _equations(note)]
    return noted + list(_equations(_NOTE.sub("", text)))


def _equations(text: str) -> Iterator[Statement]:
    tokens = _tokens(text)
    for at, token in enumerate(tokens):
        if token.kind != "equals":
            continue
        sides = _left(tokens, at), _right(tokens, at)
        if sides[0] is None or not sides[1]:
            continue
        (start, left), rights = sides[0], sides[1]
        if left.operators:
            part = tokens[start : rights[-1].end]
            terms = part if rights[-1].operators else tokens[start:at]
            holds = any(_agree(left, right, _scales(part)) for right in rights)
            if holds or not (_mixed(part) or _names(terms) & set(_SCALES)):  # a dozen may stand at one term only
                yield Statement(" ".join(text[part[0].start : part[-1].end].split()), holds)


def _tokens(text: str) -> list[Token]:
    return [_token(found) for found in _TOKEN.finditer(text)]


def _token(found: re.Match[str]) -> Token:
    kind, (start, end) = str(found.lastgroup), found.span()
    for name in ("number", "fraction", "odd", "word"):  # the groups that have others inside them
        if found[name] is not None:
            kind = name
    text = found[0]
    if kind == "word" and ((len(text) == 1 and text != "a") or found.string[end : end + 1] in ("(", "[")):
        return Token("odd", text, start, end)  # a variable or a function
    if kind == "fraction":
        return Token(kind, text, start, end, Fraction(1, _FRACTIONS[text.lower().split()[-1]]))
    if kind != "number":
        return Token(kind, text.strip() or text, start, end)
    return _number(found, start, end)


def _number(found: re.Match[str], start: int, end: int) -> Token:
    digits, text = (found["digits"] or found["whole"]).replace(",", ""), found.string
    beside = text[end : end + 2]
    odd = len(digits) > MAX_DIGITS or text[start - 1 : start].isalpha() or _GROUPED.match(text[end - 1 : end + 2])
    # 2x is an unknown, unless a number follows: 2x3.
    if beside[:1].isalpha() and not beside.isalpha() and not re.match(r"[xX]\s*[\d($]", text[end : end + 4]):
        odd = True
    if odd:
        return Token("odd", found[0], start, end)
    value, percent = Fraction(digits), bool(found["percent"])
    if found["whole"]:
        value += Fraction(int(found["top"]), int(found["bottom"]))
    decimals = len(digits.partition(".")[2]) + (2 if percent else 0)
    if percent:
        value /= 100
    return Token("number", found[0], start, end, value, decimals, percent)


def _left(tokens: Sequence[Token], at: int) -> tuple[int, Value] | None:
    """The longest expression that ends where the equals sign stands, and its first token."""
    first = at
    while first and at - first < MAX_TOKENS and tokens[first - 1].kind not in ("stop", "equals"):
        first -= 1
    for start in range(first, at):
        if tokens[start].kind not in ("currency", "number", "fraction", "open", "minus"):
            continue
        try:
            value = _Reader(tokens, at).sum(start)
        except Unreadable:
            continue
        if value.end == at:
            return (
                None if _continues(tokens, first, start) or _share_of_all(tokens[start:at], value) else (start, value)
            )
    return None


def _continues(tokens: Sequence[Token], first: int, start: int) -> bool:
    """Whether what stands before an expression has a share in it."""
    if start == first:
        return False
    before = tokens[start - 1]
    if before.kind == "of":  # a total of 3 + 4, but half of 3 + 4
        return start - 1 == first or tokens[start - 2].kind != "word" or tokens[start - 2].text.lower() in _DECIDING
    return before.kind not in ("word", "currency", "open") or before.text.lower() in _DECIDING


def _share_of_all(tokens: Sequence[Token], value: Value) -> bool:
    """Whether it is a bare fraction: 3/4 is 15 (of 20)."""
    return (
        value.operators == 1 and 0 < value.number < 1 and tokens[1].kind == "over" and tokens[0].end == tokens[1].start
    )


def _right(tokens: Sequence[Token], at: int) -> list[Value]:
    """What follows an equals sign: its first number, and the longest expression. ``3 x 5 = 15 + 4 = 19`` means 15."""
    start, end = at + 1, at + 1
    while end < len(tokens) and end - at < MAX_TOKENS and tokens[end].kind not in ("stop", "equals"):
        end += 1
    while start < end and (tokens[start].kind == "currency" or tokens[start].text.lower() in _ROUGHLY):
        start += 1
    following = {token.text.lower() for token in tokens[start:end] if token.kind == "word"}
    if tokens[at].text[0] not in "=≈" and following & _COMPARING:
        return []
    try:
        reader = _Reader(tokens, end, result=True)
        found = [reader.factor(start), reader.sum(start)]
    except Unreadable:
        return []
    # 18 000, or 24/y
    return [] if any(reader.unfinished(value) for value in found) else found


class _Reader:
    """Reads expressions of the tokens up to ``end``; each method starts at a token and returns the longest it can.

    A result's unit ends where it is compared with something: ``= 5 more than``; anywhere else that is unreadable.
    """

    def __init__(self, tokens: Sequence[Token], end: int, result: bool = False):
        self._tokens, self._end, self._result = tokens, end, result

    def sum(self, at: int) -> Value:
        left = self.product(at)
        while self._kind(left.end) in ("plus", "minus"):
            try:
                right = self.product(left.end + 1)
            except Unreadable:
                return left
            sign = 1 if self._kind(left.end) == "plus" else -1
            if left.percent != right.percent or "of" in (token.kind for token in self._tokens[at : right.end]):
                raise Unreadable("80 - 20% says no number, and half of 10 + 20 one of two")
            left = _joined(left, right, left.number + sign * right.number, left.percent)
        return left

    def product(self, at: int) -> Value:
        left = self.factor(at)
        while self._kind(left.end) in ("times", "over", "of"):
            sign = self._kind(left.end)
            if sign == "of" and not (self._tokens[left.end - 1].kind in ("number", "fraction") and self._share(left)):
                return left
            try:
                right = self.factor(left.end + 1)
            except Unreadable:
                return left
            if sign == "over" and (right.number == 0 or self._kind(right.end) == "over"):
                raise Unreadable("no number, or one of two: 2 / 1 / 4")
            number = left.number / right.number if sign == "over" else left.number * right.number
            left = _joined(left, right, number, sign != "of" and left.percent != right.percent)
        return left

    def unfinished(self, value: Value) -> bool:
        """Whether the expression goes on with something that cannot be read."""
        goes_on = self._kind(value.end) in ("odd", "open", "number", "fraction", "times", "over")
        return goes_on and self._tokens[value.end - 1].kind != "word"

    def _share(self, left: Value) -> bool:
        return left.percent or 0 < left.number < 1

    def factor(self, at: int) -> Value:
        while self._kind(at) == "currency":
            at += 1
        token = self._tokens[at] if at < self._end else None
        if token is None:
            raise Unreadable("nothing there")
        if token.kind == "minus":
            inner = self.factor(at + 1)
            return Value(-inner.number, inner.decimals, inner.percent, inner.operators, inner.end)
        if token.kind == "open":
            inner = self.sum(at + 1)
            if self._kind(inner.end) != "close":
                raise Unreadable("no closing bracket")
            return Value(inner.number, inner.decimals, inner.percent, inner.operators, self._unit(inner.end + 1))
        if token.kind not in ("number", "fraction"):
            raise Unreadable("no number")
        return Value(token.value, token.decimals, token.percent, 0, self._unit(at + 1))

    def _unit(self, at: int) -> int:
        """Where what a number counts ends: ``60 large paintings``, ``5 snakes/jaguar``, ``45-minute``."""
        while at < self._end:
            token, kind, after = self._tokens[at], self._tokens[at].kind, self._kind(at + 1)
            if kind == "word" and token.text.lower() in _DECIDING:
                if self._result:
                    break
                raise Unreadable("a word with a share in the value")
            if kind in ("word", "currency"):
                at += 1
            elif after == "word" and (kind == "over" or (kind == "minus" and self._hyphen(at))):
                at += 2
            else:
                break
        return at

    def _hyphen(self, at: int) -> bool:
        before, minus, after = self._tokens[at - 1 : at + 2]
        return before.end == minus.start and minus.end == after.start

    def _kind(self, at: int) -> str | None:
        return self._tokens[at].kind if at < self._end else None


def _joined(left: Value, right: Value, number: Fraction, percent: bool) -> Value:
    operators = left.operators + right.operators + 1
    return Value(number, max(left.decimals, right.decimals), percent, operators, right.end)


def _scales(tokens: Sequence[Token]) -> set[Fraction]:
    """What one side may be multiplied by to be the other."""
    scales = {Fraction(_SCALES[name]) for name in _names(tokens) & set(_SCALES)}
    if any(token.percent or token.text.lower() == "percent" for token in tokens):
        scales.add(Fraction(100))
    return {Fraction(1)} | scales | {1 / scale for scale in scales}


def _mixed(tokens: Sequence[Token]) -> bool:
    """Whether two units of one kind are among the words."""
    return any(len(_names(tokens) & units) > 1 for units in _UNITS)


def _names(tokens: Sequence[Token]) -> set[str]:
    """The words and currencies, in lower case and without a plural's s."""
    return {token.text.lower().removesuffix("s") for token in tokens if token.kind in ("word", "currency")}


def _agree(left: Value, right: Value, scales: set[Fraction]) -> bool:
    """Whether the two sides are the same number, or the right one is the left one rounded as it is written.

    A whole number may be rounded up or down (7 / 2 = 4 buses), by a third of it at most; decimals may also be cut off.
    """
    place = Fraction(1, 10**right.decimals)
    for scale in scales:
        number = left.number * scale
        short = (number - right.number) * (-1 if number < 0 else 1)  # what the right side lacks, away from zero
        most = place if right.decimals == 0 else place / 2
        if short == 0 or (-most <= short < place and -place < short and 3 * abs(short) <= abs(number)):
            return True
    return False
