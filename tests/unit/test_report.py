"""The page and the terminal summary: complete and stopped runs, hostile text, honest sentences, real browsers."""

from __future__ import annotations

import html
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from rich.console import Console

from bridge_ray import config, storage
from bridge_ray.report import charts, summary, write
from bridge_ray.report.card import model_card
from bridge_ray.report.data import Counts, Point, Replies, ReportData, SampleRow
from bridge_ray.report.data import TestRow as Row  # pytest would try to collect the original name
from bridge_ray.report.page import kept, render
from bridge_ray.report.rows import grouped
from bridge_ray.report.templates import duration
from bridge_ray.stage import Done
from bridge_ray.teacher.statement import Statement, Total
from tests import browser

HOSTILE = "<script>alert(1)</script>\" onload='x' {{ 7 * 7 }} & </details>"
ACCURACY = {
    "student_base": 0.11,
    "direct": 0.65,
    "direct_labels": 0.727,
    "bridge": 0.74,
    "ta_base": 0.38,
    "ta": 0.75,
    "teacher": 0.98,
}
DOMAINS = ("financial", "legal", "medical")


def systems() -> dict[str, Any]:
    return {
        name: {
            "accuracy": accuracy,
            "interval": [max(0, accuracy - 0.05), min(1, accuracy + 0.05)],
            "n": 300,
            "by_domain": {domain: {"accuracy": accuracy, "n": 100} for domain in DOMAINS},
            "by_entropy": {
                **{str(tenth): {"accuracy": accuracy * (1 - tenth / 20), "n": 29} for tenth in range(10)},
                "unknown": {"accuracy": 0.0, "n": 10},
            },
            "unparsable": 0.0 if name != "student_base" else 0.42,
        }
        for name, accuracy in ACCURACY.items()
    }


def metrics() -> dict[str, Any]:
    stages = ("corpus", "score", "embed", "select", "teach", "train_ta", "amplify", "train_bridge", "evaluate")
    return {
        "run": "three-domains",
        "seed": 0,
        "stages": {name: {"seconds": 4.2 * 3**i, "skipped": i < 3} for i, name in enumerate(stages)},
        "corpus": {
            "train": 400,
            "dev": 60,
            "test": 300,
            "domains": dict.fromkeys(DOMAINS, 133),
            "answer_types": {"number": 200, "choice": 200},
            "near_duplicates": {"threshold": 0.9, "test_rows": 7, "pairs": [[1, 2, 0.95]]},
        },
        "teacher": {
            "model": "gpt-4o",
            "standin": True,
            "budget_queries": 46,
            "queries": 46,
            "bought": 40,
            "hits": 6,
            "eval_queries": 300,
            "spent_usd": 0.026,
            "usd": 0.0301,
        },
        "rows": {"corpus": 400, "teacher": 38, "ta": 251, "ta_hinted": 64, "label_only": 46, "errored": 1},
        "amplified": {
            "domains": {domain: {"teacher": 10, "ta": 30 * i, "label_only": 20} for i, domain in enumerate(DOMAINS)},
            "difficulty": {str(tenth): {"ta": 40 - 4 * tenth, "label_only": 4 * tenth} for tenth in range(10)},
        },
        "keep": {"ta": 0.693, "by_chance": 0.21, "above_chance": 0.611},
        "selection": {
            "chosen": 40,
            "rows": 400,
            "distance": {"mean": 0.31, "max": 0.82},
            "difficulty": {"chosen": 0.74, "rest": 0.47},
            "entropy": {"chosen": 0.81, "rest": 0.59},
            "domains": {domain: {"chosen": 1 / 3, "corpus": 1 / 3} for domain in DOMAINS},
        },
        "score": {"mean_entropy": 0.61, "share_correct": 0.34, "unparsable": 0.05},
        "systems": systems(),
        "comparisons": {
            "bridge-direct": {
                "difference": 0.09,
                "interval": [0.031, 0.148],
                "mcnemar": {"only_one": 48, "only_other": 21, "p": 0.0016},
            },
            "bridge-direct_labels": {
                "difference": 0.013,
                "interval": [-0.03, 0.057],
                "mcnemar": {"only_one": 33, "only_other": 29, "p": 0.7034},
            },
        },
        "split": "test",
        "deciles": {str(tenth): tenth / 10 for tenth in range(10)},
        "gap": {
            "relative_gain": 0.21,
            "relative_gain_interval": [0.06, 0.38],
            "gap_closed": 0.36,
            "gap_closed_interval": [0.12, 0.55],
        },
    }


