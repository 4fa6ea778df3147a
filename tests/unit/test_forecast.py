"""The forecast of a frontier: what the fits find again, what they refuse to say, and the page."""

from __future__ import annotations

import html
import io
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from rich.console import Console
from typer.testing import CliRunner

from bridge_ray import cli, storage
from bridge_ray.errors import UserError
from bridge_ray.forecast import check, command, words
from bridge_ray.forecast.cells import LADDER, Cell, Measured, Sample, more, read, resample, sample_of, sizes
from bridge_ray.forecast.curve import Curve, fit
from bridge_ray.forecast.make import make
from bridge_ray.frontier import questions
from bridge_ray.frontier.cells import file_of
from bridge_ray.frontier.grid import cell_of
from bridge_ray.report.forecast import render
from bridge_ray.statistics import Correct
from tests import browser

BUDGETS = (0.01, 0.03, 0.05, 0.1, 0.3, 1.0)
EXACT = 10**8  # test questions: so many that rounding the right answers is no noise
DRAWS = 30
GRID = {
    "systems": ["bridge", "direct"],
    "budgets": list(BUDGETS),
    "seeds": [7, 8, 9],
    "reference": 0.05,
    "corpora": [1.0],
    "lengths": [1.0],
}

BRIDGE = Curve(floor=0.2, scale=0.9, exponent=0.5)
DIRECT = Curve(floor=0.1, scale=1.6, exponent=0.25)
"""At 100 queries BRIDGE errs in 0.2 + 0.9 / 10 = 0.29; direct does at (0.19 / 1.6)^-4 = 5028.7 queries."""


def cells(
    curves: Mapping[str, Curve],
    budgets: tuple[float, ...] = BUDGETS,
    corpora: tuple[int, ...] = (2000,),
    seeds: int = 1,
    n: int = EXACT,
    noise: np.random.Generator | None = None,
) -> list[dict[str, Any]]:
    """A frontier of those curves, a query a bought row; with ``noise`` the right answers are drawn."""
    made = []
    for system, curve in curves.items():
        for rows in corpora:
            for budget in budgets:
                right = 1 - curve.error(budget * rows, rows)
                for seed in range(seeds):
                    correct = round(right * n) if noise is None else int(noise.binomial(n, right))
                    fields = {"system": system, "budget": budget, "rows": rows, "seed": seed, "n": n}
                    made.append(fields | {"correct": correct, "queries": round(budget * rows)})
    return made


def teacher(error: float, n: int = EXACT) -> dict[str, Any]:
    fields = {"system": "teacher", "budget": 0.0, "rows": 2000, "seed": 0, "queries": n}
    return fields | {"n": n, "correct": round((1 - error) * n)}


def of(system: str, curve: Curve, **how: Any) -> tuple[Cell, ...]:
    return tuple(Cell(**cell) for cell in cells({system: curve}, **how))


def steady(errors: tuple[float, ...], n: int = EXACT) -> tuple[Cell, ...]:
    """direct with those errors at the first budgets."""
    pairs = zip(BUDGETS, errors, strict=False)
    return tuple(Cell("direct", b, 2000, 0, n, round((1 - error) * n), b * 2000) for b, error in pairs)


def sample(measured: Measured) -> Sample:
    """The answers of those cells, in an order of their own; each seed was asked questions of its own. An exact cell has
    one question, with its share of right answers, so that drawing again changes nothing."""
    seeds = {cell.seed for some in (*measured.cells.values(), measured.teacher) for cell in some}
    n = max(cell.n for cell in measured.cells["bridge"])
    count = 1 if n == EXACT else n
    order = np.random.default_rng(0)

    def answers(cell: Cell) -> Correct:
        if n == EXACT:
            return np.array([cell.correct / cell.n])
        return order.permutation(np.arange(n) < cell.correct * n / cell.n).astype(np.float64)

    return sample_of(measured, answers, {seed: np.arange(count, dtype=np.uint64) + seed * count for seed in seeds})


