"""The frontier: systems and cells are what they say, numbers are those worked out by hand, the page says them."""

from __future__ import annotations

import asyncio
import io
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from typer.testing import CliRunner

from bridge_ray import cli, config, pipeline, placement, records, stage, storage
from bridge_ray.corpus.load import load
from bridge_ray.corpus.splits import split
from bridge_ray.errors import Outage, UserError
from bridge_ray.export import export
from bridge_ray.forecast.cells import read
from bridge_ray.frontier import making, plan, questions, run, terminal
from bridge_ray.frontier.cells import Planned, Trial, answers_of, upstream
from bridge_ray.frontier.grid import Cell, cell_of, cells, check, grid, payer, settings_of
from bridge_ray.frontier.summary import Bootstrap, Line, compare, gains, pareto, recommend, resampled, summarise
from bridge_ray.frontier.systems import SYSTEMS, chosen, configured
from bridge_ray.inference import local_ray
from bridge_ray.objects import open_store
from bridge_ray.progress import Progress
from bridge_ray.report import frontier_page
from bridge_ray.stage import Done, Stage, Work
from bridge_ray.statistics import Correct
from bridge_ray.stopping import stoppable
from bridge_ray.teacher.ledger import Cap, balance
from bridge_ray.teacher.teach import Payer, Unpaid
from bridge_ray.training import teacher_assistant
from bridge_ray.training.run import GaveUp
from tests import browser
from tests.conftest import TINY
from tests.unit.test_report import HOSTILE

# --- systems


@pytest.mark.parametrize("recipe", sorted(config.recipes()))
def test_every_system_s_line_validates_on_every_recipe(recipe: str) -> None:
    settings = config.load(recipe)
    made = {name: configured(settings, name) for name in SYSTEMS}
    assert all(one.evaluate.systems == (SYSTEMS[name].answers,) for name, one in made.items())
    assert made["bridge_no_verification"].amplify.verify == "off"
    mixed = made["bridge_no_curriculum"].student
    assert mixed == settings.student.model_copy(update={"control": "joint"}), "the very lessons, in another order"


UNUSUAL = (
    "evaluate.by_entropy=true",
    "amplify.verify=off",
    "amplify.verify=self_consistency",
    "amplify.checks=[majority, likeliest, arithmetic, comparisons, options, reanswer]",
    "student.control=answers_only",
    "ta.taught=false",
)


@pytest.mark.parametrize("field", UNUSUAL)
@pytest.mark.parametrize("recipe", sorted(config.recipes()))
def test_every_system_s_line_validates_on_unusual_recipes_too(recipe: str, field: str) -> None:
    settings = config.load(recipe, [field, *(["evaluate.systems=[ta_base]"] if "by_entropy" in field else [])])
    made = {name: configured(settings, name) for name in SYSTEMS}
    assert not any(one.evaluate.by_entropy for one in made.values()), "a cell has one system, and no use for it"
    verified = "self_consistency" if "self" in field else "gold"
    for asked in ("majority", "likeliest", "arithmetic", "comparisons", "options", "reanswer"):
        amplify = made[f"bridge_{asked}"].amplify
        assert (amplify.checks, amplify.verify) == ((asked,), verified), "a check looks at verified replies"
    assert made["bridge"].amplify == settings.amplify


def test_names_are_put_into_reading_order_and_the_teacher_must_be_asked_for() -> None:
    assert chosen(["bridge", "labels"]) == ("labels", "bridge")
    assert set(chosen(["all"])) == SYSTEMS.keys() - {"teacher"}
    assert "teacher" in chosen(["all", "teacher"])
    with pytest.raises(UserError, match="--systems brigde: no such system; systems: all, "):
        chosen(["brigde"])


def tiny(*overrides: str) -> config.Config:
    return config.load(str(TINY), ["teacher.standin={}", *overrides])


def table(settings: config.Config) -> pa.Table:
    return split(load(settings.corpus, settings.seed), settings.corpus, settings.seed)


def evaluated(settings: config.Config, corpus: pa.Table) -> Stage:
    return pipeline.stages(settings, corpus)["evaluate"]


def needs(stage: Stage) -> dict[str, str]:
    return {part.name: part.fingerprint for part in upstream(stage)}


def test_systems_share_what_they_have_in_common_and_differ_in_what_they_leave_out() -> None:
    settings = tiny()
    corpus = table(settings)
    of = {name: needs(evaluated(configured(settings, name), corpus)) for name in SYSTEMS}
    plain = {name: part.fingerprint for name, part in pipeline.stages(settings, corpus).items()}
    for name in ("direct", "direct_labels", "bridge", "ta"):
        assert all(of[name][stage] == plain[stage] for stage in of[name] if stage != "evaluate"), name
    assert len({parts["evaluate"] for parts in of.values()}) == len(SYSTEMS)
    assert len({parts["score"] for parts in of.values() if "score" in parts}) == 1
    for name in ("student_base", "ta_base", "labels", "teacher"):
        assert "teach" not in of[name], f"{name} buys nothing"
    assert "train_ta" not in of["untaught_ta"] and of["untaught_ta"]["teach"] == plain["teach"]
    assert of["mentor_kd"]["teach"] == of["direct_random"]["teach"] == of["bridge_no_selection"]["teach"]
    assert of["bridge_no_selection"]["teach"] != plain["teach"]
    for name in ("bridge_no_verification", "bridge_no_checks", "bridge_no_hint"):
        assert of[name]["train_ta"] == plain["train_ta"] and of[name]["amplify"] != plain["amplify"]
    assert of["bridge_no_curriculum"]["amplify"] == plain["amplify"]


def test_a_config_read_again_has_the_same_fingerprints() -> None:
    """Also where it says nothing and the defaults hold: they are numbers of their fields' types."""
    settings = config.Config(name="mine", corpus=config.Corpus(train=20, test=4))
    corpus = table(settings)
    assert (
        evaluated(config.changed(settings, {}, "tiny"), corpus).fingerprint == evaluated(settings, corpus).fingerprint
    )