def data(**changes: Any) -> ReportData:
    """A run that looks like a real one; ``changes`` replace fields of the metrics."""
    rng = random.Random(0)
    points = []
    for row in range(400):
        cluster = row % 3
        entropy = min(1.0, max(0.0, rng.gauss(0.45 + 0.12 * cluster, 0.25)))
        x, y = rng.gauss(2 * math.cos(2 * cluster), 0.7), rng.gauss(2 * math.sin(2 * cluster), 0.7)
        points.append(Point(x, y, None if row % 50 == 49 else entropy, row % 10 == 0))
    losses = {
        name: [
            {"update": i + 1, "phase": int(i > updates / 4), "loss": 2.4 * math.exp(-i / 40) + rng.random() * 0.3 + 0.3}
            for i in range(updates)
        ]
        for name, updates in (
            ("train_ta", 60),
            ("train_direct", 700),
            ("train_direct_labels", 700),
            ("train_bridge", 700),
        )
    }
    question = "A company has total equity of 40 and total debt of 120. " * 4 + "Does it break the covenant of 2?"
    rationale = "Debt over equity is 120 / 40 = 3.\n3 is more than 2, so the covenant is broken.\nAnswer: yes"
    samples = [
        SampleRow(
            question, "yes", route, None if route == "label_only" else rationale, f"Context.\n{question}", "So: 3"
        )
        for route in ("teacher", "ta", "ta_hinted", "label_only")
    ]
    replies = {name: (rationale, accuracy > 0.5) for name, accuracy in ACCURACY.items()}
    return ReportData(
        metrics=metrics() | changes,
        points=points,
        losses=losses,
        samples=samples,
        replies=[Replies("bridge is wrong and direct is right", 48, [Row(question, "yes", replies, "legal")] * 5)],
        accounts=[Statement("teach-0123", 3, 46, 1.5, Total(44, 42, 2, 2, 1, 0.03, 0.004))],
        config="name: three-domains\nseed: 0\nteacher:\n  model: gpt-4o\n" + "  key: " + "long" * 60,
        versions={"bridge_ray": "0.1.0", "ray": "2.60.0", "torch": "2.13.0+cpu"},
        reproduce="bridge-ray run three-domains --set seed=0 --set budget.fraction=0.1",
        entropies=Counts((10, 20, 30, 60, 80, 70, 50, 30, 30, 12), (0, 0, 1, 2, 4, 6, 8, 7, 7, 5)),
    )


def empty(metrics: dict[str, Any]) -> ReportData:
    return ReportData(metrics, points=[], losses={}, samples=[], replies=[], config="", versions={}, reproduce="")


def test_full_page_shows_every_section() -> None:
    page = render(data())
    assert page.startswith("<!doctype html>")
    for heading in ("each system", "By domain", "Map of", "How hard", "Routes", "training went", "Budget", "Stages"):
        assert heading in page
    assert all(html.escape(sentence) in page.replace("\u00a0", " ") for sentence in summary.sentences(metrics()))
    assert "Near-duplicates" in page and summary.STANDIN in page


@pytest.mark.parametrize("emptied", [None, {}])
def test_page_renders_whatever_is_missing(emptied: Any) -> None:
    assert "has not been evaluated" in render(empty({}))
    for key in metrics():
        render(data(**{key: emptied}))
        assert render(empty({key: metrics()[key]}))


def test_page_renders_when_inner_values_are_none() -> None:
    for key, group in metrics().items():
        if isinstance(group, dict):
            assert render(data(**{key: dict.fromkeys(group)}))


def test_no_warning_without_near_duplicates() -> None:
    quiet = metrics()["corpus"] | {"near_duplicates": {"threshold": 0.9, "test_rows": 0, "pairs": []}}
    assert "Near-duplicates" not in render(data(corpus=quiet))