def forecast(found: list[dict[str, Any]], **how: Any) -> dict[str, Any]:
    measured = read(found, "frontier.json")
    return make("run", measured, sample(measured), **({"draws": DRAWS} | how))


@pytest.fixture(scope="module")
def clear() -> dict[str, Any]:
    """Curves without noise, and direct_labels that can never reach BRIDGE."""
    curves = {"bridge": BRIDGE, "direct": DIRECT, "direct_labels": Curve(0.35, 0.5, 0.5)}
    return forecast([*cells(curves), teacher(0.05)])


def test_a_curve_by_hand() -> None:
    """0.1 + 2 / 10 + 5 / 50 with 100 queries for 2,500 rows; 0.4 again at 100 queries; 0.2 is the asymptote."""
    curve = Curve(0.1, 2.0, 0.5, 5.0, 0.5)
    assert curve.error(100, 2500) == pytest.approx(0.4)
    assert curve.queries_for(0.4, 2500) == pytest.approx(100)
    assert curve.asymptote(2500) == pytest.approx(0.2)
    assert curve.queries_for(0.2, 2500) == math.inf


def test_a_curve_without_noise_is_found_again() -> None:
    found = fit(of("direct", DIRECT), bound=0.05)
    assert (found.floor, found.scale, found.exponent) == pytest.approx((0.1, 1.6, 0.25), rel=0.01)
    assert found.corpus_exponent is None


def test_several_corpora_show_what_the_corpus_is_worth() -> None:
    truth = Curve(0.05, 0.9, 0.6, 2.0, 0.4)
    found = fit(of("bridge", truth, corpora=(500, 1000, 2000, 4000)), bound=0.0)
    got = (found.floor, found.scale, found.exponent, found.corpus_scale, found.corpus_exponent)
    assert got == pytest.approx((0.05, 0.9, 0.6, 2.0, 0.4), rel=0.02)


def test_the_corpus_counts_as_far_as_it_was_explained() -> None:
    """With keep 0.25 everywhere (rho N)^-0.5 is twice N^-0.5: the same cells, half the scale."""
    whole = of("bridge", Curve(0.05, 0.9, 0.6, 2.0, 0.5), corpora=(500, 1000, 2000, 4000))
    quarter = tuple(Cell(**{**vars(cell), "keep": 0.25}) for cell in whole)
    assert fit(quarter, 0.0).corpus_scale == pytest.approx(fit(whole, 0.0).corpus_scale / 2, rel=0.02)


def test_no_asymptote_is_below_the_teachers_error() -> None:
    curve = Curve(0.0, 1.0, 0.3)
    assert fit(of("direct", curve), bound=0.0).floor == pytest.approx(0.0, abs=0.005)
    assert fit(of("direct", curve), bound=0.08).floor >= 0.08
    found = forecast([*cells({"bridge": BRIDGE, "direct": curve}), teacher(0.08)])
    assert found["systems"]["direct"]["floor"]["value"] >= 0.08 - 1e-9
    assert "8.0 %" in found["notes"][0]


def test_without_the_teacher_the_bound_is_nought_and_that_is_said() -> None:
    found = forecast(cells({"bridge": BRIDGE, "direct": DIRECT}))
    assert found["bound"] == {"error": 0.0, "teacher": None}
    assert "teacher was not measured" in " ".join(found["notes"])


def test_where_direct_reaches_bridge(clear: dict[str, Any]) -> None:
    """B = 5 % of 2,000 rows; see ``DIRECT``."""
    assert clear["at"]["queries"] == 100
    assert clear["at"]["accuracy"]["value"] == pytest.approx(0.71)
    direct = clear["rivals"]["direct"]
    assert direct["trusted"]
    assert direct["queries"]["value"] == pytest.approx((0.19 / 1.6) ** -4, rel=0.01)
    assert direct["ratio"]["value"] == pytest.approx(50.3, rel=0.01)
    assert direct["ratio"]["never"] == 0
    assert clear["sentences"][1].startswith("direct does not reach this within this corpus: by its fit it needs 50.3 ")
    assert clear["sentences"][1].endswith("and 2,000 questions are all there is to buy.")
    assert max(point["queries"] for point in clear["systems"]["direct"]["curve"]) == pytest.approx(2000)
    partly = forecast(cells({"bridge": BRIDGE, "direct": Curve(0.1, 1.6, 0.45)}, budgets=(0.01, 0.03, 0.05)))
    assert "times the queries to reach this" in partly["sentences"][1], "(0.19 / 1.6)^(-1 / 0.45) = 114 of 2,000"
    assert "beyond the 100 queries up to which direct was measured" in partly["sentences"][1]
    assert "B*</text>" in render(partly)