def test_epochs_decide_nothing_where_a_phase_says_its_updates() -> None:
    """Else a student would be trained again for a number that nobody reads."""

    def student(*phases: str) -> str:
        settings = tiny(f"student.curriculum=[{', '.join(phases)}]")
        return pipeline.stages(settings, table(settings))["train_student"].fingerprint

    said = "{target: rationale, updates: 8}"
    assert student(said) == student("{target: rationale, updates: 8, epochs: 4}")
    assert student(said) != student("{target: rationale, updates: 9}")
    assert student("{target: rationale, epochs: 1}") != student("{target: rationale, epochs: 4}")


# --- the grid


def test_core_systems_have_all_budgets_others_the_reference_and_free_ones_none() -> None:
    asked = grid(chosen(["student_base", "direct", "bridge", "mentor_kd"]), [1.0, 0.05, 0.25], 2)
    assert asked.reference == 0.05
    made = cells(asked, 7, 100)
    of_seed = [(cell.system, cell.budget) for cell in made if cell.seed == 7]
    assert of_seed == [
        ("student_base", 0),
        ("direct", 0.05),
        ("bridge", 0.05),
        ("direct", 0.25),
        ("bridge", 0.25),
        ("direct", 1.0),
        ("bridge", 1.0),
        ("mentor_kd", 0.05),
    ]
    assert [cell.seed for cell in made] == [7] * 8 + [8] * 8
    assert len({cell.name for cell in made}) == 16


def test_the_teacher_itself_is_asked_last(tmp_path: Path) -> None:
    """What a cap leaves to it is what the rationales have not taken."""
    made = cells(grid(chosen(["teacher", "labels", "bridge"]), [0.25], 2), 0, 48)
    assert [(cell.system, cell.seed) for cell in made[-2:]] == [("teacher", 0), ("teacher", 1)]
    assert [cell.system for cell in made[:4]] == ["labels", "bridge"] * 2


def test_smaller_corpora_have_the_core_systems_and_are_part_of_the_larger_one() -> None:
    settings = tiny()
    asked = grid(chosen(["labels", "bridge", "ta"]), [0.25], 1, corpora=[0.5, 1.0])
    made = cells(asked, 0, 48)
    assert [(cell.system, cell.rows) for cell in made] == [("labels", 48), ("bridge", 48), ("ta", 48), ("bridge", 24)]
    whole, half = (table(settings_of(settings, asked, cell, 48)) for cell in (made[1], made[3]))
    questions = {
        name: {part: _questions(rows, part) for part in ("train", "dev", "test")}
        for name, rows in (("whole", whole), ("half", half))
    }
    assert questions["half"]["train"] == questions["whole"]["train"][:24]
    assert questions["half"]["dev"] == questions["whole"]["dev"]
    assert questions["half"]["test"] == questions["whole"]["test"]
    assert whole.equals(table(settings)), "the largest is the recipe's own"


def _questions(rows: pa.Table, part: str) -> list[str]:
    return [row["question"] for row in rows.to_pylist() if row["split"] == part]


def test_a_cell_s_config_has_its_budget_its_seed_and_its_length() -> None:
    settings = tiny("budget.max_queries=30", "student.curriculum.1.updates=10")
    asked = grid(("bridge",), [0.25, 0.5], 1)
    made = settings_of(settings, asked, Cell("bridge", 0.5, 48, 3), 48, length=1.5, split="dev")
    assert (made.seed, made.budget.fraction, made.evaluate.split) == (3, 0.5, "dev")
    assert (made.budget.max_queries, made.budget.account) == (None, None), "who pays is no part of a cell"
    assert [(phase.epochs, phase.updates) for phase in made.student.curriculum] == [(1.5, None), (1.5, 15)]
    assert made.corpus.made == 48
    larger = settings_of(tiny("corpus.made=60"), asked, Cell("bridge", 0.5, 24, 3), 48)
    assert (larger.corpus.made, larger.corpus.train) == (60, 24), "else it would be asked other questions than the run"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], None),
        (["budget.max_queries=30"], Payer("tiny-frontier", Cap(30))),
        (["budget.account={name: team, max_usd: 2.5}"], Payer("team", Cap(usd=2.5))),
        (["budget.max_usd=9", "budget.account={name: team, max_usd: 2.5}"], Payer("team", Cap(usd=2.5))),
        (["budget.max_usd=1", "budget.account={name: team, max_queries: 7}"], Payer("team", Cap(7, 1.0))),
    ],
)
def test_a_cap_is_that_of_the_account_that_all_cells_pay_from(fields: list[str], expected: Payer | None) -> None:
    assert payer(tiny(*fields)) == expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"budgets": [0.0, 0.1]}, "--budgets 0,0.1: give shares above 0 and at most 1"),
        ({"budgets": [1.5]}, "--budgets 1.5"),
        ({"budgets": [0.1], "corpora": [2.0]}, "--corpora 2"),
        ({"budgets": [0.1], "lengths": [0.0]}, "--lengths 0: give numbers above 0"),
        ({"budgets": [0.1], "seeds": 0}, "--seeds 0"),
        ({"budgets": [0.1], "reference": 0.05}, "--reference 0.05: is not one of --budgets"),
    ],
)
def test_a_grid_that_cannot_be_is_a_user_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        grid(("bridge",), **{"seeds": 1, **options})
    assert says in str(caught.value)


def test_a_grid_that_the_corpus_is_too_small_for_is_a_user_error() -> None:
    with pytest.raises(UserError, match="--budgets 0.01,0.03: both buy 1 of 48 rows; leave one out"):
        check(grid(("bridge",), [0.01, 0.03, 0.5], 1), tiny(), 48)
    with pytest.raises(UserError, match="--lengths: .* there are no dev rows"):
        check(grid(("bridge",), [0.5], 1, lengths=[1, 2]), tiny("corpus.dev=0"), 48)
    check(grid(("bridge",), [0.03, 0.5], 1, lengths=[1, 2]), tiny(), 48)


# --- the numbers


def answers(right: int, of: int = 100) -> Correct:
    """The first ``right`` questions answered correctly."""
    return (np.arange(of) < right).astype(np.float64)


def line(system: str, budget: float, *right: int, queries: float | None = None, of: int = 100) -> Line:
    """A seed for each number of questions answered correctly."""
    series = {seed: answers(number, of) for seed, number in enumerate(right)}
    spent = budget * 100 if queries is None else queries
    return Line(system, budget, 100, series, {"queries": spent, "usd": spent / 10, "local_hours": None})