def test_hostile_text_is_inert() -> None:
    hostile = replace(
        data(run=HOSTILE),
        samples=[SampleRow(HOSTILE, HOSTILE, "ta", HOSTILE, HOSTILE, HOSTILE)],
        replies=[Replies(HOSTILE, 2, [Row(HOSTILE, HOSTILE, {HOSTILE: (HOSTILE, True)}, HOSTILE, HOSTILE)])],
        accounts=[Statement(HOSTILE, broken=[HOSTILE])],
        unread=HOSTILE,
        config=HOSTILE,
        versions={HOSTILE: HOSTILE},
        reproduce=HOSTILE,
        losses={HOSTILE: [{"update": 1, "loss": 1.0}]},
    )
    page = render(hostile)
    assert "<script" not in page.lower() and "' {{ 7 * 7 }}" not in page and " 49 " not in page
    assert page.count("</details>") == render(data()).count("</details>") - 3 - 4
    assert "{{ 7 * 7 }}" in html.unescape(page)


def test_page_asks_for_nothing_from_outside() -> None:
    page = render(data())
    assert "http://" not in page and "https://" not in page
    assert not re.search(r"""\b(src|href|action)\s*=|url\(|@import|<link|<iframe""", page)
    assert "default-src 'none'" in page


def test_route_counts_add_up_in_sight() -> None:
    page = render(data())
    assert "38 + 251 + 64 + 46 + 1 = 400" in page and "lost or doubled" not in page
    widths = [float(width) for width in re.findall(r'class="r-\w+" [^>]*width="([\d.]+)"', page)]
    assert sum(widths) == pytest.approx(charts.WIDTH, abs=0.5)


def test_the_keep_rate_is_shown_by_domain_and_difficulty() -> None:
    """By hand: of the second domain 30 of 50 that were tried, of the hardest tenth 4 of 40."""
    page = render(data())
    assert "Kept without a hint, by domain" in page and ">60.0 %</text>" in page
    assert ">90–100 %</text>" in page and ">10.0 %</text>" in page
    assert kept({"a": {"teacher": 5, "ta": 3, "label_only": 1}, "b": {"teacher": 2}}) == [("a", 0.75, None)]


def test_what_the_checks_turned_away_is_shown_where_there_are_checks() -> None:
    checked = metrics()["amplified"] | {"checks": {"arithmetic": 1234, "reanswer": 5}}
    assert "arithmetic 1,234, reanswer 5." in render(data(amplified=checked))
    assert "turned away" not in render(data())


def test_lost_rows_are_not_hidden() -> None:
    assert "lost or doubled" in render(data(rows=metrics()["rows"] | {"ta": 250}))


def test_headline_claims_only_what_the_interval_allows() -> None:
    sentence = summary.headline(metrics())
    assert "bridge is better than direct by 9.0 points (95 % interval 3.1 to 14.8; McNemar p = 0.002)" in sentence
    assert "bridge and direct_labels (+1.3 points, 95 % interval −3.0 to +5.7) " + summary.UNDECIDED in sentence
    assert "40 of 400 training questions (10 %) were bought for $0.03, in 46 teacher queries" in sentence


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (0.01, 0.05, "bridge is better than direct by"),
        (-0.05, -0.01, "bridge is worse than direct by 3.0 points (95 % interval 1.0 to 5.0)"),
        (-0.01, 0.05, summary.UNDECIDED),
        (0.0, 0.05, summary.UNDECIDED),
        (-0.05, 0.0, summary.UNDECIDED),
    ],
)
def test_verdict_names_the_direction(low: float, high: float, says: str) -> None:
    compared = {"comparisons": {"bridge-direct": {"difference": (low + high) / 2, "interval": [low, high]}}}
    assert says in summary.verdict(compared, "direct")


def test_headline_without_comparison_claims_nothing() -> None:
    sentence = summary.headline(metrics() | {"comparisons": None})
    assert "better" not in sentence and "worse" not in sentence


def test_terminal_table_lists_the_systems() -> None:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(summary.table(metrics()))
    text = captured.get()
    assert all(name in text for name in ACCURACY) and "69.0 to 79.0 %" in text
    assert summary.table({}).row_count == 0


@pytest.mark.parametrize(
    ("usd", "shown"), [(0, "$0.00"), (0.00042, "$0.00042"), (0.0301, "$0.03"), (1234.5, "$1,234.50"), (None, "–")]
)
def test_money(usd: float | None, shown: str) -> None:
    assert summary.money(usd) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(8.14, "8.1 s"), (59.97, "1 min 00 s"), (3599.9, "1 h 00 min"), (7500, "2 h 05 min")]
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_ticks_are_round_and_inside() -> None:
    assert charts.ticks(0, 2.7) == (0, 1, 2)
    assert charts.ticks(0, 3, whole=True) == (0, 1, 2, 3)
    assert charts.ticks(0, 0) == (0,)
    assert all(0 <= tick <= 0.83 for tick in charts.ticks(0, 0.83))