def test_a_teacher_that_a_student_beats_bounds_nothing() -> None:
    """It errs in 0.25; direct errs in 0.1 + 1.6 / 2000^0.5 = 0.136 with all rows, and so reaches what bridge does."""
    curves = {"bridge": BRIDGE, "direct": Curve(0.1, 1.6, 0.5)}
    found = forecast([*cells(curves), teacher(0.25)])
    assert found["bound"] == {"error": 0.0, "teacher": pytest.approx(0.25)}
    assert found["rivals"]["direct"]["ratio"]["value"] == pytest.approx((0.19 / 1.6) ** -2 / 100, rel=0.01)
    assert "86.4 % against 75.0 %" in found["notes"][0]


def test_never_is_not_said_of_what_was_measured(clear: dict[str, Any]) -> None:
    never = {"value": None, "interval": [None, None], "never": 1.0}
    direct = clear["rivals"]["direct"] | {"ratio": never, "queries": never, "reached": 600}
    said = words.reach("direct", clear | {"rivals": {"direct": direct}})
    assert "by its fit it never reaches this, and it was measured to, with 600 queries (6.0 times as many)." in said
    assert clear["rivals"]["direct"]["reached"] is None


def test_what_was_measured_has_the_frontier_s_intervals() -> None:
    line = {"system": "bridge", "rows": 2000, "budget": 0.05, "interval": [0.6, 0.8]}
    found = forecast(cells({"bridge": BRIDGE, "direct": DIRECT}), lines=[line])
    assert found["at"]["accuracy"]["interval"] == [0.6, 0.8]
    assert [s["interval"] for s in found["systems"]["bridge"]["sizes"] if s["budget"] == 0.05] == [[0.6, 0.8]]
    assert "95 % interval 60.0 to 80.0 %" in found["sentences"][0]


def test_at_another_budget() -> None:
    """At 20 queries BRIDGE errs in 0.2 + 0.9 / 20^0.5 = 0.40125; direct does at (0.30125 / 1.6)^-4 = 795.8."""
    found = forecast(cells({"bridge": BRIDGE, "direct": DIRECT}), budget=0.01)
    assert found["rivals"]["direct"]["ratio"]["value"] == pytest.approx(795.8 / 20, rel=0.01)
    with pytest.raises(UserError, match=r"--budget 0.04: bridge was measured at 0.01,0.03"):
        forecast(cells({"bridge": BRIDGE, "direct": DIRECT}), budget=0.04)


def test_what_can_never_be_reached(clear: dict[str, Any]) -> None:
    """The labels' asymptote, 0.35, is above BRIDGE's error, 0.29."""
    labels = clear["rivals"]["direct_labels"]
    assert labels["ratio"] == {"value": None, "interval": [None, None], "never": 1.0}
    assert clear["sentences"][2].startswith("direct_labels never reaches this")


def test_twice_the_budget(clear: dict[str, Any]) -> None:
    """From 0.9 / 10 to 0.9 / 200^0.5 = 0.0636."""
    gain = clear["systems"]["bridge"]["double_budget"]
    assert gain["value"] == pytest.approx(0.09 - 0.0636, abs=2e-4)
    assert gain["interval"][0] <= gain["value"] <= gain["interval"][1]
    whole = forecast(cells({"bridge": BRIDGE, "direct": DIRECT}), budget=1.0)
    assert whole["systems"]["bridge"]["double_budget"] is None


