"""Options that a text calls by another option's letter: ``The table gives 4 mg, option C`` where C is 9 mg.

A reply that was told the letter, or guessed it, reasons to one option and writes another's letter. Only what can be
read for certain is judged: a clause with one letter that is set off as one and with texts of options, none of them
that letter's.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge_ray.answers.conclusion import clauses
from bridge_ray.answers.extract import letters_in, texts_in


def misnamed(text: str, options: Sequence[str]) -> list[str]:
    """The clauses of the text that give an option another one's letter; none without options."""
    return [clause for clause in clauses(text) if _misnames(clause, options)] if options else []


def _misnames(clause: str, options: Sequence[str]) -> bool:
    letters = letters_in(clause, options)
    if len(letters) != 1:
        return False
    own = options[ord(letters.pop()) - ord("A")].strip().casefold()
    named = texts_in(clause, options)
    return bool(named) and own not in named