def test_histogram_says_how_many_there_are_and_how_many_were_bought() -> None:
    drawn = charts.histogram(Counts((2, 0, 5), (1, 0, 0)))
    assert drawn is not None
    assert [re.findall(r"(\d+) questions, (\d+) bought", column.title) for column in drawn.bins] == [
        [("2", "1")],
        [("0", "0")],
        [("5", "0")],
    ]
    assert charts.histogram(Counts()) is None and charts.histogram(Counts((0, 0), (0, 0))) is None


def chosen_from(folder: Path, rows: int, bought: int) -> dict[str, Done]:
    """What *select* and *teach* leave: row i has entropy i / rows, the first one has none, and the last are bought."""
    ids = np.arange(rows)
    entropy = pa.array(ids / rows, mask=ids == 0)
    places = {"id": ids, "difficulty": ids / rows, "entropy": entropy, "x": ids.astype(float), "y": -ids.astype(float)}
    storage.write_table(f"{folder}/select/rows.parquet", pa.table(places), row_group_size=1000)
    storage.write_table(f"{folder}/teach/rationales.parquet", pa.table({"id": ids[rows - bought :]}))
    return {name: Done(name, "", f"{folder}/{name}", {}, 0.0, False) for name in ("select", "teach")}


def test_every_row_of_a_small_corpus_is_on_the_map(tmp_path: Path) -> None:
    points, entropies = write._points(chosen_from(tmp_path, 40, 4), seed=0)
    assert [point.x for point in points] == list(range(40)) and points[0].entropy is None
    assert [point.chosen for point in points] == [False] * 36 + [True] * 4
    assert entropies == Counts((3, *[4] * 9), (*[0] * 9, 4))


def test_a_large_corpus_is_sampled_for_the_map_and_counted_whole(tmp_path: Path) -> None:
    points, entropies = write._points(chosen_from(tmp_path, 50_000, 2_500), seed=0)
    assert sum(point.chosen for point in points) == 300 and len(points) == 3300
    assert sum(entropies.rows) == 49_999 and sum(entropies.chosen) == 2_500
    assert entropies.rows[9] == 5_000 and entropies.chosen == (*[0] * 9, 2_500)
    assert points == write._points(chosen_from(tmp_path / "again", 50_000, 2_500), seed=0)[0]
    large = metrics()
    page = render(
        replace(
            data(corpus=large["corpus"] | {"train": 50_000}, selection=large["selection"] | {"chosen": 2_500}),
            points=points,
        )
    )
    assert "Shown: 3,300 of 50,000 questions, drawn at random: 300 of the 2,500 bought ones and 3,000" in page


def test_geometry_stays_inside_the_drawing() -> None:
    for chart in map(charts.lines, data().losses.values()):
        assert chart is not None
        pairs = [tuple(map(float, vertex.split())) for vertex in chart.path[1:].split("L")]
        assert len(pairs) <= charts.MAX_VERTICES
        assert all(chart.box.left <= x <= chart.box.right and chart.box.top <= y <= chart.box.bottom for x, y in pairs)


def test_large_map_is_thinned() -> None:
    drawn = charts.scatter([Point(i, -i, 0.5, False) for i in range(25_000)])
    assert drawn is not None and drawn.drawn <= charts.MAX_DOTS


def test_lines_need_a_finite_loss() -> None:
    assert charts.lines([{"update": 1, "loss": math.nan}]) is None
    assert charts.lines([{"update": 1, "loss": 0.0}]) is not None


@browser.needed
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(width: int, dark: bool, tmp_path: Path) -> None:
    found = browser.check(render(data()), width, tmp_path, dark)
    assert found.height > 1000 and found.figures == 11


def test_what_a_ratio_is_stands_beside_it() -> None:
    page = render(data())
    assert "relative gain<small>(bridge − direct) / direct: how many more" in page and ">21.0 %<small>" in page
    assert "gap closed<small>(bridge − direct) / (teacher − direct)" in page and ">36.0 %<small>12.0 to 55.0 %" in page
    unknown = metrics()["gap"] | {"gap_closed": None, "gap_closed_interval": None}
    assert "the teacher is not ahead of direct" in render(data(gap=unknown))
    unasked = {name: scores for name, scores in systems().items() if name != "teacher"}
    assert "the teacher itself was not asked" in render(data(gap=unknown, systems=unasked))