def own(of: int = 100, resamples: int = 400) -> Bootstrap:
    """Seeds that were each asked other questions."""
    return Bootstrap(resamples, {seed: np.arange(of, dtype=np.uint64) + seed * of for seed in range(4)})


def same(*orders: list[int], resamples: int = 4000) -> Bootstrap:
    """Seeds that were asked these questions."""
    return Bootstrap(resamples, {seed: np.array(order, dtype=np.uint64) for seed, order in enumerate(orders)})


def test_a_draw_takes_seeds_and_the_same_for_all_systems() -> None:
    one, other = line("bridge", 0.1, 100, 0), line("direct", 0.1, 100, 0)
    [means] = resampled([one.answers], own(resamples=4000))
    shares = [float(np.isclose(means, value).mean()) for value in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.03), "both slots the same seed, or one of each"
    first, second = resampled([one.answers, other.answers], own())
    assert np.allclose(first, second)


def test_one_seed_s_interval_is_over_its_questions() -> None:
    [means] = resampled([line("bridge", 0.1, 50).answers], own(resamples=4000))
    assert abs(means.mean() - 0.5) < 0.005
    assert abs(means.std() - 0.05) < 0.005  # sqrt(0.5 * 0.5 / 100)


def test_seeds_that_share_their_questions_are_no_more_questions() -> None:
    """Both seeds answer the same 50 of 100 correctly, in whatever order they were asked: as sure as one seed is."""
    asked, right = list(range(100)), answers(50)
    shared = {0: right, 1: right[::-1].copy()}
    [means] = resampled([shared], same(asked, asked[::-1]))
    assert abs(means.std() - 0.05) < 0.003
    [means] = resampled([shared], same(asked, [*range(99, 49, -1), *range(100, 150)]))
    assert abs(means.std() - 0.05 * np.sqrt(0.75)) < 0.003, "half of them: (0.5 + 0.5 / 2) of one seed's variance"
    [means] = resampled([shared], same(asked, list(range(100, 200))))
    assert abs(means.std() - 0.05 * np.sqrt(0.5)) < 0.003, "none of them: twice as many questions"


def test_a_comparison_pairs_seeds_and_questions() -> None:
    found = compare(line("bridge", 0.1, 80, 70, 60), line("direct", 1.0, 60, 70), own())
    assert (found["one"], found["other"]) == ({"system": "bridge", "budget": 0.1}, {"system": "direct", "budget": 1.0})
    assert (found["seeds"], found["n"], found["difference"]) == (2, 200, 0.1)  # seeds 0 and 1: +0.2 and 0
    assert (found["mcnemar"]["only_one"], found["mcnemar"]["only_other"]) == (20, 0)
    low, high = found["interval"]
    assert low == 0 and 0.2 <= high <= 0.3


def test_the_pareto_set_is_what_no_other_student_beats() -> None:
    lines = [
        line("labels", 0.0, 40),
        line("direct", 0.1, 60),
        line("direct", 1.0, 80),
        line("bridge", 0.1, 75),
        line("direct_labels", 1.0, 80),  # as good for as much: both stay
        line("bridge", 0.5, 70),  # less than bridge at 10 %, for more
        line("ta", 0.1, 99),  # no student
    ]
    found = [(one.system, one.budget) for one in pareto(lines, "queries")]
    assert found == [("labels", 0.0), ("direct", 1.0), ("bridge", 0.1), ("direct_labels", 1.0)]
    assert pareto(lines, "local_hours") == [], "not known"


def test_a_seed_that_was_lucky_does_not_compete_with_the_mean_of_three() -> None:
    lines = [line("bridge", 0.1, 70, 72, 74), line("direct", 0.05, 90), line("direct", 0.1, 60, 60, 60)]
    assert [(one.system, one.budget) for one in pareto(lines, "queries")] == [("bridge", 0.1)]


def test_gains_are_ratios_and_null_where_the_denominator_is_small() -> None:
    lines = [line("bridge", 0.05, 75, 75), line("direct", 0.05, 60, 60), line("teacher", 0.0, 90, 90)]
    found = gains(lines, 0.05, own())
    assert found is not None
    assert (found["relative_gain"], found["gap_closed"]) == (0.25, 0.5)
    low, high = found["relative_gain_interval"]
    assert low < 0.25 < high
    near = gains([*lines[:2], line("teacher", 0.0, 64, 64)], 0.05, own())
    assert near is not None and near["gap_closed"] is None
    assert gains(lines[1:], 0.05, own()) is None
    poor = gains([line("bridge", 0.05, 9), line("direct", 0.05, 4)], 0.05, own())
    assert poor is not None and poor["relative_gain"] is None, "4 % is too little to divide by"


def test_a_teacher_with_fewer_seeds_leaves_the_relative_gain_as_it_is() -> None:
    """Seed 0: 75 to 60; seed 1: 50 to 60. The teacher was asked seed 0's questions alone."""
    lines = [line("bridge", 0.05, 75, 50), line("direct", 0.05, 60, 60)]
    alone, partly = gains(lines, 0.05, own()), gains([*lines, line("teacher", 0.0, 90)], 0.05, own())
    assert alone is not None and partly is not None
    assert (alone["relative_gain"], alone["relative_gain_seeds"]) == (round(2.5 / 60, 4), 2)
    assert (alone["gap_closed"], alone["gap_closed_seeds"]) == (None, 0)
    assert {**alone, "gap_closed": 0, "gap_closed_interval": 0, "gap_closed_seeds": 1} == {
        **partly, "gap_closed": 0, "gap_closed_interval": 0
    }  # fmt: skip
    assert partly["gap_closed"] == 0.5


def test_stop_where_larger_budgets_are_ahead_by_less_than_2_points_at_most() -> None:
    bridge = [
        line("bridge", 0.03, 50, 50, 50, of=400),
        line("bridge", 0.1, 298, 297, 296, of=400),
        line("bridge", 1.0, 299, 299, 298, of=400),
    ]
    found = recommend(bridge, own(400), "dev")
    assert (found["verdict"], found["budget"]) == ("stop", 0.1)
    assert found["reason"].startswith(
        "Stop at 10 %: bridge answers 74.2 % there. 100 %, the best of the larger budgets, came to +0.4 points "
        "(95 % interval "
    )
    assert re.search(r"; 3 seeds, 1,200 answers\): 90 more queries bring at most [01]\.\d points\.$", found["reason"])
    assert [step["budget"] for step in found["steps"]] == [0.03, 0.1]
    assert found["steps"][0]["queries"] == 97 and found["steps"][0]["interval"][0] > 0.5


