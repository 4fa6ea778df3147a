"""What a person sees while a stage runs, as far as it needs no Ray; the rest is in tests/ray/test_amplify.py."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from bridge_ray.progress import Pace, note, too_many_faults


@pytest.mark.parametrize(
    ("totals", "tokens", "shown"),
    [
        ({"rows": 200, "tokens": 9000, "kept": 142, "errors": 3}, 1234.4, "1,234 tokens/s  71% kept  3 failed"),
        ({"rows": 200, "tokens": 0, "errors": 0}, 0.0, ""),
        ({"updates": 10, "tokens": 5000}, 600.0, "600 tokens/s"),
        ({}, 0.0, ""),
    ],
)
def test_the_note_beside_a_bar(totals: Mapping[str, float], tokens: float, shown: str) -> None:
    unit = "updates" if "updates" in totals else "rows"
    assert note(totals, unit, tokens) == shown


def test_too_many_faults_are_counted_by_reason() -> None:
    assert too_many_faults("amplify", {"a": 1, "b": 1}, 200, 2) is None
    said = too_many_faults("amplify", {"empty": 1200, "too long": 2}, 50_000, 500)
    assert said == (
        "amplify: 1,202 of 50,000 rows failed, and amplify.max_error_fraction allows 500: 1,200 x empty; 2 x too long"
    )


def test_time_before_the_first_row_does_not_slow_the_rate() -> None:
    pace = Pace("rows")
    for second in range(50):  # an engine loads
        pace.read(second, {"rows": 0})
    assert pace.rate("rows") == 0
    pace.read(50, {"rows": 4, "tokens": 80})
    assert pace.rate("rows") == 0, "how long these took is not known"
    pace.read(52, {"rows": 6, "tokens": 120})
    assert (pace.rate("rows"), pace.rate("tokens")) == (1, 20)


def test_what_a_training_has_from_before_is_no_part_of_its_rate() -> None:
    """It goes on at 800 updates; at 810 a worker dies, and it falls back to 800."""
    pace = Pace("updates")
    for second, updates in ((0, 0), (1, 800), (5, 804), (11, 810)):
        pace.read(second, {"updates": updates})
    assert pace.rate("updates") == 1
    pace.read(20, {"updates": 800})
    assert pace.rate("updates") == 0
    pace.read(24, {"updates": 802})
    assert pace.rate("updates") == 0.5