def test_replies_without_an_answer_are_a_column_of_every_system() -> None:
    page = render(data())
    assert '<th class="num">no answer</th>' in page and '<td class="num">42.0 %</td>' in page
    assert page.count('<td class="num">0.0 %</td>') == len(ACCURACY) - 1


def test_accuracies_by_difficulty_are_a_chart_and_a_table_where_they_are_known() -> None:
    page = render(data())
    assert "By how hard the questions are" in page and page.count('class="line l-') == 4
    # bridge in the hardest tenth, by hand: 0.74 * (1 - 9 / 20).
    assert '<td class="num strong">40.7 %</td>' in page
    without = {name: {key: part for key, part in s.items() if key != "by_entropy"} for name, s in systems().items()}
    assert "By how hard the questions are" not in render(data(systems=without))


def test_the_ledger_is_shown_with_what_is_open_and_the_cap() -> None:
    page = render(data())
    assert "teach-0123" in page and "2, $0.0040" in page and "46 queries, $1.50" in page
    assert "no entry" not in page and "The ledger could not be read: gone" in render(replace(data(), unread="gone"))


def test_questions_are_grouped_by_who_was_wrong_and_drawn_evenly_from_the_domains() -> None:
    """40 questions, 4 of 5 of them law; bridge is wrong at all, direct right at the first 30."""
    rows = [
        Row(str(i), "yes", {"bridge": ("", False), "direct": ("", i < 30)}, "medicine" if i % 5 == 4 else "law")
        for i in range(40)
    ]
    lost, both = grouped(rows, ["direct", "bridge"])
    assert (lost.title, lost.total, both.total) == ("direct is right and bridge is wrong", 30, 10)
    assert [row.domain for row in lost.rows] == ["law", "medicine"] * 6
    assert [int(row.question) for row in lost.rows if row.domain == "medicine"] == [4, 9, 14, 19, 24, 29]
    assert len(both.rows) == 10 and both.title == "bridge and direct are both wrong"
    [alone] = grouped(rows, ["bridge"])
    assert (alone.title, alone.total, len(alone.rows)) == ("bridge is wrong", 40, 12)
    [asked] = grouped(rows, ["direct"])
    assert (asked.title, asked.total) == ("questions", 40)


def test_the_page_says_how_many_of_how_many_it_shows_and_puts_teacher_ta_and_student_first() -> None:
    page = render(data())
    assert "5 of 48 are shown" in page
    found = re.findall(r"<h4>(\w+): <b", page)[: len(ACCURACY)]
    assert found[:3] == ["teacher", "ta", "bridge"] and set(found) == set(ACCURACY)


# --- the model card


def card(**teacher: Any) -> str:
    fields = {"model": "gpt-4o", "price": {"input": 1, "output": 2}, **teacher}
    made = config.validate({"name": "mine", "teacher": fields}, "test")
    stages = ("corpus", "train_ta", "train_student")
    made_of = {"train_ta": {"adapter": "sha256-of-the-adapter"}}
    finished = {
        name: Done(name, f"{name}-hash", f"/storage/{name}", made_of.get(name, {}), 1.0, False) for name in stages
    }
    return model_card(made, finished, metrics() | {"teacher": metrics()["teacher"] | {"standin": "standin" in teacher}})


def test_the_card_says_where_the_questions_went_and_what_is_to_be_checked() -> None:
    text = card(base_url="https://api.example.com/v1")
    assert "went to api.example.com, with the gold answer" in text and "is for you to check" in text
    assert "stand-in" not in text
    assert "Nothing: the teacher was a stand-in" in card(standin={"answers": "expert"})


def test_the_card_has_lineage_scores_and_the_hub_s_header() -> None:
    text = card()
    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == "unknown" and "base_model" not in header  # the embedded model is no hub id
    assert "`corpus-hash`" in text and "`sha256-of-the-adapter`" in text and "/storage/train_student/model" in text
    assert "| bridge | 74.0 % | 69.0 to 79.0 % | 300 |" in text
    assert "answer (1 epochs), then rationale (3 epochs)" in text