def test_a_better_budget_is_passed_over_where_it_is_better_by_too_little() -> None:
    bridge = [line("bridge", 0.1, 1000, 1000, 1000, of=2000), line("bridge", 1.0, 1016, 1016, 1016, of=2000)]
    found = recommend(bridge, own(2000), "dev")
    assert found["steps"][0]["interval"][0] > 0
    assert (found["verdict"], found["budget"]) == ("stop", 0.1)


def test_an_interval_of_both_nothing_and_a_gain_worth_paying_for_decides_nothing() -> None:
    """Seed 0 has lost 2.5 points by the larger budget, seed 1 has gained 4: that is no evidence for stopping."""
    bridge = [
        line("bridge", 0.03, 50, 50, 50, of=400),
        line("bridge", 0.1, 300, 290, 295, of=400),
        line("bridge", 1.0, 290, 306, 298, of=400),
    ]
    found = recommend(bridge, own(400), "dev")
    assert (found["verdict"], found["budget"], found["accuracy"]) == ("unknown", 0.1, 0.7375)
    assert found["reason"].startswith(
        "Unknown: 10 % is the cheapest budget that cannot be told apart from a larger one"
    )
    assert "came to +0.8 points" in found["reason"] and "More seeds or more questions" in found["reason"]
    assert len(found["steps"]) == 2


def test_the_best_of_several_has_to_be_ahead_by_more() -> None:
    """The largest of six differences lies above 0 by chance far more often than one of them alone does."""
    small, best = line("bridge", 0.03, 250, 252, 254, of=400), line("bridge", 0.1, 262, 260, 276, of=400)
    others = [line("bridge", 0.1 + number / 10, 200, 200, 200, of=400) for number in range(1, 6)]
    alone, among = (recommend([small, best, *more], own(400, 4000), "dev")["steps"][0] for more in ([], others))
    assert (alone["best"], alone["difference"]) == (among["best"], among["difference"])
    assert among["interval"][0] < alone["interval"][0] < alone["interval"][1] < among["interval"][1]


def test_a_choice_by_the_questions_that_are_reported_is_said_to_be_one() -> None:
    bridge = [line("bridge", 0.1, 50, 50, 50), line("bridge", 0.5, 90, 92, 91)]
    assert recommend(bridge, own(), "test")["reason"].endswith("may look better on them than it is; --dev asks others.")
    assert "--dev" not in recommend(bridge, own(), "dev")["reason"]


def test_go_on_where_every_larger_budget_is_better() -> None:
    found = recommend([line("bridge", 0.1, 50, 50, 50), line("bridge", 0.5, 90, 92, 91)], own(), "dev")
    assert (found["verdict"], found["budget"]) == ("go on", 0.5)
    assert "what more would bring was not tried" in found["reason"]


@pytest.mark.parametrize(
    ("bridge", "says"),
    [
        ([], "0 of the two budgets"),
        ([line("bridge", 0.1, 50, 60)], "1 of the two budgets"),
        ([line("bridge", 0.1, 50, 50), line("bridge", 0.5, 60, 60, 60)], "2 of the 3 seeds"),
    ],
)
def test_too_few_cells_give_no_recommendation(bridge: list[Line], says: str) -> None:
    found = recommend(bridge, own(), "test")
    assert (found["verdict"], found["budget"]) == ("unknown", None) and says in found["reason"]


def test_another_student_that_is_better_for_no_more_queries_is_what_to_take() -> None:
    """direct at 50 % costs more than bridge at 10 %, where bridge would stop; the labels cost nothing."""
    bridge = [line("bridge", 0.1, 50, 50, 50), line("bridge", 0.5, 50, 50, 50)]
    labels, dear = line("labels", 0.0, 80, 81, 82, queries=0), line("direct", 0.5, 90, 90, 90)
    found = recommend([labels, dear, *bridge], own(), "dev")
    assert (found["verdict"], found["budget"], found["rival"]["other"]["system"]) == ("another", 0.1, "labels")
    assert found["reason"].startswith(
        "Take labels, which buys nothing: it answers 81.0 %, bridge at 10 % 50.0 %, for no fewer queries; "
        "bridge's difference is −31.0 points (95 % interval "
    )
    same = recommend([line("direct", 0.1, 51, 50, 49), *bridge], own(), "dev")
    assert same["verdict"] == "stop" and "It is not told apart from direct at 10 %" in same["reason"]
    worse = recommend([line("direct_labels", 0.1, 20, 20, 20), line("labels", 0.0, 90), *bridge], own(), "dev")
    assert "It is ahead of direct_labels at 10 %" in worse["reason"], "one seed of the labels says too little"


# --- frontier.json and the page


ACCURACY = {
    ("student_base", 0.0): 2,
    ("labels", 0.0): 48,
    ("direct", 0.03): 52,
    ("direct", 0.05): 60,
    ("direct", 1.0): 78,
    ("direct_labels", 0.03): 60,
    ("direct_labels", 0.05): 66,
    ("direct_labels", 1.0): 78,
    ("bridge", 0.03): 66,
    ("bridge", 0.05): 74,
    ("bridge", 1.0): 77,
    ("mentor_kd", 0.05): 62,
    ("bridge_no_verification", 0.05): 69,
    ("ta", 0.05): 70,
}


def made_up() -> dict[str, Any]:
    """What frontier.json holds, of made-up cells."""
    rng = np.random.default_rng(1)
    numbers, known = [], {}
    for (system, budget), right in ACCURACY.items():
        for seed in range(3):
            correct = (rng.permutation(300) < 3 * (right + seed)).astype(np.float64)
            known[system, budget, 600, seed] = correct
            cell = {"system": system, "budget": budget, "rows": 600, "seed": seed, "queries": round(600 * budget)}
            cell |= {"usd": budget * 0.3, "local_hours": 0.1 + budget + ("bridge" in system) * 0.2, "length": 1.0}
            law, med = ({"accuracy": float(part.mean()), "n": len(part)} for part in np.split(correct, [100]))
            cell |= {"by_domain": {"law": law, "med": med}, "by_answer_type": {"boolean": med}}
            cell |= {"unparsable": 0.25 if system == "student_base" else 0.0}
            numbers.append(cell | {"n": 300, "correct": int(correct.sum()), "accuracy": float(correct.mean())})
    names = list(dict.fromkeys(system for system, _ in ACCURACY))
    return {
        "name": "three-domains",
        "config": tiny().model_dump(mode="json"),
        "split": "test",
        "systems": {name: SYSTEMS[name].meaning for name in names},
        "grid": {
            "systems": names,
            "budgets": [0.03, 0.05, 1.0],
            "seeds": [0, 1, 2],
            "reference": 0.05,
            "corpora": [1.0],
            "lengths": [1.0],
        },
        "cells": numbers,
        "missing": [],
        **summarise(numbers, known, 0.05, own(300), "test"),
        "versions": {"ray": "2.60.0"},
    }