def test_twice_the_corpus() -> None:
    """2 (4000^-0.4 - 8000^-0.4) at the same queries."""
    curves = {"bridge": Curve(0.05, 0.9, 0.6, 2.0, 0.4), "direct": Curve(0.2, 1.0, 0.5)}
    found = forecast(cells(curves, corpora=(500, 1000, 2000, 4000)), draws=10)
    gain = found["systems"]["bridge"]["double_corpus"]["value"]
    assert gain == pytest.approx(2 * (4000**-0.4 - 8000**-0.4), abs=1e-3)
    assert found["at"]["rows"] == 4000
    assert found["systems"]["direct"]["double_corpus"] is None


def test_one_corpus_says_nothing_about_another(clear: dict[str, Any]) -> None:
    assert clear["systems"]["bridge"]["double_corpus"] is None
    assert "only one size was measured (see --corpora)" in clear["sentences"][-1]
    assert any("One size of the corpus" in note for note in clear["notes"])


def test_intervals_cover_the_truth_where_questions_and_seeds_are_few() -> None:
    """The ends of an interval are those of 20 draws: about 90 % is due."""
    curves = {"bridge": BRIDGE, "direct": DIRECT}
    star, doubled = (0.19 / 1.6) ** -4 / 100, 0.09 - 0.9 / 200**0.5
    covered = np.zeros(2)
    repetitions = 40
    for repetition in range(repetitions):
        noise = np.random.default_rng(repetition)
        found = forecast(
            cells(curves, budgets=(0.01, 0.05, 0.2, 1.0), seeds=3, n=300, noise=noise), seed=repetition, draws=20
        )
        low, high = found["rivals"]["direct"]["ratio"]["interval"]
        covered[0] += (low or math.inf) <= star <= (high or math.inf)
        low, high = found["systems"]["bridge"]["double_budget"]["interval"]
        covered[1] += low <= doubled <= high
    assert (covered >= 0.8 * repetitions).all()


def test_a_draw_keeps_every_size_of_an_unfinished_frontier() -> None:
    """The largest size has one seed of three."""
    found = cells({"bridge": BRIDGE, "direct": DIRECT}, seeds=3, n=300)
    rare = [cell for cell in found if cell["budget"] < 1 or cell["seed"] == 2]
    measured = read(rare, "frontier.json")
    generator = np.random.default_rng(0)
    for _ in range(20):
        drawn = resample(measured, sample(measured), generator)
        assert [size.budget for size in sizes(drawn.cells["direct"])] == list(BUDGETS)
        seeds = [{cell.seed for cell in cells} for cells in drawn.cells.values()]
        assert seeds[0] == seeds[1]


