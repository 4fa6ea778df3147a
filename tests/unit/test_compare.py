"""bridge-ray compare: two runs side by side, paired where they answered the same questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge_ray import cli, storage
from tests.runs import leave

BEFORE = {"direct": [1, 0] * 10, "bridge": [1, 1, 0, 0] * 5}
# Of bridge's 20 answers, the 5 at every fourth place from the third have become right, and none wrong.
AFTER = {"bridge": [1, 1, 1, 0] * 5, "ta": [1] * 20}


def compare(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The command line in this process: exit code, standard output in one line, standard error."""
    with pytest.raises(SystemExit) as ended:
        cli.main("compare", *map(str, arguments))
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def compared(capsys: pytest.CaptureFixture[str], root: Path) -> dict[str, Any]:
    code, out, err = compare(capsys, "before", "after", "--storage", root, "--json")
    assert (code, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_same_questions_are_compared_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path, "before", BEFORE)
    leave(tmp_path, "after", AFTER, "budget.fraction=0.1", "seed=1")
    found = compared(capsys, tmp_path)
    assert found["questions"] == {"in_common": 20, "paired": True}
    assert found["config"] == {"seed": [0, 1], "budget.fraction": [0.05, 0.1]}
    assert list(found["systems"]) == ["direct", "bridge", "ta"]
    bridge = found["systems"]["bridge"]
    assert [score["accuracy"] for score in bridge["scores"]] == [0.5, 0.75]
    # By hand: 5 questions only after, none only before: 2 * (1/2)^5.
    assert bridge["difference"]["mcnemar"] == {"only_one": 5, "only_other": 0, "p": 0.0625}
    assert bridge["difference"]["difference"] == 0.25 and bridge["difference"]["interval"][0] > 0
    assert found["systems"]["ta"] == {"scores": [None, found["systems"]["ta"]["scores"][1]], "difference": None}
    # 11 stages of 10, 20, ... 110 s.
    assert [run["hours"] for run in found["runs"]] == [round(660 / 3600, 4)] * 2
    assert [(run["queries"], run["usd"]) for run in found["runs"]] == [(3, 0.012)] * 2


def test_questions_in_another_order_are_paired_by_what_they_ask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Turned round two by two, so that a question keeps its domain and its answer."""
    asked = [f"Question {i}?" for i in range(4)]
    leave(tmp_path, "before", {"bridge": [1, 0, 0, 0]}, questions=asked)
    leave(tmp_path, "after", {"bridge": [0, 0, 1, 0]}, questions=asked)
    assert compared(capsys, tmp_path)["systems"]["bridge"]["difference"]["mcnemar"]["only_one"] == 1
    for stage in ("corpus", "evaluate"):
        name = {"corpus": "test/rows.parquet", "evaluate": "predictions.parquet"}[stage]
        file = str(tmp_path / "stages" / stage / f"after-{stage}" / name)
        table = storage.read_table(file)
        turned = table.set_column(0, "id", table["id"].take([3, 2, 1, 0]))
        storage.write_table(file, turned.take([2, 0, 3, 1]))
    again = compared(capsys, tmp_path)
    assert again["questions"]["paired"]
    assert again["systems"]["bridge"]["difference"]["mcnemar"] == {"only_one": 1, "only_other": 1, "p": 1.0}


def test_a_run_that_was_asked_more_is_compared_by_what_both_were_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All right in the first 6 of 10, and wrong in the others: the 4 that both were asked are all right in both."""
    asked = [f"Question {i}?" for i in range(10)]
    leave(tmp_path, "before", {"bridge": [1] * 6 + [0] * 4}, questions=asked)
    leave(tmp_path, "after", {"bridge": [1] * 4}, questions=asked[:4])
    found = compared(capsys, tmp_path)
    assert found["questions"] == {"in_common": 4, "paired": True}
    bridge = found["systems"]["bridge"]
    assert [(score["accuracy"], score["n"]) for score in bridge["scores"]] == [(1.0, 4), (1.0, 4)]
    assert bridge["difference"]["difference"] == 0.0
    _, out, _ = compare(capsys, "before", "after", "--storage", tmp_path)
    assert "Both answered the same 4 questions of 10; all of this is of those" in " ".join(out.split())


def test_other_questions_are_not_paired_and_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path, "before", BEFORE)
    leave(tmp_path, "after", AFTER, questions=[f"Is other {i} odd?" for i in range(20)])
    found = compared(capsys, tmp_path)
    assert found["questions"] == {"in_common": 0, "paired": False}
    bridge = found["systems"]["bridge"]["difference"]
    assert bridge["difference"] == 0.25 and bridge["mcnemar"] is None
    # By hand: 1.96 * sqrt(0.25 / 20 + 0.1875 / 20) = 0.29 on either side.
    assert bridge["interval"] == pytest.approx([0.25 - 0.29, 0.25 + 0.29], abs=0.08)
    code, out, _ = compare(capsys, "before", "after", "--storage", tmp_path)
    said = " ".join(out.split())
    assert code == 0 and "They cannot be paired: 0 of 20 and 20 questions are the same" in said


def test_the_tables_say_what_differs_and_what_may_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path, "before", BEFORE)
    leave(tmp_path, "after", AFTER, "budget.fraction=0.1")
    code, out, _ = compare(capsys, "before", "after", "--storage", tmp_path)
    said = " ".join(out.split())
    assert code == 0
    for part in ("budget.fraction", "50.0 %", "75.0 %", "+25.0", "0.062", "$0.01", "11 min 00 s"):
        assert part in said, part
    assert "bridge of after is better than bridge of before by 25.0 points" in said
    assert "Both answered the same 20 questions" in said


def test_a_run_that_was_not_evaluated_is_compared_as_far_as_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(tmp_path, "before", BEFORE)
    leave(tmp_path, "after", AFTER, until="teach")
    found = compared(capsys, tmp_path)
    assert found["systems"]["bridge"]["difference"] is None and found["runs"][1]["state"] == "stopped"
    assert "after has not been evaluated" in compare(capsys, "before", "after", "--storage", tmp_path)[1]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("before", "chosen"), "before was evaluated on the test split and chosen on dev, which are not comparable"),
        (("before", "before"), "name two different runs"),
        (("before", "gone"), "no such run"),
        (("many", "before"), "many is no single run; look at"),
    ],
)
def test_what_is_unlike_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, str], said: str
) -> None:
    leave(tmp_path, "before", BEFORE)
    leave(tmp_path, "chosen", AFTER, "evaluate.split=dev")
    storage.write_json(str(tmp_path / "runs" / "many" / "frontier.json"), {})
    code, out, err = compare(capsys, *names, "--storage", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1) and said in err