def test_the_record_compares_bridge_with_all_others_where_they_are_comparable() -> None:
    found = made_up()
    compared = {(one["one"]["budget"], one["other"]["system"], one["other"]["budget"]) for one in found["comparisons"]}
    assert compared == {
        (0.05, "student_base", 0.0),
        (0.05, "labels", 0.0),
        *((budget, rival, budget) for rival in ("direct", "direct_labels") for budget in (0.03, 0.05, 1.0)),
        (0.05, "mentor_kd", 0.05),
        (0.05, "bridge_no_verification", 0.05),
        (0.05, "ta", 0.05),
        (0.05, "direct", 1.0),  # a twentieth of the queries against all of them
    }
    [bridge] = [one for one in found["intervals"] if (one["system"], one["budget"]) == ("bridge", 0.05)]
    assert (bridge["n"], bridge["seeds"], bridge["accuracy"], bridge["queries"]) == (900, 3, 0.75, 30)
    assert bridge["interval"][0] < 0.75 < bridge["interval"][1]
    assert {"system": "labels", "budget": 0.0} in found["pareto"]["queries"]
    assert {"system": "direct", "budget": 0.05} not in found["pareto"]["queries"]


def test_the_page_says_what_the_record_says() -> None:
    found = made_up()
    page = frontier_page.render(found)
    assert found["recommendation"]["reason"].split(". ")[0].replace(" %", "\u00a0%") in page
    bridge = next(one for one in found["comparisons"] if one["other"] == {"system": "direct", "budget": 0.05})
    assert frontier_page.headline(found).startswith(
        "At 5 %, bridge answers 75.0 % of the test questions correctly (95 %"
    )
    assert f"bridge is better than direct by {bridge['difference'] * 100:.1f} points" in page
    assert page.count("<svg") == 4, "queries, dollars, hours, and every system"
    assert "Not complete" not in page and "Dev questions" not in page
    assert "bridge-ray frontier RECIPE --budgets 0.03,0.05,1 --seeds 3" in page
    law = [cell["by_domain"]["law"]["accuracy"] for cell in found["cells"] if cell["system"] == "ta"]
    assert f'<td class="num">{sum(law) / 3 * 100:.1f} %<small>300</small></td>' in page, "100 questions of each seed"
    absent = {"system": "ta", "budget": 0.05, "rows": 600, "seed": 2, "reason": HOSTILE}
    odd = frontier_page.render({**found, "name": HOSTILE, "split": "dev", "missing": [absent]})
    assert "<script" not in odd and "Not complete" in odd and "Dev questions" in odd


def test_the_terminal_s_table_fits_into_80_columns_and_ends_with_what_to_do() -> None:
    out = io.StringIO()
    terminal.show(made_up(), "/runs/three-domains", "elsewhere", Console(width=80, file=out))
    said = out.getvalue()
    assert "…" not in said and "bridge_no_verification" in said and "72.4 to 77.7 %" in said
    assert said.endswith("next: bridge-ray forecast three-domains --storage elsewhere\n")


def test_the_next_command_is_one_that_works() -> None:
    """A curve needs three budgets, of bridge and of direct."""
    found, out = made_up(), io.StringIO()
    few = {**found, "cells": [cell for cell in found["cells"] if cell["budget"] in (0.0, 0.05)]}
    few["grid"] = {**found["grid"], "budgets": [0.05], "systems": ["bridge"]}
    terminal.show(few, "/runs/three-domains", "storage", Console(width=80, file=out))
    said = out.getvalue()
    assert said.endswith(
        "next: bridge-ray frontier RECIPE --budgets 0.01,0.05,1 --seeds 3 --reference 0.05 --systems bridge,direct "
        "--name three-domains\n"
    )


def test_a_frontier_that_has_no_cell_yet_has_a_page() -> None:
    nothing = summarise([], {}, 0.05, own(), "test")
    page = frontier_page.render({**made_up(), "cells": [], **nothing})
    assert "Unknown: " in page and "<svg" not in page


def test_geometry_stays_inside_the_drawing() -> None:
    found = made_up()
    for axis in frontier_page.AXES:
        drawn = frontier_page.plot(found["intervals"], axis, found["pareto"][axis.spent])
        assert drawn is not None
        marks = [mark for curve in drawn.curves for mark in curve.marks] + list(drawn.others)
        assert all(drawn.box.left <= mark.x <= drawn.box.right for mark in marks)
        assert all(drawn.box.top <= mark.high <= mark.y <= mark.low <= drawn.box.bottom for mark in marks)
        assert len(drawn.x_ticks) >= 3
    assert [curve.system for curve in drawn.curves] == ["direct", "direct_labels", "bridge"]


@browser.needed
@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (1280, False), (1280, True)])
def test_a_browser_shows_the_page_without_overflow_and_readable(width: int, dark: bool, tmp_path: Path) -> None:
    found = browser.check(frontier_page.render(made_up()), width, tmp_path, dark)
    assert found.figures >= 3 and found.height > 1000


# --- cells that are kept