def drawn(apart: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """bridge's accuracy at 5 % in 400 draws, and direct's, which has the same right 60 of 100 answers; three seeds do,
    of which each begins ``apart`` questions after the one before it."""
    measured = read(cells({"bridge": BRIDGE, "direct": DIRECT}, seeds=3, n=100), "frontier.json")
    correct = (np.arange(100) < 60).astype(np.float64)
    questions = {seed: np.arange(100, dtype=np.uint64) + seed * apart for seed in range(3)}
    asked, generator = sample_of(measured, lambda cell: correct, questions), np.random.default_rng(0)
    found = [resample(measured, asked, generator) for _ in range(400)]
    five = [[s.accuracy for s in sizes(one.cells[name]) if s.budget == 0.05] for one in found for name in one.cells]
    pairs = np.array(five).reshape(400, 2)
    return pairs[:, 0], pairs[:, 1]


def test_the_questions_are_drawn_once_for_all_systems_and_for_seeds_that_share_them() -> None:
    """Of a Bayesian bootstrap of n questions the deviation is (p (1 - p) / (n + 1))^0.5: 0.0487 of 100. Three seeds
    that were asked them, and answer alike, know no more than one; three with others know thrice as much: 0.0281."""
    bridge, direct = drawn(apart=0)
    assert bridge == pytest.approx(direct)
    assert bridge.std() == pytest.approx(0.0487, rel=0.1)
    bridge, direct = drawn(apart=100)
    assert bridge == pytest.approx(direct)
    assert bridge.std() == pytest.approx(0.0281, rel=0.1)


def test_the_check_by_hand() -> None:
    """0.5, 0.4, 0.36: the largest, left out, is 0.04 from the size before it; one by one also 0.1 of the second."""
    measured = steady((0.5, 0.4, 0.36))
    assert check.ahead(measured, 0.0).carried == pytest.approx(0.04)
    assert check.one_by_one(measured, 0.0).carried == pytest.approx((0.1 + 0.04) / 2)


def test_a_curve_beats_carrying_forward_where_there_is_one() -> None:
    for look in (check.ahead, check.one_by_one):
        found = look(of("direct", DIRECT), 0.0)
        assert found.fitted < found.carried / 10
        assert found.passed


def test_a_larger_corpus_is_predicted_from_smaller_ones() -> None:
    """What direct does with 30 queries of 1,000 rows it does with 30 of 600: that is what is carried forward."""
    found = check.ahead(of("direct", DIRECT, budgets=(0.03, 0.05, 0.1), corpora=(600, 1000)), 0.0)
    assert {(guess.size.rows, guess.size.budget) for guess in found.guesses} == {
        (600, 0.1), (1000, 0.1), (1000, 0.03), (1000, 0.05)
    }  # fmt: skip
    at30 = next(guess for guess in found.guesses if (guess.size.rows, guess.size.budget) == (1000, 0.03))
    assert at30.carried == pytest.approx(DIRECT.error(30, 0), abs=1e-6)


def test_what_does_not_beat_carrying_forward_is_not_forecast() -> None:
    """direct falls steeply, then stays where it is, a little worse: every fit expects more of the largest size."""
    found = cells({"bridge": BRIDGE}) + [vars(cell) for cell in steady((0.6, 0.5, 0.42, 0.35, 0.3, 0.31))]
    made = forecast(found)
    ahead = made["systems"]["direct"]["checks"]["ahead"]
    assert ahead["carried"] == pytest.approx(0.01)
    assert ahead["fitted"] > 0.01
    assert not made["rivals"]["direct"]["trusted"]
    assert made["systems"]["bridge"]["trusted"]
    sentence = made["sentences"][1]
    assert sentence.startswith("What direct would need cannot be forecast: on the largest size its fit was wrong by")
    assert "times" not in sentence
    page = render(made)
    assert "Not to be trusted: direct." in page
    assert "B*</text>" not in page
    assert "to be trusted" not in made["reading"] and "cannot be told from these sizes" in made["reading"]
    assert "direct 0." not in made["reading"], "an exponent of a fit that is not to be trusted"
    why, asked = words.following(made, GRID, "storage")
    assert "0.02" in why
    assert asked == (
        "bridge-ray frontier RECIPE --budgets 0.01,0.02,0.03,0.05,0.1,0.3,1 --seeds 3 --reference 0.05 "
        "--systems bridge,direct --name run"
    )


def failed(made: dict[str, Any]) -> dict[str, Any]:
    """The forecast, but that direct's fit is not to be trusted."""
    return made | {"systems": made["systems"] | {"direct": made["systems"]["direct"] | {"trusted": False}}}


def test_the_next_command_is_the_frontiers_own_with_more_seeds(clear: dict[str, Any]) -> None:
    """Its dev split, training sizes, lengths, reference budget, systems and storage stay what they were."""
    grid = GRID | {"reference": 0.03, "corpora": [0.5, 1.0], "lengths": [1.0, 2.0], "systems": ["bridge", "labels"]}
    why, asked = words.following(clear | {"split": "dev"}, grid, "my storage")
    assert "more seeds" in why
    assert asked == (
        "bridge-ray frontier RECIPE --budgets 0.01,0.03,0.05,0.1,0.3,1 --seeds 5 --reference 0.03 --corpora 0.5,1 "
        "--lengths 1,2 --systems bridge,labels --dev --name run --storage 'my storage'"
    )


def test_where_the_whole_ladder_is_measured_more_seeds_are_proposed(clear: dict[str, Any]) -> None:
    assert more(LADDER, 1) == list(LADDER)
    assert more(LADDER[1:], 2) == list(LADDER)
    why, asked = words.following(failed(clear), GRID | {"budgets": list(LADDER)}, "storage")
    assert "no budget is left to propose" in why
    assert "--budgets 0.01,0.02,0.03,0.05,0.1,0.3,1 --seeds 5 " in asked


def test_too_few_budgets_say_which_to_add() -> None:
    curves = {"bridge": BRIDGE, "direct": DIRECT}
    with pytest.raises(UserError, match=r"direct has only 0\.03,0\.05, and .* --budgets 0\.03,0\.05,1$"):
        read(cells({"bridge": BRIDGE}) + cells({"direct": DIRECT}, budgets=(0.03, 0.05)), "frontier.json")
    with pytest.raises(UserError, match="bridge has no budget"):
        read(cells({"direct": DIRECT}), "frontier.json")
    labels = cells({"direct_labels": DIRECT}, budgets=(0.05,))
    made = forecast(cells(curves) + labels, draws=5)
    assert "direct_labels would need is unknown" in made["sentences"][2]


def test_an_unfinished_frontier_is_to_be_finished_first(tmp_path: Path) -> None:
    """Its command again, and no budgets that were never asked for."""
    missing = [{"system": system, "budget": budget} for system in ("bridge", "direct") for budget in (0.03, 0.1, 1.0)]
    few = cells({"bridge": BRIDGE, "direct": DIRECT}, budgets=(0.05,))
    with pytest.raises(UserError, match=r"bridge has only 0\.05, .*; give the frontier's command again: it goes on"):
        read(few, "frontier.json", missing)
    with pytest.raises(UserError, match=r"--budgets 0\.01,0\.05,1$"):
        read(few, "frontier.json", [cell for cell in missing if cell["budget"] == 1.0])
    made = forecast(cells({"bridge": BRIDGE, "direct": DIRECT}), missing=3)
    assert made["notes"][0] == "The frontier is not complete: cells that are missing: 3."
    why, asked = words.following(failed(made), GRID, "storage")
    assert "not complete" in why
    assert "--budgets 0.01,0.03,0.05,0.1,0.3,1 --seeds 3 " in asked, "as it was"


def test_budgets_to_add_lie_far_from_those_known() -> None:
    assert more([0.03, 0.05], 1) == [0.03, 0.05, 1.0]
    assert more([0.03, 0.05, 1.0], 1) == [0.03, 0.05, 0.3, 1.0]
    assert len(more([], 3)) == 3


@pytest.mark.parametrize(
    ("value", "interval", "never", "said"),
    [
        (4.1, [2.0, None], 0.1, "direct needs 4.1 times the queries to reach this (95 %: 2.0 to never)."),
        (1.4, [0.8, 3.0], 0.0, "cannot be told: 1.4 times the queries (95 %: 0.8 to 3.0)."),
        (None, [0.8, None], 0.6, "cannot be told: never (95 %: 0.8 to never)."),
        (0.5, [0.2, 0.9], 0.0, "direct needs only 0.5 times the queries to reach this (95 %: 0.2 to 0.9)"),
        (None, [2.0, None], 0.8, "By its fit direct never reaches this"),
        (None, [None, None], 1.0, "direct never reaches this"),
        (3.0, [None, None], 0.98, "direct needs 3.0 times the queries to reach this, but never reaches it in 98 %"),
        (None, [0.5, 0.9], 0.0, "cannot be told: never (95 %: 0.5 to 0.9)."),
        (1e9, [1e6, None], 0.2, "direct needs over 1,000 times the queries to reach this (95 %: over 1,000 to never)."),
    ],
)
def test_the_sentence_claims_what_the_interval_allows(
    value: float | None, interval: list[float | None], never: float, said: str, clear: dict[str, Any]
) -> None:
    ratio = {"value": value, "interval": interval, "never": never}
    rival = clear["rivals"]["direct"] | {"ratio": ratio, "queries": {"value": 1.0}}
    assert said in words.reach("direct", clear | {"rivals": {"direct": rival}})


def test_the_reading_is_labelled_a_diagnostic(clear: dict[str, Any]) -> None:
    assert "1511.03643" in clear["reading"]
    assert "Mirzadeh" in clear["reading"]
    assert "diagnostic, not a proof" in clear["reading"]
    assert "bridge falls faster than direct" in clear["reading"]  # 0.5 against 0.25, without noise


def written(folder: Path, found: list[dict[str, Any]]) -> Path:
    home = folder / "runs" / "grid"
    for cell in found:
        answers = pa.table({"correct": np.arange(cell["n"]) < cell["correct"]})
        storage.write_table(file_of(str(home), cell_of(cell), ".parquet"), answers)
    asked = {seed: np.arange(1000, dtype=np.uint64) for seed in {cell["seed"] for cell in found}}
    questions.write(str(home), asked)
    known = {"missing": [], "intervals": [], "split": "test"}
    storage.write_json(str(home / "frontier.json"), {"cells": found, "grid": GRID, **known})
    return home


def test_the_command_keeps_what_it_prints(tmp_path: Path) -> None:
    curves = {"bridge": BRIDGE, "direct": DIRECT}
    home = written(tmp_path, [*cells(curves, seeds=2, n=1000), teacher(0.05, n=1000)])
    asked = ["forecast", "grid", "--storage", str(tmp_path), "--json"]
    result = CliRunner().invoke(cli.app, asked, catch_exceptions=False)
    kept = json.loads((home / "forecast.json").read_text())
    assert json.loads(result.stdout) == kept
    assert kept["draws"] == 400
    assert (home / "forecast.html").read_text() == render(kept)
    printed = CliRunner().invoke(cli.app, asked[:-1], catch_exceptions=False).stdout
    assert printed.endswith(f"--name grid --storage {tmp_path}\n")


def test_terminal_and_page_tell_the_same(clear: dict[str, Any]) -> None:
    out = Console(record=True, width=100, file=io.StringIO())
    command.show(clear, "/storage/runs/grid", ("It helps.", "bridge-ray frontier RECIPE"), out)
    told, page = " ".join(out.export_text().split()), html.unescape(render(clear))
    for sentence in [*clear["sentences"], *clear["notes"]]:
        assert sentence in told
        assert sentence.replace(" %", "\u00a0%") in page
    assert "page: /storage/runs/grid/forecast.html" in told
    assert "It helps. next: bridge-ray frontier RECIPE" in told


def test_a_frontier_that_has_not_kept_its_questions(tmp_path: Path) -> None:
    home = written(tmp_path, cells({"bridge": BRIDGE, "direct": DIRECT}, n=1000))
    (home / "questions.parquet").unlink()
    with pytest.raises(UserError, match="questions.parquet: is not there; give the frontier's command again"):
        CliRunner().invoke(cli.app, ["forecast", "grid", "--storage", str(tmp_path)], catch_exceptions=False)
    assert not (home / "forecast.json").exists()


def test_a_run_without_a_frontier(tmp_path: Path) -> None:
    asked = ["forecast", "grid", "--storage", str(tmp_path)]
    with pytest.raises(UserError, match="first: bridge-ray frontier RECIPE --name grid"):
        CliRunner().invoke(cli.app, asked, catch_exceptions=False)
    assert not any(tmp_path.iterdir())


def test_the_page_is_one_file_of_escaped_text(clear: dict[str, Any]) -> None:
    page = render(clear | {"run": "<script>alert(1)</script>"})
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"(?:src|href)=|url\(", page)
    assert page.count("<svg") == 2
    assert "B*</text>" not in page, "there are not so many questions"


@browser.needed
@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, False), (1280, True)])
def test_a_browser_shows_the_page_without_overflow_and_readable(
    width: int, dark: bool, clear: dict[str, Any], tmp_path: Path
) -> None:
    assert browser.check(render(clear), width, tmp_path, dark).figures == 2