def test_a_cell_of_another_config_is_refused_and_one_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    settings = tiny(f"storage={tmp_path}", "teacher.price={input: 1, output: 1}")
    asked = grid(("student_base",), [0.25], 2)
    prepared = run.prepare(settings, asked)
    assert [one.cell.name for one in prepared.planned] == ["student_base-b0-n48-s0", "student_base-b0-n48-s1"]
    assert not prepared.kept and not list(tmp_path.iterdir()), "nothing is written"
    first = prepared.planned[0]
    numbers = {"fingerprint": first.fingerprint, "accuracy": 0.5}
    storage.write_json(f"{tmp_path}/runs/tiny/cells/{first.cell.name}.json", numbers)
    assert not run.prepare(settings, asked).kept, "its predictions are not there"
    predicted(tmp_path, first.cell)
    assert run.prepare(settings, asked).kept == {first.cell.name: numbers}
    with pytest.raises(UserError, match=f"{first.cell.name}.json is of another config or corpus; give .* --name"):
        run.prepare(config.changed(settings, {"evaluate.max_tokens": 9}, "tiny"), asked)


def predicted(root: Path, cell: Cell) -> None:
    """Leave the cell's predictions, of no question."""
    rows = pa.Table.from_pylist([], schema=records.PREDICTION)
    storage.write_table(f"{root}/runs/tiny/cells/{cell.name}.parquet", rows)


def test_a_command_that_asks_for_less_says_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "check", lambda *_: None)
    made = [{"system": "direct", "budget": budget, "rows": 48, "seed": 0} for budget in (0.25, 0.5)]
    storage.write_json(f"{tmp_path}/runs/tiny/frontier.json", {"cells": made})
    prepared = run.prepare(tiny(f"storage={tmp_path}"), grid(("guess", "direct"), [0.25], 1))
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        run.execute(prepared, Progress(Console(width=80, file=out)), stopped, concurrency=1)
    said = out.getvalue()
    assert "not asked for: 1 of the cells that this frontier has had, direct at 50 %, 48 rows, seed 0" in said


def stopped() -> None:
    raise KeyboardInterrupt


def test_a_frontier_keeps_as_which_job_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "check", lambda *_: None)
    monkeypatch.setenv(local_ray.JOB_CONFIG, json.dumps({"metadata": {"job_submission_id": "mine-3", "team": "legal"}}))
    with stoppable() as stop:
        run.run(tiny(f"storage={tmp_path}"), grid(("guess",), [0.25], 1), stop)
    found = json.loads((tmp_path / "runs" / "tiny" / "frontier.json").read_text())
    assert found["job"] == {"job_submission_id": "mine-3", "team": "legal"}


def test_a_question_of_several_seeds_has_the_same_number_in_all_of_them(tmp_path: Path) -> None:
    """A file of 14 rows, of which 6 are asked: by two seeds, some of them the same."""
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"question": f"Is {n} odd?", "answer": "no"}) + "\n" for n in range(14)))
    settings = tiny(f"corpus={{path: {file}, train: 4, dev: 4, test: 6}}", f"storage={tmp_path}")
    numbers = run.prepare(settings, grid(("student_base",), [0.25], 2)).questions
    asked = {seed: _questions(table(config.changed(settings, {"seed": seed}, "tiny")), "test") for seed in (0, 1)}
    pairs = {
        (text, number) for seed in (0, 1) for text, number in zip(asked[seed], numbers[seed].tolist(), strict=True)
    }
    different = {*asked[0], *asked[1]}
    assert 6 < len(different) < 12, "the seeds share some"
    assert len(pairs) == len({number for _, number in pairs}) == len(different)


def test_the_teacher_s_terms_are_looked_at_before_anything_is_written(tmp_path: Path) -> None:
    settings = config.load(str(TINY), [f"storage={tmp_path}", "teacher.price=null", "teacher.standin={}"])
    with pytest.raises(UserError, match="price"):
        run.prepare(settings, grid(("direct",), [0.25], 1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("systems", "queries"), [(("direct", "bridge", "labels"), 2 * 48), (("direct", "teacher"), 2 * (48 + 12))]
)
def test_a_frontier_of_a_paid_teacher_needs_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, systems: tuple[str, ...], queries: int
) -> None:
    """The recipe's 5 % are none: the budgets of the grid stand in its place, 100 % among them."""
    monkeypatch.setattr(run.provider, "check", lambda *_: None)
    hosted = [f"storage={tmp_path}", "teacher.standin=null", "budget.fraction=0.05"]
    asked = grid(systems, [0.25, 1.0], 2)
    with pytest.raises(
        UserError, match=f"budget: this frontier may take {queries} queries of stand-in-expert.*max_usd"
    ):
        run.prepare(config.load(str(TINY), hosted), asked)
    assert not list(tmp_path.iterdir())
    free = "teacher.price={input: 0, output: 0}"  # a model of one's own
    for bound in ("budget.max_usd=5", "budget.max_queries=50", "budget.account={name: team, max_usd: 5}", free):
        run.prepare(config.load(str(TINY), [*hosted, bound]), asked)
    run.prepare(config.load(str(TINY), hosted), grid(("labels", "guess"), [0.25], 1))


def test_a_plan_says_what_a_frontier_would_buy_and_make_each_once(tmp_path: Path) -> None:
    """Each seed buys the half for bridge and direct, which the quarter is a part of; at random the quarter; and asks
    its 12 test questions. A teacher without a key and a cap can be planned for; nothing is written."""
    settings = config.load(str(TINY), [f"storage={tmp_path}", "teacher.standin=null"])
    made = plan.make(run.draft(settings, grid(("bridge", "direct", "direct_random", "teacher"), [0.25, 0.5], 2)))
    assert (made.cells, made.missing, made.cap) == (12, 12, None)
    assert made.bought.worst.queries == 2 * (24 + 12 + 12)
    assert made.bought.worst.usd > made.bought.expected.usd > 0
    times = {share.stage: share.times for share in made.stages}  # more than a tenth is ranked for each budget anew
    assert (times["score"], times["select"], times["train_ta"], times["train_direct"]) == (2, 6, 4, 6)
    assert "teach" not in times and {share.hours for share in made.stages} == {None}
    assert not list(tmp_path.iterdir())

    first = run.draft(settings, grid(("bridge",), [0.25], 1)).planned[0]
    storage.write_json(f"{tmp_path}/runs/tiny/cells/{first.cell.name}.json", {"fingerprint": first.fingerprint})
    predicted(tmp_path, first.cell)
    left = plan.make(run.draft(settings, grid(("bridge", "direct"), [0.25], 1)))
    assert (left.cells, left.missing) == (2, 1)
    assert "train_ta" not in [share.stage for share in left.stages]

    [teacher] = run.draft(settings, asked := grid(("teacher",), [0.25], 1, split="dev")).planned
    assert plan.make(run.draft(settings, asked)).bought.worst.queries == 4, "the dev questions"
    done = {"metrics": {}, "seconds": 1.0, "identity": {}, "inputs": {}, "created": "2026"}
    storage.write_json(f"{stage.location(teacher.trials[0].final, str(tmp_path))}/manifest.json", done)
    assert plan.make(run.draft(settings, asked)).bought.worst.queries == 0, "asked, and killed before the cell was kept"


def test_a_frontier_has_a_status_and_is_no_run(tmp_path: Path) -> None:
    home = tmp_path / "runs" / "three-domains"
    storage.write_json(str(home / "frontier.json"), made_up() | {"missing": [{}, {}]})
    (home / "cells").mkdir()
    asked = ["status", "three-domains", "--storage", str(tmp_path)]
    said = CliRunner().invoke(cli.app, asked, catch_exceptions=False).stdout
    assert said.startswith("frontier three-domains: 42 of 44 cells done")
    with pytest.raises(UserError, match="holds a frontier, not a run; its page: .*three-domains/frontier.html"):
        export(str(tmp_path), "three-domains", "bridge", tmp_path / "out")


# --- cells that are made


def left(name: str, *, before: Stage | None = None, metrics: dict[str, Any] | None = None) -> Stage:
    """A stage that only leaves these metrics."""
    return Stage(name, 1, {}, {} if before is None else {before.name: before}, lambda work: metrics or {})


def writing(name: str, file: str, rows: pa.Table) -> Stage:
    """A stage that leaves a table."""

    def work(work: Work) -> dict[str, Any]:
        storage.write_table(storage.join(work.out, file), rows)
        return BOUGHT if name == "teach" else {}

    return Stage(name, 1, {}, {}, work)


def asked_two(before: Stage, system: str = "bridge") -> Stage:
    """A stage evaluate that was asked two questions, of which one was answered correctly."""

    def work(work: Work) -> dict[str, Any]:
        rows = [{"id": number, "system": system, "correct": number == 8} for number in (8, 9)]
        table = pa.Table.from_pylist(rows, schema=records.PREDICTION)
        storage.write_table(storage.join(work.out, "predictions.parquet"), table)
        halves = {name: {"accuracy": 0.5, "n": 2} for name in ("law",)}
        scores = {"unparsable": 0.25, "by_domain": halves, "by_answer_type": {"boolean": halves["law"]}}
        return {"eval_queries": 0, "systems": {system: scores}}

    return Stage("evaluate", 1, {"system": system}, {"before": before}, work)


def executed(root: Path, *made: tuple[str, Stage], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The record of a frontier whose cells, at 25 %, are of these systems and come out of these stages."""
    monkeypatch.setattr(placement, "check", lambda *_: None)
    settings = tiny(f"storage={root}")
    asked = grid(tuple(system for system, _ in made), [0.25], 1)
    planned = tuple(Planned(Cell(system, 0.25, 48, 0), settings, (Trial(1.0, final, None),)) for system, final in made)
    base = pipeline.Run(settings, table(settings), {}, str(root))
    return run.execute(
        run.Frontier(base, asked, planned, {}, {}, {0: np.arange(2, dtype=np.uint64)}),
        Progress(Console(quiet=True)),
        lambda: None,
        concurrency=1,
    )


BOUGHT = {"queries": 12, "budget_queries": 12, "usd": 0.12}


def test_a_ranking_that_ends_before_its_budget_ends_no_frontier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that occurs twice is asked once, so the budget is not used up."""
    taught = left("teach", metrics={**BOUGHT, "queries": 11})
    [cell] = executed(tmp_path, ("bridge", asked_two(taught)), monkeypatch=monkeypatch)["cells"]
    assert (cell["queries"], cell["correct"], cell["n"]) == (11, 1, 2)


def test_a_forecast_reads_how_much_of_the_corpus_a_cell_s_ta_has_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 of 20 rows: 3 have their label alone, and one could not be read."""
    rows = {"corpus": 20, "teacher": 2, "ta": 12, "ta_hinted": 2, "label_only": 3, "errored": 1}
    taught = left("teach", metrics=BOUGHT)
    explained = left("amplify", before=taught, metrics={"rows": rows})
    made = ("bridge", asked_two(explained)), ("direct", asked_two(taught, "direct"))
    cells = executed(tmp_path, *made, monkeypatch=monkeypatch)["cells"]
    assert [(cell["system"], cell["keep"]) for cell in cells] == [("bridge", 0.8), ("direct", None)]
    measured = read([{**cell, "budget": budget} for cell in cells for budget in (0.1, 0.25, 1.0)], "frontier.json")
    assert [measured.cells[system][0].corpus for system in ("bridge", "direct")] == [0.8 * 48, 48]


def test_the_time_left_is_that_of_stages_of_the_kind_and_unknown_without_any(tmp_path: Path) -> None:
    """One training of 100 s, which two cells share, and one of 200: 150 each for two of the same name and one like
    it; teaching takes no time to speak of."""

    def planned(name: str, seed: int) -> Planned:
        final = Stage(name, 1, {"seed": seed}, {"teach": left("teach")}, lambda work: {})
        return Planned(Cell("direct", 0.25, 48, seed), tiny(), (Trial(1.0, final, None),))

    def trained(fingerprint: str, seconds: float) -> Done:
        return Done("train_direct", fingerprint, "", {}, seconds, skipped=False)

    clock = making.Clock(str(tmp_path), None)
    cells = [planned("train_direct", 0), planned("train_direct", 1), planned("train_student", 2)]
    assert clock.left([planned("teach", 0)]) == timedelta(0)
    assert clock.left(cells) is None
    for part in (trained("a", 100), trained("a", 100), trained("b", 200)):
        clock.saw(part)
    assert clock.left(cells) == timedelta(seconds=450)
    assert clock.left([*cells, planned("amplify", 0)]) is None


def test_a_frontier_keeps_what_a_forecast_s_intervals_are_drawn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions 8 and 9, of which the first was answered correctly; ``executed`` numbers them 0 and 1."""
    [cell] = executed(
        tmp_path, ("direct", asked_two(left("teach", metrics=BOUGHT), "direct")), monkeypatch=monkeypatch
    )["cells"]
    home = str(tmp_path / "runs" / "tiny")
    assert {seed: list(asked) for seed, asked in questions.read(home).items()} == {0: [0, 1]}
    assert list(answers_of(home, cell_of(cell))) == [1, 0]


def test_a_cell_says_in_which_number_formats_its_models_were_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The TA on a GPU and the student on a CPU, say; student_base was not trained."""
    refined = left("train_ta", before=left("teach", metrics=BOUGHT), metrics={"precision": "fp32"})
    taught = left("train_student", before=refined, metrics={"precision": "bf16"})
    made = ("bridge", asked_two(taught)), ("ta", asked_two(refined, "ta"))
    base = ("student_base", asked_two(left("student_init"), "student_base"))
    found = executed(tmp_path, *made, base, monkeypatch=monkeypatch)
    formats = {cell["system"]: cell["precision"] for cell in found["cells"]}
    assert formats == {"bridge": ["bf16", "fp32"], "ta": ["fp32"], "student_base": []}
    assert "bf16, fp32" in (tmp_path / "runs" / "tiny" / "frontier.html").read_text()


def test_a_cell_whose_ta_has_nothing_to_learn_from_is_left_out_and_the_others_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny()
    wrong = {"id": 0, "rationale": "So.", "answer": "no", "source": "teacher", "verified": False}
    corpus = writing("corpus", "train/rows.parquet", table(settings).slice(0, 48))
    ranking = writing("select", "rows.parquet", pa.table({"id": [0]}))
    taught = writing("teach", "rationales.parquet", pa.Table.from_pylist([wrong], schema=records.RATIONALE))
    refined = teacher_assistant.stage(settings.ta, settings.training, 0, corpus, ranking, taught)
    made = ("bridge", asked_two(refined)), ("direct_labels", asked_two(taught, "direct_labels"))
    found = executed(tmp_path, *made, monkeypatch=monkeypatch)
    assert [cell["system"] for cell in found["cells"]] == ["direct_labels"]
    [missing] = found["missing"]
    assert missing["reason"].startswith("train_ta: none of the 1 bought rationales could be verified")


def test_a_training_that_fails_is_not_left_out_and_ends_none_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss is nan: the frontier must not end as if all were well."""

    def diverges(work: Work) -> dict[str, Any]:
        raise UserError("train_ta: the loss of update 20 is nan; lower ta.train.lr")

    taught = left("teach", metrics=BOUGHT)
    refined = Stage("train_ta", 1, {}, {"teach": taught}, diverges)
    made = ("bridge", asked_two(refined)), ("direct_labels", asked_two(taught, "direct_labels"))
    with pytest.raises(UserError, match="the loss of update 20 is nan"):
        executed(tmp_path, *made, monkeypatch=monkeypatch)
    found = storage.read_json(f"{tmp_path}/runs/tiny/frontier.json")
    assert [cell["system"] for cell in found["cells"]] == ["direct_labels"]
    assert [(cell["system"], cell["reason"]) for cell in found["missing"]] == [("bridge", "not yet run")]


def test_a_cell_keeps_where_its_system_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught = left("teach", metrics=BOUGHT)
    [cell] = executed(tmp_path, ("bridge", asked_two(taught)), monkeypatch=monkeypatch)["cells"]
    assert (cell["unparsable"], cell["by_domain"]["law"]) == (0.25, {"accuracy": 0.5, "n": 2})
    assert cell["by_answer_type"] == {"boolean": {"accuracy": 0.5, "n": 2}}


def test_a_training_that_is_killed_too_often_ends_the_frontier_and_leaves_no_cell_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be tried in every cell that needs it, and the frontier would say that all is well."""

    def killed(work: Work) -> dict[str, Any]:
        raise GaveUp("train_ta: a worker was killed")

    refined = Stage("train_ta", 1, {}, {"teach": left("teach", metrics=BOUGHT)}, killed)
    with pytest.raises(Outage, match="bridge .*: train_ta: a worker was killed; the cells that are there stay"):
        executed(tmp_path, ("bridge", asked_two(refined)), monkeypatch=monkeypatch)


def test_a_cap_that_is_reached_ends_the_frontier_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpaid(work: Work) -> dict[str, Any]:
        raise Unpaid("account tiny-frontier: its cap of 5 queries is reached")

    with pytest.raises(UserError) as caught:
        executed(tmp_path, ("bridge", asked_two(Stage("teach", 1, {}, {}, unpaid))), monkeypatch=monkeypatch)
    assert str(caught.value).startswith(
        "bridge at 25 %, 48 rows, seed 0: account tiny-frontier: its cap of 5 queries is reached; raise it (budget."
    )


def test_a_raised_cap_lets_a_frontier_go_on_from_the_cells_that_are_there(tmp_path: Path) -> None:
    asked, fields = grid(("direct",), [0.25, 0.5], 1), (f"storage={tmp_path}", "teacher.price={input: 1, output: 1}")
    first = run.prepare(tiny(*fields, "budget.max_queries=12"), asked).planned[0]
    numbers = {"fingerprint": first.fingerprint, "accuracy": 0.5}
    storage.write_json(f"{tmp_path}/runs/tiny/cells/{first.cell.name}.json", numbers)
    predicted(tmp_path, first.cell)
    for more in ("budget.max_queries=24", "budget.account={name: team, max_usd: 5}"):
        assert list(run.prepare(tiny(*fields, more), asked).kept) == [first.cell.name]


def test_a_cap_covers_the_teacher_s_answers_to_test_questions_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in that has 12 test questions to answer: 5, and once there is room the other 7."""
    monkeypatch.setattr(placement, "check", lambda *_: None)

    def made(cap: int) -> dict[str, Any]:
        settings = tiny(f"storage={tmp_path}", f"budget.max_queries={cap}")
        frontier = run.prepare(settings, grid(("teacher",), [0.25], 1))
        return run.execute(frontier, Progress(Console(quiet=True)), lambda: None)

    with pytest.raises(UserError, match="teacher, 48 rows, seed 0: account tiny-frontier: its cap of 5 queries"):
        made(5)
    [cell] = made(20)["cells"]
    assert (cell["queries"], cell["n"]) == (12, 12)
    assert asyncio.run(balance(open_store(str(tmp_path / "teacher")), "tiny-frontier")).queries == 12
